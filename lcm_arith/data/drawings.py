"""Pictures in memory, above all the embedded drawings in their many variations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lcm_arith.embedded import pictures


@dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures with captions.

    Args:
        pixels: uint8 ``[n, H, W, 3]``.
        captions: One per picture.
        origin: Where they come from, JSON-ready.
    """

    pixels: np.ndarray
    captions: tuple[str, ...]
    origin: dict[str, Any]


def embedded_pictures(sets: Sequence[str], part: str, count: int, *, tagged: int = 0) -> Captioned:
    """``count`` variations of every drawing of the named sets in a part, with its caption.

    Every ``tagged``-th variation has one of the thing's tags for a caption; 0 has none.
    """
    rows = [(name, c) for name in sets for c in pictures.concepts(part)]
    pixels = np.concatenate([pictures.variants(name, c, count) for name, c in rows])
    captions = tuple(_words(c, i, tagged) for _, c in rows for i in range(count))
    about = {"sets": list(sets), "part": part, "variants": count, "tagged": tagged}
    return Captioned(pixels, captions, about)


def _words(concept: pictures.Concept, variation: int, tagged: int) -> str:
    if not tagged or not concept.tags or variation % tagged:
        return concept.caption
    return concept.tags[variation // tagged % len(concept.tags)]
