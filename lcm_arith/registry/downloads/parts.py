"""What is wanted, and what has come of it: a file that has no name before it is whole."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

from lcm_arith.errors import InvalidContentError, LcmArithError, StorageError, UsageError
from lcm_arith.registry.downloads.sources import without_secrets

if TYPE_CHECKING:
    import httpx2

MOST_FILE: Final = 4 * 2**30  # bytes; SDXL at rank 128 in float32 is 1.5 GiB
MOST_TEXT: Final = 4 * 2**20  # bytes of a card or a listing
_START: Final = 512  # bytes that tell what a file is
_RANGE: Final = re.compile(r"bytes (\d+)-\d+/(\d+)")
_DEVICES: Final = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)


@dataclass(frozen=True)
class Wanted:
    """One file of a server, and what is known of it beforehand.

    Args:
        url: Where it lies.
        token: For the first host; empty for none.
        name: That it gets; empty to take the server's.
        sha256: That it must have, hex; empty if unknown.
        text: Whether JSON or text is what is wanted.
        most: Bytes that it may have.
        login_hint: What to do where access is refused.
        missing_hint: What to do where it is absent.
    """

    url: str = field(repr=False)
    token: str = field(default="", repr=False)
    name: str = ""
    sha256: str = ""
    text: bool = False
    most: int = MOST_FILE
    login_hint: str = "download it in a browser, where you are logged in, and add the file"
    missing_hint: str = "check the address"

    @property
    def where(self) -> str:
        """The address without secrets."""
        return without_secrets(self.url)


@dataclass(frozen=True)
class Got:
    """A file that came whole."""

    path: Path
    sha256: str
    size: int


class PassingError(Exception):
    """A failure that may be gone in a moment.

    Args:
        what: Where and what.
        seconds: That the server asks to wait, if it says so.
    """

    def __init__(self, what: str, seconds: float | None = None) -> None:
        super().__init__(what)
        self.seconds = seconds


class Part:
    """The bytes that have come so far, in a file without its name, and what proves their origin."""

    def __init__(self, path: Path, wanted: Wanted) -> None:
        self.path, self._wanted = path, wanted
        self.name = ""
        self.validator = ""  # of the file on the server: ETag or date
        self.total: int | None = None
        self._clear()

    def _clear(self) -> None:
        self.done, self.start, self.digest = 0, b"", hashlib.sha256()

    def __enter__(self) -> Part:
        with storing(self.path):
            self._file = self.path.open("xb")
        return self

    def __exit__(self, *_: object) -> None:
        with storing(self.path):
            self._file.close()

    def restart(self) -> None:
        """Forgets what has come."""
        with storing(self.path):
            self._file.seek(0)
            self._file.truncate()
        self._clear()

    def begin(self, response: httpx2.Response) -> None:
        """Takes up an answer: goes on behind what is there, or from the start."""
        found = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if response.status_code == 206:
            if not found or (int(found[1]), int(found[2])) != (self.done, self.total):
                self.restart()
                raise PassingError(f"{self._wanted.where}: another part came than was asked for")
            return
        self.restart()
        length = response.headers.get("Content-Length", "")
        plain = response.headers.get("Content-Encoding", "identity") == "identity"
        self.total = int(length) if plain and length.isdecimal() else None
        etag = response.headers.get("ETag", "")
        strong = "" if etag.startswith("W/") else etag
        self.validator = (strong or response.headers.get("Last-Modified", "")) if plain else ""
        self.name = served_name(response)
        self._refuse_size(self.total or 0)
        free = shutil.disk_usage(self.path.parent).free
        if self.total is not None and self.total > free:
            raise StorageError(
                f"{self.path.parent}: has {free} bytes free, the download needs {self.total}"
            )

    def write(self, data: bytes) -> None:
        """Takes the next bytes.

        Raises:
            InvalidContentError: If they are more than the limit.
            StorageError: If the disk refuses.
        """
        self._refuse_size(self.done + len(data))
        with storing(self.path):
            self._file.write(data)
        self.digest.update(data)
        self.start += data[: _START - len(self.start)]
        self.done += len(data)

    def _refuse_size(self, size: int) -> None:
        if size > self._wanted.most:
            raise InvalidContentError(
                f"{self._wanted.where}: has {size} bytes or more, the limit is {self._wanted.most}",
                hint="an adapter is far smaller; a whole model is no adapter",
            )


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns what the disk refuses into StorageError."""
    try:
        yield
    except LcmArithError:  # some are an OSError, too
        raise
    except OSError as error:
        raise StorageError(f"{path.parent}: cannot be written ({error.strerror})") from error


def secret(text: str, where: str) -> str:
    """A token without the line break that copying it brought along; empty if there is none.

    Raises:
        UsageError: If it cannot be one. It is not shown.
    """
    found = text.strip()
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise UsageError(f"{where}: holds no token", hint="a token is one word; copy it again")
    return found


def safe_name(text: str) -> str:
    """The last part of a path as a file's name on any system; empty if nothing is left of it."""
    last = re.split(r"[/\\]", text)[-1]
    plain = "".join(c for c in last if c.isprintable() and c not in '<>:"|?*').strip(" .")
    while len(plain.encode()) > 200:
        plain = plain[1:]  # the end has the suffix
    return "" if _DEVICES.fullmatch(plain) else plain


def served_name(response: httpx2.Response) -> str:
    """The name that a server gives the file, or the last part of its address."""
    header = Message()
    header["Content-Disposition"] = response.headers.get("Content-Disposition", "")
    said = header.get_filename() or ""
    return safe_name(said) or safe_name(unquote(urlsplit(str(response.url)).path))
