"""Paths on a remote. Each holds the sha256 of its file, and nothing else is a path."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from lcm_arith.errors import InvalidContentError, NotFoundError

MOST_NAMES: Final = 16 * 2**20  # bytes of a list of names; 100,000 entries are about 10 MiB
MOST_OBJECT: Final = 32 * 2**30  # bytes; a full SDXL in float32 is 14 GiB
_PLACE: Final = re.compile(
    r"(?:objects|manifests)/sha256/([0-9a-f]{2})/(\1[0-9a-f]{62})(?:\.[a-z0-9]{1,11})?", re.ASCII
)


def digest_in(path: str) -> str:
    """The sha256 in a path such as ``objects/sha256/ab/ab…``.

    No other path is ever joined to a folder, whatever a remote lists: not ``../x``, not ``/x``, not
    ``C:x`` or ``//host/x``.

    Raises:
        InvalidContentError: If it is no such path.
    """
    found = _PLACE.fullmatch(path)
    if found is None:
        raise InvalidContentError(
            f"{path[:100]!r}: is no path of a content-addressed file",
            hint="the list that names it was not written by this program",
        )
    return found[2]


def sha256_of(path: Path) -> str:
    """sha256 of a file, hex.

    Raises:
        NotFoundError: If there is no such file.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file") from None


def check_push(adds: Mapping[str, Path], names: bytes) -> None:
    """Refuses what must not be pushed: a file that is not what its path says, too long a list.

    Raises:
        InvalidContentError: If so.
        NotFoundError: If a file is not here.
    """
    if len(names) > MOST_NAMES:
        raise InvalidContentError(
            f"the list of names has {len(names)} bytes, the limit is {MOST_NAMES}",
            hint="push to several remotes",
        )
    for path, local in adds.items():
        wanted, found = digest_in(path), sha256_of(local)
        if found != wanted:
            raise InvalidContentError(
                f"{local}: its sha256 is {found}, its path says {wanted}; nothing was pushed",
                hint="it was changed on the disk; import it again",
            )
