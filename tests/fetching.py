"""What the tests of downloads share: a little file, its disguises, and how a refusal looks."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
from fake_hub import sha256

from lcm_arith.errors import LcmArithError
from lcm_arith.registry.downloads import Fetched, fetch, parse_source

TOKEN = "hf_secretsecret"


def safetensors(values: int = 1000) -> bytes:
    """A whole little file: one tensor of ``values`` zeros."""
    row = {"dtype": "F32", "shape": [values], "data_offsets": [0, 4 * values]}
    text = json.dumps({"x": row}).encode()
    return struct.pack("<Q", len(text)) + text + bytes(4 * values)


DATA = safetensors()
POINTER = (
    b"version https://git-lfs.github.com/spec/v1\noid sha256:"
    + sha256(DATA).encode()
    + b"\nsize %d\n" % len(DATA)
)
LOGIN = b"<!DOCTYPE html><html><title>Sign in | Hub</title><body>Log in to go on</body></html>"


def get(text: str, folder: Path) -> Fetched:
    source = parse_source(text)
    assert source is not None
    return fetch(source, folder)


def refused(kind: type[LcmArithError], code: int, text: str, folder: Path) -> str:
    """The message and the hint of what ``text`` is refused with; nothing is left in the folder."""
    with pytest.raises(kind) as caught:
        get(text, folder)
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    assert list(folder.iterdir()) == []
    return str(caught.value)
