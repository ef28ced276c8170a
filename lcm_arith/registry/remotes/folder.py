"""A folder as a remote: on this machine, a bucket, or whatever else fsspec reaches.

::

    objects/sha256/ab/ab…            as in a registry
    manifests/sha256/cd/cd….json
    names/sha256/ef/ef….json         every list of names that was ever pushed
    HEAD                             the sha256 of the present one: the version

**What is atomic.** A file appears whole: it is written beside its place and renamed, or put in one
request where the store shows nothing before its end (S3, GCS, Azure). The switch to a new list is
one write of ``HEAD``, after everything it names has arrived: half a push is invisible.

**What is not.** Whether somebody else pushed is compared right before that write. On a local
folder both are under a lock, so that one of two pushers gets ConflictError. Elsewhere there is no
lock that all stores know: two pushes within the same moment can both succeed, and the first one's
list is then only in ``names/``. Where that can happen, use a hub repository, whose server compares.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from lcm_arith.durable import flush_folder
from lcm_arith.errors import (
    ConflictError,
    InvalidContentError,
    LcmArithError,
    NetworkError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    UsageError,
    VerificationError,
)
from lcm_arith.registry.downloads.parts import storing
from lcm_arith.registry.downloads.sources import without_secrets
from lcm_arith.registry.remotes.places import MOST_NAMES, MOST_OBJECT, check_push, digest_in

HEAD: Final = "HEAD"
LOCK: Final = ".HEAD.lock"
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_CHUNK: Final = 2**20  # bytes
_ADDRESSES: Final = "give hf:org/repo, a folder, or an address such as s3://bucket/folder"

# Stores that show a file only after its last byte was accepted; they cannot rename.
_WHOLE: Final = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "oss", "s3", "s3a"})
# What their clients raise beside OSError, where they are loaded at all.
_CLIENTS: Final = (("botocore.exceptions", "BotoCoreError"), ("aiohttp", "ClientError"))


@dataclass(frozen=True)
class FolderRemote:
    """A folder of a file system that fsspec knows. See :class:`remotes.Remote`.

    Args:
        url: Without secrets.
        fs: The file system.
        root: The folder on it.
    """

    url: str
    fs: Any = field(repr=False)
    root: str = field(repr=False)

    def __str__(self) -> str:
        return self.url

    @property
    def _protocols(self) -> frozenset[str]:
        said = self.fs.protocol
        return frozenset((said,) if isinstance(said, str) else said)

    @property
    def _local(self) -> bool:
        return "file" in self._protocols

    def _at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def read_names(self) -> tuple[bytes | None, str]:
        """As :meth:`remotes.Remote.read_names`; the version is the list's sha256."""
        version = self._head()
        if not version:
            return None, ""
        data = self._read(_list_path(version), MOST_NAMES)
        _check_digest(self.url, _list_path(version), hashlib.sha256(data).hexdigest(), version)
        return data, version

    def _head(self) -> str:
        with self._told():
            self.fs.invalidate_cache()  # buckets remember what they listed
            if not self.fs.exists(self._at(HEAD)):
                return ""
        version = self._read(HEAD, 65).decode("ascii", errors="replace").strip()
        if not _DIGEST.fullmatch(version):
            raise InvalidContentError(f"{self.url}/{HEAD}: holds no sha256")
        return version

    def _read(self, path: str, most: int) -> bytes:
        with self._told(path), self.fs.open(self._at(path), "rb") as file:
            data: bytes = file.read(most + 1)
        if len(data) > most:
            raise InvalidContentError(f"{self.url}/{path}: has more than {most} bytes")
        return data

    def present(self, paths: Iterable[str]) -> frozenset[str]:
        """As :meth:`remotes.Remote.present`."""
        asked = set(paths)
        for path in asked:
            digest_in(path)
        with self._told():
            self.fs.invalidate_cache()
            return frozenset(path for path in asked if self.fs.exists(self._at(path)))

    def get(self, path: str, place: Path, most: int = MOST_OBJECT) -> None:
        """As :meth:`remotes.Remote.get`."""
        wanted = digest_in(path)
        if place.exists():
            raise OutputExistsError(f"{place}: exists")
        part = place.with_name(f".{uuid.uuid4().hex}.part")
        try:
            found = self._copy(path, part, most)
            _check_digest(self.url, path, found, wanted)
            with storing(place):
                part.rename(place)
        finally:
            part.unlink(missing_ok=True)

    def _copy(self, path: str, part: Path, most: int) -> str:
        """Copies a file of the remote; its sha256."""
        digest, size = hashlib.sha256(), 0
        with (
            self._told(path),
            self.fs.open(self._at(path), "rb") as remote,
            storing(part),
            part.open("xb") as local,
        ):
            while data := self._some(remote, path):
                digest.update(data)
                size += len(data)
                if size > most:
                    raise InvalidContentError(f"{self.url}/{path}: is larger than {most} bytes")
                local.write(data)
        return digest.hexdigest()

    def _some(self, remote: Any, path: str) -> bytes:
        with self._told(path):
            data: bytes = remote.read(_CHUNK)
        return data

    def commit(self, adds: Mapping[str, Path], names: bytes, parent: str) -> str:
        """As :meth:`remotes.Remote.commit`; what is atomic is said at the top of this module."""
        check_push(adds, names)
        self._refuse_other(parent)
        for path, local in sorted(adds.items()):
            self._put(path, local)
        version = hashlib.sha256(names).hexdigest()
        with tempfile.TemporaryDirectory() as folder:
            local = Path(folder) / "names"
            with storing(local):
                local.write_bytes(names)
            self._put(_list_path(version), local)
            with storing(local):
                local.write_text(version, encoding="ascii")
            with self._alone():
                self._refuse_other(parent)
                self._put(HEAD, local, replace=True)
        return version

    def _refuse_other(self, parent: str) -> None:
        now = self._head()
        if now != parent:
            raise ConflictError(
                f"{self.url}: somebody else pushed in between (version {now[:12] or 'none'}, "
                f"not {parent[:12] or 'none'})",
                hint="pull, then push again",
            )

    def _put(self, path: str, local: Path, *, replace: bool = False) -> None:
        """Puts a file whole; one of the same size that is there is left, if it is not replaced."""
        at, size = self._at(path), local.stat().st_size
        above = at.rpartition("/")[0]
        with self._told(path):
            if not replace and self.fs.exists(at) and self.fs.size(at) == size:
                return
            if self._protocols & _WHOLE:  # and has no folders: makedirs would make the bucket
                self.fs.put_file(str(local), at)
                self._check_size(path, at, size)
                return
            self.fs.makedirs(above, exist_ok=True)
            part = f"{above}/.{uuid.uuid4().hex}.part"
            try:
                self.fs.put_file(str(local), part)
                self._check_size(path, part, size)
                self._rename(part, at)
            except BaseException:
                with suppress(OSError):  # what went wrong before is what matters
                    self.fs.rm_file(part)
                raise

    def _check_size(self, path: str, at: str, size: int) -> None:
        found = self.fs.size(at)
        if found is not None and found != size:
            raise VerificationError(f"{self.url}/{path}: {found} of {size} bytes arrived")

    def _rename(self, part: str, at: str) -> None:
        if not self._local:
            self.fs.mv(part, at)
            return
        descriptor = os.open(part, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(part, at)
        flush_folder(Path(at).parent)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Keeps other pushers of a local folder out; the lock goes with the process."""
        if not self._local:
            yield
            return
        import fcntl

        with self._told(), open(self._at(LOCK), "ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _told(self, path: str = "") -> Iterator[None]:
        """Turns what the file system raises into our errors."""
        where = f"{self.url}/{path}" if path else self.url
        try:
            yield
        except LcmArithError:
            raise
        except FileNotFoundError as error:
            raise NotFoundError(f"{where}: is not there") from error
        except (NotImplementedError, ValueError) as error:
            raise UsageError(
                f"{where}: cannot be a remote ({type(error).__name__})", hint=_ADDRESSES
            ) from error
        except _failures() as error:
            what = getattr(error, "strerror", None) or type(error).__name__
            cause = StorageError if self._local else NetworkError
            raise cause(f"{where}: {what}", hint="check the address and your access") from error


def open_folder(url: str) -> FolderRemote:
    """The folder at ``url``: a path, or an address that fsspec knows.

    Raises:
        UsageError: If fsspec does not know it, or needs a package that is not installed.
        NetworkError: If it is asked at once and cannot be reached.
    """
    from fsspec.core import url_to_fs

    shown = "::".join(map(without_secrets, url.split("::")))
    try:
        fs, root = url_to_fs(url)
    except ImportError as error:
        raise UsageError(
            f"{shown}: needs a package that is not installed ({error})",
            hint="install it beside this program, with pip",
        ) from error
    except OSError as error:  # some connect at once
        what = error.strerror or type(error).__name__
        raise NetworkError(f"{shown}: {what}", hint="check the address and your access") from error
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(
            f"{shown}: is no remote that is known",
            hint=_ADDRESSES,
        ) from error
    return FolderRemote(shown, fs, root.rstrip("/"))


def _list_path(version: str) -> str:
    return f"names/sha256/{version[:2]}/{version}.json"


def _check_digest(url: str, path: str, found: str, wanted: str) -> None:
    if found != wanted:
        raise InvalidContentError(
            f"{url}/{path}: its sha256 is {found}, its path says {wanted}",
            hint="it was damaged or replaced there; delete it there, then push it again",
        )


def _failures() -> tuple[type[Exception], ...]:
    loaded = (getattr(sys.modules.get(module), name, None) for module, name in _CLIENTS)
    return (OSError, *(kind for kind in loaded if isinstance(kind, type)))
