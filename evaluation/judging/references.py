"""Style references: the pictures whose colours and texture a style's pictures should have."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np

from lcm_arith.data.captions import listed
from lcm_arith.data.pixels import SUFFIXES, UNREADABLE, cut, opened, quietly, render, upright_size
from lcm_arith.embedded import pictures
from lcm_arith.errors import InvalidContentError, NotFoundError
from lcm_arith.evaluation.judging.pixels import Pixels, Values
from lcm_arith.evaluation.judging.wasserstein import Texture, colour_distance, colour_profile

VARIANTS: Final = 8
"""True pictures of each drawing that count as references."""


@dataclass(frozen=True, eq=False)
class References:
    """Pictures of a style.

    Args:
        pixels: uint8 ``[n, H, W, 3]``, of the size of the pictures that are compared with them.
        captions: What they show: only pictures of these are compared. None is any.
    """

    pixels: Pixels
    captions: frozenset[str] | None = None

    @cached_property
    def _colours(self) -> Values:
        return colour_profile(self.pixels)

    @cached_property
    def _texture(self) -> Texture:
        return Texture(self.pixels)

    def colour_distance(self, pixels: Pixels) -> float:
        """``color_swd`` of a set of pictures ``[n, H, W, 3]``."""
        return colour_distance(colour_profile(pixels), self._colours)

    def texture_distance(self, pixels: Pixels) -> float:
        """``texture_swd`` of a set of pictures ``[n, H, W, 3]``."""
        return self._texture.distance(pixels)


def true_references(sets: tuple[str, ...], captions: tuple[str, ...]) -> References | None:
    """The drawings of shipped sets that show these captions, as drawn; None where there are none.

    Args:
        sets: Names of picture sets.
        captions: Those that no set draws are left out.
    """
    known = pictures.by_caption()
    shown = [known[caption] for caption in captions if caption in known]
    if not (sets and shown):
        return None
    drawn = [pictures.variants(name, concept, VARIANTS) for name in sets for concept in shown]
    return References(np.concatenate(drawn), frozenset(concept.caption for concept in shown))


def read_references(folder: Path, size: tuple[int, int]) -> References:
    """The pictures of a folder, in the order of their names.

    Args:
        folder: Other files and folders in it are not looked at.
        size: Height and width, px; each picture is resized (Lanczos) to cover it, its middle kept.

    Raises:
        NotFoundError: If there is no such folder.
        InvalidContentError: If it holds no picture, or one that cannot be read.
    """
    if folder.is_file():
        raise NotFoundError(f"--style-refs {folder}: is a file", hint="give the folder it is in")
    if not folder.is_dir():
        raise NotFoundError(f"--style-refs {folder}: no such folder")
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise InvalidContentError(
            f"--style-refs {folder}: holds no picture",
            hint=f"pictures end in {', '.join(SUFFIXES)}",
        )
    found, broken = [], []
    for file in files:
        try:
            found.append(_fitted(file, size))
        except UNREADABLE as error:
            broken.append(f"{file.name}: {error}")
    if broken:
        raise InvalidContentError(
            f"--style-refs {folder}: {len(broken)} of {len(files)} pictures cannot be read\n"
            + listed(broken),
            hint="take them out of the folder, or mend them",
        )
    return References(np.stack(found))


def _fitted(file: Path, size: tuple[int, int]) -> Pixels:
    with quietly(), opened(file.read_bytes()) as picture:
        return render(picture, cut(upright_size(picture), (size,)))
