"""What was encoded: tensors by name, in memory, or in a folder as safetensors shards.

The headers of the shards are the index. A shard appears whole or not at all, so a killed run loses
what was not yet in one, and goes on. Every tensor's CRC is in its shard's header and is compared
when it is read.
"""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lcm_arith.durable import locked, make_folder
from lcm_arith.errors import InvalidContentError, OutputExistsError
from lcm_arith.formats.container import write_tensors
from lcm_arith.formats.preflight import SafeFile, memory

SHARD: Final = "shard-"
SET: Final = "set-"
LOCK: Final = ".lock"
SHARD_BYTES: Final = 64 * 2**20
SHARD_TENSORS: Final = 256
HELD_BYTES: Final = 2**30  # of the folder's tensors, kept in memory once they were read


class Store:
    """Name → tensor, float32 when asked for.

    Args:
        folder: Where shards are. None keeps all in memory.
        dtype: Number format in which tensors are kept.

    Raises:
        InvalidContentError: If a shard is damaged; names it.
    """

    def __init__(self, folder: Path | None, dtype: torch.dtype = torch.float32) -> None:
        self.folder, self.dtype = folder, dtype
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._waiting: dict[str, Tensor] = {}
        self._waiting_bytes = 0
        self._files: dict[str, SafeFile] = {}
        self._sums: dict[Path, dict[str, int]] = {}
        if folder is not None:
            for path in sorted(folder.glob(f"{SHARD}*.safetensors")):
                self._know(path)

    def __contains__(self, name: str) -> bool:
        return name in self._held or name in self._waiting or name in self._files

    def __getitem__(self, name: str) -> Tensor:
        for known in (self._held, self._waiting):
            if name in known:
                return known[name].float()
        tensor = self._read(name)
        self._hold(name, tensor)
        return tensor.float()

    def add(self, name: str, tensor: Tensor) -> None:
        """Keeps a tensor; in a folder once a shard is full or at :meth:`flush`.

        Raises:
            InvalidContentError: If it is not finite in the number format.
            StorageError, VerificationError: As :meth:`flush`.
        """
        tensor = tensor.detach().to("cpu", self.dtype, copy=True).contiguous()
        if not bool(tensor.isfinite().all()):
            raise InvalidContentError(
                f"latents or embeddings are not finite, or too large for {self.dtype}",
                hint="keep them as bfloat16 or float32",
            )
        if self.folder is None:
            self._held[name] = tensor
            return
        self._waiting[name] = tensor
        self._waiting_bytes += tensor.nbytes
        if len(self._waiting) >= SHARD_TENSORS or self._waiting_bytes >= SHARD_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what waits for a shard to be full.

        Raises:
            StorageError, VerificationError: As :func:`lcm_arith.formats.container.write_tensors`.
        """
        if self.folder is None or not self._waiting:
            return
        tensors = dict(self._waiting)
        name = hashlib.sha256("\n".join(sorted(tensors)).encode()).hexdigest()[:16]
        path = self.folder / f"{SHARD}{name}.safetensors"
        sums = {name: zlib.crc32(memory(tensor)) for name, tensor in tensors.items()}
        about = {"crc32": json.dumps(sums, sort_keys=True)}
        write_tensors(path, tensors, tensors.items(), about, force=True)
        self._know(path)
        for name, tensor in tensors.items():
            self._hold(name, tensor)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _know(self, path: Path) -> None:
        try:
            file = SafeFile.open(path)
        except InvalidContentError as error:
            raise _damaged(path, error.message) from error
        try:
            self._sums[path] = json.loads(file.metadata["crc32"])
        except (KeyError, ValueError) as error:
            raise _damaged(path, f"{path}: its checksums are missing") from error
        self._files |= dict.fromkeys(file, file)

    def _read(self, name: str) -> Tensor:
        file = self._files[name]
        tensor = file[name]
        if zlib.crc32(memory(tensor)) != self._sums[file.path].get(name):
            raise _damaged(file.path, f"{file.path}: {name} is not what was written")
        return tensor

    def _hold(self, name: str, tensor: Tensor) -> None:
        if self._held_bytes + tensor.nbytes <= HELD_BYTES:
            self._held[name] = tensor
            self._held_bytes += tensor.nbytes


@contextmanager
def alone(folder: Path | None) -> Iterator[None]:
    """Nobody else writes into the folder meanwhile; it is made where it is missing.

    Raises:
        OutputExistsError: If the folder holds other things.
        StorageError: If the disk refuses.
    """
    if folder is None:
        yield
        return
    make_folder(folder)
    _refuse_other_things(folder)
    with locked(folder / LOCK):
        for part in folder.glob(f".{SHARD}*.part*"):  # a killed run left it
            part.unlink(missing_ok=True)
        yield


def _damaged(path: Path, what: str) -> InvalidContentError:
    return InvalidContentError(
        what, hint=f"delete {path.name}: what was in it is encoded anew from the pictures"
    )


def _refuse_other_things(folder: Path) -> None:
    names = [path.name for path in folder.iterdir()]
    ours = [name for name in names if name.lstrip(".").startswith((SHARD, SET)) or name == LOCK]
    if names and not ours:
        raise OutputExistsError(
            f"{folder}: holds other things ({sorted(names)[0]}), it is no cache",
            hint="name a new folder for the cache",
        )
