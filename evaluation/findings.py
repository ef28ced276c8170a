"""What a measured grid says: intervals, comparisons, the best set, the fewest steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.errors import DivergedError, LcmArithError, NotFoundError
from lcm_arith.evaluation.asked import Asked, Margin, cell_at, confirmation
from lcm_arith.evaluation.grid import KEY_COLUMNS, Result
from lcm_arith.evaluation.judging.metrics import BETTER, PICTURE_METRICS, deciding, ends
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Row
from lcm_arith.evaluation.showing.pareto import front
from lcm_arith.evaluation.statistics.best import best_set, lower_bounds, score
from lcm_arith.evaluation.statistics.comparisons import compare
from lcm_arith.evaluation.statistics.stats import intervals, per_prompt

PAPER: Final = (Decimal("0.8"), Decimal(1), 4)  # eq. 3's λ1 and λ2, and LCM-LoRA's usual steps
COMPARISON_COLUMNS: Final = (
    *KEY_COLUMNS, "baseline_l1", "baseline_l2", "baseline_steps", "metric",
    "diff", "lo", "hi", "p_perm", "p_holm", "p_better", "n_prompts", "cell_id", "baseline_id",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Findings:
    """The statistics of a measured grid.

    Args:
        metric: What decides which cell is best.
        columns: Appended to the grid's table: ``m_lo`` and ``m_hi`` of each metric m, ``p_best``,
            ``in_best_set``; one line per row.
        comparisons: Every other cell against the baseline, :data:`COMPARISON_COLUMNS`.
        baseline: That cell.
        chosen: No baseline was named, and the best cell by these pictures took its place.
        best: Cells of the best set → probability of being best, falling; empty if there are too
            few prompts.
        ranked: All cells, the likeliest best first; by their means where there is no probability.
        margin: What was asked of the teacher, if anything.
        fewest: The cell of fewest steps that is proven to keep that margin, and how much better
            than the teacher it is at least; None if there is none.
    """

    metric: str
    columns: pd.DataFrame
    comparisons: pd.DataFrame
    baseline: Row
    chosen: bool
    best: dict[Row, float]
    ranked: tuple[Row, ...]
    margin: Margin | None
    fewest: tuple[Row, float] | None


@dataclass(frozen=True, eq=False)
class Answer:
    """What the cells of one base and style say.

    Args:
        result: Their part of the grid.
        found: Its statistics.
        again: The best cells on fresh seeds, if that was asked.
        lost: Why that could not be measured.
    """

    result: Result
    found: Findings
    again: tuple[Result, Findings] | None = None
    lost: LcmArithError | None = None


def answer(
    result: Result, asked: Asked | None = None, draw: Callable[[Grid], Result] | None = None
) -> tuple[Answer, ...]:
    """The statistics of each base and style of a measured grid.

    Args:
        result: The grid.
        asked: None asks the usual.
        draw: Draws and measures a grid, for the confirmation where one is asked.
    """
    asked, answers = asked or Asked(), []
    for part in result.parts():
        found = find(part, replace(asked, baseline=_counterpart(part, asked.baseline)))
        confirm = min(asked.confirm, len(part.grid.cells)) if draw else 0
        again, lost = None, None
        try:
            again = confirmed(part.grid, found, confirm, draw) if draw and confirm else None
        except (DivergedError, NotFoundError) as error:
            lost = error  # of the fresh pictures: the grid itself has its figures
        answers.append(Answer(part, found, again, lost))
    return tuple(answers)


def _counterpart(part: Result, baseline: Row | None) -> Row | None:
    """The baseline, or the cell that differs from it by base and style alone."""
    if baseline is None:
        return None
    cells = part.grid.cells
    alike = (
        row
        for row in cells
        if replace(row, context=replace(row.context, base="", style=""))
        == replace(baseline, context=replace(baseline.context, base="", style=""))
    )
    return baseline if baseline in cells else next(alike, None)


def whole_table(answers: Sequence[Answer]) -> pd.DataFrame:
    """The tables of all answers with their statistics, as in the CSV; what is left out is last."""
    tables = [with_findings(answer.result, answer.found) for answer in answers]
    left = [answer.result.left_lines for answer in answers if len(answer.result.left_lines)]
    return pd.concat([*tables, *left], ignore_index=True)


def find(result: Result, asked: Asked | None = None) -> Findings:
    """The statistics of a measured grid of one base and style."""
    asked = asked or Asked()
    cells = [row for row in result.rows if row.role == "cell"]
    metric = asked.metric or deciding(lambda name: _values(result, cells, name))
    found = best_set(_values(result, cells, metric), BETTER[metric])
    merit = score(_means(result, cells, metric), BETTER[metric])
    ranked = tuple(cells[n] for n in np.lexsort((-merit, -found.p)))  # NaN comes last
    best = {cells[n]: float(found.p[n]) for n in found.members}
    named = asked.baseline or cell_at(result.grid, *PAPER)
    named = named if named in cells else None  # it lacks a picture
    against = named or ranked[0]
    total = _searched_cells(result, asked)
    return Findings(
        metric=metric,
        columns=_columns(result, dict(zip(cells, found.p, strict=True)), best),
        comparisons=_comparisons(result, cells, against, chosen=named is None, total=total),
        baseline=against,
        chosen=named is None,
        best=best,
        ranked=ranked,
        margin=asked.margin,
        fewest=_fewest(result, cells, asked.margin) if asked.margin else None,
    )


def _searched_cells(result: Result, asked: Asked) -> int | None:
    """Cells among which a search chose those with figures; None without a search.

    Until a search ends, the plan holds all of them.
    """
    if asked.searched:
        return asked.searched.total
    return len(result.grid.cells) if asked.search else None


def confirmed(
    grid: Grid, found: Findings, count: int, draw: Callable[[Grid], Result]
) -> tuple[Result, Findings]:
    """The ``count`` best cells on seeds that did not choose them, by ``draw``."""
    again = draw(confirmation(grid, found.ranked[:count]))
    return again, find(again, Asked(metric=found.metric))


def with_findings(result: Result, found: Findings) -> pd.DataFrame:
    """The grid's table and its statistics, as in the CSV."""
    table = pd.concat([result.cells, found.columns], axis=1)
    return table.assign(pareto=front(table, found.metric))


def _values(result: Result, rows: Sequence[Row], metric: str) -> np.ndarray:
    return np.stack([result.metric(row, metric) for row in rows])  # [rows, prompts, seeds]


def _means(result: Result, rows: list[Row], metric: str) -> np.ndarray:
    return per_prompt(per_prompt(_values(result, rows, metric)))


def _fewest(result: Result, cells: list[Row], margin: Margin) -> tuple[Row, float] | None:
    values = _values(result, cells, margin.metric)
    teachers = [result.metric(result.grid.of(row).teacher, margin.metric) for row in cells]
    bounds = lower_bounds(values, np.stack(teachers), BETTER[margin.metric])
    kept = [
        (row, float(bound))
        for row, bound in zip(cells, bounds, strict=True)
        if bound > -margin.delta
    ]
    return min(kept, key=lambda pair: (pair[0].steps, -pair[1]), default=None)


def _columns(result: Result, p_best: dict[Row, float], best: dict[Row, float]) -> pd.DataFrame:
    columns: dict[str, Any] = {}
    for metric in PICTURE_METRICS:
        found = intervals(per_prompt(_values(result, result.rows, metric)).T)
        low, high = np.clip(found[:, 1:], *ends(metric)).T
        columns[f"{metric}_lo"], columns[f"{metric}_hi"] = low, high
    columns["p_best"] = [p_best.get(row, np.nan) for row in result.rows]
    columns["in_best_set"] = pd.Series(
        [row in best if best and row in p_best else None for row in result.rows],
        dtype=object,
    )
    return pd.DataFrame(columns)


def _comparisons(
    result: Result, cells: list[Row], baseline: Row, *, chosen: bool, total: int | None
) -> pd.DataFrame:
    keys = dict(
        zip(result.rows, result.cells[[*KEY_COLUMNS, "cell_id"]].to_dict("records"), strict=True)
    )
    others = [row for row in cells if row != baseline]
    against = {f"baseline_{key}": keys[baseline][key] for key in ("l1", "l2", "steps")}
    against["baseline_id"] = baseline.cell_id
    lines = [
        {
            **keys[row],
            **against,
            "metric": metric,
            "diff": one.diff.mean,
            "lo": one.diff.low,
            "hi": one.diff.high,
            "p_perm": one.p,
            "p_holm": one.p_holm,
            "p_better": one.p_better,
            "n_prompts": one.prompts,
        }
        for metric in (PICTURE_METRICS if others else ())
        for row, one in zip(
            others,
            compare(
                _values(result, others, metric), result.metric(baseline, metric),
                BETTER[metric], chosen=chosen, total=total,
            ),
            strict=True,
        )
    ]  # fmt: skip
    return pd.DataFrame(lines, columns=list(COMPARISON_COLUMNS))
