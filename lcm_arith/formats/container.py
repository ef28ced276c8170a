"""The safetensors container: a checked reader and the canonical writer.

Bytes are a function of content alone: tensors and metadata in sorted order, an 8-byte aligned
header, no date and no path. A file appears whole or not at all: it is written beside its place,
flushed, read back, compared and then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lcm_arith.errors import (
    InvalidContentError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    VerificationError,
)
from lcm_arith.formats.preflight import DTYPES, SafeFile, shown

_DTYPE_NAMES: Final = {dtype: name for name, dtype in DTYPES.items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors and the metadata of ``path``, in memory of their own.

    Raises:
        NotFoundError: If there is no such file.
        InvalidContentError: If it is no safetensors file, is cut, or holds non-finite numbers.
    """
    file = SafeFile.open(path)
    tensors = dict(file.tensors())
    bad = sorted(name for name, t in tensors.items() if not t.isfinite().all())
    if bad:
        listed = ", ".join(map(shown, bad[:3])) + (f" and {len(bad) - 3} more" if bad[3:] else "")
        raise InvalidContentError(
            f"{path}: NaN or infinity in {len(bad)} of {len(tensors)} tensors ({listed})",
            hint="the training diverged or the file is damaged; a merge would only draw noise",
        )
    return tensors, dict(file.metadata)


def serialize(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """The canonical safetensors bytes of ``tensors`` and ``metadata``."""
    header: dict[str, object] = {}
    if metadata:
        header["__metadata__"] = {key: metadata[key] for key in sorted(metadata)}
    chunks, offset = [], 0
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + len(data)],
        }
        chunks.append(data)
        offset += len(data)
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return b"".join((len(text).to_bytes(8, "little"), text, *chunks))


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


def write_bytes(
    path: Path,
    data: bytes,
    *,
    force: bool = False,
    durable: bool = True,
    check: Callable[[Path], None] | None = None,
) -> str:
    """Puts ``data`` at ``path`` whole or not at all, after it was read back.

    Args:
        path: Where to.
        data: Content.
        force: Replace an existing file.
        durable: Flush it to the disk; off for files that are checked before use and made again
            when they are not whole.
        check: Called with the file before it gets its name; what it raises keeps the old file.

    Returns:
        sha256 of the file.

    Raises:
        OutputExistsError: If ``path`` exists and ``force`` is off.
        StorageError: If the disk refuses.
        VerificationError: If what was written does not read back the same.
    """
    refuse_existing(path, force=force)
    digest = hashlib.sha256(data).hexdigest()
    try:
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=f".part{path.suffix}"
        )
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
    part = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        if hashlib.sha256(part.read_bytes()).hexdigest() != digest:
            raise VerificationError(f"{path}: read back other bytes than were written")
        if check is not None:
            check(part)
        part.chmod(0o666 & ~_umask())
        part.replace(path)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
    return digest


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
