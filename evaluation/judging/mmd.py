"""Maximum mean discrepancy of two sets of embeddings under a Gaussian kernel, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lcm_arith.errors import InvalidContentError

Values = NDArray[np.float64]

SIGMA: Final = 10.0
SCALE: Final = 1000.0
FEWEST: Final = 32
"""Pictures a set below which no figure is given: its noise is then as large as what it shows."""


def gaussian(first: np.ndarray, second: np.ndarray, sigma: float = SIGMA) -> Values:
    """exp(−‖x − y‖² / (2 σ²)) of every pair, ``[n, m]``."""
    x, y = first.astype(float), second.astype(float)
    squares = (x * x).sum(axis=1)[:, None] + (y * y).sum(axis=1) - 2 * x @ y.T
    return np.asarray(np.exp(-np.maximum(squares, 0) / (2 * sigma**2)))


def _others(k: Values) -> float:
    """Mean over i ≠ j."""
    n = len(k)
    return float((k.sum() - np.trace(k)) / (n * (n - 1)))


def _all(k: Values) -> float:
    return float(k.mean())


ESTIMATES: Final[dict[str, tuple[Callable[[Values], float], Callable[[Values], float]]]] = {
    "paired": (_others, _others),
    "unbiased": (_others, _all),
    "biased": (_all, _all),
}
"""Name → mean within a set, mean across. Gretton and others 2012: ``paired`` is the U-statistic of
eq. 4 (row i of one set may depend on row i of the other, as pictures of one prompt and seed do),
``unbiased`` that of eq. 3 (independent sets of any sizes), ``biased`` the V-statistic of eq. 5,
which is above 0 for equal distributions and is what Jayasumana and others 2024 publish as CMMD."""


def mmd2(
    first: np.ndarray, second: np.ndarray, estimate: str = "paired", sigma: float = SIGMA
) -> float:
    """Squared maximum mean discrepancy; unbiased estimates fall below 0 by chance.

    Args:
        first: ``[n, d]``.
        second: ``[m, d]``; as many rows for ``paired``.
        estimate: A name of :data:`ESTIMATES`.
        sigma: Width of the kernel, in units of the embeddings.

    Raises:
        InvalidContentError: If a set is too small or the sets do not fit.
    """
    n, m = len(first), len(second)
    if min(n, m) < 2 or first.shape[1:] != second.shape[1:] or (estimate == "paired" and n != m):
        raise InvalidContentError(
            f"embeddings {list(first.shape)} and {list(second.shape)}: MMD needs two rows or more "
            "of one width, and as many on both sides where they are paired"
        )
    within, across = ESTIMATES[estimate]
    same = within(gaussian(first, first, sigma)) + within(gaussian(second, second, sigma))
    return same - 2 * across(gaussian(first, second, sigma))


def cmmd_u(first: np.ndarray, second: np.ndarray) -> float:
    """1000 × unbiased MMD² (σ = 10) of paired unit rows ``[n, d]``; NaN below n = 32.

    Source:
        Jayasumana and others 2024 (CMMD: kernel, σ and factor), Gretton and others 2012, eq. 4.
    """
    return SCALE * mmd2(first, second) if len(first) >= FEWEST else float("nan")
