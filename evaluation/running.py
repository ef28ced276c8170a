"""grid-eval from end to end: draw what is missing, measure all of it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.drawing.engine import Engine, OnBatches
from lcm_arith.evaluation.drawing.executors.local import local
from lcm_arith.evaluation.drawing.executors.tasks import Executor
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.shards import WHOLE, Shard
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.judging.metrics import METRICS
from lcm_arith.evaluation.measuring import Measuring, OnStage, measured
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Row


def run_grid(
    grid: Grid,
    sources: Sources,
    *,
    folder: Path,
    on_stage: OnStage,
    fast: bool = False,
    chosen: Collection[str] = tuple(METRICS),
) -> Result:
    """Makes what is missing in ``folder``, measures everything, and returns the tables.

    Args:
        grid: The plan.
        sources: Of its bases and vectors.
        folder: Store of the pictures; an earlier one is continued.
        on_stage: Told about progress.
        fast: As in ``lcm_arith.sampling.sample``.
        chosen: Metrics that are computed; the columns of others stay empty.

    Raises:
        IncompatibleError: If a vector does not fit the base model; nothing is made then.
    """
    drawn = draw_grid(grid, sources, folder=folder, on_stage=on_stage, fast=fast)
    measuring = Measuring(grid, drawn.store, chosen=chosen, failed=drawn.failed)
    return measured(measuring, sources, drawn.counters, on_stage)


@dataclass(frozen=True, eq=False)
class Drawn:
    """A grid's pictures.

    Args:
        store: Holds them.
        rows: Which were asked for: of the grid's distinct rows all, or those of a shard.
        counters: Work that was really done.
        failed: Rows whose drawing was given up → why; some of their pictures may be there.
        batches: Base → UNet rows at once, as far as they are known.
    """

    store: Store
    rows: tuple[Row, ...] = ()
    counters: Counters = field(default_factory=Counters)
    failed: Mapping[Row, str] = field(default_factory=dict)
    batches: Mapping[str, int] = field(default_factory=dict)


def draw_grid(
    grid: Grid,
    sources: Sources,
    *,
    folder: Path,
    on_stage: OnStage,
    fast: bool = False,
    batches: Mapping[str, int] = MappingProxyType({}),
    on_batches: OnBatches = lambda _: None,
    shard: Shard = WHOLE,
    executor: Executor = local,
) -> Drawn:
    """Makes what is missing in ``folder``, and measures nothing.

    Other arguments and errors as :func:`run_grid`. With a ``shard``, of that part of the grid; the
    ``executor`` says who draws, ``batches`` how many UNet rows of a base at once where that is
    known; ``on_batches`` is told them when one is fixed, before a picture of it is kept.
    """
    sources.check(grid.rows)
    engine = Engine(Store(folder, keys_of(sources, fast=fast)), sources, dict(batches), on_batches)
    rows = shard.rows(grid.rows, engine.store.keys)
    passes = sum(row.nfe for row in rows)
    total, done = passes * len(grid.items), 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        unit = f" {engine.drawing.label}" if engine.drawing else ""
        on_stage("draw", done, total, f"UNet rows{unit}")

    outcome = executor(engine, rows, grid.items, on_rows)
    names = {row: engine.store.keys.weights(row) for row in grid.rows}
    failed = {row: outcome.failed[name] for row, name in names.items() if name in outcome.failed}
    return Drawn(engine.store, rows, outcome.counters, failed, engine.batches)
