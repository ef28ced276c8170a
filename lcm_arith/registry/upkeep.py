"""Keeping the registry well: verify, gc, reindex."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from lcm_arith import durable
from lcm_arith.embedded.files import sha256 as file_sha256
from lcm_arith.errors import InvalidContentError, StorageError
from lcm_arith.registry import database, shipped
from lcm_arith.registry.database import names, parents, records
from lcm_arith.registry.index import Change
from lcm_arith.registry.records import Record
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry

DAY: Final = 24 * 3600.0
_PIECES: Final = (".part",)


@dataclass(frozen=True)
class Problem:
    """Something that is not as it should be.

    Args:
        what: In words.
        names: Of the vectors that it concerns, sorted.
        quarantined: Where the damaged file is now.
    """

    what: str
    names: tuple[str, ...] = ()
    quarantined: str | None = None


@dataclass(frozen=True)
class Verified:
    """What :func:`verify` found.

    Args:
        names: How many names were looked at.
        objects: How many files of vectors.
        problems: What is wrong; none is good.
    """

    names: int
    objects: int
    problems: tuple[Problem, ...]


def verify(registry: Registry, *, deep: bool = False) -> Verified:
    """Looks whether every name has its manifest and its file, and the index says what they say.

    Args:
        registry: Which.
        deep: Read every byte, too, and put damaged files aside, into ``quarantine``.

    Raises:
        StorageError: If the index is damaged, or the disk refuses.
    """
    found = list(_damaged(registry)) if deep else []
    seen = _looked(registry, deep=deep)
    if seen.problems:
        with registry.index.change():  # now without anybody who changes it meanwhile
            seen = _looked(registry, deep=deep)
    return replace(seen, problems=(*found, *seen.problems))


def _damaged(registry: Registry) -> Iterator[Problem]:
    """Puts files aside whose bytes are not those of their name."""
    for path, sha256 in _all_files(registry):
        if _sha256(path) in (sha256, None):
            continue
        with registry.index.change():
            if _sha256(path) in (sha256, None):
                continue  # it was put there anew, or removed
            who = _users(registry).get(path, ())
            aside = _quarantine(registry, path)
        yield Problem(f"{path.name}: was changed on the disk", tuple(sorted(who)), str(aside))


def _users(registry: Registry) -> dict[Path, set[str]]:
    """File → the names that need it."""
    users: dict[Path, set[str]] = {}
    for row in registry.index.rows():
        if row.state.record is not None:
            files = {registry.manifests.path(row.state.record), *_files(registry, row.state.record)}
            if row.columns and not row.columns["link"]:
                files.add(registry.objects.path(row.columns["object"]))
            for path in files:
                users.setdefault(path, set()).add(row.name)
    return users


def _looked(registry: Registry, *, deep: bool) -> Verified:
    rows = registry.index.rows()
    there = {*shipped.names(), *(row.name for row in rows)}
    problems: list[Problem] = []
    for row in rows:
        if row.state.alias_of is None:
            problems += _problems(registry, row.name, row.state, dict(row.columns), deep=deep)
        elif row.state.alias_of not in there:
            problems.append(Problem(f"stands for {row.state.alias_of}, which is gone", (row.name,)))
    problems += _unlike(registry, {row.name: row.state for row in rows})
    files = {row.columns["object"] for row in rows if row.columns and not row.columns["link"]}
    return Verified(len(rows), len(files), tuple(problems))


def _files(registry: Registry, sha256: str) -> Iterator[Path]:
    """The manifest of a record, and the files that it names."""
    yield registry.manifests.path(sha256)
    try:
        record = Record.of(registry.manifests.get(sha256), sha256)
    except InvalidContentError:
        return
    if not record.link:
        yield registry.objects.path(record.object)
    for picture in record.previews:
        yield registry.objects.path(picture["sha256"], picture["suffix"])


def _all_files(registry: Registry) -> Iterator[tuple[Path, str]]:
    for sha256 in registry.manifests:
        yield registry.manifests.path(sha256), sha256
    for path in registry.objects:
        yield path, path.name.split(".")[0]


def _sha256(path: Path) -> str | None:
    """sha256 of a file; None where it is gone.

    Raises:
        StorageError: If the disk cannot read it.
    """
    try:
        return file_sha256(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"{path}: cannot be read ({error.strerror})") from error


def _quarantine(registry: Registry, path: Path) -> Path:
    folder = registry.root / "quarantine"
    durable.make_folder(folder)
    aside = folder / f"{path.name}.{uuid.uuid4().hex[:8]}"
    try:
        os.replace(path, aside)
        durable.flush_folder(path.parent)
    except OSError as error:
        raise durable.refusal(aside, error) from error
    return aside


def _problems(
    registry: Registry, name: str, state: State, columns: dict[str, Any], *, deep: bool
) -> Iterator[Problem]:
    sha256 = str(state.record)
    try:
        record = Record.of(registry.manifests.get(sha256), sha256)
    except InvalidContentError as error:
        yield Problem(error.message, (name,))
        return
    if record.columns(sha256) != columns:
        yield Problem("the index says other things than the manifest: reindex", (name,))
    if record.link:
        yield from _link_problems(record, name, deep=deep)
        return
    for path in list(_files(registry, sha256))[1:]:
        if not path.is_file():
            yield Problem(f"{path.name}: is missing", (name,))
        elif path == registry.objects.path(record.object) and path.stat().st_size != record.bytes:
            yield Problem(
                f"{path.name}: has {path.stat().st_size} of {record.bytes} bytes", (name,)
            )


def _link_problems(record: Record, name: str, *, deep: bool) -> Iterator[Problem]:
    path = Path(str(record.link))
    try:
        if not path.is_file():
            yield Problem(f"{path}: the linked file is gone", (name,))
        elif path.stat().st_size != record.bytes or (deep and file_sha256(path) != record.object):
            yield Problem(f"{path}: the linked file was changed", (name,))
    except OSError as error:
        yield Problem(f"{path}: the linked file cannot be read ({error.strerror})", (name,))


def _unlike(registry: Registry, states: dict[str, State]) -> Iterator[Problem]:
    """Names whose file says other things than the index."""
    on_disk = set(registry.index.states)
    for name in sorted(states.keys() - on_disk):
        yield Problem("has no file in names: reindex writes one", (name,))
    for name in sorted(states.keys() & on_disk):
        try:
            same = registry.index.states.get(name) == states[name]
        except InvalidContentError as error:
            yield Problem(error.message, (name,))
            continue
        if not same:
            yield Problem("its file in names and the index differ: reindex", (name,))
    for name in sorted(on_disk - states.keys()):
        yield Problem("is in names, not in the index: reindex", (name,))


@dataclass(frozen=True)
class Swept:
    """What :func:`gc` removed, or would remove.

    Args:
        files: Objects and manifests that nothing needs.
        pieces: Workspaces and parts that dead processes left.
        bytes: Of both.
    """

    files: tuple[str, ...]
    pieces: tuple[str, ...]
    bytes: int


def gc(
    registry: Registry, *, older_than: float = DAY, keep_parents: bool = True, dry_run: bool = False
) -> Swept:
    """Removes files that no name needs, and what dead processes left.

    Args:
        registry: Which.
        older_than: Seconds; what is younger may belong to a vector that is being added.
        keep_parents: Whether the vectors that a kept one was made of stay, though without a name.
        dry_run: Remove nothing.

    Raises:
        InvalidContentError: If a manifest is damaged: what it needs is not known.
        StorageError: If the disk or the database refuses.
    """
    if not registry.root.is_dir():
        return Swept((), (), 0)
    limit = time.time() - older_than
    with registry.index.change() as change:
        needed = _needed(registry, change, limit, keep_parents=keep_parents)
        old = [
            path for path, _ in _all_files(registry) if path not in needed and _age(path) < limit
        ]
        pieces = [*registry.objects.abandoned(older_than), *_old_pieces(registry, limit)]
        size = sum(map(_size, (*old, *pieces)))
        if not dry_run:
            _forget(registry, change, old)
            for path in (*old, *pieces):
                _remove(path)
    return Swept(tuple(map(str, old)), tuple(map(str, pieces)), size)


def _needed(registry: Registry, change: Change, limit: float, *, keep_parents: bool) -> set[Path]:
    """Every file that a name needs, with those of the vectors that it was made of.

    A name counts that the index or a file of names has; and so does a manifest that is younger than
    ``limit``.
    """
    todo = [own for own in registry.manifests if not _age(registry.manifests.path(own)) < limit]
    states = {name: registry.index.states.get(name) for name in registry.index.states}
    for name, text in change.connection.execute(sa.select(names.c.name, names.c.state)):
        states[f"{name} in the index"] = State.of(text, name)
    for name, state in states.items():
        own = state.record
        if own and not registry.manifests.path(own).is_file():
            raise InvalidContentError(
                f"{name}: its manifest is lost, so nobody knows which files it needs",
                hint="restore a backup, or remove that name; then run gc again",
            )
        todo += [own] if own else []
    kept = registry.with_parents(change.connection, todo, parents=keep_parents)
    return {path for sha256, _ in kept for path in _files(registry, sha256)}


def _forget(registry: Registry, change: Change, old: list[Path]) -> None:
    """Rows of records whose manifest goes."""
    gone = [path.stem for path in old if path.suffix == ".json"]
    for table, column in ((parents, parents.c.record), (records, records.c.sha256)):
        for start in range(0, len(gone), 500):
            change.connection.execute(table.delete().where(column.in_(gone[start : start + 500])))


def _old_pieces(registry: Registry, limit: float) -> Iterator[Path]:
    """Parts of files that were never finished."""
    below = [(registry.root / folder).rglob(".*") for folder in ("names", "manifests", "objects")]
    for path in sorted(chain(registry.root.glob(".*"), *below)):
        if path.suffix in _PIECES and _age(path) < limit:
            yield path


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:  # its owner has just finished with it
        return float("inf")


def _size(path: Path) -> int:
    try:
        if path.is_dir():
            return sum(own.stat().st_size for own in path.rglob("*") if own.is_file())
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _remove(path: Path) -> None:
    import shutil

    try:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except FileNotFoundError:
        return
    except OSError as error:
        raise StorageError(f"{path}: cannot be removed ({error.strerror})") from error


@dataclass(frozen=True)
class Reindexed:
    """What :func:`reindex` found.

    Args:
        names: How many names there are now.
        lost: Names whose manifest or state could not be read, with the reason.
        aside: Where a damaged index is now.
    """

    names: int
    lost: dict[str, str] = field(default_factory=dict)
    aside: str | None = None


def reindex(registry: Registry) -> Reindexed:
    """Makes the index anew from the names' files and the manifests; no object is touched.

    A name whose file is lost, while the index has it, gets its file again.
    A SQLite file that is no database any more is put aside first.

    Raises:
        StorageError: If the disk or the database refuses.
    """
    folder = registry.root / "quarantine"
    aside = database.set_aside(registry.index.engine, folder)
    try:
        return _reindexed(registry, aside)
    except (StorageError, InvalidContentError) as error:
        if aside or registry.index.file is None or not registry.index.file.exists():
            raise
        if isinstance(error, StorageError) and not database.damaged(error):
            raise  # the disk refused, which says nothing of the index
        return _reindexed(registry, database.set_aside(registry.index.engine, folder, whole=True))


def _reindexed(registry: Registry, aside: str | None) -> Reindexed:
    states = registry.index.states
    with registry.index.change() as change:
        for name, text in change.connection.execute(sa.select(names.c.name, names.c.state)).all():
            if not states.path(name).exists():
                states.put(name, State.of(text, name))  # the index alone knows of it
        for table in (names, parents, records):
            change.connection.execute(table.delete())
        lost = registry.fill(change, new=True)
        count = change.connection.scalar(sa.select(sa.func.count()).select_from(names))
    return Reindexed(int(count or 0), lost, aside)
