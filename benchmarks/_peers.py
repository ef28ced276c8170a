"""What other programs make of Σ λᵢ ΔWᵢ, as dense matrices: kohya transcribed, PEFT itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Factors:
    """One layer of an adapter.

    Args:
        down: A, ``[rank, in(, kh, kw)]``, float32.
        up: B, ``[out, rank(, 1, 1)]``, float32.
        alpha: alpha / rank is the scale.
    """

    down: Tensor
    up: Tensor
    alpha: float

    def dense(self) -> Tensor:
        """ΔW ``[out, in · kh · kw]``, float64."""
        product = self.up.double().flatten(1) @ self.down.double().flatten(1)
        return self.alpha / len(self.down) * product


def read(path: Path) -> dict[str, Factors]:
    """Module → factors of a file in diffusers' dialect with one rank and alpha."""
    with safe_open(path, "pt") as file:
        said = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
        tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118
    ups = {key.removesuffix(".lora_B.weight"): up for key, up in tensors.items() if "lora_B" in key}
    downs = {name: tensors[f"{name}.lora_A.weight"] for name in ups}
    alpha = said.get("unet.lora_alpha", len(next(iter(downs.values()))))
    return {name: Factors(downs[name], up, float(alpha)) for name, up in ups.items()}


def kohya_sum(terms: Sequence[Factors], weights: Sequence[float]) -> Tensor | None:
    """``merge_lora.py``: √(αᵢ/α₁)·λᵢ on both factors, which are added; None of unequal ranks."""
    if len({len(term.down) for term in terms}) > 1:
        return None
    up, down = (sum(side, torch.zeros(())) for side in _scaled(terms, weights))
    return terms[0].alpha / len(down) * (up @ down)


def kohya_concat(terms: Sequence[Factors], weights: Sequence[float]) -> Tensor:
    """``merge_lora.py --concat``: the same side by side, under the first alpha."""
    ups, downs = _scaled(terms, weights)
    up, down = torch.cat(ups, 1), torch.cat(downs)
    return terms[0].alpha / len(down) * (up @ down)


def _scaled(terms: Sequence[Factors], weights: Sequence[float]) -> tuple[list[Tensor], ...]:
    """The sign of λ goes into down."""
    shares = [math.sqrt(t.alpha / terms[0].alpha) * w for t, w in zip(terms, weights, strict=True)]
    ups = [abs(s) * term.up.flatten(1) for s, term in zip(shares, terms, strict=True)]
    return ups, [s * term.down.flatten(1) for s, term in zip(shares, terms, strict=True)]


def kohya_svd(terms: Sequence[Factors], weights: Sequence[float]) -> Tensor:
    """``svd_merge_lora.py`` at a rank that loses nothing: σ goes into U, then both are clamped."""
    total = torch.stack([w * t.dense() for t, w in zip(terms, weights, strict=True)]).sum(0).float()
    kept = min(sum(len(t.down) for t in terms), *terms[0].down.shape[1:2], len(total))
    u, s, vh = torch.linalg.svd(total, full_matrices=False)
    up, down = u[:, :kept] * s[:kept], vh[:kept]
    most = float(torch.quantile(torch.cat([up.flatten(), down.flatten()]), 0.99))
    clamped: Tensor = up.clamp(-most, most) @ down.clamp(-most, most)
    return clamped


KOHYA: Final[Mapping[str, Callable[[Sequence[Factors], Sequence[float]], Tensor | None]]] = {
    "kohya `merge_lora.py`, transcribed": kohya_sum,
    "kohya `merge_lora.py --concat`, transcribed": kohya_concat,
    "kohya `svd_merge_lora.py` at rank Σr, transcribed": kohya_svd,
}
# PEFT's way → whether the rank is Σr, else what PEFT takes (the greatest).
PEFT: Final = {
    "PEFT `cat`": ("cat", False),
    "PEFT `linear`": ("linear", False),
    "PEFT `svd` at rank Σr": ("svd", True),
    "PEFT `svd` at its default rank": ("svd", False),
}


def peft_sums(
    vectors: Sequence[Mapping[str, Factors]], weights: Sequence[float]
) -> dict[str, dict[str, Tensor | None]]:
    """Row of PEFT → module → ΔW by ``add_weighted_adapter``; None of unequal ranks."""
    model, layers = _peft_model(vectors)
    names, total = [f"own{i}" for i in range(len(vectors))], 0
    for own, vector in zip(names, vectors, strict=True):
        total += len(next(iter(vector.values())).down)
        for module, factors in vector.items():
            layers[module].lora_A[own].weight.data.copy_(factors.down)
            layers[module].lora_B[own].weight.data.copy_(factors.up)
    found: dict[str, dict[str, Tensor | None]] = {}
    for row, (kind, whole) in PEFT.items():
        options: dict[str, Any] = {"svd_rank": total} if whole else {}
        if kind == "svd":
            options["svd_full_matrices"] = False  # for speed, the same numbers
        made = f"{kind}{whole}"
        try:
            model.add_weighted_adapter(names, list(weights), made, kind, **options)
        except ValueError:
            found[row] = dict.fromkeys(layers)
            continue
        found[row] = {m: _dense(layer, made) for m, layer in layers.items()}
    return found


def _dense(layer: Any, name: str) -> Tensor:
    """As its ``get_delta_weight``, in float64."""
    down, up = layer.lora_A[name].weight.detach(), layer.lora_B[name].weight.detach()
    return Factors(down, up, layer.scaling[name] * len(down)).dense()


def _peft_model(vectors: Sequence[Mapping[str, Factors]]) -> tuple[Any, dict[str, Any]]:
    """A model of bare layers with one adapter for each vector, and its layers by module."""
    from peft import LoraConfig, get_peft_model

    bare = nn.ModuleDict()
    for module, factors in vectors[0].items():
        width, out = factors.down.shape[1], len(factors.up)
        kernel: Any = tuple(factors.down.shape[2:])
        bare[module.replace(".", "_")] = (
            nn.Conv2d(width, out, kernel, bias=False) if kernel else nn.Linear(width, out, False)
        )
    model: Any = None
    for index, vector in enumerate(vectors):
        one = next(iter(vector.values()))
        alpha: Any = one.alpha  # PEFT says int, and takes any number
        config = LoraConfig(r=len(one.down), lora_alpha=alpha, target_modules=list(bare))
        if model is None:
            model = get_peft_model(bare, config, f"own{index}")
        else:
            model.add_adapter(f"own{index}", config)
    return model, {m: model.base_model.model[m.replace(".", "_")] for m in vectors[0]}


def score(
    found: Mapping[str, Tensor | None],
    vectors: Sequence[Mapping[str, Factors]],
    weights: Sequence[float],
) -> tuple[float, str]:
    """Relative error of a result, and that with its realised weights as a cell."""
    rest, truth = 0.0, 0.0
    gram, right = torch.zeros(2, 2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    for module, made in found.items():
        if made is None:
            return math.inf, "refuses"
        if module not in vectors[0]:
            continue
        deltas = torch.stack([vector[module].dense().flatten() for vector in vectors])
        result = made.double().flatten()
        wanted = torch.tensor(weights, dtype=torch.float64) @ deltas
        rest, truth = (
            rest + float((result - wanted).square().sum()),
            truth + float(wanted.square().sum()),
        )
        gram, right = gram + deltas @ deltas.T, right + deltas @ result
    error, fit = math.sqrt(rest / truth), torch.linalg.solve(gram, right).tolist()
    return error, f"{error:.1e}; {fit[0]:.3f}, {fit[1]:.3f}"
