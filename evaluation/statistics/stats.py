"""Statistics: means and paired differences with intervals, clustered by prompt.

All rows of a grid share prompts, seeds and noise (common random numbers), so differences are taken
picture by picture. Pictures of one prompt are not independent: seeds are averaged within a prompt
first, and prompts are what is drawn again. Every function draws the same prompts for equal counts
and seeds, so what it says of a cell depends neither on the other cells nor on their order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np

RESAMPLES: Final = 10_000
FEWEST: Final = 5
"""Prompts below which no interval is given."""
ROUGH: Final = 12
"""Prompts below which an interval is rough."""
_TAILS: Final = (0.975, 0.025)
_AT_ONCE: Final = 64  # columns whose resampled means are held together


@dataclass(frozen=True)
class Interval:
    """A mean and its 95 % interval; both ends are NaN below five prompts."""

    mean: float
    low: float
    high: float

    @property
    def off_zero(self) -> bool:
        """Whether the interval leaves zero out; never of an interval that could not be made."""
        return bool(self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        ends = "" if np.isnan(self.low) else f" [{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.mean:+.3f}{ends}"


def per_prompt(values: np.ndarray) -> np.ndarray:
    """Mean over the seeds that are defined, ``[..., prompts, seeds]`` → ``[..., prompts]``."""
    defined = np.isfinite(values)
    count = defined.sum(axis=-1)
    total = np.where(defined, values, 0.0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


@lru_cache(maxsize=4)
def draws(count: int, seed: int = 0) -> np.ndarray:
    """How often each prompt comes in each resample, over ``count``: ``[RESAMPLES, count]``."""
    rows = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    places = rows + count * np.arange(RESAMPLES)[:, None]
    tally = np.bincount(places.ravel(), minlength=RESAMPLES * count)
    weights: np.ndarray = tally.reshape(RESAMPLES, count) / count
    weights.flags.writeable = False
    return weights


def studentised(values: np.ndarray, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bootstrap-t of each column's mean.

    Args:
        values: ``[prompts, columns]``, two prompts or more, all defined.
        seed: Of the resampling.

    Returns:
        Means ``[columns]``; their standard errors, exactly 0 where all prompts are alike; and
        ``(mean* − mean) / error*`` of the resamples, ``[columns, RESAMPLES]``, NaN where a resample
        has no spread.

    Source:
        Efron and Tibshirani 1993, ch. 12.5.
    """
    count, mean = len(values), values.mean(axis=0)
    centred = values - mean
    deviation = centred.std(axis=0, ddof=1)
    deviation[deviation <= 1e-12 * np.abs(values).max(axis=0)] = 0
    weights = draws(count, seed)
    moved = centred.T @ weights.T  # [columns, RESAMPLES]
    variance = (centred**2).T @ weights.T - moved**2
    spread = variance > 1e-12 * deviation[:, None] ** 2
    errors = np.sqrt(np.where(spread, variance, np.nan) / (count - 1))
    return mean, deviation / np.sqrt(count), moved / errors


def intervals(values: np.ndarray, *, seed: int = 0) -> np.ndarray:
    """Mean and the ends of its 95 % interval for each column.

    Args:
        values: ``[prompts, columns]``; a column leaves out the prompts where it is NaN.
        seed: Of the resampling.

    Returns:
        ``[columns, 3]``: mean, low, high. All NaN without a defined prompt, both ends NaN below
        :data:`FEWEST`. Where all prompts are alike both ends are the mean.
    """
    out = np.full((values.shape[1], 3), np.nan)
    for defined, columns in alike(np.isfinite(values)):
        if not defined.any():
            continue
        for at in range(0, len(columns), _AT_ONCE):
            chosen = columns[at : at + _AT_ONCE]
            out[chosen] = _intervals(values[np.ix_(defined, chosen)], seed)
    return out


def alike(defined: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Columns with the same prompts defined: pairs of mask ``[prompts]`` and column numbers."""
    masks, which = np.unique(defined.T, axis=0, return_inverse=True)
    return [(mask, np.flatnonzero(which.ravel() == n)) for n, mask in enumerate(masks)]


def _intervals(values: np.ndarray, seed: int) -> np.ndarray:
    mean = values.mean(axis=0)
    if len(values) < FEWEST:
        missing = np.full_like(mean, np.nan)
        return np.stack([mean, missing, missing], axis=1)
    mean, error, t = studentised(values, seed)
    t[error == 0] = 0
    high, low = np.nanquantile(t, _TAILS, axis=1)
    found = np.stack([mean, mean - high * error, mean - low * error], axis=1)
    rounding = 1e-12 * np.abs(values).max(axis=0)
    return np.where(np.abs(found) > rounding[:, None], found, 0.0)


def paired(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Interval:
    """Mean of ``first − second`` with a studentised bootstrap interval over prompts.

    Both hold one value per (prompt, seed), made from the same noise.

    Args:
        first: ``[prompts, seeds]``; pairs with NaN are left out.
        second: What it is compared with, the same shape.
        seed: Of the resampling.
    """
    return Interval(*map(float, intervals(per_prompt(first - second)[:, None], seed=seed)[0]))


def ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Mean over mean, for :func:`of_means`."""
    return np.asarray(first / second)


def closed_gap(control: np.ndarray, combined: np.ndarray, teacher: np.ndarray) -> np.ndarray:
    """Share of the control's distance above the teacher's that the combination closes."""
    return np.asarray((control - combined) / (control - teacher))


def of_means(statistic: Callable[..., np.ndarray], *samples: np.ndarray, seed: int = 0) -> Interval:
    """``statistic`` of the samples' means with a percentile bootstrap interval over prompts.

    Args:
        statistic: Takes the mean of each sample, elementwise over resamples.
        samples: ``[prompts, seeds]`` each, of the same prompts, or ``[1, 1]`` for a constant.
        seed: Of the resampling.

    Returns:
        Its value, and the interval (NaN below five prompts): prompts are drawn again, together for
        all samples, since they were made from the same captions and noise.

    Source:
        Efron and Tibshirani 1993, ch. 13.
    """
    means = [sample.mean(axis=1) for sample in samples]  # [prompts] each
    count = max(map(len, means))
    value = float(statistic(*(mean.mean() for mean in means)))
    if count < FEWEST:
        return Interval(value, np.nan, np.nan)
    weights = draws(count, seed)
    drawn = [weights @ mean if len(mean) > 1 else mean for mean in means]
    low, high = np.nanquantile(statistic(*drawn), [0.025, 0.975])
    return Interval(value, float(low), float(high))
