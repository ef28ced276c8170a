"""The methods of ``lcm_arith.methods`` by their papers' formulas, on dense float64 updates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor


def _leading(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :count], s[:count], vh[:count]


def _isometry(stacked: Sequence[Tensor]) -> Tensor:
    """Polar factor of columns side by side."""
    u, _, vh = torch.linalg.svd(torch.cat(list(stacked), 1), full_matrices=False)
    isometry: Tensor = u @ vh
    return isometry


def dense_linear(deltas: Sequence[Tensor], ranks: Sequence[int], kept: int) -> Tensor:
    """Best approximation of the sum."""
    u, s, vh = _leading(sum(deltas, torch.zeros(())), kept)
    return u * s @ vh


def dense_tsv_m(deltas: Sequence[Tensor], ranks: Sequence[int], kept: int) -> Tensor:
    """Each term's leading triplets by its share of the rank; both stacks made orthonormal."""
    share = [min(r, max(1, kept * r // sum(ranks))) for r in ranks]
    u, s, vh = zip(*(_leading(d, n) for d, n in zip(deltas, share, strict=True)), strict=True)
    return _isometry(u) * torch.cat(s) @ _isometry([own.T for own in vh]).T


def dense_iso_c(deltas: Sequence[Tensor], ranks: Sequence[int], kept: int) -> Tensor:
    """The sum's directions, all with their mean singular value."""
    u, s, vh = _leading(sum(deltas, torch.zeros(())), kept)
    return s.mean() * (u @ vh)


def dense_iso_cts(deltas: Sequence[Tensor], ranks: Sequence[int], kept: int) -> Tensor:
    """⌊0.8 R⌋ directions of the sum, ⌊rest / T⌋ of what each term adds, one singular value."""
    kept = min(kept, *deltas[0].shape)
    common = int(0.8 * kept)
    u, s, vh = _leading(sum(deltas, torch.zeros(())), common)
    rest = [_leading(d - u @ (u.T @ d), (kept - common) // len(deltas)) for d in deltas]
    value = torch.cat([s, *(own for _, own, _ in rest)]).mean()
    right = _isometry([vh.T, *(own.T for *_, own in rest)])
    return value * _isometry([u, *(own for own, *_ in rest)]) @ right.T


def dense_cart(deltas: Sequence[Tensor], ranks: Sequence[int], kept: int) -> Tensor:
    """The sum and the leading 4 % of each term's difference from the mean, at least one."""
    total = sum(deltas, torch.zeros(()))
    count = max(1, int(0.04 * min(sum(ranks), *total.shape)))
    parts = [_leading(d - total / len(deltas), count) for d in deltas]
    return dense_linear([total, *(u * s @ vh for u, s, vh in parts)], ranks, kept)


def dense_orthogonal(deltas: Sequence[Tensor], ranks: Sequence[int], kept: int) -> Tensor:
    """All but the last off the output directions that hold 90 % of the last one's energy."""
    *others, last = deltas
    u, s, _ = _leading(last, ranks[-1])
    u = u[:, : 1 + int((s.square().cumsum(0) < 0.9 * s.square().sum()).sum())]
    return dense_linear([*(d - u @ (u.T @ d) for d in others), last], ranks, kept)


DENSE: Final = {
    "linear": dense_linear,
    "tsv-m": dense_tsv_m,
    "iso-c": dense_iso_c,
    "iso-cts": dense_iso_cts,
    "cart": dense_cart,
    "orthogonal": dense_orthogonal,
}
"""Method of the package → (ΔWᵢ with their λ, ranks, rank of the result) → result."""
