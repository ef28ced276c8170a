"""Sliced Wasserstein-1 distances between two sets of pictures: of their colours, of their texture.

Both are distances of sets, not means of single pictures' distances: one picture never holds all
colours of a style, so a mean of such distances is mostly that and hardly tells styles apart.
The directions are fixed, hence equal sets are at 0 and a run repeats to the bit.
"""

from __future__ import annotations

from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lcm_arith.evaluation.judging.pixels import Pixels, Values, lab

Rows = NDArray[np.float32]

DIRECTIONS: Final = 64
_STEP: Final = 0.25  # of L*a*b*; a just noticeable difference is about 2
_REACH: Final = 150  # of L*a*b*; sRGB's farthest colour, green, is at 148.5
_BINS: Final = 2 * int(_REACH / _STEP) + 1

PATCH: Final = 7  # px
_PATCHES: Final = 128  # of a picture, a level
_SMALLEST: Final = 16  # px, shorter side of the coarsest level
_KERNEL: Final = np.array([1, 4, 6, 4, 1], np.float32) / 16


@cache
def directions(size: int) -> Values:
    """Fixed unit rows ``[64, size]``; numpy keeps the stream of ``RandomState`` for ever."""
    rows = np.random.RandomState(0).standard_normal((DIRECTIONS, size))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


# --- colour ------------------------------------------------------------------------------------


def colour_profile(pixels: Pixels) -> Values:
    """Cumulated share of a set's pixels along each direction of L*a*b*, ``[64, bins]``.

    Positions are rounded to 0.25, which moves a distance by at most 0.25.

    Args:
        pixels: uint8 ``[n, H, W, 3]``; each picture counts alike.
    """
    first = int(_REACH / _STEP) + _BINS * np.arange(DIRECTIONS) + 0.5  # cut off is then rounded
    slices = directions(3).T / _STEP
    counts = np.zeros(DIRECTIONS * _BINS, np.int64)
    for picture in pixels:
        places = (lab(picture.reshape(-1, 3)) @ slices + first).astype(np.int64)  # [H W, 64]
        counts += np.bincount(places.ravel(), minlength=len(counts))
    shares = counts.reshape(DIRECTIONS, _BINS).cumsum(axis=1)
    return np.asarray(shares / shares[0, -1])


def colour_distance(first: Values, second: Values) -> float:
    """Sliced Wasserstein-1 of two :func:`colour_profile`, in units of L*a*b*.

    A shift of all colours by d is about d / 2.

    Source:
        Bonneel, Rabin, Peyré and Pfister 2015; in one dimension W₁ = ∫ |F − G|.
    """
    return float(_STEP * np.abs(first - second).sum(axis=1).mean())


# --- texture -----------------------------------------------------------------------------------


def patches(pixels: Pixels) -> list[Rows]:
    """Patches of 7 × 7 px at fixed places of each level of a Laplacian pyramid, finest first.

    Args:
        pixels: uint8 ``[n, H, W, 3]``.

    Returns:
        Level → ``[n · patches, 49, 3]``, up to 128 a picture, in levels of 255; a level is halved
        while its shorter side stays at 16 px or more. Nothing for pictures under 7 px.

    Source:
        Karras, Aila, Laine and Lehtinen 2018, section 5.
    """
    if min(pixels.shape[1:3]) < PATCH:
        return []
    per_picture = [[_cut(level) for level in pyramid(picture)] for picture in pixels]
    return [np.concatenate(level) for level in zip(*per_picture, strict=True)]


def pyramid(picture: Pixels) -> list[Rows]:
    """Laplacian pyramid of ``[H, W, 3]``; the last level is what blurring leaves.

    Source:
        Burt and Adelson 1983, with the kernel (1, 4, 6, 4, 1) / 16.
    """
    level: Rows = picture.astype(np.float32)
    found = []
    while min(level.shape[:2]) >= 2 * _SMALLEST:
        smaller = _blurred(level)[::2, ::2]
        spread = np.zeros_like(level)
        spread[::2, ::2] = 4 * smaller
        found.append(level - _blurred(spread))
        level = smaller
    return [*found, level]


def _blurred(x: Rows) -> Rows:
    """The kernel down and across, mirrored at the edges."""
    height, width = x.shape[:2]
    y = np.pad(x, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    down = sum(w * y[at : at + height] for at, w in enumerate(_KERNEL))
    return np.asarray(sum(w * down[:, at : at + width] for at, w in enumerate(_KERNEL)))


def _cut(level: Rows) -> Rows:
    rows, columns = level.shape[0] - PATCH + 1, level.shape[1] - PATCH + 1
    top, left = np.divmod(_places(rows * columns), columns)
    side = np.arange(PATCH)
    cut = level[(top[:, None] + side)[:, :, None], (left[:, None] + side)[:, None]]
    return cut.reshape(len(top), PATCH * PATCH, 3)


@cache
def _places(count: int) -> NDArray[np.int64]:
    return np.random.RandomState(0).permutation(count)[:_PATCHES]


class Texture:
    """What pictures' texture is compared with.

    Args:
        pixels: The references, uint8 ``[n, H, W, 3]``.
    """

    def __init__(self, pixels: Pixels) -> None:
        levels = patches(pixels)
        self._mean = [level.mean(axis=(0, 1), dtype=float) for level in levels]
        self._deviation = [np.maximum(level.std(axis=(0, 1), dtype=float), 1) for level in levels]
        self._sorted = self._slices(levels)

    def distance(self, pixels: Pixels) -> float:
        """Sliced Wasserstein-1 of patches, mean of the levels; NaN for pictures under 7 px.

        In standard deviations of the references' level and channel (at least one level of 255):
        both sets are divided by those of the references, so that blur and noise count. Karras
        and others divide each set by its own.

        Args:
            pixels: As many levels as the references have: of their size.
        """
        own = self._slices(patches(pixels))
        found = [sorted_distance(a, b).mean() for a, b in zip(own, self._sorted, strict=True)]
        return float(np.mean(found)) if found else float("nan")

    def _slices(self, levels: list[Rows]) -> list[Rows]:
        """Level → sorted projections ``[64, patches]``."""
        slices = directions(3 * PATCH * PATCH).astype(np.float32)
        found = []
        for level, mean, deviation in zip(levels, self._mean, self._deviation, strict=True):
            scaled = ((level - mean) / deviation).astype(np.float32).reshape(len(level), -1)
            found.append(np.sort(slices @ scaled.T, axis=1))
        return found


def sorted_distance(first: Rows, second: Rows) -> Values:
    """Wasserstein-1 of sorted samples in one dimension, row by row: exact for any two sizes.

    Args:
        first: ``[rows, n]``, ascending.
        second: ``[rows, m]``, ascending.

    Source:
        W₁ = ∫₀¹ |F⁻¹(q) − G⁻¹(q)| dq, over the pieces on which neither quantile changes.
    """
    n, m = first.shape[1], second.shape[1]
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)  # in parts of 1 / (n m)
    shares = np.diff(ends, prepend=0) / (n * m)
    gap = np.abs(first[:, (ends - 1) // m] - second[:, (ends - 1) // n])
    return np.asarray(gap.astype(float) @ shares)
