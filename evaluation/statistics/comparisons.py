"""Cells against a baseline: is there a difference, and how sure is that over many cells?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from lcm_arith.evaluation.statistics.best import means_of, score
from lcm_arith.evaluation.statistics.stats import FEWEST, Interval, alike, intervals, per_prompt

SURE: Final = 0.05
"""A cell differs from the baseline if its p, adjusted over all cells, is at most this."""
FLIPS: Final = 100_000
"""Random sign patterns of a permutation test; its p is at least 1 / (FLIPS + 1)."""
EXACT: Final = 17
"""Prompts up to which every sign pattern is tried: 2¹⁶, since one and its opposite count alike."""
_AT_ONCE: Final = 10_000


@dataclass(frozen=True)
class Comparison:
    """A cell against the baseline.

    Args:
        diff: Cell − baseline with its 95 % interval.
        p: Of the sign-flip permutation test, two-sided; NaN without a prompt.
        p_holm: The same, adjusted over all cells.
        p_better: Share of resamples in which the cell is the better one; NaN below five prompts,
            and where it is open which is better.
        prompts: Prompts for which both are defined.
    """

    diff: Interval
    p: float
    p_holm: float
    p_better: float
    prompts: int


def compare(
    cells: np.ndarray, baseline: np.ndarray, better: str, *, chosen: bool = False,
    total: int | None = None, seed: int = 0, flips: int = FLIPS,
) -> list[Comparison]:  # fmt: skip
    """Each cell against the baseline, paired over prompt and seed.

    Args:
        cells: ``[cells, prompts, seeds]``, without the baseline; NaN where not defined.
        baseline: ``[prompts, seeds]``, from the same prompts and noise.
        better: Which mean is better, as in :func:`score`; ``"teacher"`` leaves it open.
        chosen: The baseline is the best of all cells by this very data. Then each pair of cells
            might have been the one compared, and p is adjusted for all pairs.
        total: Cells in all, the baseline too, where those given are some of them that a search left
            over: then p is adjusted for all, as if those left out had been tested as well. None
            takes those given.
        seed: Of the resampling and the flips.
        flips: Random sign patterns where not all are tried.
    """
    differences = per_prompt(cells - baseline).T  # [prompts, cells]
    found = intervals(differences, seed=seed)
    p = sign_flip(differences, flips=flips, seed=seed)
    count = len(cells)
    total = total or count + 1
    adjusted = holm(p, among=pairs(total) if chosen else total - 1)
    likely = _p_better(cells, baseline, better, seed)
    prompts = np.isfinite(differences).sum(axis=0)
    return [
        Comparison(
            Interval(*map(float, found[n])),
            float(p[n]),
            float(adjusted[n]),
            float(likely[n]),
            int(prompts[n]),
        )
        for n in range(count)
    ]


def _p_better(cells: np.ndarray, baseline: np.ndarray, better: str, seed: int) -> np.ndarray:
    both = np.isfinite(cells) & np.isfinite(baseline)  # [cells, prompts, seeds]
    own, other = (per_prompt(np.where(both, x, np.nan)).T for x in (cells, baseline))
    p = np.full(len(cells), np.nan)
    if better == "teacher":
        return p
    for defined, columns in alike(np.isfinite(own)):
        if defined.sum() >= FEWEST:
            first, second = (x[np.ix_(defined, columns)] for x in (own, other))
            lead = score(means_of(first, seed), better) - score(means_of(second, seed), better)
            even = np.abs(lead) <= 1e-12 * max(np.abs(first).max(), np.abs(second).max())
            p[columns] = np.where(even, 0.5, lead > 0).mean(axis=1)
    return p


def sign_flip(differences: np.ndarray, *, flips: int = FLIPS, seed: int = 0) -> np.ndarray:
    """Two-sided p of each column's mean by flipping the signs of prompts.

    If cell and baseline are alike, a prompt's difference is as likely of either sign. Exact up to
    :data:`EXACT` prompts, else from ``flips`` random patterns and the pattern that was observed.

    Args:
        differences: ``[prompts, columns]``; a column leaves out the prompts where it is NaN.
        flips: Random patterns.
        seed: Of the patterns.

    Returns:
        ``[columns]``; NaN without a defined prompt.

    Source:
        Fisher 1935, ch. 21; with random patterns Phipson and Smyth 2010, eq. 2.
    """
    p = np.full(differences.shape[1], np.nan)
    for defined, columns in alike(np.isfinite(differences)):
        count = int(defined.sum())
        if count:
            values = differences[np.ix_(defined, columns)]
            exact = count <= EXACT
            signs = _every(count) if exact else _some(count, flips, seed)
            p[columns] = _extremes(values, signs, observed=int(not exact))
    return p


def _every(count: int) -> np.ndarray:
    """The patterns whose last sign is +; their opposites have sums as far from 0."""
    return 1 - 2 * (np.arange(2 ** (count - 1))[:, None] >> np.arange(count) & 1)


def _some(count: int, flips: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng(seed).integers(2, size=(flips, count), dtype=np.int8)
    return 2 * drawn - 1


def _extremes(values: np.ndarray, signs: np.ndarray, observed: int) -> np.ndarray:
    """Share of sign patterns whose sum is as far from 0 as that of ``values``, or farther."""
    reach = np.abs(values.sum(axis=0)) - 1e-9 * np.abs(values).sum(axis=0)  # ties are ties
    hits = np.full(values.shape[1], observed)
    for at in range(0, len(signs), _AT_ONCE):
        hits += (np.abs(signs[at : at + _AT_ONCE].astype(float) @ values) >= reach).sum(axis=0)
    return np.asarray(hits / (len(signs) + observed))


def pairs(count: int) -> int:
    """Pairs of ``count`` cells."""
    return count * (count - 1) // 2


def holm(p: np.ndarray, *, among: int | None = None) -> np.ndarray:
    """The p adjusted so that over all tests one or more false alarms have a chance of at most 5 %.

    Args:
        p: ``[tests]``; NaN stays NaN and counts as no test.
        among: Tests in all, where some are not in ``p``: those are taken for the larger ones.

    Source:
        Holm 1979.
    """
    defined = np.flatnonzero(np.isfinite(p))
    total = len(defined) + (0 if among is None else max(among - len(p), 0))
    order = defined[np.argsort(p[defined], kind="stable")]
    steps = p[order] * (total - np.arange(len(order)))
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1)
    return adjusted
