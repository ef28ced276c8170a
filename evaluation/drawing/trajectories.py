"""Many pictures from noise to latents in lockstep, each row of the UNet evaluated once.

At every iteration the rows that all pictures ask for are collected. Rows of the same timestep, the
same bytes of scaled latents and the same condition are one row: so the first step is shared by step
counts, samplers and guidance wherever it really is the same, whatever their names are. Rows of
different timesteps go into one batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from hashlib import blake2b
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.condition import Condition, rows
from lcm_arith.network import network
from lcm_arith.sampling import Walk, fast_math, guide, make_scheduler, whole

Told = Callable[[int], Condition]
"""Iteration → what the network may be told, one row each; it may change the weights, too."""


@dataclass(frozen=True)
class Column:
    """Pictures that are drawn in one way.

    Args:
        sampler, steps, guidance: As in ``lcm_arith.sampling.sample``.
        seeds: One a picture.
        cond: Row of the conditions that is its prompt, one a picture.
        uncond: Row that is its ∅, one a picture; not read at guidance ≤ 1.
        grid_points: As of ``lcm_arith.sampling.make_scheduler``.
    """

    sampler: str
    steps: int
    guidance: float
    seeds: tuple[int, ...]
    cond: tuple[int, ...]
    uncond: tuple[int, ...]
    grid_points: int | None = None

    @property
    def guided(self) -> bool:
        """Whether a step takes two rows a picture."""
        return self.guidance > 1


@dataclass(frozen=True, eq=False)
class Drawn:
    """What became of some columns.

    Args:
        latents: Of each column, scaled, ``[pictures, C, h, w]``.
        shares: UNet rows of each picture; one that several pictures asked for is divided among
            them, so the sum is the number of rows that were evaluated.
        unet_s: Seconds in the UNet, s.
    """

    latents: list[Tensor]
    shares: list[list[Fraction]]
    unet_s: float

    @property
    def unet_rows(self) -> int:
        """Rows that were evaluated."""
        return int(sum(sum(of_column) for of_column in self.shares))


@torch.no_grad()
def draw(
    pipeline: Any, columns: Sequence[Column], told: Told, *, batch: int, fast: bool = False
) -> Drawn:
    """The latents of every picture of every column.

    Each is what ``lcm_arith.sampling.denoise`` makes of it alone, but for the last bits of the
    network's sums, which depend on the size of a batch.

    Args:
        pipeline: A ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        columns: What to draw.
        told: Asked before each iteration.
        batch: Rows that the UNet gets at once.
        fast: As in ``lcm_arith.sampling.sample``.

    Raises:
        UsageError: If a sampler is unknown or cannot take that many steps.
    """
    config, unet = pipeline.scheduler.config, pipeline.unet
    dtype = unet.dtype
    schedulers = [make_scheduler(config, c.sampler, c.steps, c.grid_points) for c in columns]
    walks = [
        Walk.start(scheduler, column.seeds, unet)
        for scheduler, column in zip(schedulers, columns, strict=True)
    ]
    shares = [[Fraction(0)] * len(each.seeds) for each in columns]
    step, unet_s = 0, 0.0
    condition: Condition = {}
    while any(not walk.done for walk in walks):
        before, condition = condition, told(step)
        if condition is not before:
            names = _names(condition)
        asked = _Asked(names, dtype)
        live = [n for n, walk in enumerate(walks) if not walk.done]
        places = [asked.add(columns[n], *walks[n].input(), n) for n in live]
        started = time.perf_counter()
        out = _evaluate(pipeline, asked, condition, batch, fast=fast)
        unet_s += time.perf_counter() - started
        for n, (cond, uncond) in zip(live, places, strict=True):
            walks[n].advance(
                guide(out[uncond], out[cond], columns[n].guidance) if uncond else out[cond]
            )
        for users in asked.users:
            for n, picture in users:
                shares[n][picture] += Fraction(1, len(users))
        step += 1
    return Drawn([walk.z for walk in walks], shares, unet_s)


@dataclass(eq=False)
class _Asked:
    """The distinct rows of one iteration.

    Args:
        names: What tells the rows of the conditions apart.
        dtype: What the network reads.
        z, t, told: Of each distinct row: scaled latents, timestep, row of the conditions.
        users: Of each, the pictures that asked for it, as (column, number within).
    """

    names: list[bytes]
    dtype: torch.dtype
    z: list[Tensor] = field(default_factory=list)
    t: list[float] = field(default_factory=list)
    told: list[int] = field(default_factory=list)
    users: list[list[tuple[int, int]]] = field(default_factory=list)
    _places: dict[tuple[float, bytes, bytes], int] = field(default_factory=dict)

    def add(
        self, column: Column, z_in: Tensor, t: Tensor, number: int
    ) -> tuple[list[int], list[int]]:
        """Places of the rows that a column asks for: those of its prompts, and of ∅ if guided."""
        read = [(z, _content(z)) for z in z_in.to(self.dtype)]
        return (
            self._add(read, float(t), column.cond, number),
            self._add(read, float(t), column.uncond, number) if column.guided else [],
        )

    def _add(
        self, read: list[tuple[Tensor, bytes]], t: float, told: Sequence[int], number: int
    ) -> list[int]:
        found = []
        for picture, ((z, content), row) in enumerate(zip(read, told, strict=True)):
            place = self._places.setdefault((t, content, self.names[row]), len(self.z))
            if place == len(self.z):
                self.z.append(z)
                self.t.append(t)
                self.told.append(row)
                self.users.append([])
            self.users[place].append((number, picture))
            found.append(place)
        return found


def _evaluate(
    pipeline: Any, asked: _Asked, condition: Condition, batch: int, *, fast: bool
) -> Tensor:
    """The network's output for every distinct row, ``[rows, C, h, w]``."""
    condition, device = whole(pipeline, condition), asked.z[0].device
    outs = []
    for at in range(0, len(asked.z), batch):
        part = slice(at, at + batch)
        t, told = (torch.tensor(each[part], device=device) for each in (asked.t, asked.told))
        z = torch.stack(asked.z[part])
        outs.append(unet_pass(pipeline, z, t, rows(condition, told), fast=fast))
    synchronise(device)
    return torch.cat(outs)


def unet_pass(pipeline: Any, z: Tensor, t: Tensor, condition: Condition, *, fast: bool) -> Tensor:
    """One batch through the UNet; arguments as of ``lcm_arith.condition.Model``."""
    with fast_math(z.device, enabled=fast):
        return network(pipeline.unet)(z, t, condition)


def synchronise(device: torch.device) -> None:
    """Waits for the device, so that what it did is in the clock."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


_DIGEST: Final = 16  # bytes


def _content(values: Tensor) -> bytes:
    """A digest of a tensor's bytes."""
    raw = values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return blake2b(raw.data, digest_size=_DIGEST).digest()


def _names(condition: Condition) -> list[bytes]:
    """One a row of the conditions; equal where all of the row is equal."""
    columns = [[_content(row) for row in condition[name]] for name in sorted(condition)]
    return [b"".join(parts) for parts in zip(*columns, strict=True)]
