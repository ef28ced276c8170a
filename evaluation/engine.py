"""Makes the pictures of a grid, each once, and keeps them.

A picture lies under the hash of all that changes its pixels. Pictures are made in chunks whose
composition depends on the plan alone; a chunk counts as done when its record and all its pictures
are whole, otherwise it is made again whole. So a grid that was cut anywhere resumes, and ends with
the bytes of an uninterrupted one.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import cache
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from torch import Tensor

from lcm_arith.combination import NONE
from lcm_arith.embedded import files
from lcm_arith.evaluation.plan import Grid, digest
from lcm_arith.evaluation.rows import Mix, Row
from lcm_arith.evaluation.sources import Sources, style_terms
from lcm_arith.formats.container import write_bytes
from lcm_arith.fuse import LiveWeights
from lcm_arith.modules import EMBEDDED
from lcm_arith.sampling import SAMPLERS, encode_prompts, sample, too_long
from lcm_arith.vector import TaskVector

CHUNK: Final = 32  # pictures made together

OnRows = Callable[[int], None]
"""Told how many UNet rows were just made (or found made)."""


@dataclass
class Counters:
    """Work that was really done."""

    pipeline_loads: int = 0
    text_encodes: int = 0
    weight_rebuilds: int = 0
    unet_rows: int = 0
    pictures: int = 0


@dataclass(eq=False)
class Engine:
    """Renders rows of a grid into a folder.

    Args:
        folder: Where ``images/`` and ``chunks/`` are kept.
        sources: Of bases and vectors.
        fast: As in ``lcm_arith.sampling.sample``.
    """

    folder: Path
    sources: Sources
    fast: bool = False
    counters: Counters = field(default_factory=Counters)
    _live: LiveWeights | None = None
    _embeds: dict[str, Tensor] = field(default_factory=dict)
    _text_changed: bool = False

    def render(self, grid: Grid, on_rows: OnRows) -> None:
        """Makes every picture of the grid that is not there yet, one weight pair at a time."""
        for folder in ("images", "chunks"):
            (self.folder / folder).mkdir(parents=True, exist_ok=True)
        distinct = {row.pixels_key: row for row in grid.rows}.values()
        rows = sorted(distinct, key=lambda row: repr(row.mixes))
        for (mix,), same in groupby(rows, key=lambda row: row.mixes):
            applied = False
            for row in same:
                for items in _chunks(grid.items):
                    if self._record(row, items) is None:
                        if not applied:
                            self._apply(mix)
                            applied = True
                        self._make(row, items)
                    on_rows(row.nfe * len(items))

    def pixels(self, row: Row, grid: Grid) -> np.ndarray:
        """The stored pictures of a row, uint8 ``[items, H, W, 3]``."""
        return np.stack([_read(self.picture_path(row, item)) for item in grid.items])

    def picture_path(self, row: Row, item: tuple[str, int]) -> Path:
        """File of one picture."""
        return self.folder / "images" / f"{self._key(row, [item])[:24]}.png"

    def sha256(self, row: Row, grid: Grid) -> list[str]:
        """File digests of a row's pictures, from the chunk records."""
        records = [self._record(row, items) or {} for items in _chunks(grid.items)]
        return [sha for record in records for sha in record["sha256"]]

    def seconds_per_image(self, row: Row, grid: Grid) -> float:
        """Wall time of making a row's pictures, decoding included."""
        records = [self._record(row, items) or {} for items in _chunks(grid.items)]
        return float(sum(record["seconds"] for record in records) / len(grid.items))

    def _key(self, row: Row, items: Sequence[tuple[str, int]]) -> str:
        terms = [
            [repr(float(weight) * own), source.origin["sha256"]]
            for weight, tau in self._terms(row.mixes[0])
            for own, source in tau.terms
        ]
        return digest(
            json.dumps(
                {
                    "versions": _versions(),
                    "base": self.sources.base(row.context.base).digest,
                    "terms": terms,
                    "sampler": [row.sampler, SAMPLERS[row.sampler].options],
                    "steps": row.steps,
                    "guidance": repr(float(row.guidance)),
                    "items": list(items),
                    "fast": self.fast,
                },
                sort_keys=True,
            )
        )

    def _record_path(self, row: Row, items: Sequence[tuple[str, int]]) -> Path:
        return self.folder / "chunks" / f"{self._key(row, items)[:24]}.json"

    def _record(self, row: Row, items: Sequence[tuple[str, int]]) -> dict[str, Any] | None:
        """The record of a chunk whose pictures are all whole; None if it must be made."""
        path = self._record_path(row, items)
        try:
            record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            whole = [
                files.sha256(self.picture_path(row, item)) == expected
                for item, expected in zip(items, record["sha256"], strict=True)
            ]
            timed = isinstance(record["seconds"], float)
        except (FileNotFoundError, KeyError, TypeError, ValueError):
            return None
        return record if timed and all(whole) else None

    def _pipeline(self) -> LiveWeights:
        if self._live is None:
            self._live = LiveWeights(self.sources.base(EMBEDDED).pipeline)
            self.counters.pipeline_loads += 1
        return self._live

    def _terms(self, mix: Mix) -> list[tuple[Decimal, TaskVector]]:
        style = [(mix.l1 * term.weights.overall, term.name) for term in style_terms(mix.style)]
        accel = [(mix.l2, mix.accel)] if mix.accel != NONE else []
        return [(weight, self.sources.vector(name)) for weight, name in (*style, *accel)]

    def cut_prompts(self, grid: Grid) -> list[str]:
        """Prompts of which the text encoder reads only the beginning."""
        return too_long(self.sources.base(EMBEDDED).pipeline.tokenizer, grid.prompts)

    def _apply(self, mix: Mix) -> None:
        tau = sum((float(weight) * tau for weight, tau in self._terms(mix)), TaskVector())
        self._pipeline().apply(tau)
        self.counters.weight_rebuilds += 1
        text = tuple(module for module in tau if not module.startswith("unet."))
        if text or self._text_changed:
            self._embeds.clear()  # the text encoder is another one now
        self._text_changed = bool(text)

    def _embedding(self, prompts: Sequence[str]) -> Tensor:
        import torch

        pipeline = self._pipeline().pipeline
        for prompt in dict.fromkeys(prompts):
            if prompt not in self._embeds:
                self._embeds[prompt] = encode_prompts(pipeline, [prompt])
                self.counters.text_encodes += 1
        return torch.cat([self._embeds[prompt] for prompt in prompts])

    def _make(self, row: Row, items: Sequence[tuple[str, int]]) -> None:
        embeds = self._embedding([prompt for prompt, _ in items])
        uncond = self._embedding([""])
        started = time.perf_counter()
        pixels = sample(
            self._pipeline().pipeline,
            embeds,
            uncond,
            [seed for _, seed in items],
            sampler=row.sampler,
            steps=row.steps,
            guidance=row.guidance,
            fast=self.fast,
        )
        seconds = time.perf_counter() - started
        written = [
            write_bytes(self.picture_path(row, item), _png(picture), force=True, durable=False)
            for item, picture in zip(items, pixels, strict=True)
        ]
        record = json.dumps({"sha256": written, "seconds": seconds})
        write_bytes(self._record_path(row, items), record.encode(), force=True)
        self.counters.unet_rows += row.nfe * len(items)
        self.counters.pictures += len(items)


@cache
def _versions() -> dict[str, str]:
    """What computes the pixels, beside the plan."""
    return {name: version(name) for name in ("lcm-arith", "torch", "diffusers", "transformers")}


def _chunks(items: Sequence[tuple[str, int]]) -> list[tuple[tuple[str, int], ...]]:
    return [tuple(items[at : at + CHUNK]) for at in range(0, len(items), CHUNK)]


def _png(picture: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG")
    return buffer.getvalue()


def _read(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB"))
