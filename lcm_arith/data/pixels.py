"""Pictures of any shape as training pictures of a few shapes."""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.Image import Image as Picture

Size = tuple[int, int]
"""Height and width, px."""

SUFFIXES: Final = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
MOST_UNEQUAL: Final = 16  # times that one side may be longer; a bucket keeps 4 of it
UNREADABLE: Final = (
    OSError,
    ValueError,
    SyntaxError,  # Pillow's for a broken PNG
    EOFError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on broken files."""


@dataclass(frozen=True)
class Cut:
    """How a picture becomes a training picture: resized, then cropped.

    Args:
        original: Its own size.
        resized: Its size when it just covers the bucket.
        top, left: Of the crop in the resized picture, px.
        target: Size of the bucket.
    """

    original: Size
    resized: Size
    top: int
    left: int
    target: Size

    def time_ids(self, *, mirrored: bool) -> tuple[int, ...]:
        """What SDXL is told: original height and width, crop top and left, target height and width.

        Of a mirrored picture the crop is measured in the mirrored one.
        """
        left = self.resized[1] - self.left - self.target[1] if mirrored else self.left
        return (*self.original, self.top, left, *self.target)

    @property
    def enlarged(self) -> bool:
        """Whether the picture is smaller than its bucket."""
        return self.resized[0] > self.original[0] or self.resized[1] > self.original[1]


def buckets(resolution: int, step: int) -> tuple[Size, ...]:
    """Sizes of at most ``resolution``² px whose sides are multiples of ``step``, up to 1:4.

    The square of ``resolution`` is among them; with ``step`` = ``resolution`` it is the only one.
    """
    sizes = {(resolution, resolution)}
    for side in range(-(-resolution // (2 * step)) * step, resolution, step):
        other = min(2 * resolution, resolution**2 // side) // step * step
        sizes |= {(side, other), (other, side)}
    return tuple(sorted(sizes))


def cut(original: Size, among: tuple[Size, ...], where: tuple[float, float] = (0.5, 0.5)) -> Cut:
    """The bucket of the nearest aspect ratio, and what of the picture lies in it.

    Args:
        original: Size of the picture.
        among: From :func:`buckets`.
        where: Place of the crop down and across, 0 to 1; the middle is 0.5.

    Raises:
        ValueError: If one side is more than 16 times the other.
    """
    height, width = original
    if max(original) > MOST_UNEQUAL * min(original):
        raise ValueError(
            f"{width}×{height} px, one side is more than {MOST_UNEQUAL} times the other"
        )

    def unlike(size: Size) -> tuple[float, int]:
        return abs(math.log(size[0] * width / (size[1] * height))), -size[0] * size[1]

    target = min(among, key=unlike)
    scale = max(target[0] / height, target[1] / width)
    resized = (
        max(target[0], round(height * scale)),
        max(target[1], round(width * scale)),
    )
    top, left = (
        int(share * (side - wanted))
        for share, side, wanted in zip(where, resized, target, strict=True)
    )
    return Cut(original, resized, top, left, target)


@contextmanager
def quietly() -> Iterator[None]:
    """Pillow's warnings are not shown: of pictures above 89 megapixels and of damaged EXIF.

    Both can be used; what cannot is an error. For the main thread, it counts in all.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def opened(data: bytes) -> Picture:
    """A picture file; only its beginning is read."""
    try:
        return Image.open(io.BytesIO(data))
    except UnidentifiedImageError:  # it tells of an address in memory
        raise UnidentifiedImageError("is no picture that Pillow knows") from None


def raw(height: int, width: int) -> Callable[[bytes], Picture]:
    """Reads plain RGB values of a size."""
    return lambda data: Image.frombytes("RGB", (width, height), data)


def upright_size(picture: Picture) -> Size:
    """Height and width as it is seen, by its EXIF orientation; nothing is decoded."""
    turned = picture.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return picture.size if turned else (picture.height, picture.width)


def render(picture: Picture, how: Cut) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """uint8 ``[H, W, 3]`` of the bucket's size: upright, on white, resized (Lanczos), cropped."""
    flat = on_white(ImageOps.exif_transpose(picture))
    down, across = (side / big for side, big in zip(how.original, how.resized, strict=True))
    box = (
        how.left * across,
        how.top * down,
        min((how.left + how.target[1]) * across, how.original[1]),
        min((how.top + how.target[0]) * down, how.original[0]),
    )
    size = (how.target[1], how.target[0])
    return np.asarray(flat.resize(size, Image.Resampling.LANCZOS, box=box))


def on_white(picture: Picture) -> Picture:
    """RGB; what is transparent becomes white, 16-bit greys keep their upper 8 bits."""
    if picture.mode.startswith("I"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = picture.convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture).convert("RGB")
