"""A question to a grid as typed: every option read and checked, before a model is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from lcm_arith.evaluation.asked import parse_asked
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.judging.metrics import METRICS, choose
from lcm_arith.evaluation.manifest import How, Manifest, Tools
from lcm_arith.evaluation.plans.axes import check_text_encoders, make_cells
from lcm_arith.evaluation.plans.plan import choose_prompts, make_grid
from lcm_arith.evaluation.report import check_csv
from lcm_arith.evaluation.searching import parse_search, start


@dataclass(frozen=True, kw_only=True)
class Typed:
    """The options of ``grid-eval run`` that a manifest is made of, as typed.

    Args:
        style, accel: None where not given.
        defaults: The two, where neither they nor an axis say.
        l1, l2, steps: Lists.
        axes: ``NAME=V1,V2``.
        base: Base model; None where not given.
        prompts, part, seeds: See ``plan.choose_prompts``.
        metrics: List; None is all.
        best_by, baseline, noninferior, confirm: See ``asked.parse_asked``.
        search, budget: See ``searching.parse_search``.
        out: Folder.
        csv: The table; None is the folder's own.
        how: Pictures are drawn.
        tools: They are measured with, but for the metrics.
        argv: The command line.
    """

    style: str | None
    accel: str | None
    defaults: tuple[str, str]
    l1: str
    l2: str
    steps: str
    axes: Sequence[str] = ()
    base: str | None = None
    prompts: str = "16"
    part: str = "all"
    seeds: int = 2
    metrics: str | None = None
    best_by: str | None = None
    baseline: str | None = None
    noninferior: str | None = None
    confirm: int | None = None
    search: str | None = None
    budget: int | None = None
    out: Path
    csv: Path | None = None
    how: How = field(default_factory=How)
    tools: Tools = field(default_factory=Tools)
    argv: tuple[str, ...] = ()


def parse(typed: Typed, sources: Sources) -> Manifest:
    """The manifest of a question.

    Args:
        typed: Its options.
        sources: Of bases and vectors; vectors are read, bases are not loaded.

    Raises:
        UsageError: If a list, a metric, a cell or a number is none that a grid can have.
        NotFoundError: If a file or a vector is not there.
        InvalidContentError, IncompatibleError: If a vector cannot be used.
        OutputExistsError: If the table would take the place of something else.
    """
    prompts = choose_prompts(typed.prompts, typed.part)
    based = [f"base={typed.base};"] if typed.base is not None else []
    cells = make_cells(
        style=typed.style, accel=typed.accel, defaults=typed.defaults, l1=typed.l1, l2=typed.l2,
        steps=typed.steps, axes=[*typed.axes, *based], prompts=prompts,
    )  # fmt: skip
    chosen = tuple(METRICS) if typed.metrics is None else choose(typed.metrics)
    check_csv(typed.csv or typed.out / "cells.csv", typed.out)
    grid = make_grid(
        cells=cells, prompts=prompts, seeds=typed.seeds, family=sources.family,
        style_set=sources.style_set,
    )  # fmt: skip
    check_text_encoders(cells, sources.vector)
    sources.check(grid.rows)
    asked = parse_asked(
        grid, best_by=typed.best_by, baseline=typed.baseline, noninferior=typed.noninferior,
        confirm=typed.confirm,
    )  # fmt: skip
    found = parse_search(grid, typed.search, typed.budget, start(grid, asked), asked.metric)
    asked = replace(asked, search=found)
    wanted = {*chosen, *asked.metrics, *typed.tools.required}
    metrics = tuple(name for name in METRICS if name in wanted)
    return Manifest(
        grid, asked, typed.how, replace(typed.tools, metrics=metrics), typed.csv, typed.argv
    )
