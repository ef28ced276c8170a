"""Grids whose truth is known: what intervals, winners and best sets make of them.

Pictures of a prompt share half their variance, as seeds of one prompt do; prompts are drawn anew
for each grid. ``test_statistics.py`` draws some, ``benchmarks/grid_statistics.py`` 1,000 grids.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lcm_arith.evaluation.statistics.best import best_set
from lcm_arith.evaluation.statistics.comparisons import holm, pairs, sign_flip
from lcm_arith.evaluation.statistics.stats import intervals, per_prompt

PROMPTS, SEEDS, CELLS = 24, 4, 100
BEST: Final = 37
NOISE: Final = float(np.sqrt(0.5 + 0.5 / SEEDS))
"""Standard deviation of a prompt's mean over seeds."""


def pictures(seed: int, columns: int, *, heavy: bool = False) -> np.ndarray:
    """Values around 0, ``[columns, prompts, seeds]``: normal, or t with 3 degrees of freedom."""
    rng = np.random.default_rng(seed)

    def noise(*shape: int) -> np.ndarray:
        drawn = rng.standard_t(3, size=shape) / np.sqrt(3) if heavy else rng.normal(size=shape)
        return np.asarray(drawn * np.sqrt(0.5))

    return np.asarray(noise(columns, PROMPTS, 1) + noise(columns, PROMPTS, SEEDS))


def misses(ends: np.ndarray, truth: float = 0.0) -> tuple[float, float]:
    """Shares of intervals ``[n, 2]`` that lie above and below the truth."""
    return float((ends[:, 0] > truth).mean()), float((ends[:, 1] < truth).mean())


def our_ends(values: np.ndarray) -> np.ndarray:
    """The grid's own intervals of ``[columns, prompts, seeds]``, ``[columns, 2]``."""
    return intervals(per_prompt(values).T)[:, 1:]


def false_winner(seed: int, *, flips: int, chosen: bool = False, heavy: bool = False) -> bool:
    """Whether 100 equal cells seem to have a winner: a best set of one, or a Holm-significant cell.

    Args:
        seed: Of the grid.
        flips: Sign patterns of the permutation test.
        chosen: The baseline is the best cell by the very data, not the first one.
        heavy: As in :func:`pictures`.
    """
    cells = pictures(seed, CELLS, heavy=heavy)
    members = best_set(cells, "high").members
    against = members[0] if chosen else 0
    others = np.delete(cells, against, axis=0)
    p = sign_flip(per_prompt(others - cells[against]).T, flips=flips, seed=seed)
    adjusted = holm(p, among=pairs(CELLS) if chosen else CELLS - 1)
    return len(members) == 1 or bool((adjusted <= 0.05).any())


def optimum(seed: int, *, errors: float = 3 * np.sqrt(2), heavy: bool = False) -> tuple[bool, int]:
    """A cell better than 99 equal ones: is it in the best set, and how large is that?

    Args:
        seed: Of the grid.
        errors: How much better, in standard errors of one cell's mean; √2 of them are one of the
            difference of two cells.
        heavy: As in :func:`pictures`.
    """
    cells = pictures(seed, CELLS, heavy=heavy)
    cells[BEST] += errors * NOISE / np.sqrt(PROMPTS)
    members = best_set(cells, "high").members
    return BEST in members, len(members)
