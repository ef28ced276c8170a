"""The drawings behind the embedded model, and the many pictures that each of them is.

A *concept* is one thing with one caption; a *set* is one artist's drawings of all concepts; a
*variation* says how a drawing becomes a picture: mirrored or not, how large, where, on what
background. Captions mention none of that, so that one caption has many true pictures. Training,
judge and evaluation all draw their pictures here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from types import MappingProxyType
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcm_arith.embedded.files import DATA

RGB = tuple[int, int, int]
Pixels = NDArray[np.uint8]
T = TypeVar("T")

SIDE: Final = 64  # px, side of a drawing and of a picture
COLUMNS: Final = 16  # tiles in a row of an atlas

_SMALL: Final = 48  # px
_OFFSETS: Final = (0, 8, 16)  # px; one latent is 8 px wide, so a moved drawing moves by latents
_MIRRORED: Final = 0.5
_FULL_SIZE: Final = 0.25
_ON_WHITE: Final = 0.3
WHITE: Final[RGB] = (255, 255, 255)
BACKGROUNDS: Final[tuple[RGB, ...]] = (
    (255, 214, 165),
    (202, 255, 191),
    (155, 200, 255),
    (255, 173, 173),
    (210, 190, 255),
    (70, 80, 110),
    (253, 255, 182),
)


@dataclass(frozen=True)
class PictureSet:
    """One artist's drawings.

    Args:
        name: Its id, and the stem of its atlas.
        source: Where the drawings come from: package and version, or a folder.
        licence: Theirs.
        in_base: Whether the base model was trained on it.
        has_vector: Whether a style vector is trained on it.
    """

    name: str
    source: str
    licence: str
    in_base: bool
    has_vector: bool


@lru_cache(maxsize=1)
def sets() -> Mapping[str, PictureSet]:
    """The shipped picture sets by name, in the order of ``data/sets.json``."""
    rows: list[dict[str, Any]] = json.loads((DATA / "sets.json").read_text(encoding="utf-8"))
    return MappingProxyType({row["name"]: PictureSet(**row) for row in rows})


def base_sets() -> tuple[str, ...]:
    """Sets that the base model was trained on."""
    return tuple(name for name, entry in sets().items() if entry.in_base)


def style_sets() -> tuple[str, ...]:
    """Sets that a style vector is trained on."""
    return tuple(name for name, entry in sets().items() if entry.has_vector)


def forget() -> None:
    """Forgets what was read, after a build has written other data."""
    for cached in (sets, _concepts, _places, by_caption, _atlas):
        cached.cache_clear()


@dataclass(frozen=True)
class Concept:
    """One thing that every set draws. The base saw both parts; vectors are trained on A only."""

    hexcode: str
    caption: str
    tags: tuple[str, ...]
    part: str


@dataclass(frozen=True)
class Variation:
    """How a drawing becomes a picture.

    Args:
        mirrored: Left and right exchanged.
        size: Side of the drawing within the picture, px: 64 or 48.
        offset: Its left and top edge, px: each 0, 8 or 16; ``(0, 0)`` at full size.
        background: Colour under the transparent parts.

    Raises:
        ValueError: If a value is outside those ranges.
    """

    mirrored: bool
    size: int
    offset: tuple[int, int]
    background: RGB

    def __post_init__(self) -> None:
        """Refuse what ``render`` could not place."""
        if self.size not in (SIDE, _SMALL):
            raise ValueError(f"size is {self.size} px; a drawing fills {SIDE} px or {_SMALL} px")
        allowed = (0,) if self.size == SIDE else _OFFSETS
        if len(self.offset) != 2 or any(step not in allowed for step in self.offset):
            raise ValueError(
                f"offset is {self.offset} px; at size {self.size} px each step is one of {allowed}"
            )
        if len(self.background) != 3 or any(not 0 <= level <= 255 for level in self.background):
            raise ValueError(f"background is {self.background}; it needs three levels of 0..255")


def part_of(hexcode: str) -> str:
    """``"B"`` for about 30 % of all hexcodes, by a fixed hash; ``"A"`` for the others."""
    return "B" if int(hashlib.sha256(hexcode.encode()).hexdigest(), 16) % 10 >= 7 else "A"


def concepts(part: str = "all") -> tuple[Concept, ...]:
    """The shipped concepts in file order: ``"all"`` of them, or part ``"A"`` or ``"B"``.

    Raises:
        ValueError: If ``part`` is none of the three.
    """
    if part not in ("all", "A", "B"):
        raise ValueError(f"part is {part!r}; it is 'all', 'A' or 'B'")
    return _concepts(part)


def hash_order(concepts: Iterable[Concept]) -> tuple[Concept, ...]:
    """The same concepts in a fixed mixed order, whose first N are a fair sample."""
    return tuple(sorted(concepts, key=lambda c: _digest(f"order:{c.hexcode}")))


@lru_cache(maxsize=1)
def by_caption() -> Mapping[str, Concept]:
    """Every concept by its caption; captions are unique."""
    return MappingProxyType({concept.caption: concept for concept in concepts()})


def drawing(set_name: str, concept: Concept) -> Pixels:
    """One artist's drawing of one concept, uint8 ``[64, 64, 4]`` RGBA, read-only.

    Raises:
        ValueError: If the set or the concept is not shipped.
    """
    index = _places().get(concept.hexcode)
    if index is None:
        raise ValueError(f"concept {concept.hexcode} ({concept.caption}) is not shipped")
    row, column = divmod(index, COLUMNS)
    tile: Pixels = _atlas(_known(set_name))[row, column]
    return tile


def draw_variation(rng: np.random.Generator) -> Variation:
    """One variation by the shipped probabilities.

    Mirrored 50 %; full size 25 %, else 48 px at one of nine places; on white 30 %, else on one of
    seven colours. Takes four to six numbers from ``rng``, all by ``random()``: of numpy's
    draws the one whose stream is the least likely to change.
    """
    mirrored = rng.random() < _MIRRORED
    size, offset = SIDE, (0, 0)
    if rng.random() >= _FULL_SIZE:
        size, offset = _SMALL, (_pick(rng, _OFFSETS), _pick(rng, _OFFSETS))
    background = WHITE if rng.random() < _ON_WHITE else _pick(rng, BACKGROUNDS)
    return Variation(mirrored, size, offset, background)


def render(drawing: Pixels, variation: Variation) -> Pixels:
    """The picture of a drawing under a variation, uint8 ``[64, 64, 3]``.

    Args:
        drawing: uint8 ``[64, 64, 4]``, straight (not premultiplied) alpha.
        variation: Size, place, mirroring and background.

    Raises:
        ValueError: If the drawing has another shape or dtype.
    """
    if drawing.shape != (SIDE, SIDE, 4) or drawing.dtype != np.uint8:
        raise ValueError(
            f"drawing is {drawing.dtype} {list(drawing.shape)}; it must be uint8 [64, 64, 4]"
        )
    tile = drawing if variation.size == SIDE else _shrunk(drawing, variation.size)
    if variation.mirrored:
        tile = tile[:, ::-1]
    left, top = variation.offset
    picture = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    picture[:] = variation.background
    place = picture[top : top + variation.size, left : left + variation.size]
    place[:] = _over(tile, variation.background)
    return picture


def variants(set_name: str, concept: Concept, count: int, seed: int = 0) -> Pixels:
    """``count`` true pictures of one concept by one artist, uint8 ``[count, 64, 64, 3]``.

    They depend on the set, the concept and the seed alone, not on what else was drawn; fewer
    variants are the first of more. Another seed gives fresh draws.

    Raises:
        ValueError: If the set or the concept is not shipped, or ``count`` is negative.
    """
    if count < 0:
        raise ValueError(f"count is {count}; it must not be negative")
    source = drawing(set_name, concept)
    rng = np.random.default_rng(int(_digest(f"{set_name}/{concept.hexcode}/{seed}"), 16))
    pictures = [render(source, draw_variation(rng)) for _ in range(count)]
    return np.array(pictures, dtype=np.uint8).reshape(count, SIDE, SIDE, 3)


@lru_cache(maxsize=3)
def _concepts(part: str) -> tuple[Concept, ...]:
    rows: list[dict[str, Any]] = json.loads((DATA / "concepts.json").read_text(encoding="utf-8"))
    return tuple(
        Concept(row["hexcode"], row["label"], tuple(row["tags"]), row["part"])
        for row in rows
        if part in ("all", row["part"])
    )


@lru_cache(maxsize=1)
def _places() -> Mapping[str, int]:
    return {concept.hexcode: index for index, concept in enumerate(concepts())}


@cache
def _atlas(set_name: str) -> Pixels:
    """All drawings of a set, read-only uint8 ``[rows, 16, 64, 64, 4]``."""
    with Image.open(DATA / f"{set_name}.png") as image:
        sheet = np.array(image.convert("RGBA"))
    rows = sheet.shape[0] // SIDE
    tiles = sheet.reshape(rows, SIDE, COLUMNS, SIDE, 4).swapaxes(1, 2).copy()
    tiles.flags.writeable = False
    return tiles


def _known(set_name: str) -> str:
    if set_name not in sets():
        raise ValueError(f"no picture set is named {set_name!r}; shipped: {', '.join(sets())}")
    return set_name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _pick(rng: np.random.Generator, values: tuple[T, ...]) -> T:
    return values[int(rng.random() * len(values))]


def _shrunk(drawing: Pixels, size: int) -> Pixels:
    """Pillow weights colours by alpha for RGBA, so hidden colours do not bleed into the edge."""
    small = Image.fromarray(drawing).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(small)


def _over(tile: Pixels, background: RGB) -> Pixels:
    """Alpha compositing, rounded to nearest; 255 is odd, so there are no ties."""
    alpha = tile[..., 3:].astype(np.uint32)  # [size, size, 1]
    below = np.array(background, dtype=np.uint32)  # [3]
    mixed = tile[..., :3] * alpha + below * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)
