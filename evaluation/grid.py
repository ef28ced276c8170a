"""A measured grid: its tables, and the values behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.judging.metrics import names
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Row, keys
from lcm_arith.evaluation.statistics.stats import Interval, paired

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
    "status",
    "n_failed",
    "partial",
    "nfe_run",
    *names(since=3),
)
IMAGE_COLUMNS: Final = (
    *KEY_COLUMNS,
    "prompt",
    "seed",
    "path",
    "sha256",
    *names(per="picture", since=1),
    *names(per="picture", since=2),
    "defect",
    *MORE_KEYS,
    "status",
    "nfe_run",
    *names(per="picture", since=3),
)


@dataclass(frozen=True, eq=False)
class Pixels(Mapping[Row, np.ndarray]):
    """Row → its pictures, uint8 ``[items, H, W, 3]``, read from the store when asked for."""

    store: Store
    grid: Grid

    def __getitem__(self, row: Row) -> np.ndarray:
        return self.store.pixels(row, self.grid.items)

    def first(self, row: Row, prompts: int) -> list[np.ndarray]:
        """Of the first captions the first seed's picture, ``[H, W, 3]`` each; no other is read."""
        items = [(prompt, self.grid.seeds[0]) for prompt in self.grid.prompts[:prompts]]
        return list(self.store.pixels(row, items))

    def __iter__(self) -> Iterator[Row]:
        return iter(self.grid.rows)

    def __len__(self) -> int:
        return len(self.grid.rows)


@dataclass(frozen=True, eq=False)
class Result:
    """A measured grid.

    Args:
        grid: The plan.
        rows: Of each setting base, teacher, one control per NFE (the best); then the cells.
        cells: One line per row, :data:`CELL_COLUMNS`.
        images: One line per picture, :data:`IMAGE_COLUMNS`.
        metrics: Row → metric → one value per picture.
        pixels: Row → uint8 ``[items, H, W, 3]``, read when asked for.
        unknown_prompts: Prompts that have no true picture.
        cut_prompts: Prompts and negatives of which a text encoder reads only the beginning.
        counters: Work that was really done.
        left_out: Cells that lack a picture, and are not among the rows → why: ``nan``, ``error``
            or ``missing``.
        left_lines: Their lines for the table.
        empty: What keeps metrics empty, in words.
        failed: Rows whose drawing was given up → what went wrong.
        dropped: Prompts that are not in ``grid``: a base's or a teacher's picture of them is none.
    """

    grid: Grid
    rows: tuple[Row, ...]
    cells: pd.DataFrame
    images: pd.DataFrame
    metrics: dict[Row, dict[str, np.ndarray]]
    pixels: Pixels
    unknown_prompts: list[str]
    cut_prompts: list[str]
    counters: Counters
    left_out: Mapping[Row, str] = field(default_factory=dict)
    left_lines: pd.DataFrame = field(default_factory=pd.DataFrame)
    empty: tuple[str, ...] = ()
    failed: Mapping[Row, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()

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
        gone = {row: why for row, why in self.left_out.items() if row.context in contexts}
        ids = {row.cell_id for row in (*rows, *gone)}
        return replace(
            self,
            grid=part,
            rows=rows,
            cells=_of(self.cells, ids),
            images=_of(self.images, ids),
            left_out=gone,
            left_lines=_of(self.left_lines, ids),
        )


def _of(table: pd.DataFrame, ids: set[str]) -> pd.DataFrame:
    """The lines of some rows."""
    return table[table.cell_id.isin(ids)].reset_index(drop=True) if len(table) else table


def named(row: Row) -> dict[str, Any]:
    """The columns that name a row."""
    return {**keys(row), "cell_id": row.cell_id}
