"""Which cells may be the best one, and which are no worse than the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from lcm_arith.evaluation.statistics.stats import FEWEST, draws, per_prompt, studentised

LEVEL: Final = 0.95
TARGETS: Final = {"one": 1.0, "zero": 0.0}
"""Where the best value is of metrics that can be too high and too low."""


@dataclass(frozen=True, eq=False)
class BestSet:
    """The smallest set of cells that holds the best one with 95 % probability.

    Args:
        p: Probability of being best, ``[cells]``; NaN of a cell that is not defined.
        members: Cell numbers by falling probability; empty if there are too few prompts.
        prompts: Prompts for which every cell is defined.
    """

    p: np.ndarray
    members: tuple[int, ...]
    prompts: int


def score(means: np.ndarray, better: str) -> np.ndarray:
    """Means such that the larger is the better: ``"high"``, ``"low"`` or nearest to a target."""
    if better in TARGETS:
        return -np.abs(means - TARGETS[better])
    return {"high": means, "low": -means}[better]


def means_of(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """Means of resampled prompts, drawn together for all columns.

    ``[prompts, columns]`` → ``[columns, RESAMPLES]``.
    """
    return np.asarray(values.T @ draws(len(values), seed).T)


def best_set(cells: np.ndarray, better: str, *, seed: int = 0) -> BestSet:
    """The cells that may be best: by falling probability, until 95 % are reached.

    A cell's probability is the share of resamples in which its mean is the best one; a tie is
    shared out. Cells as probable as the last member are members too, so that their order decides
    nothing.

    Args:
        cells: ``[cells, prompts, seeds]``. A cell without a defined picture is left out; then every
            prompt that is not defined for all the others.
        better: As in :func:`score`.
        seed: Of the resampling.
    """
    values = per_prompt(cells)
    p = np.full(len(cells), np.nan)
    there = np.flatnonzero(np.isfinite(values).any(axis=1))
    values = values[there]
    values = values[:, np.isfinite(values).all(axis=0)].T  # [prompts, cells there]
    if len(values) < FEWEST or not len(there):
        return BestSet(p, (), len(values) if len(there) else 0)
    scores = score(means_of(values, seed), better)  # [cells there, RESAMPLES]
    first = scores >= scores.max(axis=0) - 1e-12 * np.abs(values).max()
    p[there] = first @ (1 / first.sum(axis=0)) / first.shape[1]
    order = there[np.argsort(-p[there], kind="stable")]
    needed = int(np.searchsorted(np.cumsum(p[order]), LEVEL - 1e-9))
    least = p[order[needed]] - 1e-9
    return BestSet(p, tuple(int(n) for n in order if p[n] >= least), len(values))


def lower_bounds(
    cells: np.ndarray, reference: np.ndarray, better: str, *, seed: int = 0
) -> np.ndarray:
    """How much better than a reference each cell is at least, for all cells at once.

    The lower ends of studentised bootstrap intervals, widened so that with 97.5 % probability all
    of them hold together: the best of many cells then does not pass by luck.

    Args:
        cells: ``[cells, prompts, seeds]``. A cell without a defined difference is left out; then
            every prompt that is not defined for all the others.
        reference: ``[prompts, seeds]``, or one per cell, from the same prompts and noise.
        better: ``"high"`` or ``"low"``.
        seed: Of the resampling.

    Returns:
        ``[cells]``, negative where the cell may be worse; NaN of a cell that is left out, and of
        all below five prompts.

    Source:
        Romano and Wolf 2005, the first step of their step-down (max-t).
    """
    gain = score(per_prompt(cells - reference), better)
    bounds = np.full(len(cells), np.nan)
    there = np.isfinite(gain).any(axis=1)
    gain = gain[there]
    gain = gain[:, np.isfinite(gain).all(axis=0)].T  # [prompts, cells there]
    if len(gain) < FEWEST or not there.any():
        return bounds
    mean, error, t = studentised(gain, seed)
    t[(error == 0)[:, None] | np.isnan(t)] = 0
    bounds[there] = mean - np.quantile(t.max(axis=0), 0.975) * error
    return bounds
