"""What a training keeps on the disk, so that it can go on after it was killed."""

from __future__ import annotations

import hashlib
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch

from lcm_arith import durable
from lcm_arith.errors import IncompatibleError, InvalidContentError

_DAMAGED: Final = (RuntimeError, EOFError, pickle.UnpicklingError, KeyError, TypeError, ValueError)
_DIGEST: Final = 32  # bytes: the file ends with the sha256 of what is before, which torch overlooks
_CHUNK: Final = 2**24
_SHARE: Final = 20


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state.

    Args:
        path: File, replaced as a whole; its folder exists.
        about: What decides the result beside the plan: seed, digests of the data. JSON-ready.
        seconds: Written at least so often, unless that takes long itself, and at the end.
        every: And after every so many steps; None is never.
    """

    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 240.0
    every: int | None = None

    def due(self, step: int, saved: float, took: float = 0.0) -> bool:
        """Whether to write after ``step`` steps.

        Args:
            step: Steps done.
            saved: When it was written, by the steady clock.
            took: Seconds of that: writing is to take no more than a twentieth of the time.
        """
        regular = self.every is not None and step % self.every == 0
        return regular or time.monotonic() - saved >= max(self.seconds, _SHARE * took)

    def write(self, content: Mapping[str, Any]) -> float:
        """Replaces the file at once, flushed to the disk; returns the seconds that took.

        Raises:
            StorageError: If the disk refuses; the file is then as it was.
        """
        for part in self.path.parent.glob(f".{self.path.name}.*.part"):
            part.unlink(missing_ok=True)  # of one that was killed while it wrote
        begun = time.monotonic()
        with durable.replacing(self.path) as file:
            summed = _Summed(file)
            torch.save(dict(content), summed)  # type: ignore[arg-type]  # it only writes
            file.write(summed.digest.digest())
        return time.monotonic() - begun

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
            stored: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
            own = stored["key"]
        except _DAMAGED as error:
            raise InvalidContentError(
                f"{self.path}: is no checkpoint that can be read ({str(error).splitlines()[0]})",
                hint="delete it to start anew",
            ) from error
        if own != key:
            raise IncompatibleError(
                f"{self.path}: is the checkpoint of another training ({_difference(own, key)})",
                hint="use the options it was made with, another --run, or --resume never",
            )
        return stored


class _Summed:
    """A file that knows the sha256 of what was written to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Appends; returns how many bytes."""
        self.digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        """Hands all on to the system."""
        self._file.flush()


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
    found = []
    for name in sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k)):
        mine, its = one.get(name), other.get(name)
        if isinstance(mine, Mapping) and isinstance(its, Mapping):
            found.append(_difference(mine, its))
        else:
            found.append(f"{name}: {mine} there, {its} here")
    return ", ".join(dict.fromkeys(found))
