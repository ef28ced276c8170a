"""Finds a good cell of a grid too large to run: proposals, and a race of each against the best.

A proposed cell is measured block by block, on the pictures on which the best cell so far (the
champion) was measured, and given up as soon as a paired test says that it is worse. What it costs
is known before it is measured, so the budget is a hard cap; cells that were given up still tell
the proposals where it is no good.

What the outcome is worth:

- A cell is *finished* when all its instances are measured. Only finished cells have comparable
  means, so only they go into tables, comparisons and the best set; the others are counted. A best
  set of a search says which finished cell may be the best one, not that no cell is better which was
  given up or never proposed.
- The race is quick to give up (:data:`SURE` at each of many looks), also on cells that are as good
  as the champion, and some that are better. The later part of the budget runs those given up again,
  the likeliest first, until it is surer (:data:`SURER`).
- The finished cells were chosen by the very pictures that measure them: their means are too good,
  the champion's most of all (winner's curse). Fresh seeds (``--confirm``) say what is left of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import numpy as np

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.statistics.best import TARGETS, score
from lcm_arith.evaluation.statistics.comparisons import sign_flip
from lcm_arith.evaluation.statistics.stats import FEWEST, per_prompt

SURE: Final = 0.35
"""One-sided p at which a race is decided at first: many tries beat sure ones."""
SURER: Final = 0.01
"""The same where cells that were given up run again."""
EXPLORED: Final = 0.5
"""Share of the budget after which those run again, the likeliest first."""
BLOCK: Final = 6
"""Prompts measured between two looks."""
FLIPS: Final = 2_000

Instance = tuple[int, int]
"""(prompt, seed), by their numbers in the grid."""
Blocks = tuple[tuple[Instance, ...], ...]
Ranks = tuple[int, ...]
"""A cell's place on each axis."""


def blocks(prompts: int, seeds: int) -> Blocks:
    """All instances in the order of the race: every prompt with the first seed, then the next.

    Prompts differ more than seeds, and prompts are what the tests count. Blocks hold at most
    :data:`BLOCK` prompts, and differ by one at most.
    """
    parts = np.array_split(np.arange(prompts), -(-prompts // BLOCK))
    return tuple(
        tuple((int(prompt), seed) for prompt in part) for seed in range(seeds) for part in parts
    )


@dataclass(frozen=True, eq=False)
class Problem:
    """What is searched.

    Args:
        points: Each cell's value on every axis. An axis of numbers is ordered, with equal steps
            between its values; any other is a choice.
        blocks: Instances in the order of the race.
        nfe: UNet rows of one picture of each cell, as if it were made alone: rows that cells
            share when they are drawn together are not taken off, so the cap holds in any case.
        measure: Metric of a cell (by its number) on a block, one value an instance; NaN where it
            is not defined. It is asked once for each cell and block.
        better: Which mean is better, as in :func:`score`.
    """

    points: Sequence[tuple[Any, ...]]
    blocks: Blocks
    nfe: Sequence[int]
    measure: Callable[[int, tuple[Instance, ...]], np.ndarray]
    better: str

    @property
    def instances(self) -> int:
        """Pictures of a finished cell."""
        return sum(map(len, self.blocks))


@dataclass(frozen=True)
class Axis:
    """One coordinate of the cells: ``size`` values, in order or a choice."""

    ordered: bool
    size: int


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a search found.

    Args:
        champion: The best finished cell by its mean.
        finished: Cells measured on all instances, in the order of the grid.
        proposed: Cells that were measured at all, in the order of being proposed.
        values: What was measured, ``[cells, prompts, seeds]``, else NaN.
        spent: UNet rows, as :class:`Problem` counts them.
    """

    champion: int
    finished: tuple[int, ...]
    proposed: tuple[int, ...]
    values: np.ndarray
    spent: int


Known = Sequence[tuple[Ranks, float]]
"""Places that were measured, and how good they are: the larger, the better."""
Propose = Callable[[Known], Ranks]


def tpe(axes: Sequence[Axis], seed: int) -> Propose:
    """Places by optuna's tree-structured Parzen estimator; the first ten are random.

    Source:
        Bergstra and others 2011; multivariate, Falkner and others 2018.
    """
    import optuna

    spaces: dict[str, Any] = {
        str(n): optuna.distributions.IntDistribution(0, axis.size - 1)
        if axis.ordered
        else optuna.distributions.CategoricalDistribution(range(axis.size))
        for n, axis in enumerate(axes)
    }

    def trial(ranks: Ranks, value: float) -> optuna.trial.FrozenTrial:
        params = {str(n): rank for n, rank in enumerate(ranks)}
        return optuna.trial.create_trial(params=params, distributions=spaces, value=value)

    def fresh(known: int) -> optuna.Study:
        said = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # it tells of each new study
        sampler = optuna.samplers.TPESampler(seed=seed + known)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        optuna.logging.set_verbosity(said)
        return study

    study, told = fresh(0), list[tuple[Ranks, float]]()

    def propose(known: Known) -> Ranks:
        nonlocal study, told
        if told != list(known[: len(told)]):  # there is another champion to compare with
            study, told = fresh(len(known)), []
        study.add_trials([trial(*one) for one in known[len(told) :]])
        told = list(known)
        asked = study.ask(spaces)
        study.tell(asked, state=optuna.trial.TrialState.FAIL)  # what is measured may lie beside it
        return tuple(int(asked.params[str(n)]) for n in range(len(axes)))

    return propose


def at_random(axes: Sequence[Axis], seed: int) -> Propose:
    """Places drawn evenly, whatever is known: what a method must beat."""
    rng = np.random.default_rng(seed)
    return lambda known: tuple(int(rng.integers(axis.size)) for axis in axes)


SEARCHES: Final[dict[str, Callable[[Sequence[Axis], int], Propose]]] = {
    "tpe": tpe,
    "random": at_random,
}


def check_method(name: str) -> None:
    """Raises UsageError where a method of :data:`SEARCHES` cannot run here."""
    if name == "tpe":
        try:
            import optuna  # noqa: F401 (is it there?)
        except ImportError as error:
            raise UsageError(
                "--search tpe needs optuna, which is not installed",
                hint='pip install "lcm-arith[search]", or --search random',
            ) from error


def search(
    problem: Problem, budget: int, *, method: str = "tpe", seed: int = 0, start: int | None = None
) -> Outcome:
    """The best cell that ``budget`` UNet rows can find.

    Deterministic: the same problem, budget and seed ask for the same cells and blocks in the same
    order. A larger budget begins alike, for the share :data:`EXPLORED` of the smaller one, and
    asks for much of the rest again: a store behind ``measure`` answers that for nothing.

    Args:
        problem: The cells.
        budget: UNet rows, never exceeded.
        method: A name of :data:`SEARCHES`.
        seed: Of proposals and tests.
        start: A cell that is finished first of all, and so is the first champion.

    Raises:
        UsageError: If the budget does not finish one cell (the start, if there is one), or the
            method cannot run here.
    """
    check_method(method)
    least = (min(problem.nfe) if start is None else problem.nfe[start]) * problem.instances
    if budget < least:
        raise UsageError(
            f"{budget} UNet rows are too few: the {'cheapest' if start is None else 'first'} cell "
            f"takes {least} on all {problem.instances} pictures"
        )
    race = _Race(problem, budget, seed)
    axes, ranks = _axes(problem.points)
    propose = SEARCHES[method](axes, seed)

    def pick(open_cells: np.ndarray, gains: Sequence[tuple[int, float]]) -> int:
        wanted = propose([(tuple(map(int, ranks[cell])), gain) for cell, gain in gains])
        return int(open_cells[np.argmin(_distances(axes, ranks[open_cells], wanted))])

    champion = pick(race.open_cells(), []) if start is None else start
    race.order.append(champion)
    if start is not None:
        race.finish(start)
    for limit in (int(EXPLORED * budget), budget):
        while race.spent <= limit and (open_cells := race.open_cells(champion)).size:
            champion = race.run(champion, pick(open_cells, race.gains(champion)), SURE)
        for cell in race.given_up(champion):
            if race.affords(cell, champion):
                champion = race.run(champion, cell, SURER)
    race.finish(champion)
    return race.outcome()


@dataclass(eq=False)
class _Race:
    """What was measured so far, and what that cost."""

    problem: Problem
    budget: int
    seed: int
    order: list[int] = field(default_factory=list)
    spent: int = 0

    def __post_init__(self) -> None:
        prompts, seeds = (n.max() + 1 for n in self.places(self.problem.blocks))
        self.values = np.full((len(self.problem.points), prompts, seeds), np.nan)
        self.done = np.zeros(len(self.problem.points), dtype=int)  # blocks of each cell
        self.nfe = np.asarray(self.problem.nfe)
        self.left = np.cumsum([len(block) for block in self.problem.blocks][::-1])[::-1]
        self.left = np.append(self.left, 0)  # instances that are left after n blocks

    def cost(self, cells: Any) -> Any:
        """UNet rows that finish a cell, or each of several."""
        return self.nfe[cells] * self.left[self.done[cells]]

    def affords(self, cells: Any, champion: int | None = None) -> Any:
        """Whether a cell, or each of several, can be finished and the champion beside it."""
        kept = 0 if champion is None else self.cost(champion)
        return self.spent + self.cost(cells) + kept <= self.budget

    def open_cells(self, champion: int | None = None) -> np.ndarray:
        """Cells that were not proposed yet and can be afforded."""
        every = np.setdiff1d(np.arange(len(self.done)), self.order)
        return np.asarray(every[self.affords(every, champion)])

    def given_up(self, champion: int) -> list[int]:
        """Proposed cells that are not finished, the likeliest first."""
        gains = dict(self.gains(champion))
        whole = len(self.problem.blocks)
        left = [c for c in gains if c != champion and self.done[c] < whole]
        return sorted(left, key=lambda cell: -gains[cell])

    def measure(self, cell: int, upto: int) -> None:
        """Measures the blocks before number ``upto`` that a cell lacks."""
        for block in self.problem.blocks[self.done[cell] : upto]:
            self.values[cell][self.places((block,))] = self.problem.measure(cell, block)
            self.spent += int(self.nfe[cell]) * len(block)
            self.done[cell] += 1

    def places(self, blocks: Blocks) -> tuple[np.ndarray, np.ndarray]:
        """Prompts and seeds of the instances of some blocks."""
        prompts, seeds = np.transpose([instance for block in blocks for instance in block])
        return prompts, seeds

    def finish(self, cell: int) -> None:
        """Measures all that a cell lacks."""
        self.measure(cell, len(self.problem.blocks))

    def run(self, champion: int, cell: int, sure: float) -> int:
        """Measures a cell beside the champion until one of them is the better one."""
        if not self.done[cell]:
            self.order.append(cell)
        held = self.done[champion]  # a champion falls only where it was measured
        for upto in range(max(self.done[cell], 1), len(self.problem.blocks) + 1):
            self.measure(cell, upto)
            self.measure(champion, upto)
            lead = self.lead([cell], champion)[:, 0]
            if self.lost(cell, champion) or self.ahead(-lead, sure):
                return champion
            if upto >= held and (self.lost(champion, cell) or self.ahead(lead, sure)):
                return cell
        return cell if self.gain([cell], champion)[0] > 0 else champion

    def ahead(self, lead: np.ndarray, sure: float) -> bool:
        """Whether a lead, prompt by prompt, is above 0 at a level."""
        lead = lead[np.isfinite(lead)]
        if len(lead) < FEWEST or lead.mean() <= 0:
            return False
        return bool(sign_flip(lead[:, None], flips=FLIPS, seed=self.seed)[0] / 2 <= sure)

    def lost(self, cell: int, other: int) -> bool:
        """Whether a cell is defined nowhere, and another one is on the same pictures."""
        where = self.places(self.problem.blocks[: self.done[cell]])
        own, against = (np.isfinite(self.values[c][where]) for c in (cell, other))
        return bool(against.any() and not own.any())

    def lead(self, cells: Sequence[int], other: int) -> np.ndarray:
        """How much better than another each cell is, prompt by prompt, ``[prompts, cells]``.

        Of the instances that both have. Where a target is best, the distance of the mean from it
        counts; a prompt's part is its shift towards the target, so that the parts add up to that.
        """
        own, against = self.values[list(cells)], self.values[other]
        both = np.isfinite(own) & np.isfinite(against)
        first, second = (per_prompt(np.where(both, x, np.nan)).T for x in (own, against))
        target = TARGETS.get(self.problem.better)
        if target is None:
            return np.asarray(score(first - second, self.problem.better))
        return np.asarray(_shift(second, target) - _shift(first, target))

    def gain(self, cells: Sequence[int], other: int) -> np.ndarray:
        """Mean lead of each cell, ``[cells]``; NaN where there is none."""
        return _mean(self.lead(cells, other))

    def gains(self, champion: int) -> list[tuple[int, float]]:
        """Proposed cells and how much better than the champion they were, where that is known."""
        pairs = zip(self.order, self.gain(self.order, champion), strict=True)
        return [(cell, float(value)) for cell, value in pairs if np.isfinite(value)]

    def outcome(self) -> Outcome:
        """What was found."""
        finished = np.flatnonzero(self.done == len(self.problem.blocks))
        merit = score(_mean(per_prompt(self.values[finished]).T), self.problem.better)
        best = finished[np.argmax(np.where(np.isfinite(merit), merit, -np.inf))]
        return Outcome(
            int(best), tuple(map(int, finished)), tuple(self.order), self.values, self.spent
        )


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over the defined prompts, ``[prompts, n]`` → ``[n]``."""
    return np.asarray(per_prompt(values.T))


def _shift(values: np.ndarray, target: float) -> np.ndarray:
    """Distances from a target, signed so that a column's mean is that of its mean."""
    return np.asarray((values - target) * np.sign(_mean(values) - target))


def _axes(points: Sequence[tuple[Any, ...]]) -> tuple[list[Axis], np.ndarray]:
    """The axes on which cells differ, and each cell's place on them, ``[cells, axes]``."""
    axes, ranks = [], []
    for values in zip(*points, strict=True):
        distinct = list(dict.fromkeys(values))
        ordered = all(isinstance(value, int | float | Decimal) for value in distinct)
        place = {value: n for n, value in enumerate(sorted(distinct) if ordered else distinct)}
        if len(distinct) > 1:
            axes.append(Axis(ordered, len(distinct)))
            ranks.append([place[value] for value in values])
    return axes, np.array(ranks, dtype=int).reshape(len(axes), len(points)).T


def _distances(axes: Sequence[Axis], ranks: np.ndarray, place: Ranks) -> np.ndarray:
    """How far cells are from a place, each axis from 0 to 1: ``[cells]``."""
    apart = ranks - np.array(place, dtype=int)
    parts = [
        (apart[:, n] / (axis.size - 1)) ** 2 if axis.ordered else apart[:, n] != 0
        for n, axis in enumerate(axes)
    ]
    return np.sum(parts, axis=0) if parts else np.zeros(len(ranks))
