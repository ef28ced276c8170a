"""What a server answers in place of a file: statuses, pages and messages, each by its name."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from lcm_arith.errors import InvalidContentError, NetworkError, NotFoundError
from lcm_arith.registry.downloads.parts import PassingError, Wanted

if TYPE_CHECKING:
    import httpx2

PASSING: Final = frozenset({408, 416, 425, 429, 500, 502, 503, 504})  # worth another try
_ERROR_BODY: Final = 16 * 2**10  # bytes of an error that are read


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait; None if it does not say."""
    said = headers.get("Retry-After", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except ValueError:
        return None


def check_status(response: httpx2.Response, wanted: Wanted) -> None:
    """Refuses every status that brings no file.

    Raises:
        PassingError: If another try may help.
        NotFoundError, NetworkError: If not.
    """
    status = response.status_code
    if status in (200, 206):
        return
    said = _said(_beginning(response), wanted.token)
    what = f"{wanted.where}: the server answers {status}" + (f" ({said})" if said else "")
    if status in PASSING:
        raise PassingError(what, retry_after(response.headers))
    if status in (404, 410):
        raise NotFoundError(what, hint=wanted.missing_hint)
    raise NetworkError(what, hint=wanted.login_hint if status in (401, 403) else "")


def check_kind(response: httpx2.Response, wanted: Wanted) -> None:
    """Refuses a page, and JSON where a file is wanted, by what the server calls it."""
    kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    page = kind in ("text/html", "application/xhtml+xml")
    if not page and (wanted.text or not kind.endswith("json")):
        return
    body = _beginning(response)
    said = _said(body, wanted.token)
    if page:
        login = re.search(rb"log ?in|sign ?in", body, re.IGNORECASE)
        came = "a login page" if login else "a web page"
    else:
        came = "a JSON answer"
    raise InvalidContentError(
        f"{wanted.where}: {came} came in place of the file" + (f" ({said})" if said else ""),
        hint=wanted.login_hint,
    )


def _beginning(response: httpx2.Response) -> bytes:
    """The first bytes of a body that is not the file."""
    body = b""
    for data in response.iter_bytes(2**12):
        body += data
        if len(body) >= _ERROR_BODY:
            break
    return body


def _said(body: bytes, token: str) -> str:
    """What an error's body says, short and printable: JSON's message, or a page's title."""
    text = body.decode("utf-8", errors="replace").strip()
    if title := re.search(r"<title[^>]*>(.*?)</title", text, re.DOTALL | re.IGNORECASE):
        text = title[1]
    elif text.startswith("<"):
        return ""
    else:
        text = _json_message(text)
    if token:
        text = text.replace(token, "…")
    plain = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return plain[:160] + ("…" if len(plain) > 160 else "")


def _json_message(text: str) -> str:
    """The message in a JSON error; the text itself where it is none."""
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return text
    for _ in range(3):  # {"error": {"message": "…"}}
        if isinstance(found, dict):
            keys = ("message", "error", "detail", "error_description", "errors")
            found = next((found[key] for key in keys if found.get(key)), text)
        elif isinstance(found, list) and found:
            found = found[0]
    return found if isinstance(found, str) else text
