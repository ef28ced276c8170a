"""What a training keeps on the disk, so that it can go on after it was killed."""

from __future__ import annotations

import hashlib
import io
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith import durable
from lcm_arith.errors import IncompatibleError, InvalidContentError

_DAMAGED: Final = (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError)
_DIGEST: Final = 32  # bytes: the file ends with the sha256 of what is before, which torch overlooks
_CHUNK: Final = 2**24


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state.

    Args:
        path: File, replaced as a whole; its folder exists.
        about: What decides the result beside the plan: seed, digests of the data. JSON-ready.
        seconds: Written at least so often, and at the end.
        every: And after every so many steps; None is never.
    """

    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 240.0
    every: int | None = None

    def due(self, step: int, saved: float) -> bool:
        """Whether to write after ``step`` steps; ``saved`` is when it was, by the steady clock."""
        regular = self.every is not None and step % self.every == 0
        return regular or time.monotonic() - saved >= self.seconds

    def write(self, content: Mapping[str, Any]) -> None:
        """Replaces the file at once, flushed to the disk.

        Raises:
            StorageError: If the disk refuses; the file is then as it was.
        """
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):
            part.unlink(missing_ok=True)  # of one that was killed while it wrote
        packed = io.BytesIO()
        torch.save(dict(content), packed)
        packed.write(hashlib.sha256(packed.getbuffer()).digest())
        durable.write(self.path, packed.getbuffer())

    def read(self, key: Mapping[str, Any]) -> dict[str, Any]:
        """What was written.

        Args:
            key: Of the training that wants to go on.

        Raises:
            InvalidContentError: If the file is damaged.
            IncompatibleError: If it belongs to another plan, seed or data.
        """
        try:
            _check_digest(self.path)
            stored: dict[str, Any] = torch.load(self.path, weights_only=True, map_location="cpu")
            own = stored["key"]
        except _DAMAGED as error:
            raise InvalidContentError(
                f"{self.path}: is no checkpoint that can be read ({str(error).splitlines()[0]})",
                hint="delete it to start anew",
            ) from error
        if own != key:
            raise IncompatibleError(
                f"{self.path}: is the checkpoint of another training ({_difference(own, key)})",
                hint="delete it to start anew, or use the options it was made with",
            )
        return stored


def _check_digest(path: Path) -> None:
    """Raises where a bit is not as it was written; torch reads what is not whole, too."""
    left, found = path.stat().st_size - _DIGEST, hashlib.sha256()
    with path.open("rb") as file:
        while left > 0:
            chunk = file.read(min(_CHUNK, left))
            found.update(chunk)
            left -= len(chunk)
        if left < 0 or file.read() != found.digest():
            raise ValueError("its bytes are not those that were written")


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
    return ", ".join(f"{k}: {one.get(k)} there, {other.get(k)} here" for k in names)
