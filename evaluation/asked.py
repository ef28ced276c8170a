"""What is asked of a grid beside its table: baseline, margin, confirmation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from decimal import Decimal

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.judging.metrics import BETTER, METRICS, PICTURE_METRICS, choose
from lcm_arith.evaluation.plans.lists import parse_counts, parse_one
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Row, others
from lcm_arith.evaluation.statistics.best import TARGETS


@dataclass(frozen=True)
class Margin:
    """How much worse than the teacher a cell may be, by which metric."""

    metric: str
    delta: float


@dataclass(frozen=True)
class Search:
    """How a grid too large to run is searched: a method, and UNet rows that it may take."""

    method: str
    budget: int


@dataclass(frozen=True)
class Searched:
    """What a search did.

    Args:
        total: Cells of the whole grid.
        proposed: Cells of which pictures were drawn.
        finished: Those with all pictures; the tables hold them alone.
        spent: UNet rows, base, teacher and controls included, each picture as if drawn alone.
    """

    total: int
    proposed: int
    finished: int
    spent: int


@dataclass(frozen=True)
class Asked:
    """What the statistics of a grid answer.

    Args:
        metric: Decides which cell is best; None takes the first of
            ``metrics.DECIDING`` that all have.
        baseline: Cell to compare with; None takes the paper's, else the best one.
        margin: Asks for the fewest steps that are not inferior to the teacher.
        confirm: Best cells to measure again.
        search: Only the cells that a search finds are measured.
        searched: What became of it.
    """

    metric: str | None = None
    baseline: Row | None = None
    margin: Margin | None = None
    confirm: int = 0
    search: Search | None = None
    searched: Searched | None = None

    @property
    def metrics(self) -> tuple[str, ...]:
        """Metrics that the answers are made of, but for the usual one."""
        named = (self.metric, self.margin.metric if self.margin else None)
        return tuple(name for name in named if name)


def parse_asked(
    grid: Grid,
    *,
    best_by: str | None,
    baseline: str | None,
    noninferior: str | None,
    confirm: int | None,
) -> Asked:
    """The options of these names, None where not given; checked before anything is drawn.

    Raises:
        UsageError: If a metric, cell or number is none that the grid has.
    """
    if confirm is not None and not 1 <= confirm <= len(grid.cells):
        raise UsageError(f"--confirm {confirm}: of the grid's cells 1 to {len(grid.cells)} can be")
    return Asked(
        metric=_metric(best_by, "--best-by") if best_by is not None else None,
        baseline=_cell(baseline, grid) if baseline is not None else None,
        margin=_margin(noninferior) if noninferior is not None else None,
        confirm=confirm or 0,
    )


def cell_at(grid: Grid, l1: Decimal, l2: Decimal, steps: int) -> Row | None:
    """The cell of these weights at every step, if the grid has it; of several the most usual."""
    wanted = (l1, l2, steps)
    found = [row for row in _constant(grid) if (row.l1, row.l2, row.steps) == wanted]
    return min(found, key=lambda row: len(others(row)), default=None)


def _constant(grid: Grid) -> list[Row]:
    """The cells whose λ are the same at every step."""
    return [row for row in grid.cells if not (row.l1_schedule or row.l2_schedule)]


def confirmation(grid: Grid, rows: tuple[Row, ...]) -> Grid:
    """The same grid of these cells alone, on as many seeds, which it has not seen."""
    first = max(grid.seeds) + 1
    return replace(grid.of_cells(rows), seeds=tuple(range(first, first + len(grid.seeds))))


def _cell(text: str, grid: Grid) -> Row:
    parts = text.split(",")
    if len(parts) != 3:
        raise UsageError(f"--baseline {text!r}: not L1,L2,STEPS", hint="such as 0.8,1.0,4")
    l1, l2 = (parse_one(part, "--baseline") for part in parts[:2])
    row = cell_at(grid, l1, l2, parse_counts(parts[2], "--baseline")[0])
    if row is None:
        named = [f"{cell.l1},{cell.l2},{cell.steps}" for cell in _constant(grid)[:1]]
        raise UsageError(
            f"--baseline {text!r}: the grid has no such cell",
            hint=f"its first one is {named[0]}" if named else "one with λ per step cannot be named",
        )
    return row


def _metric(text: str, what: str) -> str:
    if text not in METRICS:
        choose(text, what)  # raises, and says what is near, or why it is refused
    if text not in PICTURE_METRICS:
        raise UsageError(
            f"{what} {text!r}: no metric of single pictures", hint=", ".join(PICTURE_METRICS)
        )
    if BETTER[text] == "teacher":
        raise UsageError(f"{what}: {text} has no best value of its own")
    return text


def _margin(text: str) -> Margin:
    name, colon, delta = text.partition(":")
    what = f"--noninferior {text!r}"
    if not colon:
        raise UsageError(f"{what}: not METRIC:DELTA", hint="such as prompt_score:0.02")
    better = BETTER[_metric(name, what)]
    if better in TARGETS:
        raise UsageError(
            f"{what}: {name} is best at {TARGETS[better]:g}, so that no difference is a loss"
        )
    if name == "psnr":
        raise UsageError(
            f"{what}: psnr of the teacher to itself is infinite, so that every cell is infinitely "
            "worse",
            hint="ssim or teacher_distance, of which equal pictures have 1 and 0",
        )
    value = parse_one(delta, what)
    if value < 0:
        raise UsageError(f"{what}: DELTA is at least 0")
    return Margin(name, float(value))
