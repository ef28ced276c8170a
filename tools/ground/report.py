"""Stages ``pictures`` and ``report``: every figure of the ground, the README's table, sheets."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ground import tables
from ground.common import Bar, Options, say
from ground.figures import Figure, acceleration_figures, base_figures, judge_figures, style_figures
from ground.vectors import SCAN
from lcm_arith.combination import NONE
from lcm_arith.embedded import files, pictures
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.plans.plan import Grid, choose_prompts, make_grid, plain_cells
from lcm_arith.evaluation.running import draw_grid, run_grid
from lcm_arith.families import embedded

OPEN, CLOSE = "<!-- figures -->", "<!-- /figures -->"


def draw(options: Options) -> None:
    """Draws what the report measures, of ``options.only`` where given: several may share it."""
    for style in options.only or all_styles():
        for part in parts():
            grid = plan(style, part, options)
            distinct = {row.pixels_key: row.nfe for row in grid.rows}
            with Bar(f"pictures {style} {part}", sum(distinct.values()) * len(grid.items)) as bar:
                draw_grid(grid, Sources(), on_stage=partial(_show, bar), **how(options))


def build(options: Options) -> None:
    """Measures every style on both parts; writes figures, curves and sheets."""
    draw(replace(options, only=()))
    results = {}
    for style in all_styles():
        for part in parts():
            grid = plan(style, part, options)
            with Bar(f"report {style} {part}", len(grid.rows)) as bar:
                results[style, part] = run_grid(
                    grid, Sources(), on_stage=partial(_show, bar, wanted="measure"), **how(options)
                )
    figures = [
        *judge_figures(files.ceilings()),
        *base_figures(results),
        *(f for style in all_styles()[1:] for f in style_figures(results, style)),
        *(f for style in all_styles() for f in acceleration_figures(results, style)),
    ]
    repository = Path(__file__).resolve().parents[2]
    own = repository / "lcm_arith" / "embedded" != files.ROOT
    folder = files.ROOT if own else repository / "docs"
    write_page(figures, folder, options.work)
    tables.write_sheets(results, folder)
    if not own:
        tables.publish(results, repository)
    print(table(figures))


def write_page(figures: Sequence[Figure], folder: Path, work: Path) -> None:
    """``embedded.md`` between its two marks, and the curves beside it."""
    curves, page = folder / "embedded_curves.png", folder / "embedded.md"
    files.write_file(curves, curves_png(work))
    text = "\n\n".join([sizes(), guidance(work), table(figures), f"![losses]({curves.name})"])
    shown = (
        page.read_text(encoding="utf-8") if page.exists() else f"# The ground\n\n{OPEN}\n{CLOSE}\n"
    )
    before, after = shown.split(OPEN)[0], shown.split(CLOSE)[1]
    files.write_file(page, f"{before}{OPEN}\n\n{text}\n\n{CLOSE}{after}")
    say(f"wrote {page}")


def all_styles() -> tuple[str, ...]:
    """No style, then every one that has a vector."""
    return (NONE, *pictures.style_sets())


def parts() -> list[str]:
    """Parts that hold a caption."""
    return [part for part in ("A", "B") if pictures.concepts(part)]


def plan(style: str, part: str, options: Options) -> Grid:
    """The grid of one style on one part: λ1 = λ2 = 1, with controls and teacher."""
    sources, one = Sources(), (Decimal(1),)
    return make_grid(
        cells=plain_cells(style, "lcm", one, one, tables.PASSES),
        prompts=choose_prompts(str(options.prompts), part),
        seeds=options.seeds,
        family=sources.family,
        style_set=sources.style_set,
    )


def how(options: Options) -> dict[str, Any]:
    """What ``draw_grid`` and ``run_grid`` share."""
    return {"folder": options.work / "pictures", "fast": True}


def _show(bar: Bar, stage: str, done: int, total: int, note: str, wanted: str = "draw") -> None:
    if stage == wanted:
        bar(done, 0.0)


def table(figures: Sequence[Figure]) -> str:
    """Every figure against its goal."""
    met = sum(figure.met for figure in figures)
    head = [
        "| figure | of | part | goal | found, 95 % | met |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    rows = [
        f"| {f.name} | {f.of} | {f.part} | {f.goal} | {f.found} | {'yes' if f.met else '**no**'} |"
        for f in figures
    ]
    return "\n".join([f"{met} of {len(figures)} figures met.", "", *head, *rows])


def guidance(work: Path) -> str:
    """The scan that chose the guidance; it is in the work folder of the build."""
    path = work / SCAN
    if not path.exists():
        return f"The guidance in use is {embedded().guidance:g}; its scan was not kept."
    scan: dict[str, dict[str, float]] = json.loads(path.read_text(encoding="utf-8"))
    names = ("pair_distance", "retrieval_top1", "prompt_score", "sharp_ratio")
    rows = [
        f"| {g} | " + " | ".join(f"{values[name]:.3f}" for name in names) + " |"
        for g, values in scan.items()
    ]
    head = f"| guidance, dpm++ 25, part A | {' | '.join(names)} |\n| --- |{' --- |' * len(names)}"
    chosen = f"Chosen by the smallest pair_distance: {embedded().guidance:g}."
    return "\n".join([head, *rows, "", chosen])


def sizes() -> str:
    """Parameters and bytes of everything that is shipped."""
    rows = ["| file | parameters | MB |", "| --- | --- | --- |"]
    for path in sorted(files.ROOT.rglob("*.safetensors")):
        count = sum(int(np.prod(shape)) for shape in tensor_shapes(path))
        megabytes = path.stat().st_size / 1e6
        rows.append(f"| `{path.relative_to(files.ROOT)}` | {count:,} | {megabytes:.2f} |")
    total = sum(p.stat().st_size for p in files.ROOT.rglob("*") if p.is_file()) / 1e6
    return "\n".join([*rows, "", f"Everything together: {total:.1f} MB."])


def tensor_shapes(path: Path) -> Iterator[list[int]]:
    """Shapes in the header of a safetensors file."""
    with path.open("rb") as file:
        header: dict[str, Any] = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    for name, entry in header.items():
        if name != "__metadata__":
            yield entry["shape"]


def curves_png(work: Path) -> bytes:
    """Loss over steps of every training whose log is in the work folder, smoothed."""
    from matplotlib.figure import Figure as Plot

    paths = sorted(work.glob("*.csv"), key=lambda path: path.stem)
    columns = 3
    rows = max(1, -(-len(paths) // columns))
    plot = Plot(figsize=(4 * columns, 2.6 * rows), layout="constrained")
    for index, path in enumerate(paths, 1):
        loss = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)[:, 1]
        width = max(1, len(loss) // 100)
        smooth = np.convolve(loss, np.ones(width) / width, mode="valid")
        axes = plot.add_subplot(rows, columns, index)
        axes.plot(np.arange(len(smooth)) + width, smooth)
        axes.set_title(f"{path.stem}: ends at {smooth[-1]:.4f}", fontsize=9)
        axes.set_yscale("log")
        axes.set_xlabel("step", fontsize=8)
    buffer = io.BytesIO()
    plot.savefig(buffer, format="png", dpi=90, metadata={"Software": None})
    return buffer.getvalue()
