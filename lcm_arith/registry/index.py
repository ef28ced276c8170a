"""The index: which names there are, what they stand for, and what is asked of many at once."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine

from lcm_arith import durable
from lcm_arith.errors import IncompatibleError, LcmArithError, NotFoundError, OutputExistsError
from lcm_arith.registry import database
from lcm_arith.registry.database import names, parents, records
from lcm_arith.registry.states import State, States

ID: Final = "store-id"
"""A file in the registry's folder: whose index a database has."""


@dataclass(frozen=True)
class Row:
    """A name with its state and the columns of its record.

    Args:
        name: As it is stored.
        state: What its user says.
        columns: Of the table ``records``; empty of an alias, and where the manifest is lost.
    """

    name: str
    state: State
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class Change:
    """A transaction that changes names; their files change with it."""

    connection: Connection
    states: States

    def state(self, name: str) -> State | None:
        """A name's state; None where there is no such name."""
        query = sa.select(names.c.state).where(names.c.name == name)
        text = self.connection.scalar(query)
        return None if text is None else State.of(text, name)

    def insert(self, name: str, state: State) -> None:
        """A new name.

        Raises:
            OutputExistsError: If it is taken.
        """
        if self.state(name) is not None:
            raise OutputExistsError(
                f"{name}: there is a vector of that name",
                hint="choose another with --name, or remove it: lcm-arith registry rm",
            )
        if self.states.path(name).exists():
            raise OutputExistsError(
                f"{self.states.path(name)}: is there, and the index does not know it",
                hint="lcm-arith registry reindex gives the name back",
            )
        self.row(name, state, state.record)
        self.states.put(name, state)

    def row(self, name: str, state: State, record: str | None) -> None:
        """The row of a name that has its file already.

        Args:
            name: Which.
            state: Of it.
            record: sha256 of its manifest; None where that is lost.
        """
        values = {"name": name, "record": record, "alias_of": state.alias_of}
        self.connection.execute(names.insert().values(**values, state=state.text()))

    def names_of(self, sha256: str) -> list[str]:
        """Names of the records of a file, sorted."""
        query = (
            sa.select(names.c.name)
            .join(records, names.c.record == records.c.sha256)
            .where(records.c.object == sha256)
            .order_by(names.c.name)
        )
        return list(self.connection.scalars(query))

    def aliases(self, name: str) -> list[tuple[str, State]]:
        """Names that stand for ``name``, with their states."""
        query = sa.select(names.c.name, names.c.state).where(names.c.alias_of == name)
        found = self.connection.execute(query.order_by(names.c.name)).all()
        return [(own, State.of(text, own)) for own, text in found]

    def children(self, sha256: str) -> list[str]:
        """Names of the vectors that were made of a file, sorted."""
        query = (
            sa.select(names.c.name)
            .join(parents, names.c.record == parents.c.record)
            .where(parents.c.parent == sha256)
            .order_by(names.c.name)
        )
        return list(self.connection.scalars(query))

    def update(self, name: str, state: State) -> None:
        """A name's new state."""
        values = {"record": state.record, "alias_of": state.alias_of, "state": state.text()}
        self.connection.execute(names.update().where(names.c.name == name).values(**values))
        self.states.put(name, state)

    def delete(self, name: str) -> None:
        """Removes a name."""
        self.connection.execute(names.delete().where(names.c.name == name))
        self.states.remove(name)

    def record(self, columns: Mapping[str, Any], of: tuple[str, ...]) -> None:
        """A record's columns and its parents, if they are not there.

        Args:
            columns: Of the table ``records``.
            of: sha256 of the files that it was made of.
        """
        self._once(records, [dict(columns)])
        self._once(parents, [{"record": columns["sha256"], "parent": own} for own in sorted(of)])

    def _once(self, table: sa.Table, rows: list[dict[str, Any]]) -> None:
        if not rows:
            return
        if self.connection.dialect.name == "sqlite":
            from sqlalchemy.dialects.sqlite import insert
        else:
            from sqlalchemy.dialects.postgresql import insert  # type: ignore[assignment]
        self.connection.execute(insert(table).on_conflict_do_nothing(), rows)


@dataclass(frozen=True)
class Index:
    """Names and records in a database, and the names' files.

    Args:
        url: SQLAlchemy's URL.
        states: The files.
        fill: Called with a Change after the schema was brought up to date, and whether there was
            none before, to fill the tables.
    """

    url: str
    states: States
    fill: Callable[[Change, bool], object]

    @cached_property
    def engine(self) -> Engine:
        """Opened when first needed."""
        return database.engine(self.url)

    @property
    def file(self) -> Path | None:
        """SQLite's file; None of a server."""
        return database.file_of(self.engine)

    def ready(self, *, make: bool) -> bool:
        """Whether there is an index; brings its schema up to date, or makes it.

        An index that is lost while the names' files are there is made of them.

        Raises:
            IncompatibleError: If a newer program wrote it, or it is of another folder.
            StorageError: If the database refuses.
        """
        if self.file is not None and not self.file.exists():
            if not make and not any(self.states):
                return False
            durable.make_folder(self.file.parent)
        with self.reading() as connection:
            done = database.applied(connection)
            if done == database.MIGRATIONS.keys():
                self._check_owner(connection)
        if not done and not make and not any(self.states):
            return False
        if done != database.MIGRATIONS.keys():
            with self._change() as change:
                new = not database.applied(change.connection)
                made = database.migrate(change.connection)
                if made:
                    # The names of schema 0 had no files, so a folder without any can be its own.
                    self._own(change.connection, filled=database.FILLED not in made)
                if database.FILLED in made:
                    self.fill(change, new)
        return True

    @property
    def _inside(self) -> bool:
        """Whether it lies in the registry's folder, so that it can be of no other."""
        return self.file is not None and self.file.absolute().parent == self.states.root.absolute()

    def _id(self) -> str:
        """The folder's own; empty where it has none yet."""
        path = self.states.root / ID
        try:
            with path.open("rb") as file:
                return file.read(100).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise durable.refusal(path, error) from error

    def _own(self, connection: Connection, *, filled: bool) -> None:
        """Says in the database that it is this folder's; the folder gets an id if it has none.

        Args:
            connection: Of a change.
            filled: Whether every name in it has a file in its folder.

        Raises:
            IncompatibleError: If it has names, and the folder has none: they are of another.
        """
        query = sa.select(sa.func.count()).select_from(names)
        if filled and not self._inside and connection.scalar(query) and not any(self.states):
            raise _of_another("a folder that is not known")
        own = self._id()
        if not own:
            own = uuid.uuid4().hex
            durable.make_folder(self.states.root)
            durable.write(self.states.root / ID, own.encode())
        place = str(self.states.root.absolute()).encode("utf-8", "replace").decode()
        connection.execute(database.store.insert().values(id=own, path=place))

    def _check_owner(self, connection: Connection) -> None:
        """Raises where the database has the names of another folder.

        Raises:
            IncompatibleError: If so.
        """
        row = connection.execute(sa.select(database.store)).first()
        own = self._id()
        if row is not None and row.id != own and (own or not self._inside):
            raise _of_another(f"the folder {row.path} ({ID} {row.id})")

    @contextmanager
    def change(self) -> Iterator[Change]:
        """A transaction that changes names, alone; all of it is done, or nothing.

        It cannot be begun within another.

        Raises:
            StorageError: If the database or the disk refuses.
        """
        self.ready(make=True)
        with self._change() as change:
            self.states.settle(change.state)  # what a dead process left
            yield change

    def reading(self) -> AbstractContextManager[Connection]:
        """A transaction that sees one state and changes nothing."""
        return database.reading(self.engine)

    @contextmanager
    def _change(self) -> Iterator[Change]:
        with database.alone(self.engine) as connection:
            try:
                with connection.begin():
                    yield Change(connection, self.states)
            except BaseException:
                with suppress(LcmArithError):  # then it is left to the next change
                    self._settle()
                raise
            self.states.forget()

    def _settle(self) -> None:
        """Makes the files as the index says: it alone knows whether a transaction was done."""
        with self.reading() as connection:
            if database.applied(connection) == database.MIGRATIONS.keys():
                self.states.settle(Change(connection, self.states).state)

    def rows(self, *, where: Callable[[sa.Select[Any]], sa.Select[Any]] | None = None) -> list[Row]:
        """Every name with its record, sorted, by one query."""
        if not self.ready(make=False):
            return []
        query = sa.select(names.c.name, names.c.state, records).outerjoin(
            records, names.c.record == records.c.sha256
        )
        query = query.order_by(names.c.name) if where is None else where(query)
        with self.reading() as connection:
            found = connection.execute(query).mappings().all()
        return [_row(dict(values)) for values in found]

    def row(self, name: str) -> Row:
        """One name; an alias as itself.

        Raises:
            NotFoundError: If there is none.
        """
        found = self.rows(where=lambda query: query.where(names.c.name == name))
        if not found:
            raise NotFoundError(f"{name}: no vector of that name", hint="lcm-arith registry ls")
        return found[0]

    def __contains__(self, name: str) -> bool:
        return bool(self.rows(where=lambda query: query.where(names.c.name == name)))


def _of_another(whose: str) -> IncompatibleError:
    return IncompatibleError(
        f"the index has the names of {whose}, not of this registry's folder",
        hint="share that folder (LCM_ARITH_HOME), or use another database (LCM_ARITH_DB)",
    )


def _row(values: dict[str, Any]) -> Row:
    name, state = values.pop("name"), State.of(values.pop("state"), values.get("name", "index"))
    return Row(name, state, values if values["sha256"] is not None else {})
