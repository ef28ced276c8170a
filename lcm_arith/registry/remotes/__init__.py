"""Where ``push`` puts a registry and ``pull`` finds it: a hub repository, a folder, a bucket.

A remote holds the same immutable files as a registry, each under the sha256 of its bytes, and one
list of names. The list is opaque here. A push is one call, :meth:`Remote.commit`: files first, the
list last, so that half a push is invisible, and not at all if somebody else pushed since the list
was read. Nothing that a remote says is believed before its digest was compared.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final, Protocol

from lcm_arith.errors import UsageError
from lcm_arith.registry.remotes.places import MOST_NAMES, MOST_OBJECT, digest_in

__all__ = ["MOST_NAMES", "MOST_OBJECT", "Remote", "digest_in", "open_remote"]

_HUB: Final = re.compile(r"hf:([\w-][\w.-]*/[\w-][\w.-]*)(?:@(\w[\w./-]*))?", re.ASCII)


class Remote(Protocol):
    """What ``push`` and ``pull`` need. Paths are ``objects/sha256/ab/ab…`` and the like.

    Every method may raise NetworkError, or StorageError for a folder of this machine.
    """

    @property
    def url(self) -> str:
        """Where it is, without secrets, for messages and records."""

    def read_names(self) -> tuple[bytes | None, str]:
        """The list of names, None before the first push, and the version to commit upon.

        Raises:
            NotFoundError: If there is no such repository.
            InvalidContentError: If the list is too long or was changed.
        """

    def present(self, paths: Iterable[str]) -> frozenset[str]:
        """Those of ``paths`` that are there; their content is not read.

        Raises:
            InvalidContentError: If one is no path of a content-addressed file.
        """

    def get(self, path: str, place: Path, most: int = MOST_OBJECT) -> None:
        """Puts the file at ``path`` to ``place``, whole and with the digest in its path.

        Args:
            path: On the remote.
            place: Where it goes.
            most: Bytes that it may have.

        Raises:
            NotFoundError: If it is not there.
            OutputExistsError: If something is at ``place``.
            InvalidContentError: If its digest is another, it is too large, or ``path`` is no path
                of a content-addressed file.
        """

    def commit(self, adds: Mapping[str, Path], names: bytes, parent: str) -> str:
        """Adds files that are not there yet, then replaces the list; returns the new version.

        Args:
            adds: Path on the remote → file here.
            names: The new list, whole.
            parent: The version that :meth:`read_names` gave with the list that this one replaces.

        Raises:
            ConflictError: If the remote has another version by now. The list is as it was.
            InvalidContentError: If a file here has not the digest in its path.
            VerificationError: If a file does not arrive.
        """


def open_remote(url: str) -> Remote:
    """The remote at ``url``; nothing is asked of it yet.

    Args:
        url: ``hf:org/repo[@branch]``, a local folder, or an address that fsspec knows, such as
            ``s3://bucket/folder`` or ``sftp://host/folder``.

    Raises:
        UsageError: If it is none of them, or needs a package that is not installed.
    """
    if found := _HUB.fullmatch(url):
        from lcm_arith.registry.remotes.hub import HubRemote

        return HubRemote(found[1], found[2] or "main")
    if url.startswith("hf:"):
        raise UsageError(f"{url}: is no repository", hint="write hf:org/repo or hf:org/repo@branch")
    from lcm_arith.registry.remotes.folder import open_folder

    return open_folder(url)
