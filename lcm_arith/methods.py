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
from lcm_arith.delta import LowRankDelta
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
    total = sum(stack.ranks)
    shares = [r if rank is None else max(1, rank * r // total) for r in stack.ranks]
    parts = [
        leading(core, min(share, *core.shape))
        for core, share in zip(stack.cores, shares, strict=True)
    ]
    u, s, v = (torch.cat(same, -1) for same in zip(*parts, strict=True))
    # U' diag(σ) V'ᵀ is no singular value decomposition where the stacks are wider than the core.
    product = polar(u) * s @ polar(v).T
    return leading(product, min(len(s), *product.shape))


def iso_c(stack: Stack, rank: int | None) -> Triplets:
    """The sum's singular directions, all kept singular values replaced by their mean."""
    u, s, v = leading(_sum(stack), _kept(stack, rank))
    return u, s.mean().expand_as(s), v


def iso_cts(stack: Stack, rank: int | None) -> Triplets:
    """K common directions of the sum and s of each term's rest, orthonormal, one singular value.

    k = ⌊0.8 R⌋, s = ⌊(R − k) / T⌋; the rest of a term is Δᵢ − U_k U_kᵀ Δᵢ; the mean runs over all
    kept singular values.
    """
    wanted = _kept(stack, rank)
    common = int(COMMON_SHARE * wanted)
    own = (wanted - common) // len(stack.cores)
    u, s, v = leading(_sum(stack), common)
    parts = [(u, s, v)]
    parts += [leading(core - u @ (u.T @ core), own) for core in stack.cores]
    u, s, v = (torch.cat(same, -1) for same in zip(*parts, strict=True))
    return polar(u), s.mean().expand_as(s), polar(v)


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


def apply(
    name: str,
    terms: Sequence[LowRankDelta],
    rank: int | None = None,
    how: How | None = None,
    module: str = "",
) -> LowRankDelta:
    """The terms of one module combined; float64 inside, float32 factors outside.

    Args:
        name: Of a method.
        terms: With their weights; for ``orthogonal`` the acceleration vector's last.
        rank: Of the result; None keeps what the method gives.
        how: Choices for an element-wise rule.
        module: Name, which with the seed decides what such a rule drops at random.
    """
    function = method(name).function
    if function is None:
        return elementwise.apply(name, terms, rank, how or How(), module)
    with one_thread():
        stack = Stack.of(terms)
        return stack.delta(*function(stack, rank))


def leading(matrix: Tensor, count: int) -> Triplets:
    """The ``count`` leading singular triplets."""
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :count], s[:count], vh[:count].T


def polar(stacked: Tensor) -> Tensor:
    """The isometry of the polar decomposition; orthonormal columns where ``stacked`` has its rank.

    Directions that ``stacked`` lacks stay out, so that the result is unique (the same adapter twice
    gives [u, u] / √2).
    """
    u, s, vh = torch.linalg.svd(stacked, full_matrices=False)
    if not s.numel():
        return stacked
    there = s > s[0] * max(stacked.shape) * torch.finfo(s.dtype).eps
    isometry: Tensor = u[:, there] @ vh[there]
    return isometry


def _sum(stack: Stack) -> Tensor:
    return torch.stack(stack.cores).sum(0)


def _kept(stack: Stack, rank: int | None) -> int:
    return stack.full_rank if rank is None else min(rank, stack.full_rank)
