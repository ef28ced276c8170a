"""grid-eval from end to end: plan, pictures, metrics, tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.evaluation.best import score
from lcm_arith.evaluation.engine import Counters, Engine, units
from lcm_arith.evaluation.keys import keys_of
from lcm_arith.evaluation.metrics import (
    BETTER,
    METRICS,
    PICTURE_METRICS,
    Sample,
    deciding,
    measure,
    names,
)
from lcm_arith.evaluation.pixels import OK, defects
from lcm_arith.evaluation.plan import Grid, Setting
from lcm_arith.evaluation.references import References, true_references
from lcm_arith.evaluation.rows import Row, keys
from lcm_arith.evaluation.sources import Sources
from lcm_arith.evaluation.stats import Interval, paired
from lcm_arith.evaluation.store import Store
from lcm_arith.evaluation.yardstick import Yardstick, cell_means

KEY_COLUMNS: Final = ("role", "style", "accel", "l1", "l2", "sampler", "steps", "guidance")
MORE_KEYS: Final = (
    "cell_id", "base", "method", "rank", "te", "l1_schedule", "l2_schedule", "negative", "edit",
)  # fmt: skip
"""Keys that came later: they stand behind."""
CELL_COLUMNS: Final = (
    *KEY_COLUMNS,
    "n_prompts",
    "n_seeds",
    "n_images",
    *names(since=1),
    "nfe",
    "seconds_per_image",
    *names(since=2),
    "n_defects",
    *MORE_KEYS,
)
IMAGE_COLUMNS: Final = (
    *KEY_COLUMNS,
    "prompt",
    "seed",
    "path",
    "sha256",
    *PICTURE_METRICS,
    "defect",
    *MORE_KEYS,
)

OnStage = Callable[[str, int, int, str], None]


@dataclass(frozen=True, eq=False)
class Result:
    """A measured grid.

    Args:
        grid: The plan.
        rows: Of each setting base, teacher, one control per NFE (the best); then the cells.
        cells: One line per row, :data:`CELL_COLUMNS`.
        images: One line per picture, :data:`IMAGE_COLUMNS`.
        metrics: Row → metric → one value per picture.
        pixels: Row → uint8 ``[items, H, W, 3]``.
        unknown_prompts: Prompts that have no true picture.
        cut_prompts: Prompts of which a text encoder reads only the beginning.
        counters: Work that was really done.
    """

    grid: Grid
    rows: tuple[Row, ...]
    cells: pd.DataFrame
    images: pd.DataFrame
    metrics: dict[Row, dict[str, np.ndarray]]
    pixels: dict[Row, np.ndarray]
    unknown_prompts: list[str]
    cut_prompts: list[str]
    counters: Counters

    def metric(self, row: Row, name: str) -> np.ndarray:
        """One metric of a row, ``[prompts, seeds]``."""
        shape = (len(self.grid.prompts), len(self.grid.seeds))
        return self.metrics[row][name].astype(float).reshape(shape)

    def control(self, row: Row) -> Row:
        """The best control of a row's context and NFE."""
        return next(
            r for r in self.rows if (r.role, r.context, r.nfe) == ("control", row.context, row.nfe)
        )

    def against_control(self, cell: Row, metric: str = "pair_distance") -> Interval:
        """Cell − control of equal NFE, paired over prompt and seed."""
        return paired(self.metric(cell, metric), self.metric(self.control(cell), metric))

    def parts(self) -> tuple[Result, ...]:
        """The results of each base and style, whose cells are compared with one another."""
        return tuple(self._part(part) for part in self.grid.parts())

    def _part(self, part: Grid) -> Result:
        if part == self.grid:
            return self
        contexts = {setting.context for setting in part.settings}
        rows = tuple(row for row in self.rows if row.context in contexts)
        ids = {row.cell_id for row in rows}
        return replace(
            self,
            grid=part,
            rows=rows,
            cells=self.cells[self.cells.cell_id.isin(ids)].reset_index(drop=True),
            images=self.images[self.images.cell_id.isin(ids)].reset_index(drop=True),
        )


def run_grid(
    grid: Grid,
    sources: Sources,
    *,
    folder: Path,
    on_stage: OnStage,
    fast: bool = False,
    references: References | None = None,
    chosen: Collection[str] = tuple(METRICS),
) -> Result:
    """Makes what is missing in ``folder``, measures everything, and returns the tables.

    Args:
        grid: The plan.
        sources: Of its bases and vectors.
        folder: Store of the pictures; an earlier one is continued.
        on_stage: Told about progress.
        fast: As in ``lcm_arith.sampling.sample``.
        references: Of the style; None takes the drawings of the grid's target sets.
        chosen: Metrics that are computed; the columns of others stay empty.

    Raises:
        IncompatibleError: If a vector does not fit the base model; nothing is made then.
    """
    engine = draw_grid(grid, sources, folder=folder, on_stage=on_stage, fast=fast)
    return _measure(grid, engine, _samples(grid, engine, references), chosen, on_stage)


def draw_grid(
    grid: Grid, sources: Sources, *, folder: Path, on_stage: OnStage, fast: bool = False
) -> Engine:
    """Makes what is missing in ``folder``; the engine that knows the pictures.

    Arguments and errors as :func:`run_grid`.
    """
    sources.check(grid.rows)
    engine = Engine(Store(folder, keys_of(sources, fast=fast)), sources)
    passes = sum(row.nfe for unit in units(grid.rows) for row in unit.rows)
    total, done = passes * len(grid.items), 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        on_stage("draw", done, total, "UNet passes")

    engine.render(grid.rows, grid.items, on_rows)
    return engine


def _samples(grid: Grid, engine: Engine, references: References | None) -> dict[Row, Sample]:
    found: dict[Row, Sample] = {}
    judge, probe = load_judge(), load_probe()
    for setting in grid.settings:
        drawn = tuple(map(setting.context.text, grid.prompts))
        yardstick = Yardstick(judge, probe, setting.target_sets, setting.style_set, drawn)
        held = references or true_references(setting.target_sets, drawn)

        teacher = Sample(engine.store.pixels(setting.teacher, grid.items), drawn, yardstick, held)
        cells = [cell for cell in grid.cells if cell.context == setting.context]
        for row in (*setting.rows, *cells):
            pixels = engine.store.pixels(row, grid.items)
            found[row] = Sample(pixels, drawn, yardstick, held, teacher)
        found[setting.teacher] = teacher
    return found


def _measure(
    grid: Grid,
    engine: Engine,
    samples: dict[Row, Sample],
    chosen: Collection[str],
    on_stage: OnStage,
) -> Result:
    margins = [row for setting in grid.settings for row in _margins(setting, samples)]
    rows = (*margins, *grid.cells)
    metrics: dict[Row, dict[str, np.ndarray]] = {}
    of_cell: dict[Row, dict[str, float]] = {}
    faults: dict[Row, np.ndarray] = {}
    for done, row in enumerate(rows, 1):
        metrics[row], of_cell[row] = measure(samples[row], chosen)
        faults[row] = defects(samples[row].pixels)
        on_stage("measure", done, len(rows), "")
    cells = [
        {
            **named(row),
            "n_prompts": len(grid.prompts),
            "n_seeds": len(grid.seeds),
            "n_images": len(grid.items),
            **cell_means(metrics[row]),
            **of_cell[row],
            "nfe": row.nfe,
            "seconds_per_image": _seconds(engine.store, grid, row),
            "n_defects": int((faults[row] != OK).sum()),
        }
        for row in rows
    ]
    images = [
        _image_lines(grid, row, engine, {**metrics[row], "defect": faults[row]}) for row in rows
    ]
    unknown = (p for s in grid.settings for p in samples[s.teacher].yardstick.unknown_prompts)
    return Result(
        grid,
        rows,
        pd.DataFrame(cells, columns=list(CELL_COLUMNS)),
        pd.concat(images, ignore_index=True),
        metrics,
        {row: samples[row].pixels for row in rows},
        list(dict.fromkeys(unknown)),
        _cut_prompts(grid, engine.sources),
        engine.counters,
    )


def _seconds(store: Store, grid: Grid, row: Row) -> float:
    """Wall time a picture, decoding included, and shared steps divided among those that share."""
    return float(np.mean([picture.seconds for picture in store.pictures(row, grid.items)]))


def _cut_prompts(grid: Grid, sources: Sources) -> list[str]:
    bases = dict.fromkeys(setting.context.base for setting in grid.settings)
    cut = {prompt for base in bases for prompt in sources.too_long(base, grid.prompts)}
    return [prompt for prompt in grid.prompts if prompt in cut]


def _margins(setting: Setting, samples: dict[Row, Sample]) -> tuple[Row, ...]:
    def mean(row: Row, metric: str) -> float:
        values: np.ndarray = METRICS[metric].function(samples[row])
        return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")

    best = (best_row(candidates, mean) for candidates in setting.controls.values())
    return (setting.base, setting.teacher, *best)


def best_row(rows: Sequence[Row], mean: Callable[[Row, str], float]) -> Row:
    """The best row by the first metric of ``DECIDING`` that all of them have."""

    def means(metric: str) -> np.ndarray:
        return np.array([mean(row, metric) for row in rows])

    metric = deciding(means)
    return rows[int(np.argmax(score(means(metric), BETTER[metric])))]


def named(row: Row) -> dict[str, Any]:
    """The columns that name a row."""
    return {**keys(row), "cell_id": row.cell_id}


def _image_lines(
    grid: Grid, row: Row, engine: Engine, columns: dict[str, np.ndarray]
) -> pd.DataFrame:
    store = engine.store
    paths = [store.picture_path(row, item).relative_to(store.folder) for item in grid.items]
    return pd.DataFrame(
        {
            **named(row),
            "prompt": [prompt for prompt, _ in grid.items],
            "seed": [seed for _, seed in grid.items],
            "path": [path.as_posix() for path in paths],
            "sha256": store.sha256(row, grid.items),
            **columns,
        },
        columns=list(IMAGE_COLUMNS),
    )
