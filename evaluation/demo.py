"""The demo: eq. 3 in one file, one sheet and one small grid."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from lcm_arith.combination import combine
from lcm_arith.embedded import files
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.measuring import OnStage
from lcm_arith.evaluation.plans.plan import choose_prompts, make_grid, plain_cells
from lcm_arith.evaluation.plans.rows import Row
from lcm_arith.evaluation.report import png_bytes, verdict, write_report
from lcm_arith.evaluation.running import run_grid
from lcm_arith.evaluation.showing.sheets import contact_sheet
from lcm_arith.formats.container import write_bytes
from lcm_arith.saving import save

L1: Final = (Decimal("0.6"), Decimal("0.8"), Decimal("1"))
L2: Final = (Decimal("0.8"), Decimal("1"))
PAPER: Final = (Decimal("0.8"), Decimal("1"))  # eq. 3's own weights
STEPS: Final = (1, 2, 4)
PROMPTS: Final = "16"
SEEDS: Final = 2
_COLUMNS: Final = 10


@dataclass(frozen=True, eq=False)
class Shown:
    """What the demo made: paths in order of interest, the grid, one sentence of result."""

    paths: list[Path]
    result: Result
    sentence: str


def run_demo(folder: Path, on_stage: OnStage) -> Shown:
    """Combines the default pair, searches a small grid, and draws the sheet; replaces its own."""
    folder.mkdir(parents=True, exist_ok=True)
    stored = files.defaults()
    style, accel = str(stored["style"]), str(stored["accel"])
    file = folder / "combined.safetensors"
    tau = combine(style, accel, l1=float(PAPER[0]), l2=float(PAPER[1]))
    save(tau, file, about={"kind": "combined"}, force=True)
    sources = Sources()
    grid = make_grid(
        cells=plain_cells(style, accel, L1, L2, STEPS), prompts=choose_prompts(PROMPTS, "A"),
        seeds=SEEDS, family=sources.family, style_set=sources.style_set,
    )  # fmt: skip
    result = run_grid(grid, sources, folder=folder / "grid", on_stage=on_stage)
    written = write_report(result, folder / "grid", folder / "grid.csv")
    sheet = folder / "sheet.png"
    write_bytes(sheet, png_bytes(_sheet(result)), force=True)
    return Shown([file, sheet, *written], result, verdict(result, _paper_cell(result, 2)))


def _paper_cell(result: Result, steps: int) -> Row:
    return next(
        row
        for row in result.rows
        if row.role == "cell" and (row.l1, row.l2) == PAPER and row.steps == steps
    )


def _sheet(result: Result) -> object:
    """Rows: teacher; control at 4, 2, 1 UNet passes; combined at 4, 2, 1."""
    cells = [_paper_cell(result, count) for count in sorted(STEPS, reverse=True)]
    rows = [result.grid.only.teacher, *map(result.control, cells), *cells]
    shown = result.grid.prompts[:_COLUMNS]
    pictures = [(row.label, result.pixels.first(row, len(shown))) for row in rows]
    title = f"{PAPER[0]} · {cells[0].context.style} + {PAPER[1]} · {cells[0].accel}"
    return contact_sheet(pictures, shown, title)
