"""``--search``: the search of ``search.py`` over the cells of a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.metrics import BETTER
from lcm_arith.evaluation.plan import Grid, Row
from lcm_arith.evaluation.search import SEARCHES, Instance, Problem, blocks, check_method, search

Item = tuple[str, int]
MeasureItems = Callable[[Row, Sequence[Item]], np.ndarray]
"""The deciding metric of a row's pictures, drawn if they are missing: one value an item."""


@dataclass(frozen=True)
class Asked:
    """``--search METHOD --budget ROWS``."""

    method: str
    budget: int


@dataclass(frozen=True)
class Searched:
    """What a search leaves of a grid.

    Args:
        grid: Its finished cells alone, with their margins and controls.
        asked: Method and budget.
        total: Cells of the whole grid.
        proposed: Cells of which pictures were made.
        spent: UNet rows, margins and controls included, each picture as if made alone.
    """

    grid: Grid
    asked: Asked
    total: int
    proposed: int
    spent: int

    @property
    def line(self) -> str:
        """What was searched and what that is worth, for a person."""
        done = len(self.grid.cells)
        return (
            f"Searched ({self.asked.method}) {self.proposed} of {self.total} cells, {done} of them "
            f"on all {len(self.grid.items)} pictures, with {self.spent} of {self.asked.budget} "
            f"UNet rows. The tables hold those {done}, and the best set says which of them may be "
            "the best; these pictures chose them, so their means are too good"
        )

    @property
    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "method": self.asked.method,
            "budget": self.asked.budget,
            "spent": self.spent,
            "cells": self.total,
            "proposed": self.proposed,
            "finished": len(self.grid.cells),
        }


def parse_search(
    grid: Grid, method: str | None, budget: int | None, start: Row | None = None
) -> Asked | None:
    """The options of these names, None where not given; checked before anything is drawn.

    Args:
        grid: The whole grid.
        method: ``--search``.
        budget: ``--budget``, UNet rows.
        start: As :func:`search_grid`.

    Raises:
        UsageError: If one comes without the other, the method is unknown or cannot run here, or the
            budget does not finish one cell.
    """
    if method is None and budget is None:
        return None
    if method is None:
        raise UsageError("--budget caps a search", hint=f"add --search {next(iter(SEARCHES))}")
    if method not in SEARCHES:
        raise UsageError(f"--search {method!r}: no such method", hint=", ".join(SEARCHES))
    check_method(method)
    if budget is None:
        raise UsageError(f"--search {method} needs a cap", hint="add --budget ROWS, UNet rows")
    fixed = fixed_rows(grid)
    cells = [start] if start else grid.cells
    least = fixed + min(row.nfe for row in cells) * len(grid.items)
    if budget < least:
        raise UsageError(
            f"--budget {budget}: margins and controls take {fixed} UNet rows on all "
            f"{len(grid.items)} pictures, and one cell {least - fixed} more",
            hint=f"at least --budget {least}, or fewer prompts, seeds or step counts",
        )
    return Asked(method, budget)


def search_grid(
    grid: Grid,
    asked: Asked,
    metric: str,
    measure: MeasureItems,
    *,
    start: Row | None = None,
    on_rows: Callable[[int], None] = lambda rows: None,
    seed: int = 0,
) -> Searched:
    """Searches a grid for its best cells.

    The budget covers all that the outcome shows: margins and controls are set aside first, for
    every NFE of the grid. A confirmation comes on top.

    Args:
        grid: The whole grid.
        asked: Method and budget.
        metric: Decides which cell is best.
        measure: As :data:`MeasureItems`; a store behind it lets a search go on where one ended.
        start: Cell that is finished first, so that the outcome holds it: the baseline.
        on_rows: Told the UNet rows of each block.
        seed: Of the proposals.

    Raises:
        UsageError: As :func:`parse_search`.
    """

    def values(cell: int, block: tuple[Instance, ...]) -> np.ndarray:
        row = grid.cells[cell]
        found = measure(row, [(grid.prompts[p], grid.seeds[s]) for p, s in block])
        on_rows(row.nfe * len(block))
        return found

    fixed = fixed_rows(grid)
    problem = _problem(grid, values, BETTER[metric])
    found = search(
        problem, asked.budget - fixed, method=asked.method, seed=seed, start=_number(grid, start)
    )
    return Searched(
        only(grid, [grid.cells[cell] for cell in found.finished]),
        asked,
        len(grid.cells),
        len(found.proposed),
        fixed + found.spent,
    )


def only(grid: Grid, cells: Iterable[Row]) -> Grid:
    """The same grid of these cells alone, and the controls of their NFE."""
    kept = set(cells)
    passes = {row.nfe for row in kept}
    return replace(
        grid,
        cells=tuple(row for row in grid.cells if row in kept),
        controls={n: ways for n, ways in grid.controls.items() if n in passes},
    )


def fixed_rows(grid: Grid) -> int:
    """UNet rows of margins and controls, whatever cells there are."""
    distinct = {row.pixels_key: row.nfe for row in grid.rows if row.role != "cell"}
    return sum(distinct.values()) * len(grid.items)


def _problem(
    grid: Grid, measure: Callable[[int, tuple[Instance, ...]], np.ndarray], better: str
) -> Problem:
    points = [_point(row) for row in grid.cells]
    nfe = [row.nfe for row in grid.cells]
    return Problem(points, blocks(len(grid.prompts), len(grid.seeds)), nfe, measure, better)


def _point(value: Any) -> tuple[Any, ...]:
    """Everything in which cells can differ, one level deep into what a row is made of."""
    parts = [getattr(value, field.name) for field in fields(value) if field.name != "role"]
    return tuple(
        leaf for part in parts for leaf in (_point(part) if is_dataclass(part) else (part,))
    )


def _number(grid: Grid, row: Row | None) -> int | None:
    return None if row is None else grid.cells.index(row)
