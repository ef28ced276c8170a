"""Statistics: paired differences, clustered by prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

RESAMPLES: Final = 10_000
_FEWEST: Final = 5


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
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


def paired(first: np.ndarray, second: np.ndarray, *, seed: int = 0) -> Interval:
    """Mean of ``first − second`` with a studentised bootstrap interval over prompts.

    Both hold one value per (prompt, seed), made from the same noise. Seeds are averaged within a
    prompt first, because pictures of one prompt are not independent.

    Args:
        first: ``[prompts, seeds]``; prompts with NaN are left out.
        second: What it is compared with, the same shape.
        seed: Of the resampling.

    Source:
        Efron and Tibshirani 1993, ch. 12.5 (bootstrap-t).
    """
    per_prompt = (first - second).mean(axis=1)
    values = per_prompt[np.isfinite(per_prompt)]
    count = len(values)
    if count == 0:
        return Interval(np.nan, np.nan, np.nan)
    mean = float(values.mean())
    if count < _FEWEST:
        return Interval(mean, np.nan, np.nan)
    error = values.std(ddof=1) / np.sqrt(count)
    if error == 0:
        return Interval(mean, mean, mean)
    rows = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    drawn = values[rows]
    errors = drawn.std(axis=1, ddof=1) / np.sqrt(count)
    usable = errors > 0
    t = (drawn.mean(axis=1)[usable] - mean) / errors[usable]
    low, high = np.quantile(t, [0.975, 0.025])
    return Interval(mean, float(mean - low * error), float(mean - high * error))


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
    if count < _FEWEST:
        return Interval(value, np.nan, np.nan)
    rows = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    drawn = [mean[rows].mean(axis=1) if len(mean) > 1 else mean for mean in means]
    low, high = np.nanquantile(statistic(*drawn), [0.025, 0.975])
    return Interval(value, float(low), float(high))
