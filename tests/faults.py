"""Stores that are broken on purpose: killed, refused by the disk, migrated; what must hold after.

Every function takes how many points to try and returns a :class:`Tally`; the tests run a few of
them, ``tools/torture.py`` all.
"""

from __future__ import annotations

import errno
import functools
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
import torch
from stores import (
    OLDER,
    OPERATIONS,
    Names,
    Operation,
    Stores,
    fill_oldest,
    names,
)
from tracer import Call, Run, traced

from lcm_arith.errors import IncompatibleError
from lcm_arith.registry import database, editing, upkeep
from lcm_arith.registry.store import Registry


@dataclass
class Tally:
    """What came of many points of one fault.

    Args:
        points: How many were tried.
        losses: What was not as promised; none is good.
        seconds: Taken.
        figures: What else was measured.
    """

    points: int = 0
    losses: list[str] = field(default_factory=list)
    seconds: float = 0.0
    figures: dict[str, Any] = field(default_factory=dict)

    def check(self, holds: bool, what: str) -> None:
        if not holds:
            self.losses.append(what)

    @contextmanager
    def promised(self, what: str) -> Iterator[None]:
        """What raises in here is a loss."""
        try:
            yield
        except Exception as error:
            self.losses.append(f"{what}: {type(error).__name__}: {error}")


Fault = Callable[..., Tally]


def timed(fault: Fault) -> Fault:
    """Also counts the seconds."""

    @functools.wraps(fault)
    def wrapped(*args: Any, **options: Any) -> Tally:
        torch.set_num_threads(1)  # a process that was forked must not wait for threads of ours
        start = time.perf_counter()
        tally = fault(*args, **options)
        tally.seconds = time.perf_counter() - start
        return tally

    return wrapped


def sound(tally: Tally, registry: Registry, where: str) -> None:
    """After gc: verify finds nothing, nothing lies about, and there is no file too many."""
    with tally.promised(where):
        upkeep.gc(registry, older_than=-1)
        problems = upkeep.verify(registry, deep=True).problems
        tally.check(not problems, f"{where}: {problems}")
        left = [str(p) for name in ("tmp", "pending") for p in (registry.root / name).glob("*")]
        left += [str(p) for p in registry.root.rglob("*.part")]
        tally.check(not left, f"{where}: left {left}")
        records = {state.record for state in names(registry).values() if state.record}
        tally.check(records == set(registry.manifests), f"{where}: manifests too many or few")


def trace(stores: Stores, operation: Operation, **options: Any) -> Run:
    """One run of an operation on a copy, followed."""
    with stores.copy(operation.store) as (registry, folder):
        return traced(lambda: operation.act(registry, folder), folder, **options)


def _spread(count: int, most: int, seed: int) -> list[int]:
    """At most so many numbers below ``count``, spread at random, in order."""
    chosen = random.Random(seed)
    return sorted(chosen.sample(range(count), min(count, most)))


@timed
def killed_at_calls(
    stores: Stores,
    points: int,
    operations: tuple[Operation, ...],
    only: Callable[[Call], bool] = lambda call: True,
) -> Tally:
    """F4, F12: operations killed before their k-th call; old or new, and they can be done again.

    Args:
        stores: Prepared ones.
        points: At most so many calls of each operation, at random.
        operations: Which.
        only: Which of their calls.
    """
    tally = Tally()
    for number, operation in enumerate(operations):
        before, after = stores.after(operation)
        calls = trace(stores, operation).calls
        total, right = len(calls), [k for k, call in enumerate(calls) if only(call)]
        for k in (right[own] for own in _spread(len(right), points, number)):
            with stores.copy(operation.store) as (registry, folder):
                act = functools.partial(operation.act, registry, folder)
                run = traced(act, folder, kill_at=k)
                where = f"{operation.name} killed at {k} of {total} ({run.calls[-1]})"
                tally.check(run.killed, f"{where}: was not killed")
                _as_promised(tally, operation, (registry, folder), (before, after), where)
            tally.points += 1
        tally.figures[operation.name] = total
    return tally


def _as_promised(
    tally: Tally,
    operation: Operation,
    store: tuple[Registry, Path],
    wanted: tuple[Names, Names],
    where: str,
) -> None:
    """The store is as before or as after; done again where it is as before, it is as after."""
    (registry, folder), (before, after) = store, wanted
    registry = Registry.open(registry.root, registry.url)
    with tally.promised(where):
        if operation.store == "damaged":  # cannot be read until it was made anew
            upkeep.reindex(registry)
        found = names(registry)
        tally.check(found in (before, after), f"{where}: between: {found}")
        problems = upkeep.verify(registry, deep=True).problems
        tally.check(not problems, f"{where}: before gc: {problems}")
        sound(tally, registry, where)
        tally.check(names(registry) == found, f"{where}: gc changed names")
        if found == before:
            (operation.again or operation.act)(registry, folder)
            tally.check(names(registry) == after, f"{where}: again: {names(registry)}")
            sound(tally, registry, f"{where}, again")
        _backups(tally, folder, where)


def _backups(tally: Tally, folder: Path, where: str) -> None:
    out = folder / "backup.tar"
    if out.exists():
        whole = out.read_bytes() in (OLDER, (folder / "kept.tar").read_bytes())
        tally.check(whole, f"{where}: the backup is not whole")


_ERRORS: Final = {"fsync": errno.EIO, "fdatasync": errno.EIO, "unlink": errno.EIO}


@timed
def refused_at_calls(stores: Stores, points: int, operations: tuple[Operation, ...]) -> Tally:
    """F5: the disk refuses the k-th call; StorageError, the old state, and again it works."""
    tally = Tally(figures={"told": 0, "told bytes": 0})
    for number, operation in enumerate(operations):
        before, after = stores.after(operation)
        total = len(trace(stores, operation).calls)
        for k in _spread(total, points, 100 + number):
            with stores.copy(operation.store) as (registry, folder):
                full = (errno.ENOSPC, errno.EDQUOT)[k % 2]
                act = functools.partial(operation.act, registry, folder)
                run = traced(act, folder, refuse=_refusing(k, full))
                where = f"{operation.name} refused at {k} of {total} ({run.calls[k]})"
                _told(tally, run, folder, where)
                found = {} if operation.store == "damaged" else names(registry)
                if "error" in run.told and not _ends(run.calls[k]):
                    same = operation.store == "damaged" or found == before
                    tally.check(same, f"{where}: changed though it failed: {found}")
                _as_promised(tally, operation, (registry, folder), (before, after), where)
            tally.points += 1
    return tally


def _refusing(k: int, full: int) -> Callable[[int, Call], int]:
    """The k-th call fails: a flush or a removal with EIO, all else because the disk is full."""
    return lambda number, call: _ERRORS.get(call.name, full) if number == k else 0


def _ends(call: Call) -> bool:
    """Whether a transaction ends with it: then nobody knows whether it was done."""
    return call.name == "fdatasync" and call.path.endswith("/store")


def _told(tally: Tally, run: Run, folder: Path, where: str) -> None:
    told = run.told
    if "error" not in told:
        return
    tally.figures["told"] += 1
    tally.figures["told bytes"] += "bytes are needed" in told["message"]
    right = told["error"] == "StorageError" and told["code"] == 5
    tally.check(right and str(folder) in told["message"], f"{where}: told {told}")


@timed
def killed_at_statements(
    stores: Stores, every: int = 1, url: Callable[[], str] | None = None
) -> Tally:
    """F12: a migration killed after each of its statements, or every so many.

    Args:
        stores: Prepared ones.
        every: Only every so many.
        url: Gives the URL of an empty index, if it is to be another than the store's own.
    """
    tally = Tally()
    operation = next(own for own in OPERATIONS if own.name == "migrate")
    before, after = stores.after(operation)
    while True:
        with stores.copy("old") as (registry, folder):
            if url is not None:
                registry = Registry.open(registry.root, url())
                with database.alone(registry.index.engine) as connection, connection.begin():
                    fill_oldest(connection, stores.oldest())
            k = tally.points * every
            pid = os.fork()
            if pid == 0:
                _migrate_until(registry, k)
            _, status = os.waitpid(pid, 0)
            where = f"migration killed after statement {k}"
            if os.WIFEXITED(status):
                tally.check(os.WEXITSTATUS(status) == 0, f"{where}: failed")
                return tally
            _as_promised(tally, operation, (registry, folder), (before, after), where)
            with tally.promised(where):
                tally.check(
                    registry.find("a").state.notes == ("a note",), f"{where}: the note is lost"
                )
            tally.points += 1


def _migrate_until(registry: Registry, k: int) -> None:
    done = 0

    def count(*_: Any) -> None:
        nonlocal done
        if done == k:
            os.kill(os.getpid(), signal.SIGKILL)
        done += 1

    code = 1
    try:
        sa.event.listen(registry.index.engine, "after_cursor_execute", count)
        registry.index.rows()
        code = 0
    finally:
        os._exit(code)


@timed
def schemas(stores: Stores, url: str | None = None) -> Tally:
    """F12: an index of schema 0 comes up to date with its names and notes; a newer is refused."""
    tally = Tally(points=2)
    with stores.copy("base" if url else "old") as (registry, _):
        if url:
            shutil.rmtree(registry.root / "names")
            registry = Registry.open(registry.root, url)
            with database.alone(registry.index.engine) as connection, connection.begin():
                fill_oldest(connection, stores.oldest())
        with tally.promised("schema 0"):
            found = names(registry)
            tally.check(found.keys() == {"a", "b"}, f"names: {found}")
            tally.check(found["a"].notes == ("a note",), f"the note: {found['a']}")
            sound(tally, registry, "schema 0")
        newer = {"name": "9999_newer", "applied": "2099-01-01T00:00:00+00:00"}
        with registry.index.engine.begin() as connection:
            connection.execute(database.migrations.insert().values(newer))
        for act in (registry.rows, lambda: editing.tag(registry, "a", ["x"])):
            try:
                act()
                tally.losses.append("a newer schema was not refused")
            except IncompatibleError as error:
                tally.check(error.exit_code == 6 and "9999_newer" in error.message, str(error))
    return tally
