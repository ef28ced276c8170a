"""Text that others wrote, made harmless for a terminal, a table, a page or a file name.

What is stored stays as it was found; these make the form that is shown.
"""

from __future__ import annotations

import html
import re
import unicodedata
from typing import Final

MOST_SHOWN: Final = 4_000  # characters
MOST_FILE_NAME: Final = 200  # bytes; file systems end at 255, and a suffix is to follow
_MOST_MARKS: Final = 4  # combining marks on one letter; Thai and Vietnamese need three

# Categories that draw nothing and change what stands around them: controls (terminals obey ESC),
# formats (bidi overrides, zero width, tags), lone surrogates, which cannot be written at all.
_UNSEEN: Final = ("Cc", "Cf", "Cs", "Cn")
_SPACES: Final = ("\t", "\n", "\v", "\f", "\r", "\x85", "\u2028", "\u2029")


def clean(text: str, most: int = MOST_SHOWN) -> str:
    """One line that can be shown: no controls, bidi overrides or zero widths; at most so long."""
    line = re.sub(" {2,}", " ", harmless(text[: 2 * most])).strip()
    cut = len(line) > most or len(text) > 2 * most
    return line[: most - 1] + "…" if cut else line


def clean_lines(text: str) -> str:
    """Lines that can be shown, each at most so long; breaks and indents stay."""
    lines = (harmless(line[:MOST_SHOWN]).rstrip() for line in text.split("\n"))
    return "\n".join(lines).strip("\n")


def harmless(text: str) -> str:
    """The whole text without what steers a terminal; line breaks and tabs become spaces."""
    kept: list[str] = []
    marks = 0
    for character in text:
        kind = unicodedata.category(character)
        marks = marks + 1 if kind in ("Mn", "Me") else 0
        if character in _SPACES:
            kept.append(" ")
        elif kind == "Cs":
            kept.append("\N{REPLACEMENT CHARACTER}")
        elif kind not in _UNSEEN and marks <= _MOST_MARKS:
            kept.append(character)
    return "".join(kept)


_NUMBER: Final = re.compile(r"[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?", re.ASCII)
_FORMULA: Final = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")  # the last four are full-width


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula; plain numbers stay numbers.

    Quoting is the CSV writer's. Source: OWASP, "CSV Injection".
    """
    text = text.replace("\0", "").encode("utf-8", "replace").decode()
    if _NUMBER.fullmatch(text):
        return text
    begins = text[:1] in _FORMULA if text else False
    return f"'{text}" if begins or clean(text[:64]).startswith(_FORMULA) else text


# https://learn.microsoft.com/windows/win32/fileio/naming-a-file
_DEVICES: Final = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d|conin|conout|clock)", re.IGNORECASE)


def file_name(text: str, most: int = MOST_FILE_NAME) -> str:
    """A name that is a plain file on every system, without a suffix; ``unnamed`` at worst.

    Args:
        text: Anything.
        most: Bytes.
    """
    plain = unicodedata.normalize("NFKC", clean(text))
    letters = (c if unicodedata.category(c)[0] in "LNM" or c in "._-" else "-" for c in plain)
    name = re.sub(r"-{2,}", "-", "".join(letters))
    name = re.sub(r"\.{2,}", ".", name).strip("._- ")
    name = name.encode()[:most].decode(errors="ignore").rstrip("._- ")
    if _DEVICES.fullmatch(name.partition(".")[0]):
        name = f"{name.partition('.')[0]}_{name[len(name.partition('.')[0]) :]}"
    return name or "unnamed"


_MARKUP: Final = re.compile(r"([\\`*_{}\[\]()#|~!:@$])")
_LINE_START: Final = re.compile(r"(\d{1,9})([.)])(?=\s|$)|([-+=])")


def markdown(text: str, most: int = MOST_SHOWN) -> str:
    """One line of Markdown, which is also HTML, that shows the text and does nothing.

    No tag, link, picture, heading, list, table cell, mention or formula comes out of it.
    """
    line = html.escape(_MARKUP.sub(r"\\\1", clean(text, most)))
    line = re.sub(r"(?i)(www)\.", r"\1\.", line)
    start = _LINE_START.match(line)
    if start:
        line = (f"{start[1]}\\{start[2]}" if start[1] else f"\\{start[3]}") + line[start.end() :]
    return line
