"""States: what a user says of a name, each in a file of its own beside the index.

The index can be lost; these cannot. All of a transaction's files are on the disk before it commits,
and what they replace lies in ``pending`` until it has: so the next that changes anything can settle
what a dead process left, as the index says.
"""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from lcm_arith import durable
from lcm_arith.errors import InvalidContentError, StorageError, UsageError
from lcm_arith.registry.manifests import MOST_BYTES, canonical, parse
from lcm_arith.registry.names import check_name

_SUFFIX: Final = ".json"


@dataclass(frozen=True)
class State:
    """What a name stands for, and what its user says.

    Args:
        record: sha256 of the manifest; None of an alias.
        alias_of: Another name that this one stands for.
        added: When, ISO 8601 in UTC.
        tags: Sorted words.
        notes: Texts in the order they were made.
        settings: Field of the record → what the user says instead.
    """

    record: str | None = None
    alias_of: str | None = None
    added: str = ""
    tags: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    def text(self) -> str:
        """Canonical JSON.

        Raises:
            UsageError: If there is half a surrogate pair in it, which no database keeps.
        """
        try:
            return canonical(asdict(self)).decode()
        except UnicodeDecodeError as error:
            raise UsageError(f"what is said of a vector is no text ({error.reason})") from None

    @classmethod
    def of(cls, text: str | bytes, where: str) -> State:
        """From :meth:`text`.

        Raises:
            InvalidContentError: If it is none.
        """
        data = text.encode() if isinstance(text, str) else text
        values = parse(data, where)
        if values.keys() - _FITS.keys():
            raise InvalidContentError(f"{where}: is of a newer lcm-arith")
        wrong = [name for name, value in values.items() if not _FITS[name](value)]
        if wrong or (values.get("record") is None) == (values.get("alias_of") is None):
            what = ", ".join(sorted(wrong)) or "neither a record nor an alias, or both"
            raise InvalidContentError(f"{where}: is no state of a name ({what})")
        given: dict[str, Any] = {
            name: tuple(own) if isinstance(own, list) else own for name, own in values.items()
        }
        state = cls(**given)
        if b"\\u" in data:
            try:
                state.text()
            except UsageError as error:
                raise InvalidContentError(f"{where}: {error.message}") from None
        return state


MANY: Final = ("triggers",)
"""Settings of several values."""
SETTINGS: Final = (
    "kind", "family", *MANY, "sampler", "steps", "guidance", "weight", "negative_prompt", "licence",
    "title", "author", "description", "base", "url",
)  # fmt: skip
"""What a user can say of a vector: a text each, or a list of texts."""


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


def _is_record(value: Any) -> bool:
    return value is None or (isinstance(value, str) and bool(_DIGEST.fullmatch(value)))


def _is_name(value: Any) -> bool:
    try:
        return value is None or (isinstance(value, str) and check_name(value) == value)
    except UsageError:
        return False


def _are_settings(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() <= set(SETTINGS)
        and all((_are_texts if name in MANY else _is_text)(own) for name, own in value.items())
    )


_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_FITS: Final[dict[str, Callable[[Any], bool]]] = {
    "record": _is_record,
    "alias_of": _is_name,
    "added": _is_text,
    "tags": _are_texts,
    "notes": _are_texts,
    "settings": _are_settings,
}


@dataclass(frozen=True)
class States:
    """The files of a registry's names.

    Args:
        root: The registry's folder.
    """

    root: Path

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.root / "names"

    def path(self, name: str) -> Path:
        """Where one lies or would lie."""
        return self.folder / f"{name}{_SUFFIX}"

    def __iter__(self) -> Iterator[str]:
        found = sorted(self.folder.glob(f"*{_SUFFIX}"))
        return (path.name.removesuffix(_SUFFIX) for path in found if path.name[0] != ".")

    def get(self, name: str) -> State:
        """The state of a name.

        Raises:
            InvalidContentError: If the file is missing or no state.
        """
        path = self.path(name)
        try:
            with path.open("rb") as file:
                return State.of(file.read(MOST_BYTES), str(path))
        except OSError as error:
            raise InvalidContentError(f"{path}: cannot be read ({error.strerror})") from error

    def put(self, name: str, state: State) -> None:
        """Writes a state; what it replaces is kept as pending.

        Raises:
            StorageError: If the disk refuses.
        """
        self._keep(name)
        durable.make_folder(self.folder)
        durable.write(self.path(name), state.text().encode())

    def remove(self, name: str) -> None:
        """Removes a name's file; it is kept as pending.

        Raises:
            StorageError: If the disk refuses.
        """
        self._keep(name)
        try:
            durable.flush_folder(self.folder)
        except OSError as error:
            raise durable.refusal(self.folder, error) from error

    @property
    def pending(self) -> Path:
        """Where that lies which a transaction replaces; empty when there is none."""
        return self.root / "pending"

    def unsettled(self) -> dict[str, list[Path]]:
        """Name → what a transaction replaced, oldest first; of one that ended, or died."""
        found: dict[str, list[Path]] = {}
        for path in sorted(self.pending.glob(f"*-*{_SUFFIX}")):
            found.setdefault(path.name.split("-", 1)[1].removesuffix(_SUFFIX), []).append(path)
        return found

    def settle(self, wanted: Callable[[str], State | None]) -> None:
        """Makes the files of all names that are pending as they should be; nothing is then pending.

        Where the state is one that was replaced, that needs no room on the disk.

        Args:
            wanted: Name → its state by the index; None where there is no such name.

        Raises:
            StorageError: If the disk refuses; what is not settled stays pending.
        """
        for name, kept in self.unsettled().items():
            try:
                self._settle(name, wanted(name), kept)
                for path in kept:
                    path.unlink(missing_ok=True)
            except OSError as error:
                if isinstance(error, StorageError):
                    raise
                raise durable.refusal(self.path(name), error) from error

    def _settle(self, name: str, state: State | None, kept: list[Path]) -> None:
        path = self.path(name)
        data = b"" if state is None else state.text().encode()
        if state is None:
            path.unlink(missing_ok=True)
        elif _holds(path, data):
            return
        elif same := next((own for own in kept if _holds(own, data)), None):
            os.replace(same, path)
        else:
            durable.make_folder(self.folder)
            durable.write(path, data)
        if self.folder.is_dir():  # the first change of all may have died before it made it
            durable.flush_folder(self.folder)

    def forget(self) -> None:
        """Nothing is pending any more: the transaction was done."""
        for kept in self.unsettled().values():
            for path in kept:
                with suppress(OSError):  # the next change settles it, which changes nothing
                    path.unlink(missing_ok=True)

    def take_back(self) -> None:
        """Puts files back that are pending and have no successor: the index was lost meanwhile.

        Raises:
            StorageError: If the disk refuses.
        """
        for name, (oldest, *rest) in self.unsettled().items():
            try:
                if not self.path(name).exists() and oldest.stat().st_size:
                    os.replace(oldest, self.path(name))
                    durable.flush_folder(self.folder)
                for path in (oldest, *rest):
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise durable.refusal(self.path(name), error) from error

    def _keep(self, name: str) -> None:
        """Moves a name's file to what is pending, or marks there that it has none."""
        durable.make_folder(self.pending)
        kept = self.pending / f"{time.time_ns():020}{uuid.uuid4().hex[:8]}-{name}{_SUFFIX}"
        try:
            os.rename(self.path(name), kept)
        except FileNotFoundError:
            try:
                kept.touch(exist_ok=False)
            except OSError as error:
                raise durable.refusal(kept, error) from error
        except OSError as error:
            raise durable.refusal(kept, error) from error


def _holds(path: Path, data: bytes) -> bool:
    return path.is_file() and path.read_bytes() == data
