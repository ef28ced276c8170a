"""The header of a safetensors file, checked before a single tensor is believed.

The format's own library accepts duplicate names, zero sizes, a hundred thousand tensors and a 90 MB
header, and hangs on a pipe. Here each of them is an error that says what the file is instead.
"""

from __future__ import annotations

import hashlib
import math
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.errors import InvalidContentError
from lcm_arith.formats.disguises import PICKLE, ZIP, disguise
from lcm_arith.formats.opening import Opened, TwiceError, identity, shown, strict_json

DTYPES: Final = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
_OTHER_DTYPES: Final = {"I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL", "F8_E5M2",
                        "F8_E4M3", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2", "C64"}  # fmt: skip
CHECKPOINT_DTYPES: Final = {
    **DTYPES,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MOST_HEADER: Final = 8 * 2**20  # bytes; kohya's with tag lists and thumbnails are below 2 MiB
MOST_TENSORS: Final = 20_000
MOST_FILE: Final = 32 * 2**30  # bytes; a full SDXL in float32 is 14 GiB
KEPT: Final = 64 * 2**20  # bytes; a file up to this size may be held in memory
MOST_NAME: Final = 512  # bytes
MOST_AXES: Final = 5
_LENGTH: Final = 8  # bytes of the header's length
_FIELDS: Final = {"dtype", "shape", "data_offsets"}


@dataclass(frozen=True)
class Entry:
    """One tensor: number format, shape, and its bytes from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True, eq=False)
class SafeFile(Mapping[str, Tensor]):
    """Name → tensor of a checked file, read into memory of its own whenever it is asked for.

    Args:
        path: Where it was opened.
        entries: Name → place in the file.
        metadata: The header's ``__metadata__``.
        identity: Of the file that was checked: device, number, size, time of change.
    """

    path: Path
    entries: Mapping[str, Entry]
    metadata: Mapping[str, str]
    identity: tuple[int, ...]

    @classmethod
    def open(cls, path: Path, *, checkpoint: bool = False) -> SafeFile:
        """Reads and checks the header.

        Args:
            path: Of the file.
            checkpoint: Whether it is of a whole model, which may hold integers, too.

        Raises:
            NotFoundError: If there is no such file.
            InvalidContentError: If it is no safetensors file of floating-point tensors.
            StorageError: If it cannot be read.
        """
        with Opened(path) as (descriptor, found):
            known = CHECKPOINT_DTYPES if checkpoint else DTYPES
            header = _header(path, descriptor, found.st_size, known)
            return cls(path, *header, identity(found))

    def __getitem__(self, name: str) -> Tensor:
        entry = self.entries[name]
        tensor = torch.empty(entry.shape, dtype=entry.dtype)
        with self._opened() as descriptor:
            self._fill(descriptor, tensor, entry.start)
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return max(entry.end for entry in self.entries.values())

    def outlines(self) -> dict[str, Tensor]:
        """Name → tensor on the meta device: shape and number format, nothing is read."""
        return {
            name: torch.empty(entry.shape, dtype=entry.dtype, device="meta")
            for name, entry in self.entries.items()
        }

    def checked(self, *, keep: bool) -> tuple[str, dict[str, Tensor]]:
        """sha256 of the file, and its tensors where they are to be kept; one pass.

        Raises:
            InvalidContentError: If one holds NaN or infinity, or the file was changed meanwhile.
        """
        digest, kept, bad = hashlib.sha256(), {}, []
        largest = 0 if keep else max(e.end - e.start for e in self.entries.values())
        buffer = torch.empty(largest, dtype=torch.uint8)  # touched once, cheaper than new memory
        with self._opened() as descriptor:
            first = torch.empty(min(e.start for e in self.entries.values()), dtype=torch.uint8)
            digest.update(self._fill(descriptor, first, 0))
            for name, entry in sorted(self.entries.items(), key=lambda item: item[1].start):
                tensor = (
                    torch.empty(entry.shape, dtype=entry.dtype)
                    if keep
                    else buffer[: entry.end - entry.start].view(entry.dtype).reshape(entry.shape)
                )
                digest.update(self._fill(descriptor, tensor, entry.start))
                if not finite(tensor):
                    bad.append(name)
                if keep:
                    kept[name] = tensor
        if bad:
            listed = ", ".join(map(shown, sorted(bad)[:3]))
            raise InvalidContentError(
                f"{self.path}: NaN or infinity in {len(bad)} of {len(self)} tensors ({listed}"
                + (f" and {len(bad) - 3} more)" if bad[3:] else ")"),
                hint="the training diverged or the file is damaged; a merge would only draw noise",
            )
        return digest.hexdigest(), kept

    @contextmanager
    def _opened(self) -> Iterator[int]:
        with Opened(self.path) as (descriptor, found):
            if identity(found) != self.identity:
                raise InvalidContentError(
                    f"{self.path}: was changed while it was read", hint="run the command again"
                )
            yield descriptor

    def _fill(self, descriptor: int, tensor: Tensor, start: int) -> memoryview:
        """Reads what lies from ``start`` on into ``tensor``; its memory."""
        view, done = memory(tensor), 0
        while done < len(view):
            got = os.preadv(descriptor, [view[done:]], start + done)
            if not got:
                raise InvalidContentError(f"{self.path}: was cut while it was read")
            done += got
        return view


def memory(tensor: Tensor) -> memoryview:
    """The bytes of a contiguous tensor on the CPU, not copied."""
    return tensor.reshape(-1).view(torch.uint8).numpy().data


def _header(
    path: Path, descriptor: int, size: int, known: Mapping[str, torch.dtype]
) -> tuple[dict[str, Entry], dict[str, str]]:
    def refuse(what: str, hint: str = "download or export the file again") -> InvalidContentError:
        return InvalidContentError(f"{path}: not a readable safetensors file: {what}", hint=hint)

    if size < _LENGTH:
        raise refuse(f"it has {size} bytes" if size else "it is empty")
    if size > MOST_FILE:
        raise refuse(f"it has {size / 2**30:.0f} GiB", "an adapter is far smaller")
    start = os.pread(descriptor, 64, 0)
    length = int.from_bytes(start[:_LENGTH], "little")
    if length > MOST_HEADER or length > size - _LENGTH or start[_LENGTH : _LENGTH + 1] != b"{":
        if kind := disguise(start):
            hint = unpickling(path) if pickled(start) else "download the .safetensors file"
            raise refuse(f"it is {kind}", hint)
        if start[_LENGTH : _LENGTH + 1] != b"{":
            raise refuse("its header does not begin with {")
        if length > size - _LENGTH:
            raise refuse(
                f"it is cut: the header ends at byte {length + _LENGTH}, the file at {size}"
            )
        raise refuse(f"its header has {length / 2**20:.0f} MiB, more than {MOST_HEADER >> 20}")
    try:
        text = os.pread(descriptor, length, _LENGTH).decode("utf-8")
        parsed = strict_json(text)
    except TwiceError as error:
        raise refuse(f"its header names {error} twice") from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise refuse(f"its header is not JSON ({str(error)[:80]})") from None
    if not isinstance(parsed, dict):
        raise refuse("its header is no object")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise refuse("its metadata is no list of strings")
    if not parsed:
        raise refuse("it holds no tensors", "it is no adapter")
    if len(parsed) > MOST_TENSORS:
        raise refuse(f"it holds {len(parsed)} tensors, more than {MOST_TENSORS}")
    entries = {}
    for name, row in parsed.items():
        try:
            entries[name] = _entry(name, row, _LENGTH + length, known)
        except ValueError as error:
            raise refuse(f"{shown(name)}: {error}") from None
    _check_cover(entries, _LENGTH + length, size, refuse)
    return entries, metadata


def finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN, which its extremes keep, nor infinity."""
    if not tensor.numel():
        return True  # of which no extremes are known
    low, high = torch.aminmax(tensor)
    return math.isfinite(low) and math.isfinite(high)


def pickled(start: bytes) -> bool:
    """Whether a file that begins so is a pickle; a header's length may look like one's start."""
    return start.startswith((ZIP, PICKLE)) and start[_LENGTH : _LENGTH + 1] != b"{"


def unpickling(path: Path) -> str:
    """A hint: the one command that reads a pickle."""
    out = "converted" if path.suffix == ".safetensors" else path.stem
    call = ["lcm-arith", "convert", str(path), "-o", f"{out}.safetensors", "--allow-pickle"]
    return f"download the .safetensors file, or convert this one once: {shlex.join(call)}"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(name: str, row: Any, data: int, dtypes: Mapping[str, torch.dtype]) -> Entry:
    """Raises ValueError where a row of the header makes no sense."""
    if not name or len(name.encode()) > MOST_NAME or not name.isprintable():
        raise ValueError(f"a name has 1 to {MOST_NAME} printable bytes")
    if not isinstance(row, dict) or row.keys() != _FIELDS:
        raise ValueError("a tensor has dtype, shape and data_offsets, nothing else")
    if not isinstance(row["dtype"], str):
        raise ValueError(f"dtype {shown(str(row['dtype']))}")
    if row["dtype"] not in dtypes:
        known = row["dtype"] in _OTHER_DTYPES
        raise ValueError(
            f"{row['dtype']} is not a floating-point number that is read"
            if known
            else f"unknown number format {shown(str(row['dtype']))}"
        )
    shape, offsets = row["shape"], row["data_offsets"]
    least = 0 if dtypes is CHECKPOINT_DTYPES else 1  # SDXL marks v-prediction by an empty tensor
    if not isinstance(shape, list) or not all(_whole(n) and n >= least for n in shape):
        raise ValueError(f"shape {shown(str(shape))}")
    if len(shape) > MOST_AXES:
        raise ValueError(f"{len(shape)} axes, more than {MOST_AXES}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_whole, offsets)):
        raise ValueError(f"data_offsets {shown(str(offsets))}")
    dtype = dtypes[row["dtype"]]
    if offsets[1] - offsets[0] != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{offsets[1] - offsets[0]} bytes for {row['dtype']} {shown(str(shape))}")
    return Entry(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _check_cover(entries: Mapping[str, Entry], data: int, size: int, refuse: Any) -> None:
    """The tensors lie side by side and fill the file."""
    at = data
    for name, entry in sorted(entries.items(), key=lambda item: item[1].start):
        if entry.start != at:
            what = "overlaps" if entry.start < at else "leaves a gap after"
            raise refuse(f"{shown(name)} {what} the tensor before it")
        at = entry.end
    if at > size:
        raise refuse(f"it is cut: it should have {at} bytes and has {size}")
    if at < size:
        raise refuse(f"{size - at} bytes follow its last tensor")
