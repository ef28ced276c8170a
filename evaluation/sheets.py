"""Contact sheets: pictures in rows and columns, every axis labelled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TILE: Final = 96  # px
_GAP: Final = 4  # px
_PAD: Final = 10  # px


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: it has λ, ₁ and ₂, Pillow's own font has not."""
    import matplotlib

    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str], title: str
) -> Image.Image:
    """A sheet with a label beside each row and a caption over each column.

    Args:
        rows: (label, one uint8 ``[H, W, 3]`` per column).
        columns: Captions.
        title: Over everything.
    """
    small, large = font(12), font(16)
    side = max(
        (int(small.getlength(line)) for label, _ in rows for line in label.split("\n")), default=0
    )
    heads = [_wrapped(caption) for caption in columns]
    head = 15 * max((text.count("\n") + 1 for text in heads), default=0)
    left, top = _PAD * 2 + side, _PAD * 2 + 20 + head
    pitch = _TILE + _GAP
    width = max(left + pitch * len(columns), 2 * _PAD + int(large.getlength(title)))
    sheet = Image.new("RGB", (width + _PAD, top + pitch * len(rows) + _PAD), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_PAD, _PAD), title, fill="black", font=large)
    for column, text in enumerate(heads):
        draw.multiline_text((left + column * pitch, _PAD + 24), text, fill="black", font=small)
    for index, (label, pictures) in enumerate(rows):
        y = top + index * pitch
        draw.multiline_text((_PAD, y + _TILE // 2 - 14), label, fill="black", font=small)
        for column, picture in enumerate(pictures):
            sheet.paste(_tile(picture), (left + column * pitch, y))
    return sheet


def gallery(tiles: Sequence[tuple[str, np.ndarray]], title: str, columns: int = 6) -> Image.Image:
    """Pictures in reading order, each under its caption.

    Args:
        tiles: (caption, uint8 ``[H, W, 3]``).
        title: Over everything.
        columns: Pictures a row.
    """
    small, large, pitch, head = font(12), font(16), _TILE + _GAP, 34
    rows = -(-len(tiles) // columns)
    wide = max(pitch * min(columns, len(tiles)), int(large.getlength(title)))
    sheet = Image.new("RGB", (2 * _PAD + wide, 2 * _PAD + 24 + rows * (pitch + head)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_PAD, _PAD), title, fill="black", font=large)
    for index, (caption, picture) in enumerate(tiles):
        row, column = divmod(index, columns)
        x, y = _PAD + column * pitch, _PAD + 24 + row * (pitch + head)
        draw.multiline_text((x, y), _wrapped(caption, lines=2), fill="black", font=small, spacing=2)
        sheet.paste(_tile(picture), (x, y + head))
    return sheet


def _tile(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS)


def _wrapped(caption: str, width: int = _TILE, lines: int = 3) -> str:
    """The caption broken at spaces to fit a tile; a word that is too long is cut short."""
    broken = [""]
    for word in caption.split():
        longer = f"{broken[-1]} {word}".strip()
        if font(12).getlength(longer) <= width:
            broken[-1] = longer
        else:
            broken.append(word)
    kept = [line for line in broken if line][:lines]
    return "\n".join(_cut(line, width) for line in kept)


def _cut(line: str, width: int) -> str:
    if font(12).getlength(line) <= width:
        return line
    while line and font(12).getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
