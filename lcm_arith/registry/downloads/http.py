"""One file over HTTPS: whole, of the right kind and size, or an error that says what came instead.

The rules: https, also after a redirect; a token goes to the first host and to no other; a cut
transfer goes on where it stopped, if the server can prove that the file is still the same; what
arrives is counted, hashed and looked at before it gets its name.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urljoin, urlsplit

from lcm_arith.errors import InvalidContentError, NetworkError, OutputExistsError
from lcm_arith.formats.disguises import answer
from lcm_arith.registry.downloads.answers import check_kind, check_status
from lcm_arith.registry.downloads.parts import Got, Part, PassingError, Wanted, safe_name, storing
from lcm_arith.registry.downloads.sources import (
    LOOPBACK,
    Fetched,
    Progress,
    UrlSource,
    url_fault,
    without_secrets,
)

if TYPE_CHECKING:
    import ssl

    import httpx2

MOST_REDIRECTS: Final = 5
TRIES: Final = 4  # one, and three more
_CONNECT, _SILENCE = 10.0, 60.0  # seconds until a connection, or the next bytes, must have come
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 30.0  # seconds
_T = TypeVar("_T")


def fetch_url(source: UrlSource, folder: Path, progress: Progress | None) -> Fetched:
    """The file at a web address; no token is sent. Errors as :func:`downloads.fetch`."""
    got = download(Wanted(source.url), folder, progress)
    return Fetched(got.path, {"url": str(source)}, {}, got.sha256, got.size, checked=False)


def download(wanted: Wanted, folder: Path, progress: Progress | None = None) -> Got:
    """Puts a file into ``folder`` under its name, or raises and leaves nothing.

    A server that sends no length and closes the connection cannot be told from one that cut the
    transfer; the reader of the file finds that, or the sha256.

    Raises:
        NotFoundError, OutputExistsError, InvalidContentError, StorageError, NetworkError: As
            :func:`downloads.fetch`.
    """
    part = Part(folder / f".{uuid.uuid4().hex}.part", wanted)
    try:
        with part, client() as session:
            retrying(lambda: _receive(session, wanted, part, progress), "the server may be busy")
        _check_content(part, wanted)
        return _place(part, folder, wanted)
    finally:
        part.path.unlink(missing_ok=True)


def read_text(wanted: Wanted, folder: Path) -> str:
    """The text of a file that is not kept; errors as :func:`download`."""
    got = download(wanted, folder)
    try:
        return got.path.read_text(encoding="utf-8", errors="replace")
    finally:
        got.path.unlink()


def retrying(call: Callable[[], _T], hint: str) -> _T:
    """What ``call`` returns, tried again with growing waits after each :class:`PassingError`.

    Raises:
        NetworkError: If the last try failed, too.
    """
    wait = _FIRST_WAIT
    for _ in range(TRIES - 1):
        try:
            return call()
        except PassingError as error:
            pause(min(wait if error.seconds is None else error.seconds, _LONGEST_WAIT))
            wait *= 2
    try:
        return call()
    except PassingError as error:
        raise NetworkError(f"{error}; tried {TRIES} times", hint=hint) from error


def pause(seconds: float) -> None:
    """Waits; tests replace it."""
    time.sleep(seconds)


def client() -> httpx2.Client:
    """A client that follows no redirect by itself.

    Proxies and certificates come from the environment, as companies need; a proxy is never asked
    for this machine's own servers, which it could not reach.
    """
    import httpx2

    hosts = (f"[{host}]" if ":" in host else host for host in LOOPBACK)
    return httpx2.Client(
        verify=_certificates(),
        timeout=httpx2.Timeout(_SILENCE, connect=_CONNECT),
        mounts={f"all://{host}": None for host in hosts},
        headers={"User-Agent": "lcm-arith", "Accept-Encoding": "identity"},
    )


@cache
def _certificates() -> ssl.SSLContext:
    """The authorities that are believed; reading them takes longer than a small file does."""
    import httpx2

    return httpx2.create_ssl_context()


def _receive(session: httpx2.Client, wanted: Wanted, part: Part, progress: Progress | None) -> None:
    """One try: all bytes, or those behind what is there.

    Raises:
        PassingError: If another try may help.
    """
    import httpx2

    headers = {}
    if part.done and part.total is not None and part.validator:
        headers = {"Range": f"bytes={part.done}-", "If-Range": part.validator}
    try:
        with _opened(session, wanted, headers) as response:
            if response.status_code == 416:
                part.restart()  # the file there became shorter
            check_status(response, wanted)
            check_kind(response, wanted)
            part.begin(response)
            for data in response.iter_bytes():
                part.write(data)
                if progress is not None:
                    progress(part.done, part.total)
    except httpx2.TransportError as error:
        come = f" after {part.done} of {part.total} bytes" if part.done else ""
        raise PassingError(
            f"{wanted.where}: the connection failed{come} ({_reason(error)})"
        ) from error
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise NetworkError(f"{wanted.where}: {_reason(error)}") from error
    if part.total is not None and part.done != part.total:
        raise PassingError(f"{wanted.where}: {part.done} of {part.total} bytes came")


@contextmanager
def _opened(
    session: httpx2.Client, wanted: Wanted, headers: Mapping[str, str]
) -> Iterator[httpx2.Response]:
    """The answer behind all redirects."""
    url, token = wanted.url, wanted.token
    for _ in range(MOST_REDIRECTS + 1):
        _check_way(url, wanted)
        if origin(url) != origin(wanted.url):
            token = ""  # and it stays so: a token is for the host that it was given for
        bearer = {"Authorization": f"Bearer {token}"} if token else {}
        with session.stream("GET", url, headers={**headers, **bearer}) as response:
            if not response.has_redirect_location:
                yield response
                return
            try:
                url = urljoin(url, response.headers["Location"])
            except ValueError:
                url = ""
    raise NetworkError(
        f"{wanted.where}: leads on and on (more than {MOST_REDIRECTS} redirects)",
        hint=wanted.login_hint,
    )


def _check_way(url: str, wanted: Wanted) -> None:
    """Refuses an address that is not safe, and the way from https to http, which shows all."""
    fault = url_fault(url)
    if not fault and wanted.url.startswith("https:") and not url.startswith("https:"):
        fault = "is http"
    if fault:
        raise NetworkError(
            f"{wanted.where}: leads to {without_secrets(url) or 'nothing'}, which {fault}",
            hint="do not use this server",
        )


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port: who gets what is sent there."""
    parts = urlsplit(url)
    return parts.scheme, parts.hostname or "", parts.port or {"https": 443}.get(parts.scheme, 80)


def _check_content(part: Part, wanted: Wanted) -> None:
    """Refuses an answer that was served as a file, and a file that is not the one listed."""
    came = answer(part.start)
    if came and not part.start[8:9] == b"{" and (not wanted.text or "LFS" in came):
        raise InvalidContentError(
            f"{wanted.where}: what came is {came}", hint="download or export the file again"
        )
    found = part.digest.hexdigest()
    if wanted.sha256 and found != wanted.sha256:
        raise InvalidContentError(
            f"{wanted.where}: its sha256 is {found}, the server lists {wanted.sha256}",
            hint="it was damaged or replaced; try again, and do not use it if this stays so",
        )


def _place(part: Part, folder: Path, wanted: Wanted) -> Got:
    path = folder / (safe_name(wanted.name) or part.name or "download")
    if path.exists():
        raise OutputExistsError(f"{path}: exists", hint="give an empty folder")
    with storing(path):
        part.path.rename(path)
    return Got(path, part.digest.hexdigest(), part.done)


def _reason(error: Exception) -> str:
    """The cause in few words, without an address."""
    return re.sub(r"\w+://\S+", "…", str(error))[:160] or type(error).__name__
