"""The findings of a grid in words and in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.evaluation import grid
from lcm_arith.evaluation.asked import Asked, Searched
from lcm_arith.evaluation.findings import Answer, Findings, with_findings
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.measuring import MISSING
from lcm_arith.evaluation.plans.rows import Row, others, shown
from lcm_arith.evaluation.report import verdict
from lcm_arith.evaluation.statistics.comparisons import SURE
from lcm_arith.modules import EMBEDDED

_NAMED: Final = 6  # cells that a sentence names
_LAMBDAS: Final = ("l1", "l2", "te")


def named(row: Row) -> str:
    """A cell in words."""
    weights = f"λ1={shown(row.l1, row.l1_schedule)} λ2={shown(row.l2, row.l2_schedule)}"
    return " ".join((weights, f"steps={row.steps}", *others(row)))


def best_line(found: Findings) -> str:
    """Which cells may be the best one; empty where there is but one."""
    total = len(found.ranked)
    if total == 1:
        return ""
    if not found.best:
        return f"Best by {found.metric}: not to be told from pictures of so few prompts"
    shown = [f"{named(row)} ({p:.0%})" for row, p in list(found.best.items())[:_NAMED]]
    rest = len(found.best) - len(shown)
    more = f" and {rest} more (in_best_set of the table)" if rest else ""
    many = "the best cell is this one" if len(found.best) == 1 else (
        f"the best cell is one of these {len(found.best)}"
    )  # fmt: skip
    return f"Best by {found.metric}, 95 %, of {total} cells: {many}: {', '.join(shown)}{more}"


def baseline_line(found: Findings) -> str:
    """How many cells differ from the baseline, by the metric that decides; empty for one cell."""
    table = found.comparisons[found.comparisons["metric"] == found.metric]
    if table.empty:
        return ""
    sure = table["p_holm"] <= SURE
    better, worse = (
        int((sure & side).sum()) for side in (table.p_better > 0.5, table.p_better < 0.5)
    )
    how = ", chosen by these pictures" if found.chosen else ""
    return (
        f"Against the baseline {named(found.baseline)}{how}: of {len(table)} cells {better} "
        f"better, {worse} worse, {len(table) - better - worse} not told apart (Holm, {SURE:.0%})"
    )


def margin_line(found: Findings) -> str:
    """The fewest steps that are not inferior to the teacher; empty if nobody asked."""
    if found.margin is None:
        return ""
    what = f"at most {found.margin.delta:g} worse than the teacher by {found.margin.metric}"
    if found.fewest is None:
        return f"No cell is proven to be {what} (95 %, all cells at once)"
    row, bound = found.fewest
    edge = f"{-bound:.3g} worse at most" if bound < 0 else f"{bound:.3g} better at least"
    return f"Fewest steps {what}: {row.steps}, {named(row)}, {edge} (95 %, all cells at once)"


def lines(
    result: Result, found: Findings, again: tuple[Result, Findings] | None = None
) -> list[str]:
    """Everything that the grid answers, and what became of its best cells on fresh seeds."""
    said = [best_line(found), baseline_line(found), margin_line(found)]
    if again:
        said += _confirmed_lines(*again)
    return [line for line in (*said, verdict_line(result, found, again)) if line]


def search_lines(asked: Asked, result: Result) -> list[str]:
    """What of the grid a search has looked at; nothing where all of it was."""
    if asked.searched:
        return [searched_line(asked.searched)]
    return [unended_line(result)] if asked.search and MISSING in result.left_out.values() else []


def unended_line(result: Result) -> str:
    """What there is of a search that was cut off, or goes on elsewhere."""
    total = len(result.grid.cells)
    whole = total - len(result.left_out)
    return (
        f"The search has not ended: of {total} cells {whole} are whole, and all that follows is of "
        f"those {whole}, the best of what it happened to finish (p_holm is for all {total}; run it "
        "again, and it goes on)"
    )


def searched_line(searched: Searched) -> str:
    """What of the grid a search has looked at, when it ended."""
    return (
        f"Searched: of {searched.total} cells {searched.proposed} were drawn in part and "
        f"{searched.finished} whole, for {searched.spent} UNet rows; all that follows is of those "
        f"{searched.finished}, which these pictures chose (--confirm measures them afresh)"
    )


def all_lines(answers: Sequence[Answer]) -> list[str]:
    """The lines of every base and style, each under its name if there are several."""
    if len(answers) == 1:
        return _all_of(answers[0])
    return [line for one in answers for line in (f"{_name(one)}:", *_all_of(one))]


def _all_of(one: Answer) -> list[str]:
    lost = [f"Not confirmed: {one.lost.message}"] if one.lost else []
    return [*lines(one.result, one.found, one.again), *lost]


def all_json(answers: Sequence[Answer]) -> dict[str, Any]:
    """What :func:`as_json` tells of the only part, or of each under ``parts``."""
    told = [
        {
            **as_json(one.result, one.found, one.again),
            "not_confirmed": one.lost and one.lost.message,
        }
        for one in answers
    ]
    if len(told) == 1:
        return told[0]
    contexts = [one.result.grid.settings[0].context for one in answers]
    return {
        "parts": [
            {"base": context.base, "style": context.style, **each}
            for context, each in zip(contexts, told, strict=True)
        ]
    }


def _name(one: Answer) -> str:
    base, style = one.result.grid.settings[0].context.group
    return style if base == EMBEDDED else f"{style} on {base}"


def verdict_line(
    result: Result, found: Findings, again: tuple[Result, Findings] | None = None
) -> str:
    """The likeliest cell against its control: by the confirming pictures, where there are some."""
    measured, by = again or (result, found)
    return verdict(measured, by.ranked[0])


def _confirmed_lines(result: Result, found: Findings) -> list[str]:
    table, metric = with_findings(result, found), found.metric
    ends = table[[metric, f"{metric}_lo", f"{metric}_hi"]].to_numpy(float)
    value = dict(zip(result.rows, ends, strict=True))
    seeds = result.grid.seeds
    fresh = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    said = [f"Confirmed by {metric} on pictures that chose nothing, {fresh}:"]
    for row in found.ranked:
        mean, low, high = value[row]
        interval = f" [{low:.3f}, {high:.3f}]" if low == low else ""
        said.append(f"  {named(row)}: {mean:.3f}{interval}")
    return [*said, *filter(None, [best_line(found)])]


def as_json(
    result: Result, found: Findings, again: tuple[Result, Findings] | None = None
) -> dict[str, Any]:
    """Best set, baseline, fewest steps, confirmation and verdict, JSON-ready."""
    fewest: dict[str, Any] | None = None
    if found.margin:
        fewest = {"metric": found.margin.metric, "delta": found.margin.delta, "steps": None}
        if found.fewest:
            row, bound = found.fewest
            fewest |= {**_keys(row), "bound": bound}
    return {
        "best_set": _best_json(found),
        "baseline": {**_keys(found.baseline), "chosen_by_these_pictures": found.chosen},
        "min_steps": fewest,
        "confirmed": again
        and {
            "seeds": list(again[0].grid.seeds),
            "rows": records(with_findings(*again)),
            "best_set": _best_json(again[1]),
        },
        "result": verdict_line(result, found, again),
    }


def _best_json(found: Findings) -> dict[str, Any]:
    cells = [{**_keys(row), "p_best": p} for row, p in found.best.items()]
    return {"metric": found.metric, "cells": cells}


def _keys(row: Row) -> dict[str, Any]:
    return _with_numbers(grid.named(row))


def records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """A table's lines, JSON-ready: None where a value is not defined, or infinite."""
    table = table.replace([np.inf, -np.inf], np.nan)
    plain = table.astype(object).where(table.notna(), None)
    lines = plain.to_numpy().tolist()
    return [_with_numbers(dict(zip(plain.columns, line, strict=True))) for line in lines]


def _with_numbers(line: dict[str, Any]) -> dict[str, Any]:
    """λ as numbers, as in the CSV; the manifest has decimal strings."""
    return {**line, **{n: float(line[n]) for n in _LAMBDAS if line.get(n) is not None}}
