"""Objects: the bytes of files, kept under their sha256 and never changed."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from lcm_arith import durable
from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError, NotFoundError, StorageError

ADAPTER: Final = ".safetensors"
_AT_WORK: Final = 24 * 3600.0  # seconds that nobody works on one file
_BLOCK: Final = 4 * 2**20  # bytes


@dataclass(frozen=True)
class Objects:
    """The files in a folder, by the sha256 of their bytes.

    They keep their endings, so that other programs know what they are given.

    Args:
        root: The registry's folder.
    """

    root: Path

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.root / "objects" / "sha256"

    def path(self, sha256: str, suffix: str = ADAPTER) -> Path:
        """Where one lies or would lie."""
        return self.folder / sha256[:2] / f"{sha256}{suffix}"

    def put(self, part: Path, sha256: str, suffix: str = ADAPTER) -> None:
        """Moves a flushed file of ours into its place; one that is there and whole stays.

        Raises:
            StorageError: If the disk refuses.
        """
        path = self.path(sha256, suffix)
        try:
            if path.is_file() and files.sha256(path) == sha256:
                durable.touch(path)
                return
            durable.make_folder(path.parent)
            part.chmod(0o444 & ~durable.umask())
            os.replace(part, path)
            durable.flush_folder(path.parent)
        except OSError as error:
            raise durable.refusal(path, error) from error

    def __iter__(self) -> Iterator[Path]:
        return iter(sorted(self.folder.glob("??/*.*")))

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A folder of this process beside the objects, gone afterwards.

        Raises:
            StorageError: If the disk refuses.
        """
        folder = self.root / "tmp" / f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        durable.make_folder(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # gc takes what this leaves

    def abandoned(self, older_than: float) -> Iterator[Path]:
        """Workspaces of processes that are dead, or older than so many seconds and a day.

        A process of another host cannot be asked; only age tells there.
        """
        for folder in sorted((self.root / "tmp").glob("*-*-*")):
            host, number, _ = folder.name.rsplit("-", 2)
            ours = host == socket.gethostname() and number.isdecimal()
            if ours and not _alive(int(number)):
                yield folder
                continue
            try:
                age = time.time() - folder.stat().st_mtime
            except FileNotFoundError:
                continue  # its owner has just finished with it
            if age > max(older_than, _AT_WORK):
                yield folder


def copy(source: Path, target: Path) -> tuple[str, int]:
    """Copies a regular file, flushed, and returns its sha256 and size in bytes.

    Raises:
        NotFoundError: If it is none; a pipe is not waited for.
        InvalidContentError: If it was changed while it was read.
        StorageError: If the disk refuses.
    """
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{source}: no such file") from None
    except OSError as error:
        raise StorageError(f"{source}: cannot be read ({error.strerror})") from error
    with os.fdopen(descriptor, "rb") as reader:
        before = os.fstat(descriptor)
        if not stat.S_ISREG(before.st_mode):
            raise NotFoundError(f"{source}: is no regular file")
        try:
            with target.open("xb") as writer:
                sha256 = copy_stream(reader, writer, target, before.st_size)
                size = writer.tell()
        except StorageError:
            raise
        except OSError as error:
            raise durable.refusal(target, error, before.st_size) from error
        after = os.fstat(descriptor)
    if size != before.st_size or _identity(before) != _identity(after):
        raise InvalidContentError(
            f"{source}: was changed while it was read", hint="run the command again"
        )
    return sha256, size


def copy_stream(reader: IO[bytes], writer: IO[bytes], target: Path, size: int) -> str:
    """Copies a stream into an open file, flushed; sha256 of it.

    Args:
        reader: Where from.
        writer: Where to, unbuffered or not.
        target: The written file's path, for messages.
        size: Bytes that are needed, for messages.

    Raises:
        StorageError: If the disk refuses.
    """
    digest = hashlib.sha256()
    try:
        while block := reader.read(_BLOCK):
            digest.update(block)
            writer.write(block)
        writer.flush()
        os.fsync(writer.fileno())
    except OSError as error:
        raise durable.refusal(target, error, size) from error
    return digest.hexdigest()


@contextmanager
def unchanged(path: Path) -> Iterator[None]:
    """A file is read that stays where it is.

    Raises:
        NotFoundError: If there is none.
        InvalidContentError: If it was changed or replaced meanwhile.
    """
    try:
        before = path.stat()
        yield
        after = path.stat()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None
    if _identity(before) != _identity(after):
        raise InvalidContentError(
            f"{path}: was changed while it was read", hint="run the command again"
        )


def _identity(found: os.stat_result) -> tuple[int, ...]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
