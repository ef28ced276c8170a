"""Captions: read from beside the pictures, and the forms in which each is shown."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final

from lcm_arith.data.options import MOST_REPEATS, DataOptions
from lcm_arith.errors import InvalidContentError

METADATA: Final = ("metadata.jsonl", "metadata.csv")
SIDECARS: Final = (".txt", ".caption", ".json")  # beside a picture; the first that is there counts
KEYS: Final = ("text", "caption", "prompt")  # of a row; the first that is there counts
FILE_NAME: Final = "file_name"

Files = Mapping[str, Callable[[], bytes]]
"""Name in a folder or an archive → reads its content."""


@dataclass(frozen=True)
class Noted:
    """What is written about a picture: its caption, ``""`` where there is none; its repeats."""

    caption: str = ""
    repeats: int = 1


def noted(names: list[str], files: Files, where: str) -> tuple[list[Noted], list[str]]:
    """What is written about each picture, and the rows of metadata that are about none.

    A row of ``metadata.jsonl`` or ``metadata.csv`` goes before a file beside the picture.

    Args:
        names: The pictures among ``files``.
        files: All files there.
        where: For messages.

    Raises:
        InvalidContentError: Where texts cannot be read; all are listed.
    """
    rows, problems, notes = _metadata(files, where), [], []
    for name in names:
        try:
            notes.append(rows[name] if name in rows else _beside(name, files))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise InvalidContentError(
            f"{where}: {len(problems)} captions cannot be read:\n  " + listed(problems),
            hint="save them as UTF-8 text, x.json as an object",
        )
    return notes, sorted(rows.keys() - set(names))


def listed(lines: list[str], most: int = 5) -> str:
    """The first lines, and how many more there are."""
    more = [f"and {len(lines) - most} more"] if lines[most:] else []
    return "\n  ".join(lines[:most] + more)


def _beside(name: str, files: Files) -> Noted:
    for suffix in SIDECARS:
        beside = str(PurePosixPath(name).with_suffix(suffix))
        if beside in files:
            text = decoded(files[beside](), beside)
            return _note(strict_row(text, beside)) if suffix == ".json" else Noted(text.strip())
    return Noted()


def decoded(data: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte-order mark.

    Raises:
        ValueError: Names the file.
    """
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: is not UTF-8 (byte {error.start})") from error


def strict_row(text: str, name: str) -> dict[str, Any]:
    """A JSON object.

    Raises:
        ValueError: Names the file.
    """
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name}: is not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"{name}: is not a JSON object")
    return row


def _note(row: Mapping[str, Any]) -> Noted:
    """Of a row that may hold more than is wanted."""
    caption = next((row[key] for key in KEYS if row.get(key)), "")
    repeats = row.get("repeats") or 1
    if not isinstance(caption, str) or str(repeats) not in map(str, range(1, MOST_REPEATS + 1)):
        raise ValueError(
            f"caption {caption!r}, repeats {repeats!r}: a text and a number from 1 to "
            f"{MOST_REPEATS}"
        )
    if not caption.isprintable() and any("\ud800" <= c <= "\udfff" for c in caption):
        raise ValueError(f"caption {caption!r}: holds half a character (a lone surrogate)")
    return Noted(caption.strip(), int(repeats))


def _metadata(files: Files, where: str) -> dict[str, Noted]:
    """Picture → what its row says."""
    found = [name for name in METADATA if name in files]
    if not found:
        return {}
    if found[1:]:
        raise InvalidContentError(f"{where}: holds {' and '.join(found)}", hint="keep one of them")
    name = found[0]
    rows: dict[str, Noted] = {}
    try:
        for line, row in _ROWS[name](decoded(files[name](), name)):
            picture = row.get(FILE_NAME)
            if not isinstance(picture, str) or not picture:
                raise ValueError(f"{name}: line {line}: has no {FILE_NAME}")
            picture = str(PurePosixPath(picture))
            if picture in rows:
                raise ValueError(f"{name}: line {line}: {picture} is there twice")
            try:
                rows[picture] = _note(row)
            except ValueError as error:
                raise ValueError(f"{name}: line {line}: {error}") from error
    except (ValueError, csv.Error) as error:
        raise InvalidContentError(
            f"{where}: {error}",
            hint=f"each row holds {FILE_NAME} and one of {', '.join(KEYS)}, in UTF-8",
        ) from error
    return rows


def _jsonl(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, strict_row(line, f"line {number}")


def _csv(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    columns = reader.fieldnames or []
    if FILE_NAME not in columns or not set(KEYS) & set(columns):
        raise ValueError(f"metadata.csv: its columns are {', '.join(columns) or 'none'}")
    for row in reader:
        yield reader.line_num, row


_ROWS: Final = dict(zip(METADATA, (_jsonl, _csv), strict=True))


def forms(caption: str, options: DataOptions) -> tuple[str, ...]:
    """The texts that stand for a caption: with the trigger, in every order that may be drawn.

    Orders depend on the caption alone, so they are the same in every run.
    """
    tags = [tag.strip() for tag in (options.trigger, *caption.split(",")) if tag.strip()]
    if not options.shuffles:
        words = (options.trigger.strip(), caption)
        return (", ".join(word for word in words if word),)
    kept, others = tags[: options.keep_tokens], tags[options.keep_tokens :]
    source = random.Random(hashlib.sha256(caption.encode()).digest())
    orders = (", ".join(kept + source.sample(others, len(others))) for _ in range(options.shuffles))
    return tuple(dict.fromkeys(orders))
