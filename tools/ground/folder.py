"""Stage ``data`` from the user's own pictures: STYLE/x.png + x.txt."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ground.common import BuildError, Options, say
from ground.packages import write_data
from lcm_arith.data.pixels import SUFFIXES
from lcm_arith.embedded.pictures import SIDE, PictureSet, Pixels, part_of

_SHOWN: Final = 5


def build(options: Options) -> None:
    """Captions and drawings of ``options.data``; each subfolder is a style, in the base too.

    What every style draws under the same caption becomes one thing; captions that a style lacks are
    left out and listed. Transparent pictures get the backgrounds of the variation.

    Raises:
        BuildError: If there are no styles, a picture has no caption or cannot be read, a style has
            two pictures of a caption, or the styles share fewer than two captions.
    """
    assert options.data is not None
    folders = sorted(path for path in options.data.iterdir() if path.is_dir())
    if not folders:
        raise BuildError(
            f"{options.data}: holds no folder of a style; put STYLE/x.png + x.txt there"
        )
    styles = {folder.name: read_style(folder) for folder in folders}
    shared = sorted(set.intersection(*(set(drawings) for drawings in styles.values())))
    for name, drawings in styles.items():
        lonely = sorted(set(drawings) - set(shared))
        if lonely:
            shown = ", ".join(lonely[:_SHOWN]) + (", ..." if len(lonely) > _SHOWN else "")
            say(f"{name}: {len(lonely)} captions are not in every style and are left out: {shown}")
    if len(shared) < 2:
        raise BuildError(
            f"{options.data}: the styles share {len(shared)} captions; needs two or more"
        )
    rows = [concept_row(caption) for caption in shared]
    entries = [
        PictureSet(name, "own pictures", "unknown", in_base=True, has_vector=True)
        for name in styles
    ]
    write_data(rows, entries, {name: [styles[name][c] for c in shared] for name in styles})


def concept_row(caption: str) -> dict[str, Any]:
    """A row of ``concepts.json``; the hexcode is made from the caption."""
    code = hashlib.sha256(caption.encode()).hexdigest()[:12].upper()
    return {"hexcode": code, "label": caption, "tags": [], "part": part_of(code)}


def read_style(folder: Path) -> dict[str, Pixels]:
    """Caption → drawing, uint8 ``[64, 64, 4]``, of one folder; all problems are raised at once."""
    drawings: dict[str, Pixels] = {}
    problems: list[str] = []
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    for path in paths:
        try:
            caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            drawing = read_drawing(path)
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
            problems.append(f"{path.name}: {error}")
            continue
        if not caption or caption in drawings:
            problems.append(f"{path.name}: its caption {caption!r} is empty or another picture's")
        drawings[caption] = drawing
    if problems or not paths:
        shown = problems[:_SHOWN] or ["no picture"]
        raise BuildError("\n  ".join([f"{folder}: {len(problems)} problems:", *shown]))
    return drawings


def read_drawing(path: Path) -> Pixels:
    """A picture fitted into a square of 64 px with its transparency."""
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    tile = np.array(
        ImageOps.pad(picture, (SIDE, SIDE), Image.Resampling.LANCZOS, color=(0, 0, 0, 0))
    )
    tile[tile[..., 3] == 0] = 0
    if not tile[..., 3].any():
        raise ValueError("is transparent everywhere")
    return tile
