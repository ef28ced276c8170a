"""What a grid leaves behind: CSV files, a contact sheet, a heatmap per metric."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.combination import NONE
from lcm_arith.embedded import files, pictures
from lcm_arith.errors import UsageError
from lcm_arith.evaluation.best import TARGETS
from lcm_arith.evaluation.findings import Findings, find, with_findings
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.metrics import BETTER, METRICS
from lcm_arith.evaluation.rows import Row
from lcm_arith.evaluation.sheets import contact_sheet
from lcm_arith.evaluation.stats import FEWEST, ROUGH
from lcm_arith.formats.container import write_bytes
from lcm_arith.text import csv_cell

_SHEET_COLUMNS: Final = 10
_FOLDERS: Final = ("images", "chunks")
_TABLES: Final = ("images.csv", "comparisons.csv", "confirmed.csv")


def write_report(
    result: Result,
    folder: Path,
    csv: Path,
    found: Findings | None = None,
    again: tuple[Result, Findings] | None = None,
) -> list[Path]:
    """Writes every table and picture of a measured grid; returns their paths, the CSV first.

    Args:
        result: The grid.
        folder: Where all but the CSV goes.
        csv: The table of the cells.
        found: Its statistics; None asks the usual ones.
        again: The confirmation of its best cells, if there was one.
    """
    found = found or find(result)
    images, comparisons = folder / "images.csv", folder / "comparisons.csv"
    sheet = folder / "sheet.png"
    write_bytes(csv, csv_bytes(with_findings(result, found)), force=True)
    write_bytes(images, csv_bytes(result.images), force=True)
    write_bytes(comparisons, csv_bytes(found.comparisons), force=True)
    write_bytes(sheet, png_bytes(grid_sheet(result)), force=True)
    confirmed = folder / "confirmed.csv"
    if again:
        write_bytes(confirmed, csv_bytes(with_findings(*again)), force=True)
    else:
        confirmed.unlink(missing_ok=True)
    heatmaps = []
    for metric in METRICS:
        path = folder / f"heatmap_{metric}.png"
        if np.isfinite(_of_cells(result, metric)).any():
            write_bytes(path, heatmap(result, metric), force=True)
            heatmaps.append(path)
        else:
            path.unlink(missing_ok=True)
    return [csv, images, comparisons, *([confirmed] if again else []), sheet, *heatmaps]


def check_csv_name(csv: Path, folder: Path) -> None:
    """Raises UsageError where the CSV would take the place of another file of the report."""
    inside = csv.resolve().parent == folder.resolve()
    if inside and (csv.name in _TABLES or csv.suffix == ".png" or csv.name in _FOLDERS):
        raise UsageError(f"--csv {csv}: the report puts another file there", hint="choose another")


def csv_bytes(table: pd.DataFrame) -> bytes:
    """UTF-8, six significant digits, empty where a value is not defined; no cell is a formula."""
    safe = table.map(lambda value: csv_cell(value) if isinstance(value, str) else value)
    text: str = safe.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return text.encode()


def png_bytes(picture: Any) -> bytes:
    """A Pillow picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def grid_sheet(result: Result) -> Any:
    """Rows of the CSV × the first captions, seed 0."""
    seeds = len(result.grid.seeds)
    shown = result.grid.prompts[:_SHEET_COLUMNS]
    rows = [
        (row.label, [result.pixels[row][index * seeds] for index in range(len(shown))])
        for row in result.rows
    ]
    return contact_sheet(rows, shown, result.grid.title)


def heatmap(result: Result, metric: str) -> bytes:
    """λ₁ × λ₂, one panel a step count, one colour scale; margins and control stand in the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [row for row in result.rows if row.role == "cell"]
    l1, l2 = sorted({r.l1 for r in cells}), sorted({r.l2 for r in cells})
    steps = sorted({r.steps for r in cells})
    values = dict(zip(result.rows, result.cells[metric].astype(float), strict=True))
    colours, low, high = _scale(metric, _of_cells(result, metric))
    figure = Figure(figsize=(1.2 + len(steps) * (1.2 + 0.75 * len(l2)), 2.2 + 0.5 * len(l1)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(steps), squeeze=False)[0]
    for axis, count in zip(axes, steps, strict=True):
        of = {(r.l1, r.l2): values[r] for r in cells if r.steps == count}
        table = np.array([[of[a, b] for b in l2] for a in l1])
        image = axis.imshow(
            table,
            cmap=colours,
            vmin=low,
            vmax=high,
            aspect="auto",
        )
        axis.set_xticks(range(len(l2)), [str(b) for b in l2])
        axis.set_yticks(range(len(l1)), [str(a) for a in l1])
        axis.set_xlabel("λ₂ (acceleration)")
        axis.set_ylabel("λ₁ (style)")
        control = result.control(next(r for r in cells if r.steps == count))
        axis.set_title(f"{count} steps\ncontrol {values[control]:.3f}", fontsize=9)
        for (i, j), value in np.ndenumerate(table):
            level = image.norm(value)
            red, green, blue, _ = image.cmap(level)
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axis.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
    grid, setting = result.grid, result.grid.settings[0]
    figure.suptitle(
        f"{metric}: {grid.title}   "
        f"(teacher {values[setting.teacher]:.3f}, base {values[setting.base]:.3f})",
        fontsize=10,
    )
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def _of_cells(result: Result, metric: str) -> np.ndarray:
    return np.asarray(result.cells[metric][result.cells.role == "cell"].astype(float))


def _scale(metric: str, values: np.ndarray) -> tuple[str, float, float]:
    """Colour map and its ends: bright is better; around the best value where there is one."""
    finite, better = values[np.isfinite(values)], BETTER[metric]
    if better in TARGETS:
        best = TARGETS[better]
        reach = np.abs(finite - best).max()
        return "PuOr", best - reach, best + reach
    return "viridis_r" if better == "low" else "viridis", finite.min(), finite.max()


def ceilings_line(result: Result) -> str:
    """What the judge says of true pictures: the best a figure can be; empty without truth."""
    known, stored = pictures.by_caption(), files.ceilings()
    parts = sorted({known[p].part for p in result.grid.prompts if p in known})
    targets = dict.fromkeys(s.style_set for s in result.grid.settings if s.target_sets)
    lines = []
    for part, style_set in ((part, name) for part in parts for name in targets):
        target = stored[part][style_set or "base"]
        names = [name for name in target["vae"] if name != "style_accuracy" or style_set]
        values = (
            f"{name} {target['real'][name]:.3f} / {target['vae'][name]:.3f}" for name in names
        )
        of = f" of {style_set or 'base'}" if len(targets) > 1 else ""
        lines.append(
            f"ceilings on part {part}{of}, true pictures as drawn / through the VAE: "
            + ", ".join(values)
        )
    return "\n".join(lines)


def notes(result: Result) -> list[str]:
    """What the tables leave out, in words."""
    grid, found = result.grid, []
    contexts = [setting.context for setting in grid.settings]
    if any(context.style == NONE for context in contexts):
        found.append("without a style vector λ1 has nothing to weigh: every cell has l1 = 0")
    if any(cell.accel == NONE for cell in grid.cells):
        found.append(
            "without an acceleration vector λ2 has nothing to weigh: every cell has l2 = 0"
        )
    untrue = dict.fromkeys(s.context.style for s in grid.settings if not s.target_sets)
    found += [
        f"{style} names no shipped picture set: no picture is true of its style, "
        "so pair_distance, sharp_ratio, diversity and style_accuracy are empty"
        for style in untrue
    ]
    if len(untrue) < len(contexts) and result.unknown_prompts:
        found.append(f"no true pictures of {', '.join(map(repr, result.unknown_prompts))}")
    if result.cut_prompts:
        found.append(f"too long, their ends are not read: {', '.join(result.cut_prompts)}")
    count = len(grid.prompts)
    if count < FEWEST:
        found.append(f"{count} prompts: below {FEWEST} there are no intervals and no best set")
    elif count < ROUGH:
        found.append(f"{count} prompts: below {ROUGH} intervals and the best set are rough")
    return found


def verdict(result: Result, row: Row) -> str:
    """One sentence: this cell against the best control of equal NFE."""
    gap = result.against_control(row)
    where = f"At {row.nfe} UNet passes, λ1={row.l1} and λ2={row.l2}"
    if np.isnan(gap.mean):
        return f"{where}: there are no true pictures of these prompts in this style to compare with"
    cell, control = (
        float(np.nanmean(result.metric(r, "pair_distance"))) for r in (row, result.control(row))
    )
    figures = f"distance {cell:.3f} against {control:.3f}, difference {gap}"
    word = "closer to" if gap.mean < 0 else "farther from"
    if np.isnan(gap.low):
        figures += " (too few prompts for an interval)"
    elif not gap.off_zero:
        return (
            f"{where}: not told apart, by distance to the true pictures, from the best control "
            f"without acceleration: {figures} (the interval holds zero)"
        )
    return (
        f"{where} are {word} the true pictures than the best control without acceleration: "
        f"{figures}"
    )
