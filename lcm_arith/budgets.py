"""BUDGETS: what a re-projection may keep, and the rank of every module that follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.errors import UsageError


@dataclass(frozen=True)
class Budget:
    """What a re-projection may keep; a row of BUDGETS with its value.

    Args:
        kind: Name of the row.
        value: In the row's unit.
        itemsize: Bytes of a number in the written file, for ``size``.
        reserved: Bytes of that file that are taken already: header, alphas, magnitudes.

    Raises:
        UsageError: If there is no such kind, or the value is outside its range.
    """

    kind: str
    value: float
    itemsize: int = 4
    reserved: int = 0

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
    numbers = (budget.value * 2**20 - budget.reserved) / budget.itemsize
    least = sum(costs.values())
    if least > numbers:
        raise UsageError(
            f"size {budget.value:g} MiB: rank 1 in {len(spectra)} modules takes "
            f"{(least * budget.itemsize + budget.reserved) / 2**20:.2f} MiB",
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
    "size": BudgetKind("at most so many MiB of the written file", (0.0, math.inf), _by_size),
    "sv_ratio": BudgetKind(
        "σ above the module's largest / this (kohya)", (1.0, math.inf), _by_ratio
    ),
    "sv_fro": BudgetKind("this share of each module's norm (kohya)", _SHARE, _by_norm),
    "sv_cumulative": BudgetKind("this share of each module's Σ σ (kohya)", _SHARE, _by_sum),
}
