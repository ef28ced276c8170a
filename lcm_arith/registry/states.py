"""States: what a user says of a name, each in a file of its own beside the index.

The index can be lost; these cannot. A state is on the disk before the transaction that needs it
commits, and a name's file is removed after the transaction that removes the name.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from lcm_arith import durable
from lcm_arith.errors import InvalidContentError
from lcm_arith.registry.manifests import MOST_BYTES, canonical, parse

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
        """Canonical JSON."""
        return canonical(asdict(self)).decode("utf-8", "surrogatepass")

    @classmethod
    def of(cls, text: str | bytes, where: str) -> State:
        """From :meth:`text`.

        Raises:
            InvalidContentError: If it is none.
        """
        data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
        values = parse(data, where)
        known = {own.name for own in fields(cls)}
        if values.keys() - known:
            raise InvalidContentError(f"{where}: is of a newer lcm-arith")
        for name in ("tags", "notes"):
            values[name] = tuple(values.get(name, ()))
        return cls(**values)


@dataclass(frozen=True)
class Before:
    """A file as it was before it was replaced; to put it back needs no room on the disk.

    Args:
        path: The file.
        kept: A copy of it; None where there was none.
    """

    path: Path
    kept: Path | None

    @classmethod
    def of(cls, path: Path) -> Before:
        """Keeps a file's bytes beside it."""
        kept = path.with_name(f".{path.name}.{uuid.uuid4().hex}.before")
        try:
            kept.write_bytes(path.read_bytes())
        except FileNotFoundError:
            return cls(path, None)
        except OSError as error:
            kept.unlink(missing_ok=True)
            raise durable.refusal(kept, error) from error
        return cls(path, kept)

    def undo(self) -> None:
        """Puts the file back."""
        if self.kept is None:
            self.path.unlink(missing_ok=True)
        else:
            os.replace(self.kept, self.path)

    def forget(self) -> None:
        """Removes the copy; gc would, too."""
        if self.kept is not None:
            self.kept.unlink(missing_ok=True)


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
        except TypeError as error:
            raise InvalidContentError(f"{path}: is no state of a name ({error})") from error

    def put(self, name: str, state: State) -> Before:
        """Writes a state; returns what puts the file back as it was.

        Raises:
            StorageError: If the disk refuses; the file is then as it was.
        """
        path = self.path(name)
        durable.make_folder(self.folder)
        before = Before.of(path)
        try:
            durable.write(path, state.text().encode("utf-8", "surrogatepass"))
        except BaseException:
            before.undo()
            raise
        return before

    def remove(self, name: str) -> None:
        """Removes a name's file."""
        path = self.path(name)
        path.unlink(missing_ok=True)
        durable.flush_folder(self.folder)
