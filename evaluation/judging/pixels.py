"""Metrics of the stored 8-bit pixels alone: no weights, no judge, float64.

Pictures are uint8 ``[n, H, W, 3]`` in sRGB; each function gives one value a picture, ``[n]``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from lcm_arith.errors import InvalidContentError

Pixels = NDArray[np.uint8]
Values = NDArray[np.float64]

WINDOW: Final = 11  # px
_SIGMA: Final = 1.5  # px
_K1, _K2 = 0.01, 0.03
_TOP: Final = 255

_LEVELS: Final = np.arange(256) / _TOP
LINEAR: Final = np.where(_LEVELS <= 0.04045, _LEVELS / 12.92, ((_LEVELS + 0.055) / 1.055) ** 2.4)
"""Light of each 8-bit level. Source: IEC 61966-2-1."""
_XYZ: Final = np.array(
    [
        [0.4124, 0.3576, 0.1805],
        [0.2126, 0.7152, 0.0722],
        [0.0193, 0.1192, 0.9505],
    ]
)
_TO_WHITE: Final = _XYZ / _XYZ.sum(axis=1, keepdims=True)  # white is (1, 1, 1), so grey is grey
_KNEE: Final = 6 / 29


def lab(pixels: Pixels) -> Values:
    """CIE L*a*b* under D65 of sRGB pixels, the same shape.

    Source:
        CIE 15:2004; the sRGB matrix of IEC 61966-2-1, its white taken as the reference white.
    """
    x, y, z = (_root(channel) for channel in np.moveaxis(LINEAR[pixels] @ _TO_WHITE.T, -1, 0))
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def lightness(pixels: Pixels) -> Values:
    """L* alone, 0 to 100, without the last axis."""
    return np.asarray(116 * _root(LINEAR[pixels] @ _TO_WHITE[1]) - 16)


def _root(light: Values) -> Values:
    """CIE's cube root, straight near black."""
    return np.where(light > _KNEE**3, np.cbrt(light), light / (3 * _KNEE**2) + 4 / 29)


def psnr(first: Pixels, second: Pixels) -> Values:
    """10 log₁₀(255² / mean squared difference), dB; infinite where two pictures are equal."""
    check_same_size(first, second)
    pairs = zip(first, second, strict=True)  # one by one: float64 is eight times as large
    error = np.array([np.square(a.astype(float) - b).mean() for a, b in pairs])
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(_TOP**2 / error))


def ssim(first: Pixels, second: Pixels) -> Values:
    """Mean structural similarity, −1 to 1, of the three channels; NaN below 11 px a side.

    Gaussian window of 11 px and σ = 1.5 px where it lies wholly inside, K₁ = 0.01, K₂ = 0.03,
    range 1, no shrinking first.

    Source:
        Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13 and section III-C.
    """
    check_same_size(first, second)
    if min(first.shape[1:3]) < WINDOW:
        return np.full(len(first), np.nan)
    return np.array(
        [_ssim_map(a / _TOP, b / _TOP).mean() for a, b in zip(first, second, strict=True)]
    )


def _ssim_map(a: Values, b: Values) -> Values:
    """``[H − 10, W − 10, 3]``."""
    c1, c2 = _K1**2, _K2**2
    mean_a, mean_b, square, product = (_blur(x) for x in (a, b, a * a + b * b, a * b))
    means, both = mean_a * mean_b, mean_a**2 + mean_b**2
    top = (2 * means + c1) * (2 * (product - means) + c2)
    return np.asarray(top / ((both + c1) * (square - both + c2)))


def _gauss() -> Values:
    at = np.arange(WINDOW) - WINDOW // 2
    weights = np.exp(-(at**2) / (2 * _SIGMA**2))
    return np.asarray(weights / weights.sum())


_WEIGHTS: Final = _gauss()


def _blur(x: Values) -> Values:
    """Gaussian mean over each whole window of ``[H, W, 3]``."""
    height, width = x.shape[0] - WINDOW + 1, x.shape[1] - WINDOW + 1
    down = sum(w * x[at : at + height] for at, w in enumerate(_WEIGHTS))
    return np.asarray(sum(w * down[:, at : at + width] for at, w in enumerate(_WEIGHTS)))


@dataclass(frozen=True, eq=False)
class Light:
    """Mean and standard deviation of L* of each picture, both ``[n]``."""

    mean: Values
    spread: Values

    @classmethod
    def of(cls, maps: Iterable[Values]) -> Light:
        """Of each picture's :func:`lightness`, which is not kept."""
        found = [(each.mean(), each.std()) for each in maps]
        return cls(*np.array(found).reshape(-1, 2).T)


def luma_shift(light: Light, reference: Light) -> Values:
    """Mean L* minus the mean L* of the reference."""
    return light.mean - reference.mean


def contrast_ratio(light: Light, reference: Light) -> Values:
    """Standard deviation of L* over the reference's; NaN where the reference is one colour.

    Source:
        RMS contrast: Peli 1990, eq. 6, here of L* instead of grey levels.
    """
    flat = reference.spread < 1e-9  # rounding alone
    return np.where(flat, np.nan, light.spread / np.where(flat, 1, reference.spread))


def clip_frac(pixels: Pixels) -> Values:
    """Share of pixels of which a channel is 0 or 255."""
    return np.asarray(((pixels == 0) | (pixels == _TOP)).any(axis=-1).mean(axis=(1, 2)))


FLAT: Final = 2.0  # levels of 255; VAEs leave about one on a plain picture
CLIPPED: Final = 0.75
BURNT: Final = 0.02


def _black(pixels: Pixels) -> NDArray[np.bool_]:
    return np.asarray(~pixels.any(axis=(1, 2, 3)))


def _flat(pixels: Pixels) -> NDArray[np.bool_]:
    return np.array([picture.std(axis=(0, 1)).max() < FLAT for picture in pixels], dtype=bool)


def _saturated(pixels: Pixels) -> NDArray[np.bool_]:
    low, high = pixels == 0, pixels == _TOP
    burnt = (low.any(axis=-1) & high.any(axis=-1)).mean(axis=(1, 2))
    return np.asarray(((low | high).mean(axis=(1, 2, 3)) > CLIPPED) & (burnt > BURNT))


DEFECTS: Final[dict[str, Callable[[Pixels], NDArray[np.bool_]]]] = {
    "nan": _black,
    "flat": _flat,
    "saturated": _saturated,
}
"""Name → which pictures have it; the first that holds is a picture's defect.

``nan``: every value is 0, which is what NaN become in 8 bits. ``flat``: no channel's standard
deviation reaches 2 levels. ``saturated``: over 75 % of all values are 0 or 255, and over 2 % of
the pixels have both, a pure colour; so line art in black and white is none.
"""
OK: Final = "ok"


def defects(pixels: Pixels) -> NDArray[np.str_]:
    """The defect of each picture, a name of :data:`DEFECTS` or ``"ok"``."""
    return np.select([of(pixels) for of in DEFECTS.values()], list(DEFECTS), default=OK)


def check_same_size(first: Pixels, second: Pixels) -> None:
    """Raises InvalidContentError unless both hold equally many pictures of one size."""
    if first.shape != second.shape:
        raise InvalidContentError(
            f"pictures {list(first.shape)} cannot be compared pixel by pixel with "
            f"{list(second.shape)}: [pictures, height, width, channels] differ"
        )
