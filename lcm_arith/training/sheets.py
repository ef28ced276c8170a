"""A sheet of pictures: a row per prompt, a column per number of steps."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lcm_arith import durable
from lcm_arith.text import clean

_GAP: Final = 4  # px
_LINE: Final = 18  # px
_FONT: Final = 13  # px
_WIDEST: Final = 400  # px, for the words beside few pictures


def write_sheet(
    path: Path, pictures: np.ndarray, columns: Sequence[str], rows: Sequence[str]
) -> None:
    """A PNG of all pictures with what each row and column shows.

    Args:
        path: File to replace.
        pictures: uint8 ``[rows, columns, H, W, 3]``.
        columns: A word on each column.
        rows: A line on each row, written above it.

    Raises:
        StorageError: If the disk refuses.
    """
    count, across, height, width = pictures.shape[:4]
    step_x, step_y = width + _GAP, height + _GAP + _LINE
    font = ImageFont.load_default(_FONT)
    said = max((font.getlength(line) for line in (*rows, *columns)), default=0.0)
    sheet_width = max(across * step_x + _GAP, min(_WIDEST, int(said) + 2 * _GAP))
    sheet = Image.new("RGB", (sheet_width, count * step_y + _LINE + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for column, word in enumerate(columns):
        draw.text((_GAP + column * step_x, 2), word, fill="black", font=font)
    for row, line in enumerate(rows):
        top = _LINE + row * step_y
        draw.text((_GAP, top), _fitting(clean(line), sheet.width, font), fill="black", font=font)
        for column in range(across):
            tile = Image.fromarray(pictures[row, column])
            sheet.paste(tile, (_GAP + column * step_x, top + _LINE))
    packed = io.BytesIO()
    sheet.save(packed, "PNG")
    durable.write(path, packed.getvalue())


def _fitting(line: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """As much of a line as fits beside the gaps."""
    while line and font.getlength(line) > width - 2 * _GAP:
        line = line[:-1]
    return line
