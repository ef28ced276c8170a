"""Files that are there whole or not at all, also after a crash. Nothing heavy is imported."""

from __future__ import annotations

import fcntl
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lcm_arith.errors import ConflictError, StorageError


def write(path: Path, data: bytes, *, mode: int = 0o666) -> None:
    """Puts ``data`` at ``path``, replacing what was there, and flushes both file and folder.

    Args:
        path: In a folder that exists.
        data: Content.
        mode: Permissions before the umask.

    Raises:
        StorageError: If the disk refuses; ``path`` is then as it was.
    """
    with replacing(path, mode=mode, size=len(data)) as file:
        file.write(data)


@contextmanager
def replacing(path: Path, *, mode: int = 0o666, size: int | None = None) -> Iterator[BinaryIO]:
    """A file to write that takes the place of ``path`` in the end, whole and flushed.

    Args:
        path: In a folder that exists.
        mode: Permissions before the umask.
        size: Bytes, where that is known, for the message.

    Raises:
        StorageError: If the disk refuses; ``path`` is then as it was.
    """
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except StorageError:
        raise
    except OSError as error:
        raise refusal(path, error, size) from error


def flush_folder(folder: Path) -> None:
    """Makes the names in a folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Makes a folder with all above it, each flushed into the one above.

    Raises:
        StorageError: If the disk refuses, or a file is in the way.
    """
    missing = []
    while not folder.is_dir() and folder != folder.parent:
        missing.append(folder)
        folder = folder.parent
    try:
        for path in reversed(missing):
            path.mkdir(exist_ok=True)
            flush_folder(path.parent)
    except OSError as error:
        raise refusal(path, error) from error


def touch(path: Path) -> None:
    """Makes a file young: gc sweeps what is old, and this is wanted again.

    One of another user stays as it is: who shares a registry may read its files, not change them.
    """
    with suppress(PermissionError):
        os.utime(path)


@contextmanager
def held(path: Path, what: str) -> Iterator[None]:
    """Nobody else may hold the same file meanwhile; who comes later is refused.

    Args:
        path: Of an empty file in a folder that exists; it is made and stays.
        what: Is held, for the message.

    Raises:
        ConflictError: If somebody holds it.
        StorageError: If it cannot be made.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise refusal(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConflictError(f"{path.parent}: {what}", hint="wait for it, or stop it") from error
        yield
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Nobody else is in here with the same file meanwhile; who asked first is let in first.

    The system lets go of what a process held when it dies. Threads keep each other out, too.

    Args:
        path: Of an empty file in a folder that exists; it is made and stays.

    Raises:
        StorageError: If it cannot be made, or the file system knows no locks.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise refusal(path, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        except OSError as error:
            raise refusal(path, error) from error
        yield
    finally:
        os.close(descriptor)


def refusal(path: Path, error: OSError, size: int | None = None) -> StorageError:
    """What a refusal of the disk is told as."""
    needed = "" if size is None else f"; {size:,} bytes are needed"
    return StorageError(
        f"{path}: cannot be written ({error.strerror or error}{needed})",
        hint="make room there, or see who may write",
    )


def umask() -> int:
    """The process's mask of permissions; the system only tells it when it is set."""
    mask = os.umask(0)
    os.umask(mask)
    return mask
