"""Element-wise ways to combine the terms of a module: TIES, DARE, DELLA, breadcrumbs, pruning.

They keep or drop single numbers, so it matters in which basis the numbers are written (SPACES), and
nobody knows the best one. A term carries its weight λ before a rule sees it. All of them sum; none
averages, so that λ keeps its meaning.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import UsageError
from lcm_arith.pool import one_thread
from lcm_arith.stack import Stack
from lcm_arith.tall import Columns

Rule = Callable[[Tensor, float, torch.Generator], Tensor]
"""(terms ``[T, m, n]``, density, random numbers) → their combination ``[m, n]``."""

DENSITY: Final = 0.5
OUTLIERS: Final = 0.01  # share of a term's largest numbers that breadcrumbs drop
SPREAD: Final = 0.1  # DELLA keeps the largest by density + half of it, the smallest by − half
OVERSAMPLED, POWERS = 16, 4  # of the range finder
SPACES: Final = ("core", "knots", "full")


@dataclass(frozen=True)
class How:
    """Choices that element-wise rules leave to the user.

    Args:
        density: Share of a term's numbers that are kept, above 0 and at most 1.
        space: ``core``: the coordinates of both singular bases that the terms share (arXiv:
            2509.17786), ``knots``: the input one alone (arXiv:2410.19735), ``full``: the weights'
            own coordinates.
        seed: Of what is dropped at random, with the module's name.

    Raises:
        UsageError: If one makes no sense.
    """

    density: float = DENSITY
    space: str = "core"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(f"density {self.density:g}: above 0 and at most 1")
        if self.space not in SPACES:
            raise UsageError(f"{self.space}: no such space", hint=f"one of {', '.join(SPACES)}")


def magnitude(terms: Tensor, density: float, _: torch.Generator) -> Tensor:
    """The largest numbers of each term, summed."""
    return _trimmed(terms, density).sum(0)


def ties(terms: Tensor, density: float, _: torch.Generator) -> Tensor:
    """The largest numbers of each term; those sum that agree with the sign of their sum."""
    return _agreeing(_trimmed(terms, density)).sum(0)


def dare(terms: Tensor, density: float, random: torch.Generator) -> Tensor:
    """Numbers kept by chance ``density`` and divided by it."""
    kept = torch.rand(terms.shape, generator=random, dtype=terms.dtype) < density
    return (terms * kept).sum(0) / density


def della(terms: Tensor, density: float, random: torch.Generator) -> Tensor:
    """As DARE, larger numbers by a higher chance p, divided by their own p; then agreeing signs."""
    place = _order(terms).to(terms.dtype) / max(1, terms[0].numel() - 1)  # 0 smallest … 1 largest
    chance = (density + SPREAD * (place - 0.5)).clamp(torch.finfo(terms.dtype).eps, 1.0)
    kept = torch.rand(terms.shape, generator=random, dtype=terms.dtype) < chance
    return _agreeing(terms * kept / chance).sum(0)


def breadcrumbs(terms: Tensor, density: float, _: torch.Generator) -> Tensor:
    """Without the largest numbers (1 %) and without the smallest, of each term, summed."""
    count = terms[0].numel()
    order = _order(terms)  # 0 smallest
    outliers = int(OUTLIERS * count)
    kept = max(1, min(round(density * count), count - outliers))
    inside = (order >= count - outliers - kept) & (order < count - outliers)
    return (terms * inside).sum(0)


RULES: Final[dict[str, tuple[Rule, str]]] = {
    "magnitude": (magnitude, "the largest numbers of each term"),
    "ties": (ties, "the largest numbers where they agree in sign; arXiv:2306.01708"),
    "dare": (dare, "numbers dropped at random, the others enlarged; arXiv:2311.03099"),
    "della": (della, "DARE by magnitude, agreeing signs; arXiv:2406.11617"),
    "breadcrumbs": (breadcrumbs, "neither the largest nor the smallest; arXiv:2312.06795"),
}


def apply(
    name: str, terms: Sequence[LowRankDelta], rank: int | None, how: How, module: str
) -> LowRankDelta:
    """The terms of one module combined by a rule; float64 in the small spaces, else float32.

    Args:
        name: A row of RULES.
        terms: With their weights.
        rank: Of the result; None takes what the terms have together.
        how: Density, space, seed.
        module: Its name, with the seed what random numbers depend on.
    """
    rule = RULES[name][0]
    random = generator(how.seed, module)
    with one_thread():
        if how.space == "full":
            return _in_full(rule, terms, rank, how, random)
        stack = Stack.of(terms).singular()
        cores = torch.stack(stack.cores)  # [T, p, q]
        most = stack.full_rank if rank is None else min(rank, stack.full_rank)
        if how.space == "core":
            u, s, vh = torch.linalg.svd(rule(cores, how.density, random), full_matrices=False)
            return stack.delta(u[:, :most], s[:most], vh[:most].T)
        whole = torch.stack([stack.basis_up.apply(core) for core in cores])  # [T, out, q]
        basis_up, core = torch.linalg.qr(rule(whole, how.density, random))
        u, s, vh = torch.linalg.svd(core, full_matrices=False)
        wide = Stack(Columns(basis_up), stack.basis_down, stack.terms, stack.kernel)
        return wide.delta(u[:, :most], s[:most], vh[:most].T)


def _in_full(
    rule: Rule, terms: Sequence[LowRankDelta], rank: int | None, how: How, random: torch.Generator
) -> LowRankDelta:
    """On dense updates; what comes out has any rank, and its leading part is kept."""
    dense = torch.stack([term.dense().flatten(1) for term in terms])  # [T, out, in]
    result = rule(dense, how.density, random)
    most = min(sum(term.rank for term in terms) if rank is None else rank, *result.shape)
    u, s, v = leading_of(result, most, random)
    kernel = tuple(terms[0].down.shape[2:])
    eye = torch.eye(most)
    return Stack(Columns(u), Columns(v), ((eye, eye),), kernel).delta(eye, s, eye)


def leading_of(
    matrix: Tensor, count: int, random: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """The ``count`` leading singular triplets U, σ, V of a dense matrix, by a randomized range.

    Source:
        Halko, Martinsson and Tropp 2011, algorithm 4.4 and 5.1: a random start, POWERS rounds of
        subspace iteration, then the exact decomposition within the range.
    """
    width = min(count + OVERSAMPLED, *matrix.shape)
    start = torch.randn(matrix.shape[1], width, generator=random, dtype=matrix.dtype)
    basis, _ = torch.linalg.qr(matrix @ start)
    for _ in range(POWERS):
        across, _ = torch.linalg.qr(matrix.T @ basis)
        basis, _ = torch.linalg.qr(matrix @ across)
    u, s, vh = torch.linalg.svd(basis.T @ matrix, full_matrices=False)
    return basis @ u[:, :count], s[:count], vh[:count].T


def generator(seed: int, module: str) -> torch.Generator:
    """Random numbers that depend on the seed and the module's name alone."""
    digest = hashlib.sha256(f"{seed}:{module}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def _order(terms: Tensor) -> Tensor:
    """Place of each number in its term by magnitude, 0 the smallest, ``[T, m, n]``."""
    flat = terms.abs().flatten(1)
    order = flat.argsort(dim=1, stable=True)
    places = torch.empty_like(order)
    places.scatter_(1, order, torch.arange(flat.shape[1]).expand_as(order))
    return places.reshape(terms.shape)


def _trimmed(terms: Tensor, density: float) -> Tensor:
    """Zero but for each term's largest share ``density`` of numbers, at least one."""
    count = terms[0].numel()
    return terms * (_order(terms) >= count - max(1, round(density * count)))


def _agreeing(terms: Tensor) -> Tensor:
    """Zero where a number has another sign than the sum of the terms there."""
    return terms * (terms.sign() == terms.sum(0).sign())
