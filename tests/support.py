"""Adapters with awkward shapes, for every test of the arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cache

import torch

from lcm_arith.delta import LowRankDelta
from lcm_arith.modules import table
from lcm_arith.vector import Source, TaskVector

# Conv 3×3, conv 1×1, conv with stride, linear: [out, in(, kh, kw)] as in the embedded UNet.
MODULES = {
    "unet.down_blocks.0.resnets.0.conv1": (128, 128, 3, 3),
    "unet.down_blocks.0.attentions.0.proj_in": (128, 128, 1, 1),
    "unet.down_blocks.0.downsamplers.0.conv": (128, 128, 3, 3),
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (192, 128),
}


def random_delta(shape: tuple[int, ...], rank: int, alpha: float, seed: int) -> LowRankDelta:
    """A delta of ΔW entries around 0.01, with alpha ≠ rank where asked for."""
    generator = torch.Generator().manual_seed(seed)
    out, inner = shape[0], shape[1:]
    down = torch.randn((rank, *inner), generator=generator) * 0.1
    up = torch.randn((out, rank, *[1] * (len(shape) - 2)), generator=generator) * 0.1
    return LowRankDelta(down, up, alpha / rank)


def random_vector(
    rank: int, alpha: float, seed: int, modules: Mapping[str, tuple[int, ...]] | None = None
) -> TaskVector:
    """A task vector over ``MODULES``, or others."""
    chosen = MODULES if modules is None else modules
    deltas = {
        name: random_delta(shape, rank, alpha, seed + index)
        for index, (name, shape) in enumerate(chosen.items())
    }
    return TaskVector(((1.0, Source(deltas, {"sha256": f"random-{seed}"})),))


def dense(tau: TaskVector) -> dict[str, torch.Tensor]:
    """Every module multiplied out in float64."""
    return {module: tau[module].dense(torch.float64) for module in tau}


def whole_adapter(
    family: str, endings: Sequence[str], ranks: Sequence[int] = (1,)
) -> dict[str, LowRankDelta]:
    """A random update of every module of a family whose path ends so; ``ranks`` in turn."""
    return dict(_whole_adapter(family, tuple(endings), tuple(ranks)))


@cache
def _whole_adapter(
    family: str, endings: tuple[str, ...], ranks: tuple[int, ...]
) -> dict[str, LowRankDelta]:
    generator = torch.Generator().manual_seed(0)
    deltas: dict[str, LowRankDelta] = {}
    for module, shape in table(family).items():
        path = module.split(".", 1)[1]
        if len(shape) < 2 or not any(path == e or path.endswith(f".{e}") for e in endings):
            continue
        rank, ones = ranks[len(deltas) % len(ranks)], (1,) * (len(shape) - 2)
        down = torch.randn(rank, *shape[1:], generator=generator)
        up = torch.randn(shape[0], rank, *ones, generator=generator)
        deltas[module] = LowRankDelta(down, up)
    return deltas


def relative_error(one: LowRankDelta, other: LowRankDelta) -> float:
    """‖one − other‖ / ‖other‖, from the factors, float64."""

    def dot(a: LowRankDelta, b: LowRankDelta) -> float:
        ups = a.up.flatten(1).double().T @ b.up.flatten(1).double()
        downs = a.down.flatten(1).double() @ b.down.flatten(1).double().T
        return a.scale * b.scale * float((ups * downs).sum())

    return math.sqrt(max(0.0, dot(one, one) - 2 * dot(one, other) + dot(other, other))) / math.sqrt(
        dot(other, other)
    )
