"""What a grid leaves behind: CSV files, a contact sheet, a heatmap per metric."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.embedded import files, pictures
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.metrics import PICTURE_METRICS
from lcm_arith.evaluation.plan import Row
from lcm_arith.evaluation.sheets import contact_sheet
from lcm_arith.formats.container import write_bytes

BETTER_HIGH: Final = {"prompt_score", "retrieval_top1", "style_accuracy"}
_SHEET_COLUMNS: Final = 10


def write_report(result: Result, folder: Path, csv: Path) -> list[Path]:
    """Writes every table and picture of a measured grid; returns their paths, the CSV first."""
    images, sheet = folder / "images.csv", folder / "sheet.png"
    write_bytes(csv, csv_bytes(result.cells), force=True)
    write_bytes(images, csv_bytes(result.images), force=True)
    write_bytes(sheet, png_bytes(grid_sheet(result)), force=True)
    heatmaps = []
    for metric in (*PICTURE_METRICS, "diversity"):
        path = folder / f"heatmap_{metric}.png"
        if result.cells[metric].notna().any():
            write_bytes(path, heatmap(result, metric), force=True)
            heatmaps.append(path)
        else:
            path.unlink(missing_ok=True)
    return [csv, images, sheet, *heatmaps]


def csv_bytes(table: pd.DataFrame) -> bytes:
    """UTF-8, six significant digits, empty where a value is not defined."""
    text: str = table.to_csv(index=False, float_format="%.6g", lineterminator="\n")
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
    return contact_sheet(rows, shown, f"{result.grid.style} + {result.grid.accel}")


def heatmap(result: Result, metric: str) -> bytes:
    """λ₁ × λ₂, one panel a step count, one colour scale; margins and control stand in the title."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    cells = [row for row in result.rows if row.role == "cell"]
    l1, l2 = sorted({r.l1 for r in cells}), sorted({r.l2 for r in cells})
    steps = sorted({r.steps for r in cells})
    values = dict(zip(result.rows, result.cells[metric].astype(float), strict=True))
    scale = [values[row] for row in cells]
    figure = Figure(figsize=(1.2 + len(steps) * (1.2 + 0.75 * len(l2)), 2.2 + 0.5 * len(l1)))
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(steps), squeeze=False)[0]
    for axis, count in zip(axes, steps, strict=True):
        of = {(r.l1, r.l2): values[r] for r in cells if r.steps == count}
        table = np.array([[of[a, b] for b in l2] for a in l1])
        image = axis.imshow(
            table,
            cmap="viridis" if metric in BETTER_HIGH else "viridis_r",
            vmin=min(scale),
            vmax=max(scale),
            aspect="auto",
        )
        axis.set_xticks(range(len(l2)), [str(b) for b in l2])
        axis.set_yticks(range(len(l1)), [str(a) for a in l1])
        axis.set_xlabel("λ₂ (acceleration)")
        axis.set_ylabel("λ₁ (style)")
        control = result.control(count)
        axis.set_title(f"{count} steps\ncontrol {values[control]:.3f}", fontsize=9)
        for (i, j), value in np.ndenumerate(table):
            level = image.norm(value)
            dark = level > 0.5 if metric not in BETTER_HIGH else level < 0.5
            axis.text(j, i, f"{value:.3f}", ha="center", va="center", fontsize=8,
                      color="white" if dark else "black")  # fmt: skip
    grid = result.grid
    figure.suptitle(
        f"{metric}: {grid.style} + {grid.accel}   "
        f"(teacher {values[grid.teacher]:.3f}, base {values[grid.base]:.3f})",
        fontsize=10,
    )
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()


def ceilings_line(result: Result) -> str:
    """What the judge says of true pictures passed through the VAE: the best a figure can be."""
    known, stored = pictures.by_caption(), files.ceilings()
    parts = sorted({known[p].part for p in result.grid.prompts if p in known})
    lines = []
    for part in parts:
        of = [stored[part][name]["vae"] for name in result.grid.target_sets]
        names = [name for name in of[0] if name != "style_accuracy" or result.grid.style_set]
        means = {name: sum(entry[name] for entry in of) / len(of) for name in names}
        lines.append(
            f"ceilings on part {part} (true pictures through the VAE): "
            + ", ".join(f"{name} {value:.3f}" for name, value in means.items())
        )
    return "\n".join(lines)


def verdict(result: Result, row: Row) -> str:
    """One sentence: this cell against the best control of equal NFE."""
    gap = result.against_control(row)
    cell, control = (
        result.metric(r, "pair_distance").mean() for r in (row, result.control(row.nfe))
    )
    word = "closer to" if gap.mean < 0 else "farther from"
    sure = "" if gap.off_zero else " (the interval holds zero: not decided)"
    return (
        f"At {row.nfe} UNet passes, λ1={row.l1} and λ2={row.l2} are {word} the true "
        f"pictures than the best control without acceleration: distance {cell:.3f} against "
        f"{control:.3f}, difference {gap}{sure}"
    )


def best_cell(result: Result) -> Row:
    """The cell with the smallest mean pair_distance; the largest prompt_score without truth."""
    cells = [row for row in result.rows if row.role == "cell"]
    distance = {row: result.metric(row, "pair_distance").mean() for row in cells}
    if np.isfinite(list(distance.values())).all():
        return min(cells, key=distance.__getitem__)
    return max(cells, key=lambda row: float(result.metric(row, "prompt_score").mean()))
