"""Vectors from elsewhere: the Hugging Face hub, CivitAI, and plain web addresses.

:func:`parse_source` tells what a text names, :func:`fetch` puts it into a folder, whole and checked
or not at all. Nothing here imports a client of the network before something is fetched.
"""

from __future__ import annotations

from pathlib import Path
from typing import assert_never

from lcm_arith.registry.downloads.sources import (
    CivitaiSource,
    Fetched,
    HubSource,
    Progress,
    Source,
    UrlSource,
    parse_source,
)

__all__ = [
    "CivitaiSource",
    "Fetched",
    "HubSource",
    "Progress",
    "Source",
    "UrlSource",
    "fetch",
    "parse_source",
]


def fetch(source: Source, folder: Path, progress: Progress | None = None) -> Fetched:
    """Puts what ``source`` names into ``folder``; on an error nothing new is left there.

    Args:
        source: From :func:`parse_source`.
        folder: Where the file gets its name once it is whole; best an empty one.
        progress: Called with the bytes that have come and those that will, if that is known.

    Raises:
        UsageError: If the address is not https, or a hub repository offers several adapters.
        NotFoundError: If there is no such repository, revision, version or file.
        OutputExistsError: If the folder already has a file of that name.
        InvalidContentError: If a page, a pointer or an error came in place of the file, it is too
            large, or its sha256 is another than the server lists.
        StorageError: If the disk refuses.
        NetworkError: If the server cannot be reached, refuses access, or cut the transfer each
            time; or HF_HUB_OFFLINE is set and the hub's cache has no such file.
    """
    match source:
        case HubSource():
            from lcm_arith.registry.downloads.hub import fetch_hub

            return fetch_hub(source, folder, progress)
        case CivitaiSource():
            from lcm_arith.registry.downloads.civitai import fetch_civitai

            return fetch_civitai(source, folder, progress)
        case UrlSource():
            from lcm_arith.registry.downloads.http import fetch_url

            return fetch_url(source, folder, progress)
        case _:
            assert_never(source)
