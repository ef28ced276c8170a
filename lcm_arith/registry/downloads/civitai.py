"""CivitAI: a version's listing, and its primary file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.registry.downloads.http import download, origin, read_text
from lcm_arith.registry.downloads.parts import MOST_TEXT, Wanted, secret
from lcm_arith.registry.downloads.sources import CivitaiSource, Fetched, Progress, url_fault

ENDPOINT: Final = "LCM_ARITH_CIVITAI"
"""Environment variable: address of another server that speaks CivitAI's API."""

TOKEN: Final = "CIVITAI_TOKEN"
"""Environment variable: the user's key for CivitAI."""

_LOGIN: Final = (
    "make a key at https://civitai.com/user/account, set CIVITAI_TOKEN to it, and see on the "
    "version's page whether it must be bought or is early access"
)


def fetch_civitai(source: CivitaiSource, folder: Path, progress: Progress | None) -> Fetched:
    """The primary file of a version, against the sha256 of its listing.

    Errors as :func:`downloads.fetch`.
    """
    base, token = _endpoint(), secret(os.environ.get(TOKEN, ""), TOKEN)
    listing = Wanted(
        f"{base}/api/v1/model-versions/{source.version}",
        token=token,
        text=True,
        most=MOST_TEXT,
        login_hint=_LOGIN,
        missing_hint="the number is the one behind modelVersionId= in the page's address",
    )
    text = read_text(listing, folder)
    version = _parse(text, source)
    file = _primary(version, source)
    url = _text(file, "downloadUrl")
    if fault := url_fault(url):
        raise InvalidContentError(f"{source}: the listing's downloadUrl {fault}")
    wanted = Wanted(
        url,
        token=token if origin(url) == origin(base) else "",
        name=_text(file, "name"),
        sha256=_text(file.get("hashes"), "SHA256").lower(),
        login_hint=_LOGIN,
        missing_hint="its author may have withdrawn it",
    )
    got = download(wanted, folder, progress)
    found = {
        "url": wanted.where,
        "version": source.version,
        "model": _number(version, "modelId"),
        "file": _text(file, "name"),
        "air": _text(version, "air"),
    }
    kept = {key: value for key, value in found.items() if value}
    said = {"civitai.json": text}
    return Fetched(got.path, kept, said, got.sha256, got.size, checked=bool(wanted.sha256))


def _endpoint() -> str:
    found = os.environ.get(ENDPOINT, "").strip().rstrip("/") or "https://civitai.com"
    if fault := url_fault(found):
        raise UsageError(f"{ENDPOINT}: {fault}", hint="give an https:// address")
    return found


def _parse(text: str, source: CivitaiSource) -> Mapping[str, Any]:
    try:
        version = json.loads(text)
    except (ValueError, RecursionError):
        version = None
    if not isinstance(version, dict) or _number(version, "id") != source.version:
        raise InvalidContentError(f"{source}: the server's answer is no listing of this version")
    model = _number(version, "modelId")
    if source.model and model != source.model:
        raise InvalidContentError(
            f"{source}: belongs to model {model}, not to {source.model}", hint="check the numbers"
        )
    return version


def _primary(version: Mapping[str, Any], source: CivitaiSource) -> Mapping[str, Any]:
    """The file that the listing calls primary, or its only one."""
    listed = version.get("files")
    files = [each for each in listed if isinstance(each, dict)] if isinstance(listed, list) else []
    found = [each for each in files if each.get("primary") is True] or files
    if len(found) != 1:
        names = ", ".join(repr(_text(each, "name")) for each in files)
        raise NotFoundError(
            f"{source}: its listing names no primary file" + (f" among {names}" if names else ""),
            hint="download it in a browser and add the file",
        )
    return found[0]


def _text(row: object, key: str) -> str:
    value = row.get(key) if isinstance(row, dict) else None
    return value if isinstance(value, str) else ""


def _number(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else ""
