"""METHODS: ways to combine the terms of a module, each on their cores (:mod:`lcm_arith.stack`).

A term already carries its weight λ. Every method here commutes with rotations, so that it gives on
the cores what its paper gives on the dense updates; each lies beside its formula.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lcm_arith import elementwise
from lcm_arith.analysis import inner
from lcm_arith.delta import LowRankDelta, alike, concatenate
from lcm_arith.elementwise import RULES, How
from lcm_arith.errors import UsageError
from lcm_arith.pool import one_thread
from lcm_arith.stack import Stack

Triplets = tuple[Tensor, Tensor, Tensor]
"""U ``[p, r]``, σ ``[r]``, V ``[q, r]`` of a result U diag(σ) Vᵀ."""

MethodFunction = Callable[[Stack, int | None], Triplets]
"""(terms, asked rank or None) → singular triplets of the result in the stack's basis."""

COMMON_SHARE: Final = 0.8  # of Iso-CTS's directions that the sum decides
CART_SHARE: Final = 0.04  # of the core's rank that each term's difference keeps
DOMINANT_ENERGY: Final = 0.9  # of the acceleration vector, in the directions that are projected out


@dataclass(frozen=True)
class Method:
    """A row of METHODS.

    Args:
        name: As users type it.
        function: What does it; None of an element-wise rule (:mod:`lcm_arith.elementwise`).
        source: In words, with its paper.
        exact: Whether it is the plain sum where no rank is asked.
        pivot: Whether the last term plays another part than the others.
    """

    name: str
    function: MethodFunction | None
    source: str
    exact: bool = False
    pivot: bool = False


def linear(stack: Stack, rank: int | None) -> Triplets:
    """ΣMᵢ; with a rank the best approximation of it (Eckart and Young 1936)."""
    return leading(_sum(stack), _kept(stack, rank))


def tsv_m(stack: Stack, rank: int | None) -> Triplets:
    """Leading triplets of each term side by side, U and V made orthonormal by polar factors.

    A term keeps its rank, or R · rᵢ / Σr rounded down, at least 1, where rank R is asked.
    """
    parts = [
        leading_of_product(up, down, share)
        for (up, down), share in zip(stack.terms, _shares(stack.ranks, rank), strict=True)
    ]
    u, s, v = (torch.cat(same, -1) for same in zip(*parts, strict=True))
    (u, whole_u), (v, whole_v) = polar(u), polar(v)
    if whole_u and whole_v:
        return u, s, v
    # No singular value decomposition, as where the stacks are wider than the core.
    return leading(u * s @ v.T, min(len(s), len(u), len(v)))


def _shares(ranks: Sequence[int], rank: int | None) -> list[int]:
    total = sum(ranks)
    return [r if rank is None else min(r, max(1, rank * r // total)) for r in ranks]


def iso_c(stack: Stack, rank: int | None) -> Triplets:
    """The sum's singular directions, all kept singular values replaced by their mean."""
    u, s, v = leading(_sum(stack), _kept(stack, rank))
    return u, s.mean().expand_as(s), v


def iso_cts(stack: Stack, rank: int | None) -> Triplets:
    """K common directions of the sum and s of each term's rest, orthonormal, one singular value.

    k = ⌊0.8 R⌋, s = ⌊(R − k) / T⌋; the rest of a term is Δᵢ − U_k U_kᵀ Δᵢ; the mean runs over all
    kept singular values.
    """
    common, own = _common(_kept(stack, rank), len(stack.cores))
    u, s, v = leading(_sum(stack), common)
    parts = [(u, s, v)]
    parts += [leading(core - u @ (u.T @ core), own) for core in stack.cores]
    u, s, v = (torch.cat(same, -1) for same in zip(*parts, strict=True))
    return polar(u)[0], s.mean().expand_as(s), polar(v)[0]


def _common(wanted: int, terms: int) -> tuple[int, int]:
    """How many directions of Iso-CTS are common, and how many each term adds."""
    own = (wanted - int(COMMON_SHARE * wanted)) // terms
    return int(COMMON_SHARE * wanted) or wanted - own * terms, own


def cart(stack: Stack, rank: int | None) -> Triplets:
    """ΣΔᵢ + Σ trunc_m(Δᵢ − mean), m = 4 % of the core's rank, at least 1."""
    total = _sum(stack)
    mean = total / len(stack.cores)
    kept = max(1, int(CART_SHARE * stack.full_rank))
    for core in stack.cores:
        u, s, v = leading(core - mean, kept)
        total = total + (u * s) @ v.T
    return leading(total, _kept(stack, rank))


def orthogonal(stack: Stack, rank: int | None) -> Triplets:
    """All terms but the last, off the output directions that hold 90 % of the last one's energy.

    (I − U_k U_kᵀ) Σᵢ Δᵢ + Δ_T, where Δ_T is the acceleration vector's update.
    """
    *styles, accel = stack.cores
    u, s, _ = leading(accel, min(accel.shape))
    energy = s.square().cumsum(0)
    count = int((energy < DOMINANT_ENERGY * energy[-1]).sum()) + 1 if energy[-1] > 0 else 0
    dominant = u[:, :count]
    style = sum(styles, torch.zeros_like(accel))
    return leading(style - dominant @ (dominant.T @ style) + accel, _kept(stack, rank))


METHODS: Final = {
    m.name: m
    for m in (
        Method("linear", linear, "weighted sum, eq. 3 of arXiv:2311.05556", exact=True),
        Method("tsv-m", tsv_m, "task singular vectors made orthogonal; arXiv:2412.00081"),
        Method("iso-c", iso_c, "the sum with one singular value; arXiv:2502.04959"),
        Method("iso-cts", iso_cts, "common and own directions, one value; arXiv:2502.04959"),
        Method("cart", cart, "the sum and each term's leading difference; arXiv:2412.12153"),
        Method(
            "orthogonal",
            orthogonal,
            "the others off the last term's dominant output directions",
            pivot=True,
        ),
        *(Method(name, None, source) for name, (_, source) in RULES.items()),
    )
}


def method(name: str) -> Method:
    """The row of that name.

    Raises:
        UsageError: If there is none.
    """
    if name not in METHODS:
        raise UsageError(f"{name}: no such method", hint=f"one of {', '.join(METHODS)}")
    return METHODS[name]


@dataclass(frozen=True)
class Made:
    """The terms of one module combined.

    Args:
        delta: The result.
        gap: ‖result − Σ terms‖².
        whole: ‖Σ terms‖².
    """

    delta: LowRankDelta
    gap: float
    whole: float


def combined(
    name: str,
    terms: Sequence[LowRankDelta],
    rank: int | None = None,
    how: How | None = None,
    module: str = "",
) -> Made:
    """The terms of one module combined; float64 on the cores, float32 factors outside.

    Args:
        name: Of a method.
        terms: With their weights; for ``orthogonal`` the acceleration vector's last.
        rank: Of the result; None keeps what the method gives.
        how: Choices for an element-wise rule.
        module: Name, which with the seed decides what such a rule drops at random.
    """
    function, terms = method(name).function, alike(terms)
    if function is None:
        delta, summed = (
            elementwise.apply(name, terms, rank, how or How(), module),
            concatenate(terms),
        )
        gap = concatenate([delta, -summed])
        return Made(delta, inner(gap, gap), inner(summed, summed))
    with one_thread():
        stack = Stack.of(terms, fast=True)
        u, s, v = function(stack, rank)
        summed_core = _sum(stack)
        gaps = (u * s) @ v.T - summed_core
        return Made(
            stack.delta(u, s, v), float(gaps.square().sum()), float(summed_core.square().sum())
        )


def rank_of(
    name: str, ranks: Sequence[int], sides: tuple[int, int], rank: int | None, how: How | None
) -> int:
    """The rank that :func:`combined` will give, known before it is computed.

    Args:
        name: Of a method.
        ranks: Of the terms.
        sides: out and in of the module; a convolution's in is in · kh · kw.
        rank: Asked for.
        how: Choices for an element-wise rule.
    """
    if how is not None and how.space == "full":
        return min(sum(ranks) if rank is None else rank, *sides)
    most = min(sum(ranks), *sides)
    wanted = most if rank is None else min(rank, most)
    if name == "tsv-m":
        return min(most, sum(_shares(ranks, rank)))
    if name == "iso-cts":
        common, own = _common(wanted, len(ranks))
        return common + len(ranks) * own
    return wanted


def leading(matrix: Tensor, count: int) -> Triplets:
    """The ``count`` leading singular triplets."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :count], s[:count], vh[:count].T


def leading_of_product(up: Tensor, down: Tensor, count: int) -> Triplets:
    """The leading triplets of ``up @ down.T``, ``[p, r]`` and ``[q, r]``, by its r × r core."""
    (q_up, r_up), (q_down, r_down) = torch.linalg.qr(up), torch.linalg.qr(down)
    u, s, v = leading(r_up @ r_down.T, count)
    return q_up @ u, s, q_down @ v


def polar(stacked: Tensor) -> tuple[Tensor, bool]:
    """The isometry of the polar decomposition, and whether all its columns are orthonormal.

    Directions that ``stacked`` lacks stay out, so that the result is unique (the same adapter twice
    gives [u, u] / √2).
    """
    u, s, vh = torch.linalg.svd(stacked, full_matrices=False)
    if not s.numel():
        return stacked, True
    there = s > s[0] * max(stacked.shape) * torch.finfo(s.dtype).eps
    isometry: Tensor = u[:, there] @ vh[there]
    return isometry, bool(there.all()) and s.numel() == stacked.shape[1]


def _sum(stack: Stack) -> Tensor:
    return torch.stack(stack.cores).sum(0)


def _kept(stack: Stack, rank: int | None) -> int:
    return stack.full_rank if rank is None else min(rank, stack.full_rank)
