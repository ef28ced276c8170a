"""What the encoding of pictures, captions and prompts shares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from lcm_arith.bases import Base
from lcm_arith.data.drawing import Row
from lcm_arith.data.options import DataOptions
from lcm_arith.data.store import Store

OnStage = Callable[[str, int, int, str], None]
"""Told about progress: (stage, done, total, note)."""

_RULES: Final = 1  # part of every key: raise it when the same input is encoded otherwise
_MOST_PIXELS: Final = 2**20  # a pass of the VAE: one picture of SDXL, four of SD
_MOST_PICTURES: Final = 64
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Work:
    """Where to encode, how, and where to."""

    base: Base
    options: DataOptions
    store: Store
    on_stage: OnStage

    def key(self, **what: Any) -> str:
        """Of what a tensor depends on."""
        told = {**what, "dtype": self.options.cache_dtype, "rules": _RULES}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:40]

    def reading(self) -> dict[str, Any]:
        """How captions are read."""
        return {"clip_skip": self.options.clip_skip, "max_tokens": self.options.max_tokens}


@dataclass(frozen=True, eq=False)
class Made:
    """Pictures whose latents are in the store, what was skipped, and what is to be told."""

    rows: tuple[Row, ...]
    skipped: tuple[str, ...]
    about: dict[str, Any]


def a_pass(height: int, width: int) -> int:
    """Pictures of a size, px, that the VAE or the UNet takes at once."""
    return max(1, min(_MOST_PICTURES, _MOST_PIXELS // (height * width)))


def parts(entries: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """``size`` at a time."""
    for at in range(0, len(entries), size):
        yield entries[at : at + size]
