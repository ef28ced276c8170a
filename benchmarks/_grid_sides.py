"""What ``grid.py`` compares: the same grid by a good diffusers script and by our engine."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _grid_base import Files
from _grid_peers import Script, keep
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lcm_arith.evaluation.drawing.engine import Engine, units
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.mixing import mixed
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Pair, Store
from lcm_arith.evaluation.plans.rows import Context, Item, Row
from lcm_arith.fuse import LiveWeights
from lcm_arith.vector import TaskVector

Name = tuple[str, str, int, Item]
"""λ1, λ2, steps, (prompt, seed) of a picture."""


@dataclass(frozen=True)
class Plan:
    """The cells of a grid, and what each draws.

    Args:
        l1, l2: λ1 and λ2.
        prompts, seeds: Each prompt with each seed.
        steps: Of the LCM sampler.
    """

    l1: tuple[str, ...]
    l2: tuple[str, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    steps: tuple[int, ...] = (1, 2, 4, 8)

    @property
    def items(self) -> list[Item]:
        """(prompt, seed) of a cell's pictures."""
        return list(product(self.prompts, self.seeds))

    @property
    def pairs(self) -> int:
        """λ pairs: so often are the weights rebuilt."""
        return len(self.l1) * len(self.l2)

    @property
    def pictures(self) -> int:
        """Of the whole grid."""
        return self.pairs * len(self.steps) * len(self.items)

    def rows(self, files: Files) -> list[Row]:
        """The cells."""
        context = Context(files.base, files.style)
        return [
            Row("cell", Decimal(l1), Decimal(l2), "lcm", steps, 1.0, context, files.accel)
            for l1, l2, steps in product(self.l1, self.l2, self.steps)
        ]


def clock(device: str) -> float:
    """Seconds: this process's CPU time, or the wall's once a GPU has done its work."""
    if device == "cpu":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


@dataclass(eq=False)
class Watch:
    """Calls of a network.

    Args:
        network: Watched from now on.
        keeps: Whether its outputs are kept.
        calls: (rows, CPU seconds) of each.
        outputs: What each gave.
    """

    network: Any
    keeps: bool = False
    calls: list[tuple[int, float]] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    _began: float = 0.0

    def __post_init__(self) -> None:
        self.network.register_forward_pre_hook(self._before)
        self.network.register_forward_hook(self._after)

    def _before(self, _: Any, given: tuple[Any, ...]) -> None:
        self._began = time.process_time()

    def _after(self, _: Any, given: tuple[Any, ...], out: Any) -> None:
        self.calls.append((len(given[0]), time.process_time() - self._began))
        if self.keeps:
            self.outputs.append(out)

    def take(self) -> list[tuple[int, float]]:
        """The calls since the last time."""
        taken, self.calls = self.calls, []
        return taken


@dataclass(frozen=True)
class Round:
    """One drawing of the grid.

    Args:
        seconds: In all, of :func:`clock`.
        unet, vae: (rows, CPU seconds) of each call.
    """

    seconds: float
    unet: list[tuple[int, float]]
    vae: list[tuple[int, float]]

    @property
    def rows(self) -> int:
        """UNet rows."""
        return sum(rows for rows, _ in self.unet)

    @property
    def unet_s(self) -> float:
        """In the UNet."""
        return sum(seconds for _, seconds in self.unet)

    @property
    def vae_s(self) -> float:
        """In the VAE."""
        return sum(seconds for _, seconds in self.vae)


@dataclass(eq=False)
class Peer:
    """The good script.

    Args:
        files, plan: What it draws.
        device, dtype: Where, and in which format.
        pictures: Of the last round, ``[3, H, W]`` in 0 to 1.
    """

    files: Files
    plan: Plan
    device: str = "cpu"
    dtype: str = "float32"
    pictures: dict[Name, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        files, how = self.files, {"device": self.device, "dtype": self.dtype}
        self.script = Script.load(**asdict(files), prompts=self.plan.prompts, **how)
        pipeline = self.script.pipeline
        self.unet, self.vae = Watch(pipeline.unet), Watch(pipeline.vae.decoder)

    def round(self, folder: Path, batch: int) -> Round:
        """Draws every cell, ``batch`` pictures at once, and keeps them as PNG files."""
        plan = self.plan
        folder.mkdir()
        began = clock(self.device)
        for l1, l2, steps in product(plan.l1, plan.l2, plan.steps):
            self.script.weigh(float(l1), float(l2))
            drawn = self.script.draw(plan.items, steps, batch)
            keep(drawn, folder, f"{l1}-{l2}-{steps}")
            for item, picture in zip(plan.items, drawn, strict=True):
                self.pictures[l1, l2, steps, item] = picture
        return Round(clock(self.device) - began, self.unet.take(), self.vae.take())


@dataclass(eq=False)
class Ours:
    """Our engine.

    Args:
        files, plan, device, dtype: As of :class:`Peer`.
        pictures: As there, of the last round.
        shown: The same as they are stored, uint8 ``[H, W, 3]``.
        efficiency: Of each round, as the engine says.
    """

    files: Files
    plan: Plan
    device: str = "cpu"
    dtype: str = "float32"
    pictures: dict[Name, Tensor] = field(default_factory=dict)
    shown: dict[Name, np.ndarray] = field(default_factory=dict)
    efficiency: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources = Sources(dtype=self.dtype, device=self.device)
        self.rows = self.plan.rows(self.files)
        self.pipeline = self.sources.base(self.files.base).pipeline
        for name in (self.files.style, self.files.accel):
            self.sources.vector(name)
        self.unet = Watch(self.pipeline.unet)
        self.vae = Watch(self.pipeline.vae.decoder, keeps=True)

    def round(self, folder: Path) -> Round:
        """Draws every cell into a new store."""
        store = Store(folder, keys_of(self.sources))
        store.keys.base(self.files.base)  # reads the base's files, which is no drawing
        engine = Engine(store, self.sources)
        began = clock(self.device)
        engine.render(self.rows, self.plan.items, lambda _: None)
        seconds = clock(self.device) - began
        self._look(store)
        self.efficiency.append(engine.counters.efficiency)
        return Round(seconds, self.unet.take(), self.vae.take())

    def _look(self, store: Store) -> None:
        """The pictures before and after rounding, in the order of drawing."""
        drawn = torch.cat(self.vae.outputs).float().cpu()
        self.vae.outputs.clear()
        order = [pair for record in store.records.values() for pair in record.pairs]
        self.pictures = {
            _name(pair): (each / 2 + 0.5).clamp(0, 1)
            for pair, each in zip(order, drawn, strict=True)
        }
        self.shown = {_name((row, item)): store.pixels(row, [item])[0] for row, item in order}

    def weights(self) -> str:
        """sha256 of all of the pipeline's weights."""
        found = hashlib.sha256()
        for part in (self.pipeline.unet, self.pipeline.text_encoder, self.pipeline.vae):
            for values in part.state_dict().values():
                found.update(values.contiguous().flatten().view(torch.uint8).cpu().numpy())
        return found.hexdigest()

    def rebuild_seconds(self, rounds: int) -> float:
        """Of making the weights of one λ pair."""
        live, (mix,) = LiveWeights(self.pipeline), self.rows[0].mixes

        def rebuild() -> None:
            live.apply(mixed(mix, self.sources.vector).vector)

        found = repeated(rebuild, rounds, self.device)
        live.apply(TaskVector())
        return found

    def row_seconds(self, batch: int) -> float:
        """CPU seconds of one UNet row, ``batch`` at once."""
        one_pass(self.pipeline.unet, batch)
        ((rows, seconds),) = self.unet.take()
        return seconds / rows


@torch.no_grad()
def one_pass(unet: Any, batch: int) -> None:
    """Calls a UNet as it is, adapters included."""
    side, like = unet.config.sample_size, {"device": unet.device, "dtype": unet.dtype}
    told = torch.zeros(batch, 77, unet.config.cross_attention_dim, **like)
    unet(torch.zeros(batch, 4, side, side, **like), 500, told)


def flops(unet: Any) -> float:
    """Of one row."""
    with FlopCounterMode(display=False) as counted:
        one_pass(unet, 1)
    return float(counted.get_total_flops())


def repeated(act: Callable[[], Any], rounds: int, device: str) -> float:
    """Median of the seconds that something takes."""
    taken = []
    for _ in range(rounds):
        began = clock(device)
        act()
        taken.append(clock(device) - began)
    return median(taken)


def _name(pair: Pair) -> Name:
    row, item = pair
    return (str(row.l1), str(row.l2), row.steps, item)


def shuffled_files(
    files: Files, plan: Plan, dtype: str, folder: Path, orders: Sequence[Sequence[int]]
) -> Iterator[list[str]]:
    """sha256 of all pictures, with the λ pairs visited in each of some orders."""
    sources, rows = Sources(dtype=dtype), plan.rows(files)
    for number, order in enumerate(orders):
        store = Store(folder / f"{dtype}-{number}", keys_of(sources))
        engine, each = Engine(store, sources), units(rows)
        for place in order:
            engine.render(each[place].rows, plan.items, lambda _: None)
        yield [digest for row in rows for digest in store.sha256(row, plan.items)]
