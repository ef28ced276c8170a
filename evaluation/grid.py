"""grid-eval from end to end: plan, pictures, metrics, tables."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.adapters import facts, load
from lcm_arith.combination import NONE
from lcm_arith.embedded import files, pictures
from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.evaluation.engine import Counters, Engine
from lcm_arith.evaluation.metrics import METRICS, PICTURE_METRICS, Sample, measure, names
from lcm_arith.evaluation.pixels import OK, defects
from lcm_arith.evaluation.plan import Grid, Row
from lcm_arith.evaluation.references import References, true_references
from lcm_arith.evaluation.stats import Interval, paired
from lcm_arith.evaluation.yardstick import Yardstick, cell_means
from lcm_arith.families import Shipped, check_same_family
from lcm_arith.fuse import check_compatible
from lcm_arith.sampling import load_pipeline, too_long
from lcm_arith.vector import TaskVector

KEY_COLUMNS: Final = ("role", "style", "accel", "l1", "l2", "sampler", "steps", "guidance")
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
)
IMAGE_COLUMNS: Final = (
    *KEY_COLUMNS,
    "prompt",
    "seed",
    "path",
    "sha256",
    *PICTURE_METRICS,
    "defect",
)

OnStage = Callable[[str, int, int, str], None]


@dataclass(frozen=True, eq=False)
class Result:
    """A measured grid.

    Args:
        grid: The plan.
        rows: base, teacher, one control per NFE (the best), and the cells, as in the CSV.
        cells: One line per row, :data:`CELL_COLUMNS`.
        images: One line per picture, :data:`IMAGE_COLUMNS`.
        metrics: Row → metric → one value per picture.
        pixels: Row → uint8 ``[items, H, W, 3]``.
        unknown_prompts: Prompts that have no true picture.
        cut_prompts: Prompts of which the text encoder reads only the beginning.
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

    def control(self, passes: int) -> Row:
        """The best control of an NFE."""
        return next(r for r in self.rows if r.role == "control" and r.nfe == passes)

    def against_control(self, cell: Row, metric: str = "pair_distance") -> Interval:
        """Cell − control of equal NFE, paired over prompt and seed."""
        control = self.control(cell.nfe)
        return paired(self.metric(cell, metric), self.metric(control, metric))


def load_vectors(style: str, accel: str) -> tuple[TaskVector, TaskVector, str | None]:
    """The two vectors, and the picture set that the style vector was trained on, if it says so.

    Raises:
        NotFoundError, InvalidContentError, IncompatibleError: If one of them cannot be used.
    """
    named = {name: load(name) for name in dict.fromkeys((style, accel)) if name != NONE}
    check_same_family(named)
    own = facts(named[style]).get("style") if style in named else None
    return (
        named.get(style, TaskVector()),
        named.get(accel, TaskVector()),
        own if isinstance(own, str) and own in pictures.sets() else None,
    )


def run_grid(
    grid: Grid,
    vectors: tuple[TaskVector, TaskVector],
    *,
    family: Shipped,
    folder: Path,
    on_stage: OnStage,
    fast: bool = False,
    references: References | None = None,
    chosen: Collection[str] = tuple(METRICS),
) -> Result:
    """Makes what is missing in ``folder``, measures everything, and returns the tables.

    Args:
        grid: The plan.
        vectors: Style and acceleration vector.
        family: Base model and its defaults.
        folder: Store of the pictures; an earlier one is continued.
        on_stage: Told about progress.
        fast: As in ``lcm_arith.sampling.sample``.
        references: Of the style; None takes the drawings of the grid's target sets.
        chosen: Metrics that are computed; the columns of others stay empty.

    Raises:
        IncompatibleError: If a vector does not fit the base model; nothing is made then.
    """
    engine, pipeline = draw_grid(
        grid, vectors, family=family, folder=folder, on_stage=on_stage, fast=fast
    )
    yardstick = Yardstick(
        load_judge(), load_probe(), grid.target_sets, grid.style_set, grid.prompts
    )
    return _measure(
        grid,
        engine,
        _samples(
            grid, engine, yardstick, references or true_references(grid.target_sets, grid.prompts)
        ),
        chosen,
        too_long(pipeline.tokenizer, grid.prompts),
        on_stage,
    )


def draw_grid(
    grid: Grid,
    vectors: tuple[TaskVector, TaskVector],
    *,
    family: Shipped,
    folder: Path,
    on_stage: OnStage,
    fast: bool = False,
) -> tuple[Engine, Any]:
    """Makes what is missing in ``folder``; the engine that knows the pictures, and the pipeline.

    Arguments and errors as :func:`run_grid`.
    """
    pipeline = load_pipeline(family.base)
    for tau in vectors:
        check_compatible(pipeline, tau)
    engine = Engine(folder, lambda: pipeline, _base_digest(family), *vectors, fast=fast)
    distinct = {row.pixels_key: row.nfe for row in grid.rows}
    total, done = sum(distinct.values()) * len(grid.items), 0

    def on_rows(rows: int) -> None:
        nonlocal done
        done += rows
        on_stage("draw", done, total, "UNet passes")

    engine.render(grid, on_rows)
    return engine, pipeline


def _base_digest(family: Shipped) -> str:
    listed = {
        path.relative_to(family.base).as_posix(): files.sha256(path)
        for path in sorted(family.base.rglob("*"))
        if path.is_file()
    }
    return json.dumps(listed, sort_keys=True)


def _samples(
    grid: Grid, engine: Engine, yardstick: Yardstick, references: References | None
) -> dict[Row, Sample]:
    def of(row: Row, teacher: Sample | None) -> Sample:
        return Sample(engine.pixels(row, grid), grid.prompts, yardstick, references, teacher)

    teacher = of(grid.teacher, None)
    return {row: teacher if row == grid.teacher else of(row, teacher) for row in grid.rows}


def _measure(
    grid: Grid,
    engine: Engine,
    samples: dict[Row, Sample],
    chosen: Collection[str],
    cut_prompts: list[str],
    on_stage: OnStage,
) -> Result:
    best = tuple(
        best_row(candidates, {row: samples[row].judged for row in candidates})
        for candidates in grid.controls.values()
    )
    rows = (grid.base, grid.teacher, *best, *grid.cells)
    metrics: dict[Row, dict[str, np.ndarray]] = {}
    of_cell: dict[Row, dict[str, float]] = {}
    faults: dict[Row, np.ndarray] = {}
    for done, row in enumerate(rows, 1):
        metrics[row], of_cell[row] = measure(samples[row], chosen)
        faults[row] = defects(samples[row].pixels)
        on_stage("measure", done, len(rows), "")
    cells = [
        {
            **_keys(grid, row),
            "n_prompts": len(grid.prompts),
            "n_seeds": len(grid.seeds),
            "n_images": len(grid.items),
            **cell_means(metrics[row]),
            **of_cell[row],
            "nfe": row.nfe,
            "seconds_per_image": engine.seconds_per_image(row, grid),
            "n_defects": int((faults[row] != OK).sum()),
        }
        for row in rows
    ]
    images = [
        _image_lines(grid, row, engine, {**metrics[row], "defect": faults[row]}) for row in rows
    ]
    return Result(
        grid,
        rows,
        pd.DataFrame(cells, columns=list(CELL_COLUMNS)),
        pd.concat(images, ignore_index=True),
        metrics,
        {row: samples[row].pixels for row in rows},
        samples[grid.teacher].yardstick.unknown_prompts,
        cut_prompts,
        engine.counters,
    )


def best_row(rows: Sequence[Row], metrics: dict[Row, dict[str, np.ndarray]]) -> Row:
    """The row with the smallest mean pair_distance; without true pictures, by prompt_score."""
    means = {row: cell_means(metrics[row]) for row in rows}
    if np.isfinite([means[row]["pair_distance"] for row in rows]).all():
        return min(rows, key=lambda row: float(means[row]["pair_distance"]))
    return max(rows, key=lambda row: float(means[row]["prompt_score"]))


def _keys(grid: Grid, row: Row) -> dict[str, Any]:
    return {
        "role": row.role,
        "style": grid.style,
        "accel": grid.accel,
        "l1": str(row.l1),
        "l2": str(row.l2),
        "sampler": row.sampler,
        "steps": row.steps,
        "guidance": row.guidance,
    }


def _image_lines(
    grid: Grid, row: Row, engine: Engine, columns: dict[str, np.ndarray]
) -> pd.DataFrame:
    paths = [engine.picture_path(row, item).relative_to(engine.folder) for item in grid.items]
    return pd.DataFrame(
        {
            **_keys(grid, row),
            "prompt": [prompt for prompt, _ in grid.items],
            "seed": [seed for _, seed in grid.items],
            "path": [path.as_posix() for path in paths],
            "sha256": engine.sha256(row, grid),
            **columns,
        },
        columns=list(IMAGE_COLUMNS),
    )
