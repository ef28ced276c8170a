"""``--search``: the search of ``search.py`` over a grid, whose cells are drawn as it asks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import lru_cache
from typing import Any, Final

import numpy as np

from lcm_arith.embedded import pictures
from lcm_arith.errors import UsageError
from lcm_arith.evaluation.asked import Asked, Search, Searched, cell_at
from lcm_arith.evaluation.drawing.engine import Engine, units
from lcm_arith.evaluation.drawing.store import OK
from lcm_arith.evaluation.findings import PAPER
from lcm_arith.evaluation.judging.judges import Judges
from lcm_arith.evaluation.judging.metrics import BETTER, METRICS, PICTURE_METRICS, deciding
from lcm_arith.evaluation.judging.references import References
from lcm_arith.evaluation.judging.sample import Sample
from lcm_arith.evaluation.measuring import Measuring, OnStage
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Item, Row
from lcm_arith.evaluation.statistics.search import (
    SEARCHES,
    Instance,
    Problem,
    blocks,
    check_method,
    search,
)

_WHOLE: Final = {
    "teacher_rel": "is relative to the other seeds of a prompt",
    "style_gain": "is relative to cells of λ1 = 0, which may not be drawn",
    "retrieval_top1": "of captions that are not shipped is among those of the whole grid",
}
"""Metrics that pictures of a part of the grid do not have, or have another value of."""


def parse_search(
    grid: Grid,
    method: str | None,
    budget: int | None,
    start: Row | None,
    metric: str | None = None,
) -> Search | None:
    """The options ``--search`` and ``--budget``, None where not given.

    Args:
        grid: The whole grid.
        method: A name of ``SEARCHES``.
        budget: UNet rows for all that the tables hold: margins, controls and cells. What
            ``--confirm`` draws comes on top.
        start: Cell that is finished first, so that the tables hold it.
        metric: Decides which cell is best; None takes one that blocks of pictures have.

    Raises:
        UsageError: If one comes without the other, the method is unknown or cannot run here, the
            grid has several bases or styles, the metric needs the whole grid, or the budget does
            not finish one cell.
    """
    if method is None and budget is None:
        return None
    if method is None:
        raise UsageError("--budget caps a search", hint=f"add --search {next(iter(SEARCHES))}")
    if method not in SEARCHES:
        raise UsageError(f"--search {method!r}: no such method", hint=", ".join(SEARCHES))
    check_method(method)
    if budget is None:
        raise UsageError(f"--search {method} needs a cap", hint="add --budget ROWS, in UNet rows")
    if len(grid.parts()) > 1:
        raise UsageError(
            f"--search looks for one best cell, and the grid has {len(grid.parts())} bases or "
            "styles, each with its own",
            hint="search them one by one",
        )
    _check_metric(grid, metric)
    fixed, cells = fixed_rows(grid), [start] if start else grid.cells
    least = min(row.nfe for row in cells) * len(grid.items)
    if budget < fixed + least:
        raise UsageError(
            f"--budget {budget}: base, teacher and controls take {fixed} UNet rows for "
            f"{len(grid.items)} pictures each, and {'the baseline' if start else 'one cell'} "
            f"{least} more",
            hint=f"at least --budget {fixed + least}, or fewer prompts, seeds or step counts",
        )
    return Search(method, budget)


def _check_metric(grid: Grid, metric: str | None) -> None:
    """Raises where a search, which measures a few pictures of a cell at a time, would be blind."""
    drawn = {s.context.text(prompt) for s in grid.settings for prompt in grid.prompts}
    shipped = {"retrieval_top1"} if drawn <= pictures.by_caption().keys() else set()
    blind = _WHOLE.keys() - shipped
    if metric in blind:
        known = [n for n in PICTURE_METRICS if n not in blind and BETTER[n] != "teacher"]
        raise UsageError(
            f"--best-by {metric}: {metric} {_WHOLE[metric]}, and --search measures a few pictures "
            "of a cell at a time",
            hint=f"search by one of {', '.join(known)}",
        )


def start(grid: Grid, asked: Asked) -> Row | None:
    """The cell that a search finishes first: the baseline, or the paper's if the grid has it."""
    return asked.baseline or cell_at(grid, *PAPER)


def fixed_rows(grid: Grid) -> int:
    """UNet rows of margins and controls, each picture as if drawn alone."""
    margins = [row for row in grid.rows if row.role != "cell"]
    return sum(row.nfe for unit in units(margins) for row in unit.rows) * len(grid.items)


def search_grid(
    grid: Grid,
    asked: Asked,
    engine: Engine,
    *,
    judges: Judges | None = None,
    references: Mapping[str, References] | None = None,
    on_stage: OnStage = lambda *_: None,
) -> tuple[Grid, Searched]:
    """Draws and measures cells until the budget ends; the grid of the finished cells alone.

    The store behind the engine keeps what was drawn: the same search again draws nothing, and one
    with a larger budget only what is new.

    Args:
        grid: The whole grid, of one base and style.
        asked: Holds the search, and the metric that decides.
        engine: Draws into the store of the grid.
        judges: As in :class:`Measuring`.
        references: Likewise.
        on_stage: Told the UNet rows.

    Raises:
        IncompatibleError: If a vector does not fit its base; nothing is drawn then.
    """
    if asked.search is None:
        raise UsageError("no search was asked for")
    engine.sources.check(grid.rows)
    wanted, fixed = asked.search, fixed_rows(grid)
    ruler = _Ruler(grid, engine, judges or Judges(), references or {})
    metric, first = asked.metric or ruler.deciding(), start(grid, asked)
    done = fixed

    def measure(cell: int, block: Sequence[Instance]) -> np.ndarray:
        nonlocal done
        row = grid.cells[cell]
        done += row.nfe * len(block)
        on_stage("search", done, wanted.budget, "UNet rows")
        prompts = tuple(grid.prompts[prompt] for prompt, _ in block)
        return ruler.measure(row, prompts, grid.seeds[block[0][1]], metric)

    problem = Problem(
        [_point(row) for row in grid.cells],
        blocks(len(grid.prompts), len(grid.seeds)),
        [row.nfe for row in grid.cells],
        measure,
        BETTER[metric],
    )
    found = search(
        problem,
        wanted.budget - fixed,
        method=wanted.method,
        start=grid.cells.index(first) if first else None,
    )
    finished = [grid.cells[cell] for cell in found.finished]
    told = Searched(
        total=len(grid.cells),
        proposed=len(found.proposed),
        finished=len(finished),
        spent=fixed + found.spent,
    )
    return grid.of_cells(finished), told


@dataclass(eq=False)
class _Ruler:
    """Draws and measures single blocks; teachers first, since some metrics look at them."""

    grid: Grid
    engine: Engine
    judges: Judges
    references: Mapping[str, References]
    _samples: Callable[..., Callable[[Row], Sample]] = field(init=False)

    def __post_init__(self) -> None:
        teachers = [setting.teacher for setting in self.grid.settings]
        self.engine.render(teachers, self.grid.items, lambda rows: None)
        self._samples = lru_cache(maxsize=None)(self._made)

    def measure(self, row: Row, prompts: tuple[str, ...], seed: int, metric: str) -> np.ndarray:
        """A metric of a row's pictures; all NaN where one of them has no figures."""
        items: list[Item] = [(prompt, seed) for prompt in prompts]
        self.engine.render([row], items, lambda rows: None)
        if self._measuring(prompts, (seed,)).status(row) != OK:
            return np.full(len(items), np.nan)
        sample = self._samples(row.context, prompts, (seed,))(row)
        return np.asarray(METRICS[metric].function(sample), dtype=float)

    def deciding(self) -> str:
        """The metric that decides where nobody said: what the teachers have."""
        samples = [
            self._samples(setting.context, self.grid.prompts, self.grid.seeds)(setting.teacher)
            for setting in self.grid.settings
        ]

        return deciding(
            lambda name: np.stack([METRICS[name].function(sample) for sample in samples])
        )

    def _measuring(self, prompts: tuple[str, ...], seeds: tuple[int, ...]) -> Measuring:
        part = replace(self.grid, prompts=prompts, seeds=seeds)
        return Measuring(part, self.engine.store, self.judges, self.references)

    def _made(
        self, context: Hashable, prompts: tuple[str, ...], seeds: tuple[int, ...]
    ) -> Callable[[Row], Sample]:
        setting = next(s for s in self.grid.settings if s.context == context)
        return self._measuring(prompts, seeds).samples(setting)


def _point(value: Any) -> tuple[Any, ...]:
    """Everything in which cells can differ: the fields of a row, and of what it is made of."""
    parts = [getattr(value, each.name) for each in fields(value) if each.name != "role"]
    return tuple(
        leaf for part in parts for leaf in (_point(part) if is_dataclass(part) else (part,))
    )
