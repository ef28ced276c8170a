"""Makes the pictures of a grid: each once, sharing all that is the same, in any order to the bit.

The base is loaded once, weights are rebuilt from pristine once per mix. A prompt is encoded once
per state of the text encoders; of the states that vectors give them, those of the unit that is
drawn are kept. Units of one state follow each other, but for margins, and where an acceleration
changes text encoders: a state that comes back is encoded again.

Pictures are made in chunks: a block of items in a fixed order, every way of sampling that needs the
same weights, up to :data:`CHUNK` pictures. The first step is shared within a chunk. A chunk's
composition depends on the plan and on what the store held before the plan, never on where a run was
cut.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from typing import Final

import numpy as np
import torch
from torch import Tensor

from lcm_arith.bases import Base
from lcm_arith.combination import NONE
from lcm_arith.condition import Condition, joined
from lcm_arith.errors import UsageError
from lcm_arith.evaluation.drawing.calibration import calibrated
from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.drawing.mixing import content, mixed, text_state
from lcm_arith.evaluation.drawing.sources import SMALL, Sources
from lcm_arith.evaluation.drawing.store import Made, Pair, Record, Store
from lcm_arith.evaluation.drawing.telling import Teller
from lcm_arith.evaluation.drawing.trajectories import Column, draw
from lcm_arith.evaluation.plans.rows import Item, Mix, Row, shown
from lcm_arith.fuse import LiveWeights
from lcm_arith.sampling import decoded, rounded
from lcm_arith.vector import TaskVector

MANY, FEW = 16, 2  # items of a block
CHUNK: Final = 512  # pictures; 32 ways of sampling many items
CPU_BATCH: Final = {True: 32, False: 4}
"""UNet rows at once on the CPU, of small pictures or not; more are no faster there."""
DECODED: Final = 4  # UNet rows of a batch for a picture that is decoded at once

OnRows = Callable[[int], None]
"""Told how many UNet rows, as if drawn alone, were just made or found made; what it raises ends
the rendering between two chunks."""


OnBatches = Callable[[Mapping[str, int]], None]
"""Told base → UNet rows at once."""


@dataclass(frozen=True)
class Unit:
    """What is drawn with the same weights, step by step: the unit of work that is handed out.

    Args:
        rows: Every way of drawing with them.
    """

    rows: tuple[Row, ...]

    @property
    def label(self) -> str:
        """The weights in words: ``noto 0.8 + lcm 1``."""
        vectors = (("style", "l1"), ("accel", "l2"))
        return " + ".join(found for pair in vectors if (found := self._told(*pair))) or "no vector"

    def _told(self, vector: str, weight: str) -> str:
        mixes = self.rows[0].mixes
        names = dict.fromkeys(getattr(mix, vector) for mix in mixes)
        name = next((name for name in names if name != NONE), "")
        each = tuple(getattr(mix, weight) for mix in mixes)
        return name and f"{name.rpartition('/')[2]} {shown(each[0], each[1:] and each)}"


def units(rows: Sequence[Row]) -> tuple[Unit, ...]:
    """Rows by their weights, bases together; rows that differ in their role alone count once.

    Of each base margins and controls come first: what a cut grid holds of its cells can then be
    measured.

    Raises:
        UsageError: If a schedule has another number of steps than its row.
    """
    distinct = {(_contents(row), *row.pixels_key): row for row in reversed(rows)}
    for row in distinct.values():
        if len(row.mixes) not in (1, row.steps):
            raise UsageError(
                f"a schedule of {len(row.mixes)} λ does not fit {row.steps} steps",
                hint="give one λ a step, such as 1.2/1.0/0.6/0.6 for 4 steps",
            )
    ordered = sorted(distinct.values(), key=lambda row: repr((_contents(row), row.pixels_key)))
    found = [Unit(tuple(same)) for _, same in groupby(ordered, key=_contents)]
    return tuple(sorted(found, key=_turn))


def _turn(unit: Unit) -> tuple[str, bool]:
    return unit.rows[0].context.base, all(row.role == "cell" for row in unit.rows)


def _contents(row: Row) -> tuple[Hashable, ...]:
    return tuple(map(content, row.mixes))


def chunks(items: Sequence[Item], block: int) -> Iterator[tuple[Item, ...]]:
    """Items in blocks: the first seed of every prompt, then the second."""
    prompts, seeds = (list(dict.fromkeys(each)) for each in zip(*items, strict=True))
    wanted = set(items)
    ordered = [(p, s) for s in seeds for p in prompts if (p, s) in wanted]
    for at in range(0, len(ordered), block):
        yield tuple(ordered[at : at + block])


def groups(rows: Sequence[Row], block: int) -> Iterator[tuple[Row, ...]]:
    """Rows in their order, as many as draw :data:`CHUNK` pictures of a block of items."""
    count = max(1, CHUNK // block)
    for at in range(0, len(rows), count):
        yield tuple(rows[at : at + count])


@dataclass(eq=False)
class Engine:
    """Draws into a store.

    Args:
        store: Of the pictures; its keys say the number format and ``fast``.
        sources: Of bases and vectors.
        batches: Base → rows that its UNet gets at once. What is not there is fixed on the CPU, and
            measured once on CUDA; what it became stands here afterwards.
        on_batches: Told them whenever one is fixed or halved, before a picture of it is kept.
        counters: Work that was really done.
        drawing: The unit that is being drawn.
    """

    store: Store
    sources: Sources
    batches: dict[str, int] = field(default_factory=dict)
    on_batches: OnBatches = lambda _: None
    counters: Counters = field(default_factory=Counters)
    drawing: Unit | None = None
    _teller: Teller = field(init=False)
    _base: tuple[str, Base, LiveWeights] | None = None
    _applied: Hashable = None
    _text: Hashable = None
    _told: dict[tuple[Hashable, str, bool], Condition] = field(default_factory=dict)
    _table: tuple[Hashable, Condition] | None = None

    def __post_init__(self) -> None:
        self._teller = Teller(self.store.keys)

    def render(self, rows: Sequence[Row], items: Sequence[Item], on_rows: OnRows) -> None:
        """Makes every picture of some rows that is not there, unit by unit, chunk by chunk.

        The base's weights are pristine again afterwards, whatever happened.

        Args:
            rows: Ways of drawing.
            items: What each draws.
            on_rows: Told after each chunk.

        Raises:
            IncompatibleError: If a vector does not fit its base.
            UsageError: If a sampler, a number of steps, a method or a schedule is impossible.
            StorageError: If the disk refuses; what was committed stays.
        """
        try:
            for made in self.rendering(rows, items):
                on_rows(made)
        finally:
            self.restore()

    def rendering(self, rows: Sequence[Row], items: Sequence[Item]) -> Iterator[int]:
        """Goes from chunk to chunk as :meth:`render`, and gives the UNet rows of each.

        The base's weights are those of the last chunk afterwards: :meth:`restore`.

        Raises:
            IncompatibleError, UsageError, StorageError: As :meth:`render`.
        """
        for unit in units(rows):
            self.drawing = unit
            block = self._block(unit)
            for chunk, ways in product(chunks(items, block), groups(unit.rows, block)):
                started = time.perf_counter()
                pairs = [(row, item) for row in ways for item in chunk]
                absent = {self.store.key(*p): p for p in pairs if not self.store.has(*p)}
                if absent:
                    self.make(tuple(absent.values()))
                self.counters.wall_s += time.perf_counter() - started
                yield sum(row.nfe for row, _ in pairs)

    def make(self, pairs: Sequence[Pair]) -> Record:
        """Draws pictures of one unit together, and commits them as one chunk.

        Where a CUDA device has no room for the batch, it is halved for good and the chunk drawn
        again whole.

        Args:
            pairs: Row by row, as :meth:`render` and a :class:`Record` have them.
        """
        name = pairs[0][0].context.base
        base = self._use(name)
        while True:
            try:
                batch = self.batch(name)
                made = self._draw(base, pairs, batch)
                break
            except torch.OutOfMemoryError:
                if self.batches.get(name, 1) == 1:
                    raise
                self.settle(name, self.batches[name] // 2)
                torch.cuda.empty_cache()
        count, device = self.counters, base.unet.device
        count.pictures += len(pairs)
        count.unet_rows_unshared += sum(row.nfe for row, _ in pairs)
        if device.type == "cuda":
            count.peak_mib = torch.cuda.max_memory_allocated(device) / 2**20
        return self.store.commit(pairs, made, batch=batch, device=device.type)

    @property
    def loaded(self) -> str | None:
        """The base model that is at hand."""
        return self._base[0] if self._base else None

    def restore(self) -> None:
        """Gives the base its own weights back, to the bit."""
        if self._base is not None:
            self._base[2].apply(TaskVector())
        self._applied = self._text = None

    def _block(self, unit: Unit) -> int:
        few = self.sources.device == "cpu" and not self.sources.small(unit.rows[0].context.base)
        return FEW if few else MANY

    def batch(self, name: str) -> int:
        """UNet rows of a base at once; it is loaded and measured for that where nobody said."""
        if name not in self.batches:
            self.settle(name, self._first_batch(self._use(name)))
        return self.batches[name]

    def settle(self, name: str, rows: int) -> None:
        """Fixes the UNet rows of a base at once."""
        self.batches[name] = rows
        self.on_batches(self.batches)

    def _first_batch(self, base: Base) -> int:
        if base.unet.device.type == "cuda":
            return calibrated(base.pipeline, base.uncond(), fast=self.store.keys.fast)
        return CPU_BATCH[base.size <= SMALL]

    def _use(self, name: str) -> Base:
        """A base; there is one at a time."""
        if self._base is None or self._base[0] != name:
            self.restore()
            self._base, self._table, self._told = None, None, {}
            base = self.sources.base(name)
            self._base = (name, base, LiveWeights(base.pipeline))
            self.counters.pipeline_loads += 1
        return self._base[1]

    def _apply(self, mix: Mix) -> None:
        """Makes the weights those of a mix."""
        own = content(mix)
        if own == self._applied or self._base is None:
            return
        made = mixed(mix, self.sources.vector)
        self._base[2].apply(made.vector)
        self.counters.weight_rebuilds += 1
        self._applied, self._text = own, made.text

    def _draw(self, base: Base, pairs: Sequence[Pair], batch: int) -> list[Made]:
        mixes, texts = pairs[0][0].mixes, _Texts()
        self._forget(mixes)
        columns = [
            texts.column(row, [item for _, item in same], self.sources.grid_points_of(row))
            for row, same in groupby(pairs, key=lambda pair: pair[0])
        ]

        def told(step: int) -> Condition:
            self._apply(mixes[min(step, len(mixes) - 1)])
            return self._conditions(base, texts)

        told(0)
        started = time.perf_counter()
        drawn = draw(base.pipeline, columns, told, batch=batch, fast=self.store.keys.fast)
        pixels = self._decode(base, torch.cat(drawn.latents), max(1, batch // DECODED))
        elapsed = time.perf_counter() - started
        self.counters.unet_rows += drawn.unet_rows
        self.counters.unet_s += drawn.unet_s
        a_row = drawn.unet_s / drawn.unet_rows
        rest = (elapsed - drawn.unet_s) / len(pairs)
        shares = [float(share) for column in drawn.shares for share in column]
        return [
            Made(each, self._teller.told(*pair), a_row * share + rest, share)
            for pair, each, share in zip(pairs, pixels, shares, strict=True)
        ]

    def _decode(self, base: Base, z: Tensor, batch: int) -> list[np.ndarray | None]:
        """Latents as pictures; None where latents or picture are not finite."""
        started = time.perf_counter()
        found: list[np.ndarray | None] = [None] * len(z)
        finite = z.isfinite().flatten(1).all(1).nonzero().flatten().tolist()
        for at in range(0, len(finite), batch):
            part = finite[at : at + batch]
            for number, pixels in zip(part, decoded(base.pipeline, z[part]), strict=True):
                found[number] = rounded(pixels) if np.isfinite(pixels).all() else None
        self.counters.decodes += len(finite)
        self.counters.vae_s += time.perf_counter() - started
        return found

    def _conditions(self, base: Base, texts: _Texts) -> Condition:
        """What the network may be told, one row a text, by the text encoders as they are."""
        wanted = (self._text, tuple(texts.numbers))
        if self._table is None or self._table[0] != wanted:
            told = [self._encoded(base, *text) for text in texts.numbers]
            self._table = (wanted, joined(*told))
        return self._table[1]

    def _forget(self, mixes: Sequence[Mix]) -> None:
        """Lets go of what text encoders said in other states than these mixes' and their own."""
        kept = {None, *(text_state(mix, self.sources.vector) for mix in mixes)}
        self._told = {key: told for key, told in self._told.items() if key[0] in kept}

    def _encoded(self, base: Base, text: str, negative: bool) -> Condition:
        empty = negative and not text
        key = (self._text, text, empty)
        if key not in self._told:
            self._told[key] = base.uncond() if empty else base.encode([text])
            self.counters.text_encodes += 1
        return self._told[key]


@dataclass(eq=False)
class _Texts:
    """The distinct texts of a chunk, in order.

    Args:
        numbers: (text, whether it is what guidance leads away from) → its row.
    """

    numbers: dict[tuple[str, bool], int] = field(default_factory=dict)

    def column(self, row: Row, items: Sequence[Item], grid_points: int | None) -> Column:
        """The pictures of a row."""
        context = row.context
        return Column(
            row.sampler,
            row.steps,
            row.guidance,
            seeds=tuple(seed for _, seed in items),
            cond=tuple(self._number(context.text(prompt), False) for prompt, _ in items),
            uncond=tuple(self._number(context.negative, True) for _ in items)
            if row.guidance > 1
            else (),
            grid_points=grid_points,
        )

    def _number(self, text: str, negative: bool) -> int:
        return self.numbers.setdefault((text, negative), len(self.numbers))
