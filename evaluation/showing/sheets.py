"""Contact sheets: pictures in rows and columns, every axis labelled."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lcm_arith.text import clean

MOST_PIXELS: Final = 64_000_000
"""Of one sheet: what viewers and browsers still open."""
_TILE: Final = 96  # px
_GAP: Final = 4  # px
_PAD: Final = 10  # px
_LINE: Final = 15  # px
_LEGEND: Final = 200  # characters of a prompt


@cache
def font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib carries: it has λ, ₁ and ₂, Pillow's own font has not."""
    return ImageFont.truetype(str(_font_file()), size)


def _font_file() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"


@cache
def _glyphs() -> frozenset[int]:
    from matplotlib.ft2font import FT2Font

    return frozenset(FT2Font(str(_font_file())).get_charmap())


def drawable(text: str) -> str:
    """The text in one line; letters that the font lacks by their numbers."""
    return "".join(
        c if ord(c) in _glyphs() else c.encode("ascii", "backslashreplace").decode()
        for c in clean(text)
    )


def contact_sheets(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]],
    columns: Sequence[str],
    title: str,
    most: int = MOST_PIXELS,
) -> list[Image.Image]:
    """The rows on as many sheets as it takes, each of at most ``most`` px and one row.

    Arguments as :func:`contact_sheet`.
    """
    width, height = contact_sheet(rows[:1], columns, title).size
    each = max(1, 1 + (most // width - height) // (_TILE + _GAP))
    pages = [rows[at : at + each] for at in range(0, len(rows), each)] or [rows]
    if len(pages) == 1:
        return [contact_sheet(rows, columns, title)]
    return [
        contact_sheet(page, columns, f"{title} ({number} of {len(pages)})")
        for number, page in enumerate(pages, 1)
    ]


def contact_sheet(
    rows: Sequence[tuple[str, Sequence[np.ndarray]]], columns: Sequence[str], title: str
) -> Image.Image:
    """A sheet with a label beside each row and a caption over each column.

    A caption of letters that the font lacks is a number there, and is spelt out at the foot.

    Args:
        rows: (label, one uint8 ``[H, W, 3]`` per column).
        columns: Captions.
        title: Over everything.
    """
    small, large, title = font(12), font(16), drawable(title)
    labels = ["\n".join(map(drawable, label.split("\n"))) for label, _ in rows]
    side = max((int(small.getlength(x)) for label in labels for x in label.split("\n")), default=0)
    heads, legend = _heads(columns)
    head = _LINE * max((text.count("\n") + 1 for text in heads), default=0)
    left, top = _PAD * 2 + side, _PAD * 2 + 20 + head
    pitch = _TILE + _GAP
    width = max(left + pitch * len(columns), 2 * _PAD + int(large.getlength(title)))
    foot = top + pitch * len(rows)
    sheet = Image.new("RGB", (width + _PAD, foot + _LINE * len(legend) + _PAD), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_PAD, _PAD), title, fill="black", font=large)
    for column, text in enumerate(heads):
        draw.multiline_text((left + column * pitch, _PAD + 24), text, fill="black", font=small)
    for index, (label, (_, pictures)) in enumerate(zip(labels, rows, strict=True)):
        y = top + index * pitch
        draw.multiline_text((_PAD, y + _TILE // 2 - 14), label, fill="black", font=small)
        for column, picture in enumerate(pictures):
            sheet.paste(_tile(picture), (left + column * pitch, y))
    for index, line in enumerate(legend):
        draw.text((_PAD, foot + _LINE * index), _cut(line, width - _PAD), fill="black", font=small)
    return sheet


def _heads(columns: Sequence[str]) -> tuple[list[str], list[str]]:
    """Captions as they stand over the columns, and what stands for them at the foot."""
    heads, legend = [], []
    for number, caption in enumerate(columns, 1):
        text = drawable(caption)
        if text == clean(caption):
            heads.append(_wrapped(text))
        else:
            heads.append(f"#{number}")
            legend.append(f"#{number}  {drawable(caption[:_LEGEND])}")
    return heads, legend


def gallery(tiles: Sequence[tuple[str, np.ndarray]], title: str, columns: int = 6) -> Image.Image:
    """Pictures in reading order, each under its caption.

    Args:
        tiles: (caption, uint8 ``[H, W, 3]``).
        title: Over everything.
        columns: Pictures a row.
    """
    small, large, pitch, head, title = font(12), font(16), _TILE + _GAP, 34, drawable(title)
    rows = -(-len(tiles) // columns)
    wide = max(pitch * min(columns, len(tiles)), int(large.getlength(title)))
    sheet = Image.new("RGB", (2 * _PAD + wide, 2 * _PAD + 24 + rows * (pitch + head)), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_PAD, _PAD), title, fill="black", font=large)
    for index, (caption, picture) in enumerate(tiles):
        row, column = divmod(index, columns)
        x, y = _PAD + column * pitch, _PAD + 24 + row * (pitch + head)
        shown = _wrapped(drawable(caption), lines=2)
        draw.multiline_text((x, y), shown, fill="black", font=small, spacing=2)
        sheet.paste(_tile(picture), (x, y + head))
    return sheet


def small(picture: np.ndarray) -> np.ndarray:
    """A picture in the size of a tile, ``[H, W, 3]``: what a sheet needs of a large one."""
    return np.asarray(_tile(picture))


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
