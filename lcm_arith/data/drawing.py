"""Batches of what was encoded: a function of (index, size, seed) alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lcm_arith.condition import Condition
from lcm_arith.data.store import Store
from lcm_arith.errors import UsageError

TOLD: Final = {"sd": ("embeds",), "sdxl": ("embeds", "pooled")}
"""Kind of base model → what it is told of a caption."""
_ORDERS_KEPT: Final = 4  # one of this epoch and of the next, for two batch sizes


@dataclass(frozen=True)
class Row:
    """One picture of a training set.

    Args:
        name: Its file.
        bucket: Height and width of its training picture, px.
        latents: Keys in the store: as it is, and mirrored where that is asked for.
        time_ids: For each of these what SDXL is told, six numbers.
        captions: One is drawn each time.
        repeats: Times in an epoch.
    """

    name: str
    bucket: tuple[int, int]
    latents: tuple[str, ...]
    time_ids: tuple[tuple[int, ...], ...]
    captions: tuple[str, ...]
    repeats: int = 1


@dataclass(frozen=True, eq=False)
class Drawn:
    """A batch.

    Args:
        z0: Scaled latents ``[B, C, h, w]``, float32.
        cond: What the network is told, B rows, float32.
        captions: In words.
    """

    z0: Tensor
    cond: Condition
    captions: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Pictures with captions as latents and prompt embeddings.

    Args:
        rows: The pictures.
        embeds: Caption → key of its embedding.
        nothing: Key of the embedding of no caption, ∅.
        store: Holds both; they are read when they are drawn.
        kind: Of the base model, "sd" or "sdxl"; the latter is told sizes, too.
        origin: What they were made of and how, JSON-ready, without paths.
        skipped: ``file: reason`` of what could not be used.
    """

    rows: tuple[Row, ...]
    embeds: Mapping[str, str]
    nothing: str
    store: Store
    kind: str
    origin: dict[str, Any]
    skipped: tuple[str, ...] = ()
    _orders: dict[tuple[int, int, int], list[np.ndarray]] = field(default_factory=dict, repr=False)

    @property
    def pictures(self) -> int:
        """How many there are, each counted once."""
        return len(self.rows)

    def batches(self, size: int) -> int:
        """Batches of ``size`` in an epoch; the last of each bucket may be smaller.

        Raises:
            UsageError: If ``size`` is below 1.
        """
        if size < 1:
            raise UsageError(f"batch {size}: at least 1 picture")
        return sum(-(-len(bucket) // size) for bucket in self._buckets)

    def batch(self, index: int, size: int, seed: int) -> Drawn:
        """The ``index``-th batch of an endless stream that depends on the arguments alone.

        In each epoch of :meth:`batches` batches every picture comes as often as its repeats say,
        shuffled; a batch is of one bucket.

        Args:
            index: 0 and up.
            size: Pictures, as many or, for the last of a bucket, fewer.
            seed: Of the order, and of which caption and orientation is drawn.

        Raises:
            InvalidContentError: If a shard of the cache is damaged.
        """
        epoch, place = divmod(index, self.batches(size))
        rows = [self.rows[at] for at in self._order(epoch, size, seed)[place]]
        chance = np.random.default_rng((1, seed % 2**64, index)).random((2, len(rows)))
        captions = tuple(_one_of(row.captions, u) for row, u in zip(rows, chance[0], strict=True))
        z0 = [_one_of(row.latents, u) for row, u in zip(rows, chance[1], strict=True)]
        cond = dict(self.embeddings(captions))
        if self.kind == "sdxl":
            told = [_one_of(row.time_ids, u) for row, u in zip(rows, chance[1], strict=True)]
            cond["time_ids"] = torch.tensor(told, dtype=torch.float32)  # [B, 6]
        return Drawn(torch.stack([self.store[f"{key}.z0"] for key in z0]), cond, captions)

    def z0(self, picture: int) -> Tensor:
        """Latents ``[C, h, w]`` of a picture by its place in :attr:`rows`, as it is, float32."""
        return self.store[f"{self.rows[picture].latents[0]}.z0"]

    def embeddings(self, captions: Sequence[str]) -> Condition:
        """``embeds`` and, for SDXL, ``pooled`` of captions of this set, one row each."""
        return self._stacked([self.embeds[caption] for caption in captions])

    def uncond(self, like: Condition) -> Condition:
        """∅ for as many rows as ``like`` has; sizes and whatever else it tells stay the same."""
        count, device = len(like["embeds"]), like["embeds"].device
        empty = self._stacked([self.nothing])
        return {
            name: empty[name].to(device).expand(count, *empty[name].shape[1:])
            if name in empty
            else values
            for name, values in like.items()
        }

    def _stacked(self, keys: Sequence[str]) -> dict[str, Tensor]:
        return {
            name: torch.stack([self.store[f"{key}.{name}"] for key in keys])
            for name in TOLD[self.kind]
        }

    @cached_property
    def _buckets(self) -> list[np.ndarray]:
        """Rows of each bucket, each as often as it comes in an epoch."""
        members: dict[tuple[int, int], list[int]] = {}
        for at, row in enumerate(self.rows):
            members.setdefault(row.bucket, []).extend([at] * row.repeats)
        return [np.array(members[bucket]) for bucket in sorted(members)]

    def _order(self, epoch: int, size: int, seed: int) -> list[np.ndarray]:
        """Rows of every batch of an epoch."""
        known = self._orders.get((epoch, size, seed))
        if known is not None:
            return known
        random = np.random.default_rng((0, seed % 2**64, epoch))
        batches = [
            shuffled[at : at + size]
            for shuffled in map(random.permutation, self._buckets)
            for at in range(0, len(shuffled), size)
        ]
        order = [batches[at] for at in random.permutation(len(batches))]
        while len(self._orders) >= _ORDERS_KEPT:
            del self._orders[next(iter(self._orders))]
        self._orders[epoch, size, seed] = order
        return order


def _one_of(choices: Sequence[Any], chance: float) -> Any:
    return choices[int(chance * len(choices))]
