"""Names of vectors, and digests in their place."""

from __future__ import annotations

import re
import unicodedata
from typing import Final

from lcm_arith.errors import UsageError

_NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,98}[a-z0-9_-])?")
_DIGEST: Final = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_FILES: Final = (".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt")
# Names that mean something else to this program, and names that Windows cannot give to a file.
RESERVED: Final = frozenset(
    {"none", "con", "prn", "aux", "nul"}
    | {f"{port}{number}" for port in ("com", "lpt") for number in range(10)}
)


def check_name(text: str) -> str:
    """The name as it is stored: in NFC and small letters.

    Raises:
        UsageError: If it is no name: other characters than ``a-z 0-9 . _ -``, longer than 100,
            like a file, or one that the program or Windows keeps for itself.
    """
    name = unicodedata.normalize("NFC", text).lower()
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{text!r}: is no name of a vector",
            hint="1 to 100 of a-z 0-9 . _ -, the first a letter or digit, the last no dot",
        )
    if name.endswith(_FILES) or name.split(".")[0] in RESERVED:
        raise UsageError(f"{text!r}: is kept for something else", hint="choose another name")
    return name


def name_of(text: str) -> str:
    """A name made of any text, such as the stem of a file.

    Raises:
        UsageError: If nothing of it can stand in a name.
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    joined = re.sub(r"[^a-z0-9._-]+", "-", plain).strip("._-")[:100].rstrip("._-")
    if not joined:
        raise UsageError(f"{text!r}: gives no name", hint="choose one with --name")
    if joined.endswith(_FILES) or joined.split(".")[0] in RESERVED:
        joined = f"{joined.replace('.', '-')}-vector"
    return check_name(joined)


def digest_of(text: str) -> str | None:
    """The hex digits of a reference by digest, at least 8; None where ``text`` is none."""
    found = _DIGEST.fullmatch(text)
    return found[1] if found else None
