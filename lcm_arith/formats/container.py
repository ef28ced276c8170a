"""The safetensors container: a checked reader and the canonical writer.

Bytes are a function of content alone: tensors and metadata in sorted order, an 8-byte aligned
header, no date and no path. A file appears whole or not at all: it is written beside its place,
flushed, read back, compared and then named.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import torch
from torch import Tensor

from lcm_arith.durable import umask
from lcm_arith.errors import (
    NotFoundError,
    OutputExistsError,
    StorageError,
    VerificationError,
)
from lcm_arith.formats.preflight import CHECKPOINT_DTYPES, SafeFile, memory

OWN_METADATA: Final = "lcm_arith"
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_DTYPE_NAMES: Final = {dtype: name for name, dtype in CHECKPOINT_DTYPES.items()}


def header(
    layout: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[bytes, dict[str, int]]:
    """The canonical first bytes of a file, and where each of its tensors begins.

    Args:
        layout: Name → tensor; shape and number format count, it may lie on the meta device.
        metadata: Key → text.
    """
    rows: dict[str, object] = {}
    if metadata:
        rows["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    places, offset = {}, 0
    for name in sorted(layout):
        tensor = layout[name]
        size = tensor.numel() * tensor.element_size()
        rows[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        places[name] = offset
        offset += size
    text = json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text
    return first, {name: len(first) + place for name, place in places.items()}


def tensors_digest(
    tensors: Mapping[str, Tensor], layout: Mapping[str, Tensor] | None = None
) -> str:
    """sha256 of the tensors alone: of the canonical file without metadata.

    Args:
        tensors: Each is asked for once, where there is a layout.
        layout: Name → tensor of the same shape and number format.
    """
    layout = tensors if layout is None else layout
    digest = hashlib.sha256(header(layout, {})[0])
    for name in sorted(tensors):
        digest.update(_bytes_of(tensors[name], layout[name]))
    return digest.hexdigest()


def refuse_existing(path: Path, *, force: bool) -> None:
    """Raises where a result could not be put; call it before long work.

    Raises:
        OutputExistsError: If ``path`` exists and ``force`` is off, or is a folder.
        NotFoundError: If its folder does not exist.
    """
    if path.is_dir():
        raise OutputExistsError(f"{path}: is a folder", hint="name a file, x.safetensors")
    if path.exists() and not force:
        raise OutputExistsError(f"{path}: exists", hint="choose another name or add --force")
    if not path.parent.is_dir():
        raise NotFoundError(f"{path.parent}: no such folder", hint="make it first")


def refuse_existing_folder(folder: Path, *, force: bool, mark: str) -> None:
    """Raises where a folder could not be put; call it before long work.

    Args:
        folder: To be made.
        force: Replace one of its kind.
        mark: The file by which that is known.

    Raises:
        OutputExistsError: If ``folder`` exists and ``force`` is off, or is a file.
        NotFoundError: If the folder above it does not exist.
    """
    if folder.exists() and not folder.is_dir():
        raise OutputExistsError(f"{folder}: is a file", hint="name a folder")
    if folder.exists() and not force:
        raise OutputExistsError(f"{folder}: exists", hint="choose another name or add --force")
    if folder.exists() and any(folder.iterdir()) and not (folder / mark).is_file():
        raise OutputExistsError(
            f"{folder}: holds other things ({mark} is not there), --force would delete them",
            hint="choose another name",
        )
    if not folder.parent.is_dir():
        raise NotFoundError(f"{folder.parent}: no such folder", hint="make it first")


@contextmanager
def whole_folder(folder: Path, *, force: bool, mark: str) -> Iterator[Path]:
    """A folder to fill, which gets its name when all went well, and is gone else.

    Args:
        folder: To be made.
        force: Replace one of its kind.
        mark: The file by which that is known.

    Raises:
        OutputExistsError, NotFoundError: As :func:`refuse_existing_folder`.
        StorageError: If the disk refuses.
    """
    refuse_existing_folder(folder, force=force, mark=mark)
    try:
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
            part = Path(temporary) / "part"
            part.mkdir()
            yield part
            before = Path(temporary) / "before"
            if folder.exists():
                os.replace(folder, before)
            try:
                os.replace(part, folder)
            except OSError:
                if before.exists():
                    os.replace(before, folder)
                raise
    except OSError as error:
        raise StorageError(f"{folder}: cannot be written ({error.strerror})") from error


def write_tensors(
    path: Path,
    layout: Mapping[str, Tensor],
    tensors: Iterable[tuple[str, Tensor]],
    metadata: Mapping[str, str],
    *,
    force: bool = False,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Puts a file at ``path`` whole or not at all, each tensor as it comes; it is read back.

    Args:
        path: Where to.
        layout: Name → tensor of the shape and number format that will come.
        tensors: Every name of the layout with its numbers, once, in any order.
        metadata: Of the header.
        force: Replace an existing file.
        check: Called with the file before it gets its name; what it raises keeps the old file.

    Returns:
        sha256 of the file.

    Raises:
        OutputExistsError: If ``path`` exists and ``force`` is off.
        StorageError: If the disk refuses.
        VerificationError: If what was written does not read back the same.
    """
    first, places = header(layout, metadata)
    sums: dict[str, int] = {}

    def write(file: BinaryIO) -> None:
        file.write(first)
        for name, tensor in tensors:
            data = _bytes_of(tensor, layout[name])
            file.seek(places[name])
            file.write(data)
            sums[name] = _sum(data)

    def digest(part: Path) -> str | None:
        return _read_back(part, first, sums) if sums.keys() == layout.keys() else None

    return _place(path, write, digest, force=force, durable=True, check=check)


def write_bytes(path: Path, data: bytes, *, force: bool = False, durable: bool = True) -> str:
    """Puts ``data`` at ``path`` whole or not at all, after it was read back.

    Args:
        path: Where to.
        data: Content.
        force: Replace an existing file.
        durable: Flush it to the disk; off for files that are checked before use and made again
            when they are not whole.

    Returns:
        sha256 of the file.

    Raises:
        OutputExistsError, StorageError, VerificationError: As :func:`write_tensors`.
    """
    wanted = hashlib.sha256(data).hexdigest()

    def write(file: BinaryIO) -> None:
        file.write(data)

    def digest(part: Path) -> str | None:
        return wanted if hashlib.sha256(part.read_bytes()).hexdigest() == wanted else None

    return _place(path, write, digest, force=force, durable=durable, check=None)


def _place(
    path: Path,
    write: Callable[[BinaryIO], None],
    digest: Callable[[Path], str | None],
    *,
    force: bool,
    durable: bool,
    check: Callable[[Path], None] | None,
) -> str:
    """Writes beside ``path``, reads back (``digest``; None is a failure), then gives the name."""
    refuse_existing(path, force=force)
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=f".part{path.suffix}"
        )
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        found = digest(part)
        if found is None:
            raise VerificationError(f"{path}: the file read back other bytes than were written")
        if check is not None:
            check(part)
        part.chmod(0o666 & ~umask())
        _name(part, path, force=force)
        if durable:
            _flush_folder(path.parent)
    except OutputExistsError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
    return found


def _name(part: Path, path: Path, *, force: bool) -> None:
    """Gives a file its name; without ``force`` never one that was taken meanwhile."""
    if force:
        part.replace(path)
        return
    try:
        try:
            os.link(part, path)
        except FileExistsError:
            raise
        except OSError:  # FAT and some network mounts have no links: reserve the name instead
            path.touch(exist_ok=False)
            part.replace(path)
    except FileExistsError:
        raise OutputExistsError(
            f"{path}: a file of that name appeared while this one was written",
            hint="choose another name or add --force",
        ) from None
    part.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Makes a new name in a folder last; some network mounts have no such call (EINVAL)."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


def _bytes_of(tensor: Tensor, promised: Tensor) -> memoryview:
    if (tensor.dtype, tensor.shape) != (promised.dtype, promised.shape):
        raise VerificationError(
            f"a tensor came as {tensor.dtype} {list(tensor.shape)}, announced as "
            f"{promised.dtype} {list(promised.shape)}",
            hint="please report it",
        )
    return memory(tensor.detach().cpu().contiguous())


def _read_back(part: Path, first: bytes, sums: Mapping[str, int]) -> str | None:
    """sha256 of the file; None where it does not hold what went into it."""
    file = SafeFile.open(part, checkpoint=True)
    digest = hashlib.sha256()
    if file.keys() != sums.keys():
        return None
    sizes = {name: entry.end - entry.start for name, entry in file.entries.items()}
    buffer = memoryview(bytearray(max(sizes.values())))
    with part.open("rb", buffering=0) as raw:
        start = raw.read(len(first))
        digest.update(start)
        same = start == first
        for name in sorted(sizes, key=lambda name: file.entries[name].start):
            data = buffer[: sizes[name]]
            same = same and raw.readinto(data) == len(data) and _sum(data) == sums[name]
            digest.update(data)
    return digest.hexdigest() if same else None


def _sum(data: memoryview) -> int:
    """The sum of the 8-byte words, which no lost or changed page keeps; a tenth of a CRC."""
    whole = len(data) // 8 * 8
    words = torch.frombuffer(data[:whole], dtype=torch.int64) if whole else torch.zeros(1)
    return int(words.sum()) + int.from_bytes(data[whole:], "little")
