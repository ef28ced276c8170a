"""What an adapter's tensors mean: ΔW by its plain formula, dense, float64.

Nothing here uses the package's readers or factors; of its tables, only Stability's names of the
UNet's layers.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from safetensors import safe_open
from torch import Tensor

from lcm_arith.modules import sgm_names

Parts = dict[str, Tensor]
Drawn = tuple[Parts, Tensor]
"""Ending of a key → tensor, and ΔW in float64."""
Draw = Callable[[torch.Generator, Sequence[int], int, float], Drawn]
"""(random numbers, shape of the weight, rank, alpha) → what a file holds, and what that means."""


def _some(random: torch.Generator, *shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=random)


def _heads(random: torch.Generator) -> bool:
    return bool(torch.rand((), generator=random) < 0.5)


def lora(random: torch.Generator, shape: Sequence[int], rank: int, alpha: float) -> Drawn:
    """ΔW = α/r · B A; of a convolution B is 1 × 1."""
    down, up = _some(random, rank, *shape[1:]), _some(random, shape[0], rank)
    delta = alpha / rank * (up.double() @ down.double().flatten(1)).reshape(*shape)
    up = up.reshape(*up.shape, *shape[2:] and (1, 1))
    return {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}, delta


def rslora(random: torch.Generator, shape: Sequence[int], rank: int, alpha: float) -> Drawn:
    """ΔW = α/√r · B A, α in the header."""
    parts, delta = lora(random, shape, rank, alpha * math.sqrt(rank))
    return {ending: tensor for ending, tensor in parts.items() if ending != "alpha"}, delta


def cp(random: torch.Generator, shape: Sequence[int], rank: int, alpha: float) -> Drawn:
    """Three convolutions, 1 × 1, k × k, 1 × 1."""
    down, up = _some(random, rank, shape[1]), _some(random, shape[0], rank)
    mid = _some(random, rank, rank, *shape[2:])
    delta = torch.einsum("or,rskl,si->oikl", up.double(), mid.double(), down.double())
    parts = {"lora_down.weight": down[..., None, None], "lora_up.weight": up[..., None, None]}
    return {**parts, "lora_mid.weight": mid, "alpha": torch.tensor(alpha)}, alpha / rank * delta


def loha(random: torch.Generator, shape: Sequence[int], rank: int, alpha: float) -> Drawn:
    """ΔW = α/r · (B₁A₁) ∘ (B₂A₂); of a convolution flat, or through two cores (Tucker)."""
    parts: Parts = {"alpha": torch.tensor(alpha)}
    whole = torch.full(tuple(shape), alpha / rank, dtype=torch.float64)
    tucker = len(shape) == 4 and _heads(random)
    for side in ("1", "2"):
        a = _some(random, shape[0], rank)
        b = _some(random, rank, shape[1] if tucker else math.prod(shape[1:]))
        if tucker:
            core = parts[f"hada_t{side}"] = _some(random, rank, rank, *shape[2:])
            both = torch.einsum("or,rskl,si->oikl", a.double(), core.double(), b.double())
        else:
            both = (a.double() @ b.double()).reshape(*shape)
        whole = whole * both
        parts |= {f"hada_w{side}_a": a.T.contiguous() if tucker else a, f"hada_w{side}_b": b}
    return parts, whole


def lokr(random: torch.Generator, shape: Sequence[int], rank: int, alpha: float) -> Drawn:
    """ΔW = w₁ ⊗ w₂, each whole or a product; α/r counts where one is a product."""
    parts: Parts = {"alpha": torch.tensor(alpha)}
    scale, kernel = 1.0, tuple(shape[2:])
    w1, w2 = _some(random, 8, 8), _some(random, shape[0] // 8, shape[1] // 8, *kernel)
    if _heads(random):
        a, b = _some(random, 8, rank), _some(random, rank, 8)
        parts |= {"lokr_w1_a": a, "lokr_w1_b": b}
        w1, scale = a.double() @ b.double(), alpha / rank
    else:
        parts["lokr_w1"] = w1
    if _heads(random):
        a, b = _some(random, len(w2), rank), _some(random, rank, w2.shape[1])
        scale = alpha / rank
        if kernel:
            core = parts["lokr_t2"] = _some(random, rank, rank, *kernel)
            w2 = torch.einsum("or,rskl,si->oikl", a.double(), core.double(), b.double())
        else:
            w2 = a.double() @ b.double()
        parts |= {"lokr_w2_a": a.T.contiguous() if kernel else a, "lokr_w2_b": b}
    else:
        parts["lokr_w2"] = w2
    w1, w2 = w1.double(), w2.double()
    blocks = torch.einsum("ab,cd...->acbd...", w1, w2)  # [o1, o2, i1, i2(, kh, kw)]
    return parts, scale * blocks.reshape(*shape)


def full(random: torch.Generator, shape: Sequence[int], rank: int, alpha: float) -> Drawn:
    """A whole difference, of a weight or of a list of numbers."""
    weight = _some(random, *shape)
    return {"diff": weight}, weight.double()


def base_weight(shape: Sequence[int]) -> Tensor:
    """W of every layer of that shape."""
    return _some(torch.Generator().manual_seed(math.prod(shape)), *shape)


def dora(random: torch.Generator, shape: Sequence[int], rank: int, alpha: float) -> Drawn:
    """W' = m ∘ (W + BA) / ‖W + BA‖, row by row; rows change by 5 %."""
    parts, delta = lora(random, shape, rank, alpha)
    weight = base_weight(shape).double()
    lengths = weight.flatten(1).norm(dim=1).float() * (1 + 0.5 * _some(random, shape[0]))
    magnitude = lengths.reshape(-1, *(1,) * (len(shape) - 1))
    return {**parts, "dora_scale": magnitude}, turned(weight + delta, magnitude) - weight


def turned(whole: Tensor, magnitude: Tensor) -> Tensor:
    """The rows of ``whole`` at other lengths."""
    rows = (len(whole), *(1,) * (whole.ndim - 1))
    lengths = whole.flatten(1).norm(dim=1).reshape(rows)
    rescaled: Tensor = magnitude.double().reshape(rows) * whole / lengths
    return rescaled


STABILITY: Final = sgm_names("sd15")
# Dialect → the name of a layer of SD1.5 in it, from its component and path.
STEMS: Final[Mapping[str, Callable[[str, str], str]]] = {
    "diffusers": lambda component, path: f"{component}.{path}",
    "peft": lambda component, path: f"base_model.model.{path}",
    "kohya": lambda component, path: (
        f"lora_{'unet' if component == 'unet' else 'te'}_{path}".replace(".", "_")
    ),
    "kohya-sgm": lambda component, path: (
        f"lora_unet_{STABILITY[f'unet.{path}']}" if component == "unet" else f"lora_te_{path}"
    ).replace(".", "_"),
    "comfy": lambda component, path: (
        f"diffusion_model.{STABILITY[f'unet.{path}']}"
        if component == "unet"
        else f"text_encoders.clip_l.transformer.{path}"
    ),
}


def stem(target: str, form: str) -> str:
    """The name in a dialect of the layer that a target belongs to."""
    component, path = target.removesuffix(".bias").split(".", 1)
    return STEMS[form](component, path)


def vector_ending(target: str) -> str:
    """Of the key of a bias, or of a norm's weight or bias."""
    norm = "norm" in target.removesuffix(".bias").rpartition(".")[2]
    return {(True, True): "b_norm", (True, False): "w_norm"}.get(
        (norm, target.endswith(".bias")), "diff_b"
    )


def meaning(
    path: Path, form: str, shapes: Mapping[str, Sequence[int]], *, base: bool = False
) -> dict[str, Tensor]:
    """Target → ΔW of a file of two factors a layer, as its dialect's readers multiply it out.

    Args:
        path: A safetensors file.
        form: Its dialect.
        shapes: Of the targets that it has to have, all, and no other.
        base: Whether magnitudes stretch the rows of ``base_weight``.
    """
    with safe_open(path, "pt") as file:
        said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 is no dict
    found: dict[str, Tensor] = {}
    for target, shape in shapes.items():
        name = stem(target, form)
        if len(shape) == 1:
            ending = vector_ending(target)
            if ending == "b_norm" and target.removesuffix(".bias") not in shapes:
                ending = "diff_b"  # readers know a norm by its weight
            found[target] = tensors.pop(f"{name}.{ending}").double().flatten()
            continue
        dotted = form in ("diffusers", "peft")
        down = tensors.pop(f"{name}.{'lora_A' if dotted else 'lora_down'}.weight").double()
        up = tensors.pop(f"{name}.{'lora_B' if dotted else 'lora_up'}.weight").double()
        alpha = _configured(said, target) if dotted else float(tensors.pop(f"{name}.alpha"))
        delta = alpha / len(down) * (up.flatten(1) @ down.flatten(1)).reshape(*shape)
        if base:
            weight = base_weight(shape).double()
            ending = "lora_magnitude_vector" if dotted else "dora_scale"
            delta = turned(weight + delta, tensors.pop(f"{name}.{ending}")) - weight
        found[target] = delta
    if tensors:
        raise ValueError(f"{path}: {', '.join(sorted(tensors)[:3])} are of no target")
    return found


def _configured(said: Mapping[str, object], module: str) -> float:
    """Alpha by PEFT's rule."""
    component, path = module.split(".", 1)
    patterns = said.get(f"{component}.alpha_pattern")
    own = patterns.items() if isinstance(patterns, dict) else ()
    whole = float(str(said[f"{component}.lora_alpha"]))
    return next((float(a) for p, a in own if re.match(rf"(.*\.)?({p})$", path)), whole)
