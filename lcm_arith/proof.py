"""Proof that a written vector is what the target library loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith.adapters import load
from lcm_arith.errors import VerificationError
from lcm_arith.modules import with_text_model
from lcm_arith.sampling import load_pipeline

_TOLERANCE: Final = 1e-6  # of the largest entry: the same float32 product, in another order


def prove_loads(path: Path, base: Path) -> None:
    """Loads ``path`` by ``load_lora_weights`` into a fresh pipeline and compares every module.

    Raises:
        VerificationError: If diffusers places a module that the file does not name, misses one, or
            scales one differently.
    """
    from peft.tuners.lora import LoraLayer

    tau, pipeline = load(path), load_pipeline(base)
    pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name="proof")
    placed = {}
    for component in ("unet", "text_encoder"):
        for name, layer in getattr(pipeline, component).named_modules():
            if isinstance(layer, LoraLayer):
                placed[with_text_model(f"{component}.{name}")] = layer
    missing, extra = set(tau) - set(placed), set(placed) - set(tau)
    wrong = []
    for module in set(tau) & set(placed):
        at: Any = placed[module]
        ours = tau[module].dense()
        up, down = at.lora_B["proof"].weight, at.lora_A["proof"].weight
        theirs = at.scaling["proof"] * (up.flatten(1).float() @ down.flatten(1).float())
        error = (theirs.reshape(ours.shape) - ours).abs().max()
        if not error <= _TOLERANCE * ours.abs().max().clamp(min=torch.finfo(torch.float32).tiny):
            wrong.append(module)
    if missing or extra or wrong:
        raise VerificationError(
            f"{path}: diffusers loads it differently: {len(missing)} modules missing, "
            f"{len(extra)} not asked for, {len(wrong)} with other values "
            f"({', '.join(sorted(missing | extra | set(wrong))[:3])})",
            hint="please report it with the file",
        )
