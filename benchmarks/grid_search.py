"""Does the search of a grid find what the whole grid would find, and cheaper than by chance?

    python benchmarks/grid_search.py

Planted grids of 24 prompts × 4 seeds (``tests/planted.py``). Three sections at once, about
23 CPU minutes in all.
Writes ``benchmarks/results/grid_search.md``, which begins with the goals that were missed.
"""

from __future__ import annotations

import math
import resource
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from _page import Section, page

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from planted import (
    CHOICE,
    FLAT,
    HEAVY,
    RIDGE,
    SMOOTH,
    TASTES,
    Landscape,
    problem,
    random_search,
    rows,
)  # fmt: skip
from simulated import NOISE, PROMPTS

from lcm_arith.evaluation.statistics.best import best_set
from lcm_arith.evaluation.statistics.comparisons import holm, sign_flip
from lcm_arith.evaluation.statistics.search import Outcome, search
from lcm_arith.evaluation.statistics.stats import paired, per_prompt

RESULTS: Final = Path(__file__).resolve().parent / "results"
GRIDS: Final = 200
NULL_GRIDS: Final = 200
FIRST: Final = 1000
"""First seed: the search was tuned on seeds below it."""
FOUND_GOAL: Final = 0.95
NULL_GOAL: Final = 0.081
"""5 % and two standard errors of 200 grids."""


def ours(landscape: Landscape, values: np.ndarray, budget: int, seed: int) -> Outcome:
    return search(problem(landscape, values), budget, method="tpe", seed=seed)


def race_only(landscape: Landscape, values: np.ndarray, budget: int, seed: int) -> Outcome:
    return search(problem(landscape, values), budget, method="random", seed=seed)


def by_chance(landscape: Landscape, values: np.ndarray, budget: int, seed: int) -> Outcome:
    tried, spent = random_search(landscape, values, budget, seed)
    best = max(tried, key=lambda cell: float(values[cell].mean()))
    return Outcome(best, tried, tried, values, spent)


def whole(landscape: Landscape, values: np.ndarray, budget: int, seed: int) -> Outcome:
    every = tuple(range(len(values)))
    best = int(values.mean(axis=(1, 2)).argmax())
    return Outcome(best, every, every, values, rows(landscape))


Way = Callable[[Landscape, np.ndarray, int, int], Outcome]
WAYS: Final[dict[str, Way]] = {
    "TPE and race (`--search tpe`)": ours,
    "random proposals and race": race_only,
    "random search": by_chance,
}


@dataclass(frozen=True, eq=False)
class Tried:
    """A way of searching the same 200 grids; each array ``[grids]``.

    Args:
        regret: How much worse than the best cell the named one truly is.
        curse: How much better than the truth its measured mean is.
        member: Whether it is in the best set of the whole grid.
        spent: Share of the whole grid's rows.
        proposed, finished: Cells.
    """

    regret: np.ndarray
    curse: np.ndarray
    member: np.ndarray
    spent: np.ndarray
    proposed: np.ndarray
    finished: np.ndarray

    @property
    def cells(self) -> tuple[str, ...]:
        """For the table."""
        return (
            f"{self.regret.mean():.3f}", f"{self.member.mean():.1%}", f"{self.curse.mean():.3f}",
            f"{self.spent.mean():.1%}", f"{self.proposed.mean():.0f}",
            f"{self.finished.mean():.0f}",
        )  # fmt: skip


def tried(way: Way, landscape: Landscape, share: float) -> Tried:
    truth, every = landscape.truth, rows(landscape)
    found = []
    for seed in range(FIRST, FIRST + GRIDS):
        values, budget = landscape.values(seed), int(share * every)
        outcome = way(landscape, values, budget, seed)
        if outcome.spent > budget:
            raise AssertionError(f"{outcome.spent} rows of {budget}")
        best = outcome.champion
        found.append(
            (
                truth.max() - truth[best], values[best].mean() - truth[best],
                best in members(landscape, seed), outcome.spent / every,
                len(outcome.proposed), len(outcome.finished),
            )
        )  # fmt: skip
    return Tried(*np.array(found, dtype=float).T)


@cache
def members(landscape: Landscape, seed: int) -> tuple[int, ...]:
    """The best set of the whole grid."""
    return best_set(landscape.values(seed), "high").members


def table(
    section: Section, landscape: Landscape, shares: Sequence[float], ways: Sequence[str]
) -> None:
    """Lines of a landscape; the goals are that ours finds a member and beats random search."""
    for share in shares:
        of = {name: tried(WAYS[name], landscape, share) for name in ways}
        chance = of["random search"].regret
        for name, one in of.items():
            gain = paired(chance[:, None], one.regret[:, None])
            beats = "" if one.regret is chance else str(gain)
            section.rows.append((landscape.name, f"{share:.0%}", name, *one.cells, beats))
            if WAYS[name] is not ours:
                continue
            what = f"{landscape.name}, {share:.0%}"
            if not gain.low > 0:
                section.missed.append(f"{what}: not surely better than random search ({gain})")
            if share == 0.5 and not one.member.mean() >= FOUND_GOAL:
                section.missed.append(f"{what}: in the best set in {one.member.mean():.1%}")
    section.rows.append((landscape.name, "", "whole grid", *tried(whole, landscape, 1).cells, ""))


HEAD: Final = (
    "landscape", "budget", "way", "regret", "in the whole grid's best set", "mean too good by",
    "rows spent", "cells drawn", "finished", "regret below random search's by",
)  # fmt: skip


def one_peak() -> Section:
    cells = len(SMOOTH.points)
    section = Section(
        "One peak",
        f"{cells} cells: 7 λ1 × 6 λ2 × 3 step counts, best at λ1 0.8, λ2 1.0, 4 steps; {GRIDS} "
        "grids each. Budgets are shares of the whole grid's UNet rows. Regret: how much worse than "
        "the best cell the named one truly is, in standard deviations of a picture; a difference "
        f"of two cells has a standard error of {math.sqrt(2 / PROMPTS) * NOISE:.2f}. Goals: "
        f"at 50 % a member of the best set that the whole grid gives in at least {FOUND_GOAL:.0%}; "
        "at every budget less regret than random search, which measures whole cells, with 95 % "
        "confidence. A search ends before its rows do where nothing is open any more.",
        HEAD,
    )
    table(section, SMOOTH, (0.1, 0.5), tuple(WAYS))
    return section


def others() -> Section:
    text = f"The same with a tenth of the rows; three methods make {len(CHOICE.points)} cells."
    section = Section("Other landscapes", text, HEAD)
    for landscape in (HEAVY, TASTES, RIDGE, CHOICE):
        table(section, landscape, (0.1,), ("TPE and race (`--search tpe`)", "random search"))
    return section


def flat() -> Section:
    section = Section(
        "No peak",
        f"{len(FLAT.points)} equal cells, {NULL_GRIDS} searches (random proposals) with a quarter "
        "of the rows that begin with a fixed baseline. How often does a finished cell seem to "
        "differ from it (Holm, 5 %)? "
        f"Goal, adjusted for every cell of the grid as the tables are: at most {NULL_GOAL:.1%}, "
        f"which is 5 % and two standard errors of {NULL_GRIDS} searches. And how often is the best "
        "set of the finished cells a single one? No goal: these pictures chose what they compare, "
        "so a best set after a search says too little until it is confirmed.",
        ("p adjusted for", "false winners", "best set of one", "finished"),
    )
    found = np.array([null(seed) for seed in range(FIRST, FIRST + NULL_GRIDS)]).mean(axis=0)
    ours_rate, naive, single, finished = (float(n) for n in found)
    section.rows.append(
        ("every cell of the grid", f"{ours_rate:.1%}", f"{single:.1%}", f"{finished:.0f}")
    )
    section.rows.append(("finished cells alone", f"{naive:.1%}", "", ""))
    if ours_rate > NULL_GOAL:
        section.missed.append(f"no peak: {ours_rate:.1%} false winners")
    return section


def null(seed: int) -> tuple[bool, bool, bool, int]:
    values = FLAT.values(seed)
    found = search(problem(FLAT, values), rows(FLAT) // 4, method="random", seed=seed, start=0)
    others = [cell for cell in found.finished if cell != 0]
    p = sign_flip(per_prompt(values[others] - values[0]).T, flips=10_000, seed=seed)
    every, alone = (bool((holm(p, among=n) <= 0.05).any()) for n in (len(values) - 1, len(others)))
    single = len(best_set(values[list(found.finished)], "high").members) == 1
    return every, alone, single, len(found.finished)


def main() -> None:
    with ProcessPoolExecutor(3) as pool:
        sections = list(pool.map(made, (one_peak, others, flat)))
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    text = page("Searching a grid", "grid_search.py", sections, seconds, ("numpy", "optuna"))
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "grid_search.md").write_text(text, encoding="utf-8")


def made(table_of: Callable[[], Section]) -> Section:
    return table_of()


if __name__ == "__main__":
    main()
