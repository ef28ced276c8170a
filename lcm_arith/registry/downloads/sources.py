"""What a text names: a repository of the hub, a version on CivitAI, a web address, or neither."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from lcm_arith.errors import UsageError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that have come, and with all that will, if that is known."""

LOOPBACK: Final = ("localhost", "127.0.0.1", "::1")
_HUBS: Final = ("huggingface.co", "hf.co", "www.huggingface.co")
_CIVITAIS: Final = ("civitai.com", "www.civitai.com")

_REPO: Final = r"[\w-][\w.-]{0,95}/[\w-][\w.-]{0,95}"
_HUB: Final = re.compile(rf"hf:({_REPO})(?:@([\w][\w./-]*))?(?::(.+))?", re.ASCII)
_HUB_PAGE: Final = re.compile(
    rf"/({_REPO})/?(?:(tree|blob|resolve|raw)/([^/]+)(?:/(.*))?)?", re.ASCII
)
_CIVITAI: Final = re.compile(r"civitai:(\d{1,12})", re.ASCII)
_CIVITAI_PAGE: Final = re.compile(r"/models/(\d{1,12})(?:/.*)?", re.ASCII)
_CIVITAI_FILE: Final = re.compile(r"/api/download/models/(\d{1,12})", re.ASCII)
_AIR: Final = re.compile(
    r"urn:air:[\w.-]+:[\w.-]+:civitai:(\d{1,12})@(\d{1,12})(?:[:.].*)?", re.ASCII | re.IGNORECASE
)
_SCHEME: Final = re.compile(r"([a-z][a-z0-9+.-]*)://", re.IGNORECASE)

# The only fields of a query that are kept in a record; any other may be a key or a signature.
_HARMLESS: Final = {"file", "filename", "format", "id", "modelVersionId", "rev", "type", "version"}


@dataclass(frozen=True)
class UrlSource:
    """One file at a web address. ``url`` may hold secrets; its text does not."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        return without_secrets(self.url)


@dataclass(frozen=True)
class HubSource:
    """One file of a model repository on the Hugging Face hub; empty parts are left to the hub."""

    repo: str
    revision: str = ""
    file: str = ""

    def __str__(self) -> str:
        at = f"@{self.revision}" if self.revision else ""
        return f"hf:{self.repo}{at}" + (f":{self.file}" if self.file else "")


@dataclass(frozen=True)
class CivitaiSource:
    """One version on CivitAI; ``model`` is empty where the text did not say it."""

    version: str
    model: str = ""

    def __str__(self) -> str:
        return f"civitai:{self.version}"


Source = UrlSource | HubSource | CivitaiSource


@dataclass(frozen=True)
class Fetched:
    """A file that came, and what was said of it.

    Args:
        path: The file; a PEFT adapter's ``adapter_config.json`` lies beside it.
        origin: Where it came from, as a record keeps it: url (without secrets), repo, commit,
            file, model, version, air; only what applies.
        said: What came along, unread: ``README.md`` and ``adapter_config.json`` of the hub,
            ``civitai.json``, the listing.
        sha256: Of the file.
        size: Of the file, bytes.
        checked: Whether the server lists a sha256; the file's is the same.
    """

    path: Path
    origin: Mapping[str, str]
    said: Mapping[str, str]
    sha256: str
    size: int
    checked: bool


def parse_source(text: str) -> Source | None:
    """What ``text`` names on the network; None where it can only be a path or a stored name.

    The forms are ``https://…``, ``hf:org/repo[@revision][:file]``, ``civitai:VERSION`` and
    ``urn:air:…:civitai:MODEL@VERSION``; the addresses of a hub's or CivitAI's pages count as these.

    Raises:
        UsageError: If it begins like one of them and is none, or its address is not https.
    """
    text = text.strip()
    if found := _HUB.fullmatch(text):
        return HubSource(found[1], found[2] or "", _inside(found[3] or "", text))
    if found := _CIVITAI.fullmatch(text):
        return CivitaiSource(found[1])
    if found := _AIR.fullmatch(text):
        return CivitaiSource(found[2], found[1])
    for start, form in _FORMS.items():
        if text.lower().startswith(start):
            raise UsageError(f"{without_secrets(text)}: is no such source", hint=f"write {form}")
    if not _SCHEME.match(text):
        return None
    if fault := url_fault(text):
        raise UsageError(f"{without_secrets(text)}: {fault}", hint="give an https:// address")
    return _page(text) or UrlSource(text)


_FORMS: Final = {
    "hf:": "hf:org/repo, hf:org/repo@revision or hf:org/repo:folder/file.safetensors",
    "civitai:": "civitai:VERSION, with the number from the page's address",
    "urn:air:": "urn:air:…:civitai:MODEL@VERSION, with both numbers",
}


def _page(url: str) -> Source | None:
    """A page that shows a file is no file: the source that it shows."""
    parts = urlsplit(url)
    host, path = parts.hostname or "", parts.path
    if host in _HUBS and path.startswith(("/datasets/", "/spaces/")):
        raise UsageError(
            f"{without_secrets(url)}: is no model repository", hint="give a model's address"
        )
    if host in _HUBS and (found := _HUB_PAGE.fullmatch(path)):
        return HubSource(found[1], unquote(found[3] or ""), _inside(unquote(found[4] or ""), url))
    if host in _CIVITAIS and (found := _CIVITAI_FILE.fullmatch(path)):
        return CivitaiSource(found[1])
    if host in _CIVITAIS and (found := _CIVITAI_PAGE.fullmatch(path)):
        version = parse_qs(parts.query).get("modelVersionId", [""])[0]
        if not version.isdecimal():
            raise UsageError(
                f"{without_secrets(url)}: names a model, not a version of it",
                hint="choose a version on the page, whose address then ends in ?modelVersionId=…",
            )
        return CivitaiSource(version, found[1])
    return None


def url_fault(url: str) -> str:
    """Why an address is not fetched; empty if it is. Plain http is for this machine alone."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        _ = parts.port
    except ValueError:
        return "is no address"
    if not host:
        return "names no host"
    if parts.scheme == "https" or (parts.scheme == "http" and host in LOOPBACK):
        return ""
    return f"is {parts.scheme}, which anybody on the way can read and change"


def without_secrets(url: str) -> str:
    """An address as it may be shown and kept: no user, no password, no key, no signature."""
    if not _SCHEME.match(url):
        return url
    try:
        parts = urlsplit(url)
    except ValueError:
        return "(no address)"
    host = parts.netloc.rpartition("@")[2]
    kept = [pair for pair in parse_qsl(parts.query) if pair[0] in _HARMLESS]
    return urlunsplit((parts.scheme, host, parts.path, urlencode(kept), ""))


def _inside(file: str, text: str) -> str:
    """A path inside a repository.

    Raises:
        UsageError: If it leads out of it.
    """
    parts = file.split("/")
    if file and (not file.isprintable() or "\\" in file or {"", ".", ".."} & set(parts)):
        raise UsageError(
            f"{without_secrets(text)}: {file!r} is no path in a repository",
            hint="write it as the repository's page shows it, folder/file.safetensors",
        )
    return file
