"""Backup and restore: the whole registry in one tar file."""

from __future__ import annotations

import io
import os
import tarfile
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from lcm_arith import durable
from lcm_arith.errors import (
    InvalidContentError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from lcm_arith.registry import objects
from lcm_arith.registry.manifests import MOST_BYTES, digest
from lcm_arith.registry.names import check_name
from lcm_arith.registry.naming import give
from lcm_arith.registry.records import Record
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry

_NAMES, _OBJECTS = "names", "objects"
_MOST_MEMBERS: Final = 1_000_000


@dataclass(frozen=True)
class Archived:
    """What went into an archive, or came out of it.

    Args:
        names: Names.
        files: Manifests and objects; of a restore, those that were not there.
        bytes: Of the archive.
    """

    names: int
    files: int
    bytes: int


def backup(registry: Registry, out: Path, *, force: bool = False) -> Archived:
    """Writes every name with its manifest and its files; the same registry gives the same bytes.

    Linked files stay where they are and are not in it.

    Raises:
        OutputExistsError: If ``out`` exists and ``force`` is off.
        InvalidContentError: If a manifest or a file is missing: verify tells which.
        StorageError: If the disk refuses.
    """
    if out.exists() and not force:
        raise OutputExistsError(f"{out}: exists", hint="choose another name or add --force")
    part = out.with_name(f".{uuid.uuid4().hex}.part")
    count = 0
    try:
        states = {row.name: row.state for row in registry.index.rows()}
        with tarfile.open(part, "w") as tar:
            for name, state in states.items():
                _add(tar, f"{_NAMES}/{name}.json", state.text().encode())
            for path in sorted(set(_needed(registry, states))):
                _add_file(tar, registry.root, path)
                count += 1
        with part.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(part, out)
        durable.flush_folder(out.parent)
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise durable.refusal(out, error) from error
    finally:
        with suppress(OSError):  # what remains is a hidden file beside the backup
            part.unlink(missing_ok=True)
    return Archived(len(states), count, out.stat().st_size)


def _needed(registry: Registry, states: dict[str, State]) -> Iterator[Path]:
    """Manifests and files of all names, and of what their vectors were made of."""
    starts = [state.record for state in states.values() if state.record is not None]
    if not starts:
        return
    with registry.index.reading() as connection:
        for sha256, record in registry.with_parents(connection, starts):
            yield registry.manifests.path(sha256)
            if not record.link:
                yield registry.objects.path(record.object)
            for picture in record.previews:
                yield registry.objects.path(picture["sha256"], picture["suffix"])


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(data), 0o644
    tar.addfile(info, io.BytesIO(data))


def _add_file(tar: tarfile.TarFile, root: Path, path: Path) -> None:
    info = tarfile.TarInfo(path.relative_to(root).as_posix())
    try:
        with path.open("rb") as file:
            info.size, info.mode = os.fstat(file.fileno()).st_size, 0o444
            tar.addfile(info, file)
    except FileNotFoundError:
        raise InvalidContentError(
            f"{path}: is missing", hint="see: lcm-arith registry verify"
        ) from None


def restore(registry: Registry, archive: Path, *, force: bool = False) -> Archived:
    """Puts a backup's names and files into a registry, all names at once.

    Args:
        registry: Where; names that are there with the same state stay as they are.
        archive: Of :func:`backup`.
        force: Names that are there with another state get the archive's.

    Raises:
        NotFoundError: If there is no such archive.
        InvalidContentError: If the archive is none, or holds a file that is not what its name says.
        OutputExistsError: If a name is there with another state, and ``force`` is off.
        StorageError: If the disk or the database refuses; no name is then changed.
    """
    states: dict[str, State] = {}
    manifests: list[str] = []
    with registry.objects.workspace() as folder:
        try:
            with archive.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
                count = sum(
                    _restore(registry, tar, own, folder, states, manifests) for own in _members(tar)
                )
        except tarfile.TarError as error:
            raise InvalidContentError(f"{archive}: is no backup ({error})") from error
        except FileNotFoundError:
            raise NotFoundError(f"{archive}: no such file") from None
        except OSError as error:
            if isinstance(error, StorageError):
                raise
            raise StorageError(f"{archive}: cannot be read ({error.strerror})") from error
    with registry.index.change() as change:  # vectors without a name, of which others were made
        for sha256 in manifests:
            record = Record.of(registry.manifests.get(sha256), sha256)
            change.record(record.columns(sha256), record.parents)
    give(registry, states, force=force)
    return Archived(len(states), count, archive.stat().st_size)


def _members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    for number, info in enumerate(tar):
        if number >= _MOST_MEMBERS:
            raise InvalidContentError(f"the archive holds more than {_MOST_MEMBERS:,} files")
        yield info


def _restore(
    registry: Registry,
    tar: tarfile.TarFile,
    info: tarfile.TarInfo,
    folder: Path,
    states: dict[str, State],
    manifests: list[str],
) -> bool:
    """Puts one member into its place, by its content; whether it is a file that was not there."""
    path = PurePosixPath(info.name)
    sha256, suffix = path.name.split(".")[0], path.suffix
    places = (
        registry.objects.path(sha256, suffix),
        registry.manifests.path(sha256),
        registry.index.states.path(path.name.removesuffix(".json")),
    )
    known = {place.relative_to(registry.root).as_posix() for place in places}
    stream = tar.extractfile(info) if info.isfile() and not info.issparse() else None
    if stream is None or info.name not in known:
        raise InvalidContentError(f"{info.name!r}: has no place in a registry")
    kind = path.parts[0]
    if kind == _OBJECTS:
        part = folder / "object"
        with stream, part.open("wb") as file:
            found = objects.copy_stream(stream, file, part, info.size)
        if found != sha256:
            raise InvalidContentError(f"{info.name!r}: its sha256 is {found}")
        there = registry.objects.path(sha256, suffix).is_file()
        registry.objects.put(part, sha256, suffix)
        part.unlink(missing_ok=True)
        return not there
    if info.size > MOST_BYTES:
        raise InvalidContentError(f"{info.name!r}: is longer than {MOST_BYTES:,} bytes")
    data = stream.read()
    if kind == _NAMES:
        name = _name(info.name)
        if name in states:
            raise InvalidContentError(f"{info.name!r}: is in the archive twice")
        states[name] = State.of(data, info.name)
        return False
    if digest(data) != sha256:
        raise InvalidContentError(f"{info.name!r}: its sha256 is {digest(data)}")
    there = registry.manifests.path(sha256).is_file()
    registry.manifests.put_bytes(sha256, data)
    manifests.append(sha256)
    return not there


def _name(member: str) -> str:
    """The name that a member of ``names`` is the file of."""
    name = PurePosixPath(member).name.removesuffix(".json")
    try:
        same = check_name(name) == name
    except UsageError as error:
        raise InvalidContentError(f"{member!r}: {error.message}") from None
    if not same:
        raise InvalidContentError(f"{member!r}: is not spelled as a name is stored")
    return name
