"""The registry of one user or team: names, records and the files they stand for."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Connection

from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.registry import paths, shipped
from lcm_arith.registry.database import names, records
from lcm_arith.registry.index import Change, Index, Row
from lcm_arith.registry.manifests import Manifests
from lcm_arith.registry.names import check_name, digest_of
from lcm_arith.registry.objects import Objects
from lcm_arith.registry.records import Record
from lcm_arith.registry.states import State, States


@dataclass(frozen=True)
class Found:
    """A vector that a name or a digest stands for.

    Args:
        name: Its name; of a record that has none any more, its digest.
        record: What is known of its file.
        path: The file.
        state: What its user says.
        shipped: Whether it came with the program.
    """

    name: str
    record: Record
    path: Path
    state: State = field(default_factory=State)
    shipped: bool = False


@dataclass(frozen=True)
class Registry:
    """A folder of objects, manifests and states, and an index of them.

    Args:
        root: The folder; it need not exist before something is added.
        url: SQLAlchemy's URL of the index.
    """

    root: Path
    url: str

    @classmethod
    def open(cls, root: Path | None = None, url: str | None = None) -> Registry:
        """The user's registry, or that of another folder; nothing is made or read yet."""
        root = root or paths.home()
        return cls(root, url or paths.database_url(root))

    @cached_property
    def objects(self) -> Objects:
        """The files."""
        return Objects(self.root)

    @cached_property
    def manifests(self) -> Manifests:
        """What is known of them."""
        return Manifests(self.root)

    @cached_property
    def index(self) -> Index:
        """The names."""
        return Index(self.url, States(self.root), self.fill)

    def rows(self) -> list[Row]:
        """Every name, those of shipped vectors first."""
        return [*shipped.rows(), *self.index.rows()]

    def find(self, text: str) -> Found:
        """What a name, an alias or a digest (``sha256:`` and 8 or more digits) stands for.

        Raises:
            NotFoundError: If it is nothing.
            UsageError: If more than one record begins with the digest.
            InvalidContentError: If its manifest is lost or damaged.
        """
        if text in shipped.names():
            return Found(text, shipped.record(text), files.vector_path(text), shipped=True)
        if digest_of(text) and (text.startswith("sha256:") or not self._named(text)):
            return self._by_digest(digest_of(text) or "")
        row = self.row(text)
        target = row.state.alias_of
        if target in shipped.names():
            return self.find(str(target))
        if target is not None:
            row = self.row(target)
            if row.state.alias_of is not None:
                raise InvalidContentError(
                    f"{text}: stands for {target}, which is an alias, too",
                    hint=f"say what it stands for: lcm-arith registry alias {text} VECTOR",
                )
        try:
            return self._found(row.name, str(row.state.record), row.state)
        except InvalidContentError:
            if self.index.row(row.name).state.record == row.state.record:
                raise
            return self.find(text)  # it was given another record meanwhile

    def row(self, text: str) -> Row:
        """The row of a name; an alias as itself.

        Raises:
            NotFoundError: If there is none; the hint names the closest.
        """
        name = check_name(text)
        if name in shipped.names():
            raise UsageError(
                f"{name}: came with the program and cannot be changed",
                hint=f"take a copy: lcm-arith registry add {name} --name my-{name}",
            )
        try:
            return self.index.row(name)
        except NotFoundError as error:
            known = [row.name for row in self.rows()]
            close = difflib.get_close_matches(name, known, n=1)
            error.hint = f"did you mean {close[0]}?" if close else "see: lcm-arith registry ls"
            raise

    def files(self, sha256: str) -> Path | None:
        """The file with that sha256, of a record or shipped; None where there is none."""
        for name in shipped.names():
            if shipped.record(name).object == sha256:
                return files.vector_path(name)
        if not self.index.ready(make=False):
            return None
        query = sa.select(records.c.sha256, records.c.link).where(records.c.object == sha256)
        with self.index.reading() as connection:
            rows = connection.execute(query.order_by(records.c.link.is_not(None))).all()
        for row in rows:
            if row.link is None and self.objects.path(sha256).is_file():
                return self.objects.path(sha256)
            if row.link is not None:
                with suppress(InvalidContentError):  # another place may have it
                    return self.file_of(Record.of(self.manifests.get(row.sha256), row.sha256))
        return None

    def file_of(self, record: Record) -> Path:
        """The file of a record; a linked one is hashed again if its date is another.

        Raises:
            InvalidContentError: If it is missing, or a linked one was changed.
        """
        path = Path(record.link) if record.link else self.objects.path(record.object)
        try:
            found = path.stat()
            same = record.link is None or (
                found.st_size == record.bytes
                and (
                    found.st_mtime_ns == record.source.get("mtime_ns")
                    or files.sha256(path) == record.object
                )
            )
        except OSError as error:
            raise InvalidContentError(
                f"{path}: cannot be read ({error.strerror})",
                hint="restore a backup, add it again, or see: lcm-arith registry verify",
            ) from error
        if not same:
            raise InvalidContentError(
                f"{path}: was changed since it was linked", hint="add it again under another name"
            )
        return path

    def with_parents(
        self, connection: Connection, starts: Iterable[str], *, parents: bool = True
    ) -> Iterator[tuple[str, Record]]:
        """Records by the sha256 of their manifests, with those of all that they were made of.

        Raises:
            InvalidContentError: If a manifest is lost or damaged.
        """
        by_file: dict[str, list[str]] = {}
        for sha256, file in connection.execute(sa.select(records.c.sha256, records.c.object)):
            by_file.setdefault(file, []).append(sha256)
        todo, seen = list(starts), set()
        while todo:
            sha256 = todo.pop()
            if sha256 in seen:
                continue
            seen.add(sha256)
            record = Record.of(self.manifests.get(sha256), sha256)
            yield sha256, record
            if parents:
                todo += [own for file in record.parents for own in by_file.get(file, [])]

    def kind_of(self, sha256: str) -> str | None:
        """The kind of the vector in a file; None where the registry does not have it."""
        for name in shipped.names():
            if shipped.record(name).object == sha256:
                return str(shipped.record(name).guess["kind"])
        rows = self.index.rows(where=lambda query: query.where(records.c.object == sha256))
        said = [row.state.settings.get("kind") or row.columns["kind"] for row in rows]
        return str(said[0]) if said else None

    def fill(self, change: Change, new: bool) -> dict[str, str]:
        """Fills the tables of an index: from the names' files, or from the names that it has.

        Args:
            change: A transaction in which there are no records.
            new: Whether there are no names, either.

        Returns:
            Names whose file or manifest cannot be read, with the reason; a name without a manifest
            stays, and verify tells of it, too.

        Raises:
            StorageError: If the disk or the database refuses.
        """
        lost: dict[str, str] = {}
        if not new:
            for name, text in change.connection.execute(sa.select(names.c.name, names.c.state)):
                state = State.of(text, name)
                self._fill(change, name, state, lost)
                change.update(name, state)
            return lost
        self.index.states.take_back()
        for name in self.index.states:
            try:
                check_name(name)
                state = self.index.states.get(name)
            except (InvalidContentError, UsageError) as error:
                lost[name] = error.message
                continue
            change.row(name, state, self._fill(change, name, state, lost))
        for sha256 in self.manifests:  # of vectors without a name, from which others were made
            with suppress(InvalidContentError):
                record = Record.of(self.manifests.get(sha256), sha256)
                change.record(record.columns(sha256), record.parents)
        return lost

    def _fill(self, change: Change, name: str, state: State, lost: dict[str, str]) -> str | None:
        """Adds a name's record; the sha256 of its manifest, None where there is none to be read."""
        if state.record is None:
            return None
        try:
            record = Record.of(self.manifests.get(state.record), state.record)
        except InvalidContentError as error:
            lost[name] = error.message
            return None
        change.record(record.columns(state.record), record.parents)
        return state.record

    def _named(self, text: str) -> bool:
        try:
            self.index.row(text)
        except NotFoundError:
            return False
        return True

    def _by_digest(self, start: str) -> Found:
        for name in shipped.names():
            if shipped.record(name).object.startswith(start):
                return self.find(name)
        if not self.index.ready(make=False):
            raise NotFoundError(f"sha256:{start}: no such vector, the registry is empty")
        pattern = f"{start}%"
        query = sa.select(records.c.sha256).where(
            records.c.object.like(pattern) | records.c.sha256.like(pattern)
        )
        with self.index.reading() as connection:
            found = sorted(set(connection.scalars(query)))
        if not found:
            raise NotFoundError(f"sha256:{start}: no such vector", hint="lcm-arith registry ls")
        objects = {Record.of(self.manifests.get(own), own).object for own in found}
        if len(objects) > 1:
            raise UsageError(
                f"sha256:{start}: begins {len(objects)} digests", hint="give more digits"
            )
        named = self.index.rows(where=lambda query: query.where(names.c.record.in_(found)))
        if named:
            return self._found(named[0].name, str(named[0].state.record), named[0].state)
        return self._found(f"sha256:{objects.pop()[:12]}", found[0], State(record=found[0]))

    def _found(self, name: str, digest: str, state: State) -> Found:
        record = Record.of(self.manifests.get(digest), digest)
        path = Path(record.link) if record.link else self.objects.path(record.object)
        return Found(name, record, path, state)


def path_of(text: str) -> Path | None:
    """The file of a vector in the user's registry; None where there is no such name.

    Raises:
        InvalidContentError: If the name is there, and its file is not.
    """
    try:
        registry = Registry.open()
        found = registry.find(text)
    except (NotFoundError, UsageError):
        return None
    return found.path if found.shipped else registry.file_of(found.record)


def described(found: Found) -> dict[str, Any]:
    """What is known and said of a vector, JSON-ready."""
    return found.record.shown(found.state)
