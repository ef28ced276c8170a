"""What a grid leaves behind: CSV files, contact sheets, charts and a page."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.combination import NONE
from lcm_arith.embedded import files, pictures
from lcm_arith.errors import UsageError
from lcm_arith.evaluation.findings import Answer, answer, whole_table, with_findings
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.judging.metrics import METRICS
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Row, others, shown
from lcm_arith.evaluation.showing import tables
from lcm_arith.evaluation.showing.album import Thumbnails, thumbnail
from lcm_arith.evaluation.showing.heatmap import heatmap
from lcm_arith.evaluation.showing.page import Facts, page
from lcm_arith.evaluation.showing.pareto import pareto_png
from lcm_arith.evaluation.showing.sheets import contact_sheets, small
from lcm_arith.evaluation.statistics.stats import FEWEST, ROUGH
from lcm_arith.formats.container import refuse_existing, write_bytes
from lcm_arith.text import csv_cell

_SHEET_COLUMNS: Final = 10
_MARKS: Final = re.compile(r"^#|\([^()]*:[0-9.]+\)|<[a-z]+:", re.IGNORECASE)
"""What other tools take for a comment, a weight or a LoRA in a prompt."""
_FOLDERS: Final = ("images", "chunks", "embeddings")
_OURS: Final = ("manifest.json", "images.csv", "comparisons.csv", "confirmed.csv", "report.html")
_MAY_GO: Final = re.compile(
    rf"sheet(_[0-9]+)?\.png|heatmap_({'|'.join(METRICS)})\.png|pareto\.png|confirmed\.csv"
)
"""What a report may have that the next one does not."""


def write_report(
    result: Result,
    folder: Path,
    csv: Path,
    answers: Sequence[Answer] = (),
    said: Sequence[str] = (),
    on_chart: Callable[[int, int], None] = lambda done, total: None,
) -> list[Path]:
    """Writes every table and picture of a measured grid; returns their paths, the CSV first.

    What an earlier report left there and this one does not have is deleted.

    Args:
        result: The grid.
        folder: Where all but the CSV goes.
        csv: The table of the cells.
        answers: Its statistics; none asks the usual ones.
        said: What the grid says, for the page.
        on_chart: Told how many charts of how many are drawn.
    """
    answers = answers or answer(result)
    cells = whole_table(answers)
    comparisons = pd.concat([one.found.comparisons for one in answers], ignore_index=True)
    again = [with_findings(*one.again) for one in answers if one.again]
    confirmed = {folder / "confirmed.csv": pd.concat(again, ignore_index=True)} if again else {}
    lists = {
        csv: cells,
        folder / "images.csv": result.images,
        folder / "comparisons.csv": comparisons,
        **confirmed,
    }
    written = {path: csv_bytes(table) for path, table in lists.items()}
    names = [path.name for path in written if path.parent == folder]
    facts = Facts(result.grid.title, answers[0].found.metric, said, notes(result), names)
    written |= {folder / name: png for name, png in _sheets(result)}
    total = len(tables.measured(cells)) + 1
    for done, (name, data) in enumerate(charts(cells, comparisons, facts), 1):
        written[folder / name] = data
        on_chart(done, total)
    shown = page(cells, result.images, comparisons, facts, from_store(folder))
    for path in _old(folder):
        path.unlink(missing_ok=True)  # another report may be written there, too
    for path, data in (written | {folder / "report.html": shown}).items():
        write_bytes(path, data, force=True)
    return [*written, folder / "report.html"]


def _old(folder: Path) -> list[Path]:
    """What an earlier report left and the next may not have; nothing where there was none."""
    if not (folder / "comparisons.csv").is_file():  # each report writes it, and before any chart
        return []
    return [path for path in folder.iterdir() if path.is_file() and _MAY_GO.fullmatch(path.name)]


def charts(
    cells: pd.DataFrame, comparisons: pd.DataFrame, facts: Facts
) -> Iterator[tuple[str, bytes]]:
    """Name and PNG of each chart: a heatmap of every metric that was measured, and the front."""
    for metric in tables.measured(cells):
        yield (
            f"heatmap_{metric}.png",
            heatmap(cells, comparisons, metric, facts.title, facts.metric),
        )
    yield "pareto.png", pareto_png(cells, facts.metric, facts.title)


def from_store(folder: Path) -> Thumbnails:
    """Thumbnails of the pictures in a grid's folder; none of a file that is not there."""

    def small(path: str) -> bytes:
        whole = folder / path
        return thumbnail(whole.read_bytes()) if whole.is_file() else b""

    return small


def check_csv(csv: Path, folder: Path) -> None:
    """Raises where the table of the cells could not be put; call it before long work.

    Raises:
        UsageError: If it would take the place of another file of the report.
        OutputExistsError, NotFoundError: If it is a folder, or its folder does not exist.
    """
    if csv.is_dir() or csv.parent != folder:
        refuse_existing(csv, force=True)
    inside = csv.resolve().parent == folder.resolve()
    if inside and (csv.name in _OURS or csv.suffix == ".png" or csv.name in _FOLDERS):
        raise UsageError(f"--csv {csv}: the report puts another file there", hint="choose another")


def csv_bytes(table: pd.DataFrame) -> bytes:
    """UTF-8, six significant digits, empty where a value is not defined; no cell is a formula."""
    safe = table.map(lambda value: csv_cell(value) if isinstance(value, str) else value)
    text: str = safe.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    return text.encode(errors="backslashreplace")


def png_bytes(picture: Any) -> bytes:
    """A Pillow picture as PNG."""
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG")
    return buffer.getvalue()


def _sheets(result: Result) -> Iterator[tuple[str, bytes]]:
    """Rows of the CSV × the first captions, seed 0."""
    shown = result.grid.prompts[:_SHEET_COLUMNS]
    rows = [
        (row.label, [small(picture) for picture in result.pixels.first(row, len(shown))])
        for row in result.rows
    ]
    for number, sheet in enumerate(contact_sheets(rows, shown, result.grid.title), 1):
        yield "sheet.png" if number == 1 else f"sheet_{number}.png", png_bytes(sheet)


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


def plan_notes(grid: Grid) -> list[str]:
    """What is known of a grid's tables before anything is drawn, in words."""
    found = []
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
    marked = [prompt for prompt in grid.prompts if _MARKS.search(prompt)]
    if marked:
        found.append(
            "drawn as plain words, for prompts have no comments, weights or tags here: "
            + ", ".join(map(repr, marked))
        )
    count = len(grid.prompts)
    if count < FEWEST:
        found.append(f"{count} prompts: below {FEWEST} there are no intervals and no best set")
    elif count < ROUGH:
        found.append(f"{count} prompts: below {ROUGH} intervals and the best set are rough")
    return found


def notes(result: Result) -> list[str]:
    """What the tables leave out, in words."""
    found = plan_notes(result.grid)
    if result.dropped:
        found.append(
            f"left out of all figures, since a picture of the base or of the teacher came out as "
            f"NaN or infinity: {', '.join(map(repr, result.dropped))}"
        )
    if result.unknown_prompts and any(s.target_sets for s in result.grid.settings):
        found.append(f"no true pictures of {', '.join(map(repr, result.unknown_prompts))}")
    found += [f"empty: {line}" for line in result.empty]
    if result.cut_prompts:
        found.append(f"too long, their ends are not read: {', '.join(result.cut_prompts)}")
    return found


def verdict(result: Result, row: Row) -> str:
    """One sentence: this cell against the best control of equal NFE."""
    gap = result.against_control(row)
    weights = f"λ1={shown(row.l1, row.l1_schedule)} and λ2={shown(row.l2, row.l2_schedule)}"
    where = f"At {row.nfe} UNet passes, {', '.join((weights, *others(row)))}"
    if np.isnan(gap.mean):
        return f"{where}: there are no true pictures of these prompts in this style to compare with"
    cell, control = (
        float(np.nanmean(result.metric(r, "pair_distance"))) for r in (row, result.control(row))
    )
    figures = f"distance {cell:.3f} against {control:.3f}, difference {gap}"
    word = "closer to" if gap.mean < 0 else "farther from"
    if np.isnan(gap.low):
        return f"{where}: {figures}; too few prompts to tell whether that is more than chance"
    if not gap.off_zero:
        return (
            f"{where}: not told apart, by distance to the true pictures, from the best control "
            f"without acceleration: {figures} (the interval holds zero)"
        )
    return (
        f"{where} are {word} the true pictures than the best control without acceleration: "
        f"{figures}"
    )
