"""What people take for an adapter, told by its first bytes. Nothing heavy is imported."""

from __future__ import annotations

from typing import Final

ZIP: Final = b"PK\x03\x04"
PICKLE: Final = b"\x80"
_BLANK: Final = b"\xef\xbb\xbf \t\r\n"  # what may stand before a text

# First bytes, in lower case → what a server sent in place of the file.
_ANSWERS: Final = (
    (b"version https://git-lfs", "a Git LFS pointer; the file itself was never downloaded"),
    (b"<!doctype html", "a web page, such as a login or an error"),
    (b"<html", "a web page, such as a login or an error"),
    (b"<?xml", "an XML answer of a server"),
    (b"{", "a JSON answer of a server"),
)
# First bytes → a file of another kind.
_FILES: Final = (
    (ZIP, "a zip archive or a PyTorch pickle (.pt, .bin, .ckpt)"),
    (PICKLE, "a Python pickle (.pt, .bin, .ckpt)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x89HDF", "an HDF5 file"),
    (b"GGUF", "a GGUF file"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
)


def disguise(start: bytes) -> str:
    """What a file that begins so is, where it is no safetensors file; empty if unknown."""
    return answer(start) or next((kind for magic, kind in _FILES if start.startswith(magic)), "")


def answer(start: bytes) -> str:
    """Which answer of a server begins so: a page, an error, a Git LFS pointer; empty if none."""
    text = start.lstrip(_BLANK).lower()
    return next((kind for magic, kind in _ANSWERS if text.startswith(magic)), "")
