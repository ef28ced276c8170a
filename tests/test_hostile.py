"""Crafted files: each is refused with our own words, quickly and in little memory."""

import json
import math
import os
import pickle
import random
import resource
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import torch

from lcm_arith.adapters import load
from lcm_arith.errors import LcmArithError
from lcm_arith.formats import preflight

M: Final = "unet.conv_in"
A, B = f"{M}.lora_A.weight", f"{M}.lora_B.weight"


def row(start: int, shape: Any, dtype: Any = "F32", size: int | None = None) -> dict[str, Any]:
    """A header's row."""
    if size is None:
        size = 4 * math.prod(shape)
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, start + size]}


GOOD: Final = {A: row(0, [2, 3]), B: row(24, [4, 2])}
DATA: Final = struct.pack("<14f", *range(14))


def packed(header: Any, data: bytes = DATA) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def changed(**fields: Any) -> bytes:
    """A good file but for fields of its first tensor."""
    return packed({**GOOD, A: {**GOOD[A], **fields}})


def renamed(name: str) -> bytes:
    return packed({name: GOOD[A], B: GOOD[B]})


def without(field: str) -> bytes:
    return packed({**GOOD, A: {k: v for k, v in GOOD[A].items() if k != field}})


def raw_rows(*rows: str, data: bytes = DATA) -> bytes:
    return packed(("{" + ",".join(rows) + "}").encode(), data)


TEXT_A, TEXT_B = (f"{json.dumps(k)}:{json.dumps(GOOD[k])}" for k in (A, B))
FLOATS: Final = {"nan": math.nan, "infinity": math.inf, "minus infinity": -math.inf}

ODD_ROWS: Final[tuple[Any, ...]] = (None, 1, "x", [], {}, True)
ODD_DTYPES: Final[tuple[Any, ...]] = (
    "F33",
    "I32",
    "U8",
    "BOOL",
    "F8_E4M3",
    "f32",
    "",
    None,
    1,
    ["F32"],
    {},
)
ODD_SHAPES: Final[tuple[Any, ...]] = (
    [2],
    [2, 4],
    [-2, -3],
    [2.0, 3],
    ["2", 3],
    [True, 6],
    None,
    6,
    "6",
    {},
    [2**60, 0],
    [0, 3],
    [2**32, 2**32],
    [2**64],
    [10**400, 1],
    [1] * 6 + [6],
    [1] * 1000 + [6],
    [[2, 3]],
    [],
)
ODD_OFFSETS: Final[tuple[Any, ...]] = (
    [0],
    [0, 24, 48],
    [24, 0],
    [-1, 23],
    [0, 2**64],
    [2**64 - 24, 2**64],
    [0.0, 24.0],
    ["0", "24"],
    None,
    {},
    24,
    [0, None],
    [4, 28],
    [0, 28],
    [8, 32],
    [True, 25],
)

CRAFTED: Final[dict[str, bytes]] = {
    "empty": b"",
    **{f"{n} bytes": b"\x01" * n for n in (1, 7, 8, 9)},
    **{f"header of {n}": n.to_bytes(8, "little") + b"{}" for n in
       (0, 1, 3, 100, 2**31, 2**32, 2**63, 2**64 - 1, 100 * 2**20 + 1)},
    "header past the end": packed(GOOD)[:20],
    **{f"cut at {n}": packed(GOOD)[:-n] for n in (1, 4, 24, 55, 56, 57, 100)},
    **{f"{n} bytes after": packed(GOOD) + b"\0" * n for n in (1, 8, 4096)},
    "bad UTF-8": packed(b'{"\xff\xfe":1}'),
    "UTF-16": packed(json.dumps(GOOD).encode("utf-16")),
    "no JSON": packed(b"{hello}"),
    "an array": packed([GOOD]),
    "a string": packed(b'"hello"'),
    "null": packed(b"null"),
    "a space first": packed(b" " + json.dumps(GOOD).encode()),
    "nested deep": packed(b'{"a":' * 100_000 + b"1" + b"}" * 100_000),
    "array nested deep": packed(b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "no tensors": packed({}),
    "only metadata": packed({"__metadata__": {"a": "b"}}, b""),
    "metadata of numbers": packed({"__metadata__": {"a": 1}, **GOOD}),
    "metadata nested": packed({"__metadata__": {"a": {"b": "c"}}, **GOOD}),
    "metadata a list": packed({"__metadata__": ["a"], **GOOD}),
    "metadata null": packed({"__metadata__": None, **GOOD}),
    "metadata a tensor": packed({"__metadata__": GOOD[A], **GOOD}),
    "metadata twice": raw_rows('"__metadata__":{"a":"b"}', '"__metadata__":{}', TEXT_A, TEXT_B),
    "metadata key twice": raw_rows('"__metadata__":{"a":"b","a":"c"}', TEXT_A, TEXT_B),
    "tensor twice": raw_rows(TEXT_A, TEXT_A, TEXT_B),
    "tensor twice, other": raw_rows(TEXT_A, f"{json.dumps(A)}:{json.dumps(GOOD[B])}", TEXT_B),
    "field twice": raw_rows(TEXT_A.replace('"dtype"', '"dtype":"F32","dtype"'), TEXT_B),
    **{f"row is {v!r}": packed({**GOOD, A: v}) for v in ODD_ROWS},
    **{f"without {f}": without(f) for f in ("dtype", "shape", "data_offsets")},
    "extra field": changed(more=1),
    **{f"dtype {v!r}": changed(dtype=v) for v in
       ODD_DTYPES},
    **{f"shape {str(v)[:30]}": changed(shape=v) for v in
       ODD_SHAPES},
    **{f"offsets {v}": changed(data_offsets=v) for v in
       ODD_OFFSETS},
    "overlap": packed({**GOOD, B: row(20, [4, 2])}),
    "hole": packed({**GOOD, B: row(28, [4, 2])}, DATA + b"\0" * 4),
    "the same bytes twice": packed({**GOOD, "unet.x.lora_A.weight": row(0, [2, 3])}),
    **{f"name {n[:20]!r}": renamed(n) for n in
       ("", "a\0b", "a\x1b[31mb", "a\nb", "a\u202eb", "x" * 513, "x" * 10**6, "\ud800".encode(
           "utf-8", "surrogatepass").decode("utf-8", "replace") + "\u0007")},
    "a path": renamed("../../etc/passwd"),
    "20001 tensors": packed({f"t{i}": row(0, [1]) for i in range(20_001)}, b"\0" * 4),
    "9 MiB header": packed(json.dumps({"__metadata__": {"a": "x" * 9 * 2**20}, **GOOD}).encode()),
    **{f"{name} inside": packed(GOOD, DATA[:8] + struct.pack("<f", v) + DATA[12:])
       for name, v in FLOATS.items()},
    "JSON's NaN": raw_rows(TEXT_A.replace("[2, 3]", "[NaN, 3]"), TEXT_B),
    "JSON's infinity": raw_rows(TEXT_A.replace("[2, 3]", "[Infinity, 3]"), TEXT_B),
    "a pickle": pickle.dumps({"a": 1}),
    "an old pickle": pickle.dumps({"a": 1}, protocol=0),
    "LFS pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "a web page": b"<!DOCTYPE html><html><body>Log in</body></html>" * 9,
    "XML": b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>" * 9,
    "a JSON answer": json.dumps({"error": "Unauthorized", "message": "log in"}).encode(),
    "gzip": b"\x1f\x8b\x08\0" + b"\0" * 64,
    "PNG": b"\x89PNG\r\n\x1a\n" + b"\0" * 64,
    "JPEG": b"\xff\xd8\xff\xe0" + b"\0" * 64,
    "GGUF": b"GGUF\3\0\0\0" + b"\0" * 64,
    "HDF5": b"\x89HDF\r\n\x1a\n" + b"\0" * 64,
    "text": b"hello world, I am no adapter at all" * 3,
    "zeros": b"\0" * 1000,
    "up alone": packed({B: row(0, [4, 2])}, DATA[:32]),
    "down alone": packed({A: row(0, [2, 3])}, DATA[:24]),
    "ranks differ": packed({A: row(0, [3, 2]), B: row(24, [4, 2])}),
    "a rank of three axes": packed({A: row(0, [2, 3, 1]), B: row(24, [4, 2])}),
    "two alphas": packed({**GOOD, f"{M}.alpha": row(56, [2])}, DATA + b"\0" * 8),
    "a stranger": packed({**GOOD, "model.weight": row(56, [1])}, DATA + b"\0" * 4),
    **{f"adapter metadata {v[:12]}": packed({"__metadata__": {"lora_adapter_metadata": v}, **GOOD})
       for v in ("{", "[]", "1", '{"unet.lora_alpha": "x"}', '{"unet.lora_alpha": true}',
                 '{"unet.alpha_pattern": 3}', '{"unet.alpha_pattern": {"(a+)+$": 1}}',
                 '{"unet.lora_alpha": 1e999}', "[" * 100_000)},
}  # fmt: skip


# What the message says of some of them.
TOLD: Final = {
    "LFS pointer": "Git LFS pointer", "a web page": "web page", "a pickle": "pickle",
    "a JSON answer": "JSON answer", "cut at 24": "it is cut: it should have",
    "8 bytes after": "8 bytes follow", "tensor twice": "twice", "overlap": "overlaps",
    "hole": "gap", "dtype 'I32'": "I32 is not a floating-point", "empty": "empty",
    "a stranger": "model.weight", "20001 tensors": "20001 tensors",
}  # fmt: skip


def test_there_are_enough_of_them() -> None:
    assert len(CRAFTED) >= 120
    assert CRAFTED.keys() >= TOLD.keys()


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_file_is_refused_in_our_words(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(CRAFTED[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(LcmArithError) as caught:
        load(path)
    assert caught.value.exit_code == 4
    assert str(path) in caught.value.message
    assert TOLD.get(name, "") in str(caught.value)
    assert str(caught.value).replace("\n", " ").isprintable()
    assert len(str(caught.value)) < 1500
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 64 * 1024  # KiB, the most that any of them may take


def test_the_good_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(packed(GOOD))
    values = torch.arange(14.0)
    want = values[6:].reshape(4, 2) @ values[:6].reshape(2, 3)
    assert torch.equal(load(path)[M].dense(), want)


def test_pipes_folders_links_and_huge_files_do_not_hang(tmp_path: Path) -> None:
    pipe, folder, link = tmp_path / "p.safetensors", tmp_path / "f", tmp_path / "l.safetensors"
    os.mkfifo(pipe)
    folder.mkdir()
    link.symlink_to("/dev/zero")
    for path in (pipe, folder, link, tmp_path / "absent.safetensors"):
        with pytest.raises(LcmArithError) as caught:
            load(path)
        assert caught.value.exit_code == 3
    sparse = tmp_path / "s.safetensors"
    with sparse.open("wb") as file:
        file.truncate(preflight.MOST_FILE + 1)
    archive = tmp_path / "z.safetensors"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("data", b"\0" * 10**6)
    for path, told in ((sparse, "32 GiB"), (archive, "zip archive")):
        with pytest.raises(LcmArithError, match=told):
            load(path)


def mutations(count: int, seed: int) -> Iterator[bytes]:
    """Bytes of a good file with a few changed, cut out, doubled or swapped."""
    source = random.Random(seed)
    good = packed({"__metadata__": {"a": "b"}, **GOOD})
    edits: tuple[Callable[[bytearray, int, int], None], ...] = (
        lambda b, i, j: b.__setitem__(i, source.randrange(256)),
        lambda b, i, j: b.__setitem__(i, b[i] ^ (1 << source.randrange(8))),
        lambda b, i, j: b.__delitem__(slice(min(i, j), max(i, j))),
        lambda b, i, j: b.__setitem__(slice(i, i), b[min(i, j) : max(i, j)]),
        lambda b, i, j: b.__setitem__(
            slice(i, i + 1), source.choice((b'"', b"{", b"0", b"-", b","))
        ),
    )
    for _ in range(count):
        changed_bytes = bytearray(good)
        for _ in range(source.randint(1, 3)):
            if changed_bytes:
                places = [source.randrange(len(changed_bytes)) for _ in range(2)]
                source.choice(edits)(changed_bytes, *places)
        yield bytes(changed_bytes)


def test_two_thousand_mutations_are_read_or_refused(tmp_path: Path) -> None:
    path, read, codes = tmp_path / "x.safetensors", 0, set()
    for content in mutations(2000, seed=0):
        path.write_bytes(content)
        try:
            load(path)
            read += 1
        except LcmArithError as error:
            codes.add(error.exit_code)
    assert codes == {4}
    assert 0 < read < 1500  # changed numbers are still an adapter; changed headers are not
