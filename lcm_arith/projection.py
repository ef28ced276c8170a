"""Re-projection: the best approximation of an update at a smaller rank, without building it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import UsageError
from lcm_arith.vector import Source, TaskVector


@dataclass(frozen=True, eq=False)
class Projected:
    """A re-projected delta and what was kept.

    Args:
        delta: The truncated update, scale 1.
        kept: Σ σ_i² over the kept singular values.
        total: Σ σ_i² over all of them; retained energy is kept / total.
    """

    delta: LowRankDelta
    kept: float
    total: float


def project(delta: LowRankDelta, rank: int) -> Projected:
    """Best approximation of ``delta`` at ``min(rank, its rank, out, in)``.

    Works on the factors (two thin QR decompositions, one SVD of the small core), so the dense
    ``[out, in]`` update is never built: O((out + in) r²), not O(out in²).

    Args:
        delta: Update of rank r. A convolution counts as ``[out, in * kh * kw]``.
        rank: Rank to keep, at least 1.

    Returns:
        A delta with scale 1 on the device of ``delta``, float32, singular values split evenly
        between ``down`` and ``up``. Computed in float64, so that terms which nearly cancel lose
        nothing that float32 input holds.

    Raises:
        UsageError: If ``rank`` is below 1.

    Source:
        Eckart and Young 1936.
    """
    if rank < 1:
        raise UsageError(f"rank {rank}: a re-projection keeps at least rank 1")
    up, down = delta.up.flatten(1).double() * delta.scale, delta.down.flatten(1).double()
    q_up, r_up = torch.linalg.qr(up)  # [out, r], [r, r]
    q_down, r_down = torch.linalg.qr(down.T)  # [in, r], [r, r]
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)  # [r, r], [r], [r, r]
    kept = min(rank, delta.rank, s.numel())
    root = s[:kept].sqrt()
    new_up = (q_up @ u[:, :kept]) * root  # [out, kept]
    new_down = root[:, None] * (vh[:kept] @ q_down.T)  # [kept, in]
    energy = s.square()
    return Projected(
        LowRankDelta(
            new_down.float().reshape(kept, *delta.down.shape[1:]),
            new_up.float().reshape(-1, kept, *delta.up.shape[2:]),
        ),
        float(energy[:kept].sum()),
        float(energy.sum()),
    )


def spectrum(delta: LowRankDelta) -> Tensor:
    """Singular values of the dense update, falling, ``[min(rank, out, in)]``, float64."""
    up, down = delta.up.flatten(1).double() * delta.scale, delta.down.flatten(1).double()
    r_up = torch.linalg.qr(up, mode="r").R  # [r, r]
    r_down = torch.linalg.qr(down.T, mode="r").R
    values: Tensor = torch.linalg.svdvals(r_up @ r_down.T)
    return values


@dataclass(frozen=True)
class Budget:
    """What a re-projection may keep; a row of BUDGETS with its value.

    Args:
        kind: Name of the row.
        value: In the row's unit.
        itemsize: Bytes of a number in the written file, for ``size``.

    Raises:
        UsageError: If there is no such kind, or the value is outside its range.
    """

    kind: str
    value: float
    itemsize: int = 4

    def __post_init__(self) -> None:
        if self.kind not in BUDGETS:
            raise UsageError(f"{self.kind}: no such budget", hint=f"one of {', '.join(BUDGETS)}")
        low, high = BUDGETS[self.kind].range
        if not low < self.value <= high:
            raise UsageError(
                f"{self.kind} {self.value:g}: above {low:g} and at most {high:g}"
                if math.isfinite(high)
                else f"{self.kind} {self.value:g}: above {low:g}"
            )

    def ranks(self, spectra: Mapping[str, Tensor], costs: Mapping[str, int]) -> dict[str, int]:
        """Module → rank to keep, at least 1.

        Args:
            spectra: Module → its singular values.
            costs: Module → numbers that one more rank costs, out + in · kh · kw.
        """
        return BUDGETS[self.kind].choose(self, spectra, costs)


Choose = Callable[[Budget, Mapping[str, Tensor], Mapping[str, int]], dict[str, int]]


@dataclass(frozen=True)
class BudgetKind:
    """A row of BUDGETS: what is asked, the values that make sense, and how ranks are chosen."""

    help: str
    range: tuple[float, float]
    choose: Choose


def _same_rank(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    return {module: min(int(budget.value), len(s)) for module, s in spectra.items()}


def _by_energy(
    budget: Budget, spectra: Mapping[str, Tensor], costs: Mapping[str, int]
) -> dict[str, int]:
    """The cheapest ranks that keep the share: singular values by σ² / cost, greatest first."""
    order, gains, _ = _ranked(spectra, costs)
    kept = gains.cumsum(0)
    share = budget.value if budget.kind == "energy" else 1 - budget.value**2
    return _taken(spectra, order[: int((kept < share * gains.sum()).sum()) + 1])


def _by_size(
    budget: Budget, spectra: Mapping[str, Tensor], costs: Mapping[str, int]
) -> dict[str, int]:
    """The ranks of the most energy within the bytes, in the same order; every module keeps one."""
    order, _, prices = _ranked(spectra, costs)
    numbers = budget.value * 2**20 / budget.itemsize
    least = sum(costs.values())
    if least > numbers:
        raise UsageError(
            f"size {budget.value:g} MiB: rank 1 in {len(spectra)} modules takes "
            f"{least * budget.itemsize / 2**20:.1f} MiB",
            hint="allow more, write float16, or leave modules out by a weight of 0",
        )
    first = {(module, 0) for module in spectra}
    prices = prices.clone()
    prices[[place in first for place in order]] = 0  # paid already
    fits = prices.cumsum(0) <= numbers - least
    return _taken(spectra, order[: int(fits.long().cumprod(0).sum())])


def _ranked(
    spectra: Mapping[str, Tensor], costs: Mapping[str, int]
) -> tuple[list[tuple[str, int]], Tensor, Tensor]:
    """(module, index) of all singular values by σ² / cost, with their σ² and costs.

    σ falls within a module, so whatever is taken from the front is a rank of each module.
    """
    places = [(module, i) for module, s in spectra.items() for i in range(len(s))]
    gains = torch.cat([s.square() for s in spectra.values()])
    prices = torch.tensor([float(costs[module]) for module, _ in places], dtype=gains.dtype)
    by_worth = torch.argsort(gains / prices, descending=True, stable=True)
    return [places[i] for i in by_worth.tolist()], gains[by_worth], prices[by_worth]


def _taken(spectra: Mapping[str, Tensor], places: list[tuple[str, int]]) -> dict[str, int]:
    ranks = dict.fromkeys(spectra, 1)
    for module, index in places:
        ranks[module] = max(ranks[module], index + 1)
    return ranks


def _by_ratio(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    """Kohya's sv_ratio: singular values above the largest / value."""
    return {module: max(1, int((s > s[0] / budget.value).sum())) for module, s in spectra.items()}


def _by_norm(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    """Kohya's sv_fro: the fewest that hold this share of the Frobenius norm."""
    return {module: _fewest(s.square(), budget.value**2) for module, s in spectra.items()}


def _by_sum(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    """Kohya's sv_cumulative: the fewest that hold this share of Σ σ."""
    return {module: _fewest(s, budget.value) for module, s in spectra.items()}


def _fewest(values: Tensor, share: float) -> int:
    """How many leading values hold ``share`` of the sum, at least 1."""
    return min(int((values.cumsum(0) < share * values.sum()).sum()) + 1, len(values))


_SHARE: Final = (0.0, 1.0)
BUDGETS: Final = {
    "rank": BudgetKind("this rank in every module", (0.0, math.inf), _same_rank),
    "energy": BudgetKind("this share of Σ σ² over all modules", _SHARE, _by_energy),
    "max_error": BudgetKind(
        "at most this ‖lost‖ / ‖update‖ over all modules", (0.0, 1.0), _by_energy
    ),
    "size": BudgetKind("at most so many MiB of numbers", (0.0, math.inf), _by_size),
    "sv_ratio": BudgetKind(
        "σ above the module's largest / this (kohya)", (1.0, math.inf), _by_ratio
    ),
    "sv_fro": BudgetKind("this share of each module's norm (kohya)", _SHARE, _by_norm),
    "sv_cumulative": BudgetKind("this share of each module's Σ σ (kohya)", _SHARE, _by_sum),
}


@dataclass(frozen=True, eq=False)
class LazyProjection(Mapping[str, LowRankDelta]):
    """Target module → re-projected delta; each is computed when first asked for, and once."""

    tau: TaskVector
    budget: Budget
    _done: dict[str, Projected] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Module → rank, chosen over all modules at once."""
        if self.budget.kind == "rank":
            return dict.fromkeys(self.tau, int(self.budget.value))
        spectra, costs = {}, {}
        for module in self.tau:
            delta = self.tau[module]
            spectra[module] = spectrum(delta)
            costs[module] = delta.shape[0] + delta.down[0].numel()
        return self.budget.ranks(spectra, costs)

    def projected(self, module: str) -> Projected:
        """The re-projection of one module with its energies."""
        if module not in self._done:
            self._done[module] = project(self.tau[module], self.ranks[module])
        return self._done[module]

    def __getitem__(self, module: str) -> LowRankDelta:
        return self.projected(module).delta

    def __iter__(self) -> Iterator[str]:
        return iter(self.tau)

    def __len__(self) -> int:
        return len(self.tau)


def reproject(tau: TaskVector, rank: int | Budget) -> TaskVector:
    """``tau`` within a rank or another budget, computed lazily and once.

    Args:
        tau: Any vector.
        rank: Largest rank of every module, or a budget.

    Raises:
        UsageError: If ``rank`` is below 1.
    """
    if isinstance(rank, int) and rank < 1:
        raise UsageError(f"rank {rank}: a re-projection keeps at least rank 1")
    budget = Budget("rank", rank) if isinstance(rank, int) else rank
    origin = {budget.kind: rank if isinstance(rank, int) else budget.value, "of": tau}
    return TaskVector(((1.0, Source(LazyProjection(tau, budget), origin)),))


def retained_energy(tau: TaskVector) -> float | None:
    """Σ kept σ² / Σ σ² over all modules of a re-projected vector, 0..1; None of any other."""
    lazy = [s.deltas for _, s in tau.terms if isinstance(s.deltas, LazyProjection)]
    if len(lazy) != 1 or len(tau.terms) != 1:
        return None
    parts = [lazy[0].projected(module) for module in lazy[0]]
    total = sum(part.total for part in parts)
    return sum(part.kept for part in parts) / total if total else 1.0
