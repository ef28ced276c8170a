"""Proof that a written vector is what the target library loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith.adapters import load
from lcm_arith.base_files import PARTS, folder_kind
from lcm_arith.bases import Base
from lcm_arith.errors import VerificationError
from lcm_arith.modules import with_text_model
from lcm_arith.sampling import load_pipeline, pipeline_class

_ADAPTER: Final = "proof"
_TOLERANCE: Final = 1e-6  # of the largest entry: the same float32 product, in another order


def prove_loads(path: Path, base: Path | Base) -> None:
    """Loads ``path`` by ``load_lora_weights`` into a fresh pipeline and compares every module.

    Args:
        path: File of the vector.
        base: The model that it is for, or its diffusers folder. A model may be carrying adapters:
            what the vector is loaded into is a copy without weights.

    Raises:
        VerificationError: If diffusers refuses it, places a module that the file does not name,
            misses one, or scales one differently.
    """
    own = base.pipeline if isinstance(base, Base) else load_pipeline(base, folder_kind(base))
    tau, pipeline = load(path), without_weights(own)
    try:
        pipeline.load_lora_weights(path.parent, weight_name=path.name, adapter_name=_ADAPTER)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise VerificationError(
            f"{path}: diffusers does not load it: {str(error).strip()[:300]}",
            hint="please report it with the file",
        ) from error
    placed = _placed(pipeline)
    missing, extra = set(tau) - set(placed), set(placed) - set(tau)
    wrong = {m for m in set(tau) & set(placed) if not _equal(tau[m].dense(), placed[m])}
    if missing or extra or wrong:
        raise VerificationError(
            f"{path}: diffusers loads it differently: {len(missing)} modules missing, "
            f"{len(extra)} not asked for, {len(wrong)} with other values "
            f"({', '.join(sorted(missing | extra | wrong)[:3])})",
            hint="please report it with the file",
        )


def without_weights(pipeline: Any) -> Any:
    """The same architecture, without adapters; weights take no memory, what is gone stays so."""
    parts = dict(pipeline.components)
    for name in parts.keys() & set(PARTS["sdxl"]):
        parts[name] = None if parts[name] is None else _hollow(parts[name])
    kind = "sdxl" if "text_encoder_2" in parts else "sd"
    cls, options = pipeline_class(kind)
    return cls(**{name: option for name, option in options.items() if name != "dtype"} | parts)


def _hollow(model: Any) -> Any:
    """The model of a configuration; every weight is one number, seen in the weight's shape."""
    make = getattr(type(model), "from_config", type(model))
    with torch.device("meta"):
        empty = make(model.config)
    for module in empty.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.zeros(()).expand(weight.shape)))
        for name, values in module.named_buffers(recurse=False):
            setattr(module, name, torch.zeros((), dtype=values.dtype).expand(values.shape))
    return empty


def _placed(pipeline: Any) -> dict[str, Any]:
    """Module → PEFT's layer, of UNet and text encoders."""
    from peft.tuners.lora import LoraLayer

    return {
        with_text_model(f"{component}.{name}"): layer
        for component, model in pipeline.components.items()
        if isinstance(model, torch.nn.Module)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }


def _equal(ours: torch.Tensor, layer: Any) -> bool:
    up, down = layer.lora_B[_ADAPTER].weight, layer.lora_A[_ADAPTER].weight
    theirs = layer.scaling[_ADAPTER] * (up.flatten(1).float() @ down.flatten(1).float())
    error = (theirs.reshape(ours.shape) - ours).abs().max()
    largest = ours.abs().max().clamp(min=torch.finfo(torch.float32).tiny)
    return bool(error <= _TOLERANCE * largest)
