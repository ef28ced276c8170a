"""Embeddings of pictures and captions, each made once and kept.

So a metric that is added later reads them, and measuring again runs no model.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from lcm_arith.durable import make_folder
from lcm_arith.evaluation.judging.pixels import Pixels
from lcm_arith.formats.container import write_bytes

Rows = NDArray[np.float32]

BATCH: Final = 8
"""Pictures that a model gets at once, always: the last batch is filled up. Matrix products of other
sizes round otherwise, and a picture's row would depend on how many others were missing."""
_LENGTH: Final = 24  # hex digits of names


class Embedder(Protocol):
    """A model that embeds pictures."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    @property
    def digest(self) -> str:
        """sha256 of all that changes its rows."""

    def embed_pictures(self, pixels: Pixels) -> Rows:
        """Unit rows ``[n, d]`` of uint8 ``[n, H, W, 3]``."""


class Clip(Embedder, Protocol):
    """One that embeds captions in the same space."""

    @property
    def scale(self) -> float:
        """What it multiplies cosines by, exp(``logit_scale``)."""

    def embed_captions(self, captions: Sequence[str]) -> Rows:
        """Unit rows ``[n, d]``."""


@dataclass(eq=False)
class Embeddings:
    """Rows by the model and by what they are of.

    A file holds the rows that were made together, and is called by its own sha256; one that is not
    what it is called counts as absent. Several processes may write at once.

    Args:
        folder: Made at the first row; None keeps them in memory alone.
    """

    folder: Path | None = None
    _known: dict[str, dict[str, Rows]] = field(default_factory=dict)

    def of_pictures(self, model: Embedder, pixels: Pixels) -> Rows:
        """Unit rows ``[n, d]`` of uint8 ``[n, H, W, 3]``."""
        return self._rows(
            model, [_digest(p) for p in pixels], lambda use: model.embed_pictures(pixels[use])
        )

    def of_captions(self, model: Clip, captions: Sequence[str]) -> Rows:
        """Unit rows ``[n, d]``."""
        names = [hashlib.sha256(f"caption {text}".encode()).hexdigest() for text in captions]
        return self._rows(
            model, names, lambda use: model.embed_captions([captions[at] for at in use])
        )

    def _rows(
        self, model: Embedder, names: Sequence[str], make: Callable[[list[int]], Rows]
    ) -> Rows:
        known = self._known.setdefault(model.digest, {}) or self._read(model.digest)
        first = {name: at for at, name in reversed(list(enumerate(names))) if name not in known}
        places = sorted(first.values())
        if places:
            made = [made_of(make, places[at : at + BATCH]) for at in range(0, len(places), BATCH)]
            found = {names[at]: row for at, row in zip(places, np.concatenate(made), strict=True)}
            known.update(found)
            self._write(model.digest, found)
        return np.stack([known[name] for name in names])

    def _place(self, digest: str) -> Path | None:
        return None if self.folder is None else self.folder / digest[:_LENGTH]

    def _read(self, digest: str) -> dict[str, Rows]:
        place, known = self._place(digest), self._known[digest]
        for path in sorted(place.glob("*.npy")) if place else ():
            data = path.read_bytes()
            if _name(data) == path.name:
                table = np.load(io.BytesIO(data), allow_pickle=False)
                known.update(zip(table["of"].astype(str), table["row"], strict=True))
        return known

    def _write(self, digest: str, rows: dict[str, Rows]) -> None:
        place = self._place(digest)
        if place is None:
            return
        width = len(next(iter(rows.values())))
        kind: Any = [("of", "S64"), ("row", "<f4", (width,))]
        buffer = io.BytesIO()
        np.save(buffer, np.array([*rows.items()], dtype=kind), allow_pickle=False)
        make_folder(place)
        path = place / _name(buffer.getvalue())
        write_bytes(path, buffer.getvalue(), force=True, durable=False)


def made_of(make: Callable[[list[int]], Rows], places: list[int]) -> Rows:
    """Rows of some places, made in a batch of :data:`BATCH` whatever their number."""
    filled = [*places, *places[-1:] * (BATCH - len(places))]
    return make(filled)[: len(places)]


def _digest(picture: Pixels) -> str:
    """sha256 of a picture's size and pixels, whatever its file says beside them."""
    shape = np.array(picture.shape, "<i8").tobytes()
    return hashlib.sha256(shape + picture.tobytes()).hexdigest()


def _name(data: bytes) -> str:
    return f"{hashlib.sha256(data).hexdigest()[:_LENGTH]}.npy"
