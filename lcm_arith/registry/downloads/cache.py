"""The hub's cache on this machine: what ``hf download`` left, for when the hub is not asked."""

from __future__ import annotations

import hashlib
import re
import uuid
from pathlib import Path
from typing import Final

from lcm_arith.errors import InvalidContentError, NetworkError, OutputExistsError
from lcm_arith.registry.downloads.parts import MOST_TEXT, safe_name, storing
from lcm_arith.registry.downloads.sources import HubSource

_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


def snapshot(source: HubSource) -> Path:
    """The cached files of a revision; the folder's name is the commit.

    Raises:
        NetworkError: If there are none, since only the hub could help.
    """
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    name = repo_folder_name(repo_id=source.repo, repo_type="model")
    root, revision = Path(constants.HF_HUB_CACHE) / name, source.revision or "main"
    ref = root / "refs" / revision
    if ".." not in revision.split("/") and ref.is_file():
        revision = ref.read_text(encoding="ascii", errors="replace").strip()
    found = root / "snapshots" / revision
    if not (_COMMIT.fullmatch(revision) and found.is_dir()):
        raise NetworkError(
            f"{source}: HF_HUB_OFFLINE is set, and the hub's cache does not have it",
            hint="unset HF_HUB_OFFLINE, or fill the cache with: hf download " + source.repo,
        )
    return found


def cached_files(folder: Path) -> tuple[str, ...]:
    """Paths of the files of a snapshot, with forward slashes."""
    return tuple(
        sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    )


def cached_text(path: Path) -> str:
    """A card or a configuration, at most as long as one that is downloaded."""
    with path.open("rb") as file:
        return file.read(MOST_TEXT).decode("utf-8", errors="replace")


def copy_cached(path: Path, folder: Path, most: int) -> tuple[Path, str, int, bool]:
    """Puts a cached file into ``folder``, whole; its path, sha256, size, and whether it was listed.

    The cache keeps a file under what the hub said of it: for large ones that is the sha256.

    Raises:
        InvalidContentError: If it is another, or the file is too large.
        OutputExistsError: If the folder has such a file.
        StorageError: If the disk refuses.
    """
    place, part = folder / (safe_name(path.name) or "download"), folder / f".{uuid.uuid4().hex}"
    if place.exists():
        raise OutputExistsError(f"{place}: exists", hint="give an empty folder")
    digest, size = hashlib.sha256(), 0
    try:
        with storing(part), path.open("rb") as source, part.open("xb") as target:
            while data := source.read(2**20):
                digest.update(data)
                size += len(data)
                if size > most:
                    raise InvalidContentError(f"{path}: has more than {most} bytes")
                target.write(data)
        listed, found = path.resolve().name, digest.hexdigest()
        if _SHA256.fullmatch(listed) and found != listed:
            raise InvalidContentError(
                f"{path}: its sha256 is {found}, the hub listed {listed}",
                hint="the cache is damaged; see: hf cache verify",
            )
        with storing(place):
            part.rename(place)
    finally:
        part.unlink(missing_ok=True)
    return place, found, size, listed == found
