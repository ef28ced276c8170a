"""The pictures of grids on disk, each under the name of all that changes it.

A chunk of pictures is committed whole: its files first, then one record. What has no record, or a
record of which a file is not as it was written, is absent, and the whole chunk is made again. So
whatever ends a run, the next one goes on, and ends with the bytes of a run that nothing ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image

from lcm_arith.durable import make_folder
from lcm_arith.embedded.files import sha256
from lcm_arith.errors import NotFoundError
from lcm_arith.evaluation.drawing.keys import LENGTH, Keys, canonical
from lcm_arith.evaluation.drawing.pngs import Told, picture_bytes
from lcm_arith.evaluation.plans.rows import Item, Row, keys, of_keys
from lcm_arith.formats.container import write_bytes

OK: Final = "ok"
MAKE_IT: Final = (
    "run the same grid again: it makes what is missing; of shards, all of them, and their folders "
    "copied into one"
)
NAN: Final = "nan"

Pair = tuple[Row, Item]
"""One picture: how, and of what."""


@dataclass(frozen=True)
class Picture:
    """What a record says of a picture.

    Args:
        sha256: Of its file; None where there is no picture.
        status: ``ok``, or ``nan``: the model made NaN or infinity, and no file was written.
        seconds: Its share of the chunk's wall time, s.
        nfe_run: UNet rows that were evaluated for it; one that several pictures share is divided
            among them.
    """

    sha256: str | None
    status: str
    seconds: float
    nfe_run: float


@dataclass(frozen=True, eq=False)
class Made:
    """A picture before it is stored.

    Args:
        pixels: uint8 ``[H, W, 3]``; None where the model made NaN or infinity.
        told: What its file says of it.
        seconds, nfe_run: As of :class:`Picture`.
    """

    pixels: np.ndarray | None
    told: Told
    seconds: float
    nfe_run: float


@dataclass(frozen=True, eq=False)
class Record:
    """A committed chunk.

    Args:
        name: Of its file, without suffix.
        pairs: Its pictures in the order in which they were drawn: what a replay draws together.
        pictures: Name of a picture → what is known of it, in that order.
        batch: Rows that the UNet got at once.
        device: Where it was drawn.
    """

    name: str
    pairs: tuple[Pair, ...]
    pictures: Mapping[str, Picture]
    batch: int
    device: str


@dataclass(eq=False)
class Store:
    """The pictures in a folder.

    Records are read when the store is opened (and by :meth:`refresh`); the files of one are checked
    when it is first asked for.

    Args:
        folder: With ``images/`` and ``chunks/``; made at the first commit.
        keys: Names pictures.
    """

    folder: Path
    keys: Keys
    records: dict[str, Record] = field(default_factory=dict)
    _holders: dict[str, list[str]] = field(default_factory=dict)
    _whole: dict[str, bool] = field(default_factory=dict)
    _names: dict[Pair, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Reads the records that others committed meanwhile."""
        for path in sorted((self.folder / "chunks").glob("*.json")):
            if path.stem not in self.records and (found := _read_record(path)):
                self._add(found)

    def key(self, row: Row, item: Item) -> str:
        """The name of a picture."""
        pair = (row, item)
        if pair not in self._names:
            self._names[pair] = self.keys.key(row, item)
        return self._names[pair]

    def picture(self, row: Row, item: Item) -> Picture | None:
        """What is known of a picture; None where it is absent."""
        key = self.key(row, item)
        for name in self._holders.get(key, ()):
            if self.whole(name):
                return self.records[name].pictures[key]
        return None

    def has(self, row: Row, item: Item) -> bool:
        """Whether a picture was made, and is as it was made."""
        return self.picture(row, item) is not None

    def whole(self, name: str) -> bool:
        """Whether all files of a record are as they were written."""
        if name not in self._whole:
            self._whole[name] = all(
                _is(self.path(key), picture.sha256)
                for key, picture in self.records[name].pictures.items()
                if picture.sha256 is not None
            )
        return self._whole[name]

    def path(self, key: str) -> Path:
        """File of a picture by its name."""
        return self.folder / "images" / f"{key}.png"

    def picture_path(self, row: Row, item: Item) -> Path:
        """File of a picture."""
        return self.path(self.key(row, item))

    def pictures(self, row: Row, items: Sequence[Item]) -> list[Picture]:
        """What is known of a row's pictures.

        Raises:
            NotFoundError: If one was not made.
        """
        found = [self.picture(row, item) for item in items]
        if None in found:
            prompt, seed = items[found.index(None)]
            raise NotFoundError(
                f"{self.folder}: {found.count(None)} of {len(items)} pictures of a row are not "
                f"there ({prompt!r}, seed {seed}, for one)",
                hint=MAKE_IT,
            )
        return [picture for picture in found if picture is not None]

    def pixels(self, row: Row, items: Sequence[Item]) -> np.ndarray:
        """A row's pictures, uint8 ``[items, H, W, 3]``; black where the status is not ``ok``.

        Raises:
            NotFoundError: If one was not made, or all are of another status.
        """
        shown = [
            _read(self.picture_path(row, item)) if picture.status == OK else None
            for item, picture in zip(items, self.pictures(row, items), strict=True)
        ]
        sample = next((pixels for pixels in shown if pixels is not None), None)
        if sample is None:
            raise NotFoundError(
                f"{self.folder}: none of the {len(items)} pictures of a row could be drawn",
                hint="the weights give NaN or infinity: see the adapters with inspect",
            )
        return np.stack([np.zeros_like(sample) if each is None else each for each in shown])

    def sha256(self, row: Row, items: Sequence[Item]) -> list[str]:
        """File digests of a row's pictures; empty where there is none.

        Raises:
            NotFoundError: If one was not made.
        """
        return [picture.sha256 or "" for picture in self.pictures(row, items)]

    def commit(
        self, pairs: Sequence[Pair], made: Sequence[Made], *, batch: int, device: str
    ) -> Record:
        """Keeps a chunk.

        Args:
            pairs: Its pictures, in the order in which they were drawn.
            made: What came of each.
            batch: As of :class:`Record`.
            device: Likewise.

        Raises:
            StorageError: If the disk refuses; the chunk is absent then.
        """
        for folder in ("images", "chunks"):
            make_folder(self.folder / folder)
        with ThreadPoolExecutor() as pool:  # zlib works beside the others
            written = list(pool.map(self._write, pairs, made))
        pictures = {
            self.key(*pair): Picture(digest, OK if digest else NAN, each.seconds, each.nfe_run)
            for pair, each, digest in zip(pairs, made, written, strict=True)
        }
        record = Record(_name(pictures), tuple(pairs), pictures, batch, device)
        path = self.folder / "chunks" / f"{record.name}.json"
        write_bytes(path, _json(record), force=True)
        self._add(record)
        self._whole[record.name] = True
        return record

    def _write(self, pair: Pair, made: Made) -> str | None:
        if made.pixels is None:
            return None
        data = picture_bytes(made.pixels, made.told)
        return write_bytes(self.picture_path(*pair), data, force=True, durable=False)

    def _add(self, record: Record) -> None:
        self.records[record.name] = record
        for key in record.pictures:
            held = self._holders.setdefault(key, [])
            if record.name not in held:
                held.append(record.name)


def _name(pictures: Mapping[str, Picture]) -> str:
    """A chunk's name: the same pictures are the same chunk."""
    return hashlib.sha256("".join(sorted(pictures)).encode()).hexdigest()[:LENGTH]


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))


def _is(path: Path, expected: str) -> bool:
    try:
        return sha256(path) == expected
    except OSError:
        return False


def _json(record: Record) -> bytes:
    rows = list(dict.fromkeys(row for row, _ in record.pairs))
    numbers = {row: number for number, row in enumerate(rows)}
    return canonical(
        {
            "rows": [keys(row) for row in rows],
            "pictures": [
                [key, numbers[row], *item, p.sha256, p.status, p.seconds, p.nfe_run]
                for (row, item), (key, p) in zip(record.pairs, record.pictures.items(), strict=True)
            ],
            "batch": record.batch,
            "device": record.device,
        }
    )


def _read_record(path: Path) -> Record | None:
    """The record in a file; None if it is not whole, for then its chunk is made again."""
    try:
        told: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        rows = [of_keys(named) for named in told["rows"]]
        pairs, pictures = [], {}
        for key, number, prompt, seed, *known in _lines(told["pictures"]):
            pairs.append((rows[number], (prompt, seed)))
            pictures[key] = Picture(*known)
        return Record(path.stem, tuple(pairs), pictures, told["batch"], told["device"])
    except (OSError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError,
            ValueError):  # fmt: skip
        return None


def _lines(told: Any) -> Iterator[list[Any]]:
    for line in told:
        key, number, prompt, seed, digest, status, seconds, rows = line
        if status not in (OK, NAN) or (digest is None) != (status == NAN):
            raise ValueError(status)
        known = (digest, status, float(seconds), float(rows))
        yield [str(key), int(number), str(prompt), int(seed), *known]
