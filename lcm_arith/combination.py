"""Eq. 3 with checks: τ' = λ1·τ_style + λ2·τ_LCM, and the same for any number of vectors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Final

import torch

from lcm_arith import methods, policies
from lcm_arith.adapters import load
from lcm_arith.budgets import Budget
from lcm_arith.delta import LowRankDelta, alike
from lcm_arith.elementwise import RULES, How
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.families import check_same_family
from lcm_arith.modules import GAIN
from lcm_arith.projection import check_device, reproject
from lcm_arith.respelling import respelled
from lcm_arith.vector import Lazy, Once, Source, TaskVector
from lcm_arith.weights import Term, weigh

NONE: Final = "none"
"""The name that stands for no vector at all."""


def combine(style: str, accel: str, *, l1: float, l2: float, rank: int | None = None) -> TaskVector:
    """λ1·τ_style + λ2·τ_LCM, exact, or re-projected to ``rank``.

    Args:
        style: Shipped name or path of the style vector, or ``"none"``.
        accel: The same of the acceleration vector.
        l1: Weight λ1 of the style vector.
        l2: Weight λ2 of the acceleration vector.
        rank: Re-project each module to at most this rank; None keeps the sum exact.

    Raises:
        NotFoundError, InvalidContentError: As :func:`lcm_arith.adapters.load`.
        IncompatibleError: If the two were made for different base models.
        UsageError: If a weight is not finite or ``rank`` is below 1.
    """
    weights = ((style, l1), (accel, l2))
    vectors = {name: load(name) for name, _ in weights if name != NONE}
    check_same_family(vectors)
    tau = sum((weight * vectors[name] for name, weight in weights if name in vectors), TaskVector())
    return tau if rank is None else reproject(tau, rank)


def combine_terms(
    terms: Sequence[Term],
    *,
    method: str = "linear",
    budget: Budget | None = None,
    how: How | None = None,
    base: Path | None = None,
    policy: str = "raw",
    device: str = "cpu",
    spelling: str | None = None,
) -> TaskVector:
    """Any number of weighted vectors, summed exactly or by another method, within a budget.

    Args:
        terms: Names or paths with their weights; of ``orthogonal`` the acceleration vector last.
        method: A row of METHODS.
        budget: Re-projects the result; None keeps what the method gives.
        how: Choices for an element-wise method.
        base: The model that DoRAs among them were made for.
        policy: What the weights are multiplied by first: a row of POLICIES.
        device: Where a sum is re-projected; methods work on the CPU.
        spelling: How a transformer's layers will be written, for which the budget is then met
            (``writers.dit_spelling``); None for as they come.

    Raises:
        NotFoundError, InvalidContentError: As :func:`lcm_arith.adapters.load`; or if a method other
            than a sum is to combine DoRAs.
        IncompatibleError: If two vectors were made for different base models.
        UsageError: If the method is unknown or has no such choices, or a weight's part matches
            nothing.
    """
    check_device(device)
    row = methods.method(method)
    if how is not None and row.function is not None:
        raise UsageError(
            f"{method}: has no density, space or seed", hint=f"those are of {', '.join(RULES)}"
        )
    given = [term for term in terms if term.name != NONE]
    vectors = {term.name: load(term.name, base) for term in given}
    check_same_family(vectors)
    factors = policies.policy(policy)(
        [float(term.weights.overall) for term in given], [vectors[term.name] for term in given]
    )
    weighed = [
        factor * weigh(vectors[term.name], term.weights, term.name)
        for factor, term in zip(factors, given, strict=True)
    ]
    rank = int(budget.value) if budget and budget.kind == "rank" else None
    if rank is not None and spelling is not None and not row.exact:
        weighed = [respelled(tau, spelling) for tau in weighed]
    tau = by_method(weighed, row, rank=rank, how=how)
    if budget is None or (rank is not None and not row.exact):
        return tau  # the method has met it in its own way
    return reproject(tau if spelling is None else respelled(tau, spelling), budget, device)


def by_method(
    weighed: Sequence[TaskVector], row: methods.Method, *, rank: int | None, how: How | None
) -> TaskVector:
    """Weighted vectors combined by a row of METHODS.

    Args:
        weighed: The terms, each times its λ.
        row: The method.
        rank: Of each module, where it is given and the method is no plain sum.
        how: Choices for an element-wise method.

    Raises:
        InvalidContentError: If a method other than a sum is to combine DoRAs.
    """
    if row.exact:
        return sum(weighed, TaskVector())
    if any(target.endswith(GAIN) for tau in weighed for target in tau):
        raise InvalidContentError(
            f"{row.name}: a DoRA stretches the base's rows, only sums of it are known",
            hint="use linear, or fuse it and extract the difference",
        )
    origin = {"method": row.name, "rank": rank, "of": sum(weighed, TaskVector())}
    if row.function is None:
        how = how or How()
        origin |= asdict(how)
    lazy = Combined(tuple(weighed), row, rank, how)
    return TaskVector(((1.0, Source(lazy, origin, outlines=Lazy(lazy, lazy.outline))),))


@dataclass(frozen=True, eq=False)
class Combined(Once):
    """Target module → the terms' updates by a method; computed when first asked for, and once."""

    terms: tuple[TaskVector, ...]
    method: methods.Method
    rank: int | None
    how: How | None = None
    _done: dict[str, LowRankDelta] = field(default_factory=dict)
    _gaps: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __getitem__(self, module: str) -> LowRankDelta:
        if module not in self._done:
            self._done[module] = self.once(module)
        return self._done[module]

    def once(self, module: str) -> LowRankDelta:
        """The delta, not kept."""
        if module in self._done:
            return self._done[module]
        there = [tau.once(module) for tau in self.terms if module in tau]
        made = methods.combined(self.name_for(module), there, self.rank, self.how, module)
        self._gaps[module] = made.gap, made.whole
        return made.delta

    def name_for(self, module: str) -> str:
        """The method; ``linear`` where it needs a last term that the module lacks."""
        plain = self.method.pivot and module not in self.terms[-1]
        return "linear" if plain else self.method.name

    def distance(self) -> float:
        """‖result − Σ‖ / ‖Σ‖ over all modules: how far the method went from the plain sum."""
        for module in self:
            if module not in self._gaps:
                self.once(module)
        whole = sum(size for _, size in self._gaps.values())
        gap = max(0.0, sum(gap for gap, _ in self._gaps.values()))
        return math.sqrt(gap / whole) if whole else 0.0

    def outline(self, module: str) -> LowRankDelta:
        """The delta without its numbers: its rank is known before it is made."""
        there = alike([tau.outline(module) for tau in self.terms if module in tau])
        down, up = there[0].down, there[0].up
        sides = len(up), down[0].numel()
        ranks = [outline.rank for outline in there]
        rank = methods.rank_of(self.name_for(module), ranks, sides, self.rank, self.how)
        return LowRankDelta(
            down.new_empty((rank, *down.shape[1:]), dtype=torch.float32),
            up.new_empty((len(up), rank, *up.shape[2:]), dtype=torch.float32),
        )

    @cached_property
    def names(self) -> Mapping[str, object]:
        """Those of any term."""
        return dict.fromkeys(sorted({module for tau in self.terms for module in tau}))


def distance_to_sum(tau: TaskVector) -> float | None:
    """‖τ − Σ‖ / ‖Σ‖ of what a method made of the sum; None of any other vector."""
    for _, source in tau.terms:
        if isinstance(source.deltas, Combined):
            return source.deltas.distance()
        if isinstance(source.origin.get("of"), TaskVector):
            return distance_to_sum(source.origin["of"])
    return None
