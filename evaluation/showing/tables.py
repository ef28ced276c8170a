"""What the tables of a grid say of each row: where it stands, what it is compared with, its marks.

Pages and charts read these tables alone, so that they can be made again from the CSV files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.evaluation.judging.metrics import BETTER, METRICS
from lcm_arith.evaluation.statistics.best import TARGETS, score
from lcm_arith.evaluation.statistics.comparisons import SURE

CONTEXT: Final = ("base", "style", "negative", "edit")
"""Rows that differ in none of these share teacher and controls."""
GROUP: Final = ("base", "style")
"""Cells that differ in one of these are not compared with one another."""
PALETTE: Final = ("#2e1e3c", "#413d7b", "#37659e", "#348fa7", "#40b7ad", "#8ad9b1", "#def5e5")
"""Worst to best: seaborn's mako (BSD-3-Clause) without its black end."""
_NAMES: Final = {
    "l1": "λ₁", "l2": "λ₂", "steps": "steps", "guidance": "guidance", "sampler": "sampler",
    "method": "method", "rank": "rank", "te": "text encoder λ", "style": "style",
    "accel": "acceleration", "base": "base model", "negative": "negative prompt", "edit": "edit",
}  # fmt: skip
_EMPTY: Final = {"rank": "full", "te": "1"}
_USUAL: Final = {"method": "linear", "negative": "none", "edit": "none", **_EMPTY}


@dataclass(frozen=True, eq=False)
class Axis:
    """A column in which the cells of a grid differ.

    Args:
        column: Of the table.
        name: What a person reads.
        values: In order: of numbers by size, of words as they appear.
        at: Which of them each cell has, ``[cells]``.
    """

    column: str
    name: str
    values: tuple[str, ...]
    at: np.ndarray

    @property
    def telling(self) -> bool:
        """Whether it varies, or its one value is not the usual one."""
        return self.values != (_USUAL.get(self.column),)

    def spoken(self, value: str) -> str:
        """A value with its axis, in words."""
        if self.column == "steps":
            return f"{value} step" if value == "1" else f"{value} steps"
        return f"{self.name} {value}".strip()


def of_cells(table: pd.DataFrame) -> pd.DataFrame:
    """The lines of role cell."""
    return table[table["role"] == "cell"]


def axes(table: pd.DataFrame) -> tuple[list[Axis], list[Axis]]:
    """Axes of a grid's cells: those that vary, and those of one value."""
    cells = of_cells(table)
    found = [_axis(cells, column) for column in _NAMES]
    return [a for a in found if len(a.values) > 1], [a for a in found if len(a.values) == 1]


def _axis(cells: pd.DataFrame, column: str) -> Axis:
    none = pd.Series("", cells.index)
    schedule = cells.get(f"{column}_schedule", none).fillna("")
    labels = [
        str(text) or _label(column, value)
        for text, value in zip(schedule, cells[column], strict=True)
    ]
    first = dict(zip(labels, range(len(labels)), strict=True))
    sizes = pd.to_numeric(cells[column], errors="coerce").fillna(np.inf).tolist()
    values = sorted(dict.fromkeys(labels), key=lambda label: sizes[first[label]])
    return Axis(
        column, _NAMES[column], tuple(values), np.array([values.index(label) for label in labels])
    )


def _label(column: str, value: Any) -> str:
    if value is None or value == "" or value != value:
        return _EMPTY.get(column, "none")
    try:
        return f"{float(value):.12g}"
    except ValueError:
        return str(value)


def companions(table: pd.DataFrame, role: str, *, same: tuple[str, ...] = ()) -> np.ndarray:
    """Place of each row's teacher or control in the table, ``[rows]``; −1 where it has none.

    Args:
        table: Of all roles.
        role: Of the companions.
        same: Columns in which they must agree, besides :data:`CONTEXT`.
    """
    keys = _lines(table, (*CONTEXT, *same))
    roles = table["role"].tolist()
    place = {key: n for n, (key, own) in enumerate(zip(keys, roles, strict=True)) if own == role}
    return np.array([place.get(key, -1) for key in keys])


def measured(table: pd.DataFrame) -> list[str]:
    """Metrics that some cell has a value of; counts, of which none is better, are not shown."""
    cells = of_cells(table)
    shown = [name for name in METRICS if BETTER[name] != "none"]
    return [name for name in shown if np.isfinite(cells[name].to_numpy(float)).any()]


def _lines(table: pd.DataFrame, columns: tuple[str, ...]) -> list[tuple[str, ...]]:
    texts = table[list(columns)].fillna("").astype(str).to_numpy().tolist()
    return [tuple(line) for line in texts]


def groups(table: pd.DataFrame) -> list[str]:
    """Base and style of each row, as one text."""
    return ["\x1f".join(line) for line in _lines(table, GROUP)]


def merit(table: pd.DataFrame, metric: str) -> np.ndarray:
    """Means of a metric such that the larger is the better, ``[rows]``; NaN where not defined."""
    values = table[metric].to_numpy(float)
    if BETTER[metric] != "teacher":
        return score(values, BETTER[metric])
    teacher = companions(table, "teacher")
    return np.where(teacher < 0, np.nan, -np.abs(values - values[teacher]))


def goal(metric: str) -> str:
    """Which values of a metric are better, in words."""
    better = BETTER[metric]
    words = {"high": "higher is better", "low": "lower is better"}
    if better in TARGETS:
        return f"best at {TARGETS[better]:g}"
    return words.get(better, "best near the teacher's")


def in_best_set(table: pd.DataFrame) -> np.ndarray:
    """Rows that may be the best one of their group, ``[rows]``."""
    return np.array([str(value) == "True" for value in table["in_best_set"]], dtype=bool)


def undecided(table: pd.DataFrame, comparisons: pd.DataFrame, metric: str) -> np.ndarray:
    """Cells that are not told apart from their baseline by a metric, ``[rows]``."""
    lines = comparisons[comparisons["metric"] == metric]
    unsure = lines["cell_id"][~(lines["p_holm"].astype(float) <= SURE)]
    return table["cell_id"].isin(set(unsure)).to_numpy()


def baselines(table: pd.DataFrame, comparisons: pd.DataFrame) -> np.ndarray:
    """Cells that others are compared with, ``[rows]``."""
    return table["cell_id"].isin(set(comparisons["baseline_id"])).to_numpy()


def contexts(table: pd.DataFrame) -> list[str]:
    """What sets a row's margins apart from others: base, style, negative, edit; ``[rows]``.

    Empty where all have the same.
    """
    named = table[list(CONTEXT)].fillna("").astype(str)
    vary = [name for name in CONTEXT if named.loc[table["role"] == "teacher", name].nunique() > 1]
    return [
        ", ".join(
            value if name in GROUP else f"{name} {value or 'none'}"
            for name, value in zip(vary, values, strict=True)
        )
        for values in named[vary].to_numpy()
    ]
