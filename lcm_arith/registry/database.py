"""The index's database: SQLite or PostgreSQL, its transactions and its migrations."""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy import Connection, Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError
from sqlalchemy.pool import NullPool

from lcm_arith import durable
from lcm_arith.errors import IncompatibleError, LcmArithError, StorageError, UsageError

tables: Final = sa.MetaData()

migrations: Final = sa.Table(
    "migrations",
    tables,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("applied", sa.String(40), nullable=False),
)
# What manifests say, in columns that are asked for; rebuilt by reindex.
records: Final = sa.Table(
    "records",
    tables,
    sa.Column("sha256", sa.String(64), primary_key=True),  # of the manifest
    sa.Column("object", sa.String(64), nullable=False, index=True),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("tensors", sa.String(64), nullable=False),
    sa.Column("kind", sa.Text, nullable=False),
    sa.Column("assumed", sa.Boolean, nullable=False),  # nobody says the kind
    sa.Column("family", sa.Text, nullable=False),
    sa.Column("network", sa.Text, nullable=False),
    sa.Column("rank", sa.Text, nullable=False),
    sa.Column("modules", sa.Integer, nullable=False),
    sa.Column("licence", sa.Text, nullable=False),
    sa.Column("link", sa.Text),  # a file outside of the registry
    sa.Column("words", sa.Text, nullable=False),  # what search looks at, in small letters
)
parents: Final = sa.Table(
    "parents",
    tables,
    sa.Column("record", sa.String(64), sa.ForeignKey("records.sha256"), primary_key=True),
    sa.Column("parent", sa.String(64), primary_key=True, index=True),  # sha256 of a file
)
# What users say; each row is also a file, see lcm_arith.registry.states.
names: Final = sa.Table(
    "names",
    tables,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("record", sa.String(64), sa.ForeignKey("records.sha256"), index=True),
    sa.Column("alias_of", sa.String(100)),
    sa.Column("state", sa.Text, nullable=False),
)

# Whose index it is, one row; the folder has the same id in a file.
store: Final = sa.Table(
    "store",
    tables,
    sa.Column("id", sa.String(32), primary_key=True),
    sa.Column("path", sa.Text, nullable=False),  # where the folder was then, for messages
)

Migration = Callable[[Connection], None]
_LITE: Final = "sqlite:///"
_LOCK: Final = 5_506_147  # any number that nobody else takes: PostgreSQL's advisory lock of ours
_WAIT: Final = 30  # seconds that a writer waits for others


def _initial(connection: Connection) -> None:
    """Schema 0, of before the first release: a name, what it names and a note."""
    for statement in (
        "CREATE TABLE records (sha256 VARCHAR(64) PRIMARY KEY, object VARCHAR(64) NOT NULL)",
        "CREATE TABLE names (name VARCHAR(100) PRIMARY KEY, "
        "record VARCHAR(64) REFERENCES records (sha256), note TEXT NOT NULL DEFAULT '')",
    ):
        connection.exec_driver_sql(statement)


def _states(connection: Connection) -> None:
    """States instead of notes, aliases, and the columns that are asked for."""
    from lcm_arith.registry.states import State

    old = connection.exec_driver_sql("SELECT name, record, note FROM names").all()
    for statement in ("DROP TABLE names", "DROP TABLE records"):
        connection.exec_driver_sql(statement)
    tables.create_all(connection, tables=[records, parents, names], checkfirst=False)
    # Rows of records are made of manifests, by reindex; names would have none to refer to.
    for name, record, note in old:
        state = State(record=record, notes=(note,) if note else ())
        values = {"name": name, "record": None, "state": state.text()}
        connection.execute(names.insert().values(values))


def _store(connection: Connection) -> None:
    """Whose index it is; the row is written by :class:`lcm_arith.registry.index.Index`."""
    tables.create_all(connection, tables=[store], checkfirst=False)


FILLED: Final = "0001_states"  # the last after which the tables are filled
MIGRATIONS: Final[dict[str, Migration]] = {
    "0000_initial": _initial,
    FILLED: _states,
    "0002_store": _store,
}


def engine(url: str) -> Engine:
    """An engine whose writing transactions lock from their start.

    Raises:
        UsageError: If the URL is of no database that is supported, or its driver is missing.
    """
    try:
        file = url.removeprefix(_LITE)  # a path may hold signs that mean something in a URL
        parsed = sa.URL.create("sqlite", database=file) if file != url else make_url(url)
        if parsed.get_backend_name() not in ("sqlite", "postgresql"):
            raise UsageError(
                f"{parsed.get_backend_name()}: is no database that the registry can use",
                hint="sqlite:///FILE or postgresql+psycopg://HOST/NAME",
            )
        lite = parsed.get_backend_name() == "sqlite"
        made = sa.create_engine(
            parsed, poolclass=NullPool, connect_args={"timeout": _WAIT} if lite else {}
        )
    except (ArgumentError, NoSuchModuleError) as error:
        raise UsageError(f"the index's URL is not understood: {error}") from error
    except UsageError:
        raise
    except ValueError as error:  # its text may hold half a password
        raise UsageError(
            "the index's URL is not understood: its port is no number",
            hint="postgresql+psycopg://USER:PASSWORD@HOST:PORT/NAME; write @ : / in a password as "
            "%40 %3A %2F",
        ) from error
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the package {error.name} is missing", hint="pip install 'lcm-arith[postgres]'"
        ) from error
    if lite:
        sa.event.listen(made, "connect", _on_connect)
    sa.event.listen(made, "begin", _on_begin)
    return made


def _on_connect(connection: Any, _: object) -> None:
    """Python's own transactions lose updates; SQLAlchemy's BEGIN below is sent as it is."""
    connection.isolation_level = None
    # EXTRA also flushes the folder when the journal is gone, which is what commits.
    for pragma in ("foreign_keys=ON", "synchronous=EXTRA", "journal_mode=DELETE"):
        connection.execute(f"PRAGMA {pragma}")


def _on_begin(connection: Connection) -> None:
    """A transaction that will write locks before it reads anything."""
    if connection.dialect.name == "sqlite":
        writes = connection.get_execution_options().get("writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def file_of(database: Engine) -> Path | None:
    """SQLite's file; None of a server, and of a database in memory."""
    lite = database.dialect.name == "sqlite"
    return Path(database.url.database) if lite and database.url.database else None


@contextmanager
def reading(database: Engine) -> Iterator[Connection]:
    """A transaction that sees one state.

    Raises:
        StorageError: If the database refuses.
    """
    try:
        with database.begin() as connection:
            yield connection
    except DBAPIError as error:
        raise _refusal(database, error) from error


@contextmanager
def alone(database: Engine) -> Iterator[Connection]:
    """A connection whose transactions change names; nobody else changes any meanwhile.

    Writers wait in a row, on a file beside SQLite's, whose own lock is polled and starves some; on
    a server by a lock of the session, which ends with it.

    Raises:
        RuntimeError: If it is called within itself, where it would wait for ever.
        StorageError: If the database or the disk refuses; nothing of the transaction is then done,
            unless it was the end of the transaction that failed: then nobody knows.
    """
    url = database.url
    inside = (threading.get_ident(), str(url.host), str(url.database), str(url.query))
    if inside in _changing:
        raise RuntimeError("names are changed within a change of names")
    _changing.add(inside)
    try:
        with _alone(database) as connection:
            yield connection
    finally:
        _changing.discard(inside)


_changing: Final[set[tuple[int, str, str, str]]] = set()


@contextmanager
def _alone(database: Engine) -> Iterator[Connection]:
    file = file_of(database)
    held = nullcontext() if file is None else durable.locked(file.with_name(f"{file.name}.lock"))
    try:
        with held, database.connect() as connection:
            if connection.dialect.name == "postgresql":
                connection.exec_driver_sql(f"SELECT pg_advisory_lock({_LOCK})")
                connection.commit()  # the session goes on to hold it
            yield connection.execution_options(writes=True)
    except DBAPIError as error:
        raise _refusal(database, error) from error


def set_aside(database: Engine, folder: Path, *, whole: bool = False) -> str | None:
    """Moves a SQLite file that is damaged into a folder; where it is then, None where it stays.

    Args:
        database: Which; of a server nothing is moved.
        folder: Where to.
        whole: Move it though it seems sound.

    Raises:
        IncompatibleError: If a newer program wrote it.
        StorageError: If another program holds it, or the disk refuses.
    """
    file = file_of(database)
    if file is None or not file.exists():
        return None
    with durable.locked(file.with_name(f"{file.name}.lock")):
        if not whole and _sound(database):
            return None
        aside = folder / f"{file.name}.{uuid.uuid4().hex[:8]}"
        durable.make_folder(folder)
        try:
            # First the journal: it would be played back into the next database of that name.
            file.with_name(f"{file.name}-journal").unlink(missing_ok=True)
            os.replace(file, aside)
            durable.flush_folder(file.parent)
        except OSError as error:
            raise durable.refusal(aside, error) from error
    return str(aside)


def _sound(database: Engine) -> bool:
    """Whether a SQLite file is a whole database of ours."""
    try:
        with reading(database) as connection:
            if connection.exec_driver_sql("PRAGMA integrity_check").scalar() != "ok":
                return False
            applied(connection)
    except StorageError as error:
        if not damaged(error):
            raise
        return False
    return True


def damaged(error: StorageError) -> bool:
    """Whether SQLite's file is no database any more, misses tables, or holds what is no text."""
    if not isinstance(error.__cause__, DBAPIError):
        return False
    name = getattr(error.__cause__.orig, "sqlite_errorname", None)
    return name in (None, "SQLITE_ERROR") or name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB"))


def _refusal(database: Engine, error: DBAPIError) -> LcmArithError:
    said = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else str(error)
    where = database.url.database if database.dialect.name == "sqlite" else database.url.host
    hint = "see that the database runs and may be written, and that its disk has room"
    if "malformed" in said or "not a database" in said:
        hint = "the index is damaged; the vectors are not: lcm-arith registry reindex"
    if "locked" in said:
        hint = f"another program held the index for {_WAIT} s; run the command again"
    return StorageError(f"{where}: the registry's index failed ({said})", hint=hint)


def migrate(connection: Connection) -> list[str]:
    """Brings the schema up to date; the names of what was applied.

    Raises:
        IncompatibleError: If a newer program wrote it.
    """
    todo = [name for name in MIGRATIONS if name not in applied(connection)]
    tables.create_all(connection, tables=[migrations])
    for name in todo:
        MIGRATIONS[name](connection)
        now = datetime.now(UTC).isoformat(timespec="seconds")
        connection.execute(migrations.insert().values(name=name, applied=now))
    return todo


def applied(connection: Connection) -> set[str]:
    """Names of the migrations that were applied.

    Raises:
        IncompatibleError: If a newer program wrote the database.
    """
    if not sa.inspect(connection).has_table("migrations"):
        return set()
    done = set(connection.scalars(sa.select(migrations.c.name)))
    newer = done - MIGRATIONS.keys()
    if newer:
        raise IncompatibleError(
            f"the registry was written by a newer lcm-arith ({', '.join(sorted(newer))})",
            hint="install that version, or use another LCM_ARITH_HOME",
        )
    return done
