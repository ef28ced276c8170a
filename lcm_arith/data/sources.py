"""Which pictures there are: a folder, tar shards, drawings in memory, or prompts without any.

Looking costs a listing, the captions, and the first picture that can be decoded; no model is
needed. Nothing is ever extracted from an archive.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

from PIL.Image import Image as Picture

from lcm_arith.data import pixels
from lcm_arith.data.captions import Files, Noted, decoded, listed, noted
from lcm_arith.data.drawings import Captioned, embedded_pictures
from lcm_arith.data.options import OF_PICTURES, OF_PROMPTS, DataOptions
from lcm_arith.data.store import SET
from lcm_arith.embedded import pictures
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError

EMBEDDED: Final = "embedded"
VARIANTS: Final = 24  # pictures of each embedded drawing
_MOST_NAMES: Final = 100_000  # from one pattern

POSSIBLE: Final = (
    f"a folder of pictures ({', '.join(s[1:] for s in pixels.SUFFIXES)}) with captions in .txt or "
    "metadata.jsonl, tar shards ('data-{000..009}.tar'), a cache folder made before, a .txt of "
    f"prompts, or {EMBEDDED}"
)


@dataclass(frozen=True, eq=False)
class Item:
    """A picture that may be used.

    Args:
        name: For messages.
        note: Caption and repeats.
        read: Its content; may raise :data:`.pixels.UNREADABLE`.
        decode: Makes a picture of that.
    """

    name: str
    note: Noted
    read: Callable[[], bytes]
    decode: Callable[[bytes], Picture] = pixels.opened


@dataclass(frozen=True, eq=False)
class Survey:
    """What a source holds.

    Args:
        kind: ``folder``, ``tar``, ``embedded``, ``prompts`` or ``cache``.
        identity: Tells it from other sources; a digest.
        items: Its pictures, sorted by name; of prompts and caches none.
        prompts: Of a list without pictures.
        cached: File of a set in a cache folder.
        about: What else tells where it comes from, JSON-ready.
        skipped: ``file: reason``.
    """

    kind: str
    identity: str
    items: tuple[Item, ...] = ()
    prompts: tuple[str, ...] = ()
    cached: Path | None = None
    about: dict[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()


def survey(source: Path | str | Captioned, options: DataOptions) -> Survey:
    """What ``source`` holds. Needs no model: call it before one is loaded.

    Args:
        source: A folder, a ``*.tar``, a pattern of several (``{000..003}``, ``*``, expanded here),
            a cache folder or the ``set-….json`` of one, a ``.txt`` of prompts (one a line),
            ``embedded``, ``embedded:SET,SET``, or drawings.
        options: Of them what is done about missing captions.

    Raises:
        NotFoundError: If there is no such thing; says what is possible.
        InvalidContentError: If no picture in it can be used, or captions are missing or broken.
        UsageError: If options are given that have no effect on that kind of source.
    """
    found = _find(source)
    if found.items:
        options.refuse(OF_PROMPTS, "the data has pictures of its own")
    if found.kind == "prompts":
        options.refuse(OF_PICTURES, "prompts without pictures take the base model's size")
    if found.kind in ("prompts", "cache"):  # of a cache the options are compared when it is read
        return found
    found = _with_captions(found, options)
    _check_usable(found)
    return found


def _find(source: Path | str | Captioned) -> Survey:
    if isinstance(source, Captioned):
        return _drawings(source)
    name, path = str(source), Path(source)
    if path.is_dir():
        return _cache(path) if any(path.glob(f"{SET}*.json")) else _folder(path)
    if path.is_file():
        if path.name.startswith(SET) and path.suffix == ".json":
            return Survey("cache", _identity(name), cached=path)
        if path.suffix.lower() == ".txt":
            return _prompts(path)
        return _tars((path,))
    if name == EMBEDDED or name.startswith(f"{EMBEDDED}:"):
        return _drawings(_embedded(name))
    if re.search(r"[{*?[]", name):
        return _tars(tuple(expanded(name)))
    raise NotFoundError(f"{name}: no such data", hint=f"possible is {POSSIBLE}")


def _identity(*words: str) -> str:
    return hashlib.sha256(os.fsencode("\n".join(words))).hexdigest()


# --- folders and archives ------------------------------------------------------------------------


def _folder(folder: Path) -> Survey:
    """All below it; links to folders are not followed."""
    files: dict[str, Callable[[], bytes]] = {}
    for at, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(at, name) for name in names):
            files[path.relative_to(folder).as_posix()] = path.read_bytes
    items, skipped = _items(files, str(folder))
    return Survey("folder", _identity(str(folder.resolve())), items, skipped=skipped)


def _items(files: Files, where: str, prefix: str = "") -> tuple[tuple[Item, ...], tuple[str, ...]]:
    """The pictures; names that begin with a dot are a system's own (``._x.png``), not one's."""
    names = sorted(
        name
        for name in files
        if name.lower().endswith(pixels.SUFFIXES) and not name.rpartition("/")[2].startswith(".")
    )
    notes, unknown = noted(names, files, where)
    items = (Item(prefix + n, note, files[n]) for n, note in zip(names, notes, strict=True))
    return tuple(items), tuple(f"{prefix}{n}: is in the metadata, but not there" for n in unknown)


def _tars(paths: tuple[Path, ...]) -> Survey:
    items: list[Item] = []
    skipped: list[str] = []
    for path in paths:
        files, unusable = _members(path)
        prefix = f"{path.name}:" if paths[1:] else ""
        more, unknown = _items(files, str(path), prefix)
        items += more
        skipped += [prefix + line for line in unusable] + list(unknown)
    identity = _identity(*(str(path.resolve()) for path in paths))
    return Survey("tar", identity, tuple(items), skipped=tuple(skipped))


def _members(path: Path) -> tuple[dict[str, Callable[[], bytes]], list[str]]:
    """The files of an archive by name, and what is no plain file; none is written anywhere."""
    files: dict[str, Callable[[], bytes]] = {}
    skipped: list[str] = []
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                name = member.name.removeprefix("./")
                if member.isdir():
                    continue
                if not member.isreg() or member.issparse():
                    skipped.append(f"{name}: is a link or a device")
                    continue
                if name in files:
                    skipped.append(f"{name}: is there twice, the last one is taken")
                files[name] = partial(_read_at, path, member.offset_data, member.size)
    except tarfile.TarError as error:
        raise InvalidContentError(
            f"{path}: is no tar archive or is cut ({error})",
            hint="data files are *.tar, not compressed, or a .txt of prompts",
        ) from error
    return files, skipped


def _read_at(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) < size:
        raise OSError(f"{path.name} ends {size - len(data)} bytes too early")
    return data


def expanded(pattern: str) -> list[Path]:
    """The files that a pattern names: ``{000..003}`` counts, ``*`` and ``?`` match.

    Raises:
        NotFoundError: If one of them is not there; lists them.
        UsageError: If it names more than 100 000.
    """
    parts = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)  # text, first, last, text, …
    ranges = [_Numbers(a, b) for a, b in zip(parts[1::3], parts[2::3], strict=True)]
    total = 1
    for numbers in ranges:
        total *= len(numbers)
    if total > _MOST_NAMES:
        raise UsageError(f"{pattern}: names {total} files, at most {_MOST_NAMES}")
    texts = parts[::3]
    names = [
        texts[0] + "".join(number + text for number, text in zip(chosen, texts[1:], strict=True))
        for chosen in product(*(numbers.strings() for numbers in ranges))
    ]
    paths: list[Path] = []
    missing: list[str] = []
    for name in names:
        if Path(name).is_file():
            matches = [name]
        else:
            matches = sorted(match for match in glob.glob(name) if Path(match).is_file())
        paths += map(Path, matches)
        missing += [] if matches else [name]
    if missing:
        raise NotFoundError(
            f"{pattern}: {len(missing)} of {len(names)} are not there:\n  {listed(missing)}",
            hint=f"possible is {POSSIBLE}",
        )
    return list(dict.fromkeys(paths))


@dataclass(frozen=True)
class _Numbers:
    """From one number to another, written as wide as the first."""

    first: str
    last: str

    def __len__(self) -> int:
        return abs(int(self.last) - int(self.first)) + 1

    def strings(self) -> list[str]:
        low, high = sorted((int(self.first), int(self.last)))
        return [str(number).zfill(len(self.first)) for number in range(low, high + 1)]


# --- without picture files -----------------------------------------------------------------------


def _embedded(name: str) -> Captioned:
    chosen = tuple(name.removeprefix(EMBEDDED).removeprefix(":").split(","))
    sets = chosen if chosen != ("",) else pictures.base_sets()
    if unknown := [each for each in sets if each not in pictures.sets()]:
        raise NotFoundError(
            f"{', '.join(unknown)}: no embedded picture set",
            hint=f"one of {', '.join(pictures.sets())}",
        )
    return embedded_pictures(sets, "A", VARIANTS)


def _drawings(shown: Captioned) -> Survey:
    decode = pixels.raw(*shown.pixels.shape[1:3])
    items = tuple(
        Item(f"{at}: {caption}", Noted(caption), picture.tobytes, decode)
        for at, (picture, caption) in enumerate(zip(shown.pixels, shown.captions, strict=True))
    )
    return Survey("embedded", _identity(repr(shown.origin)), items, about=shown.origin)


def _prompts(path: Path) -> Survey:
    try:
        lines = decoded(path.read_bytes(), str(path)).splitlines()
    except ValueError as error:
        raise InvalidContentError(str(error), hint="save it as UTF-8 text") from error
    prompts = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not prompts:
        raise InvalidContentError(f"{path}: holds no prompt", hint="write one a line")
    return Survey("prompts", _identity(str(path.resolve())), prompts=prompts)


def _cache(folder: Path) -> Survey:
    sets = sorted(folder.glob(f"{SET}*.json"))
    if sets[1:]:
        raise UsageError(
            f"{folder}: holds {len(sets)} training sets: {', '.join(path.name for path in sets)}",
            hint=f"name one of them: {sets[0]}",
        )
    return Survey("cache", _identity(str(sets[0])), cached=sets[0])


# --- what can be used ----------------------------------------------------------------------------


def _with_captions(found: Survey, options: DataOptions) -> Survey:
    """Without the pictures that lack a caption, where they are to be left out."""
    missing = [item.name for item in found.items if not item.note.caption]
    if not missing or options.caption_missing == "empty":
        return found
    if options.caption_missing == "error":
        raise InvalidContentError(
            f"{len(missing)} of {len(found.items)} pictures lack a caption:\n  {listed(missing)}",
            hint="write it beside x.png into x.txt, or choose to show them without one, or to "
            "leave them out",
        )
    skipped = (*found.skipped, *(f"{name}: lacks a caption" for name in missing))
    items = tuple(item for item in found.items if item.note.caption)
    return _replaced(found, items, skipped)


def _replaced(found: Survey, items: tuple[Item, ...], skipped: tuple[str, ...]) -> Survey:
    return Survey(found.kind, found.identity, items, about=found.about, skipped=skipped)


def _check_usable(found: Survey) -> None:
    """Raises unless one picture can be decoded; looks no further than the first that can."""
    reasons = list(found.skipped)
    for item in found.items:
        try:
            with pixels.quietly():
                item.decode(item.read()).load()
            return
        except pixels.UNREADABLE as error:
            reasons.append(f"{item.name}: {reason(error)}")
    raise InvalidContentError(
        "no picture can be used" + (":\n  " + listed(reasons) if reasons else ": there is none"),
        hint=f"possible is {POSSIBLE}",
    )


def reason(error: BaseException) -> str:
    """Why a picture cannot be used, without places in memory."""
    return re.sub(r" <_io\.BytesIO object at 0x[0-9a-f]+>", "", str(error)) or type(error).__name__
