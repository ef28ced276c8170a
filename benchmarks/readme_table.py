"""The README's table: every shipped style and the bare base, combined against controls.

For each style and part: teacher, the best control without acceleration at 8, 4, 2 and 1 UNet
passes, and the combined vector at the same cost. The differences are paired over prompt and seed,
with 95 % intervals clustered by prompt.

    python benchmarks/readme_table.py [--prompts 100] [--seeds 2] [--styles NAME …] [--out DIR]

Takes about half an hour on two cores; pictures that are there already are not made again. Writes
``benchmarks/results/readme_table.md``, the README's table, and one sheet a style into ``docs/``.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Final

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from lcm_arith.embedded import files, pictures
from lcm_arith.evaluation.grid import Result, load_vectors, run_grid
from lcm_arith.evaluation.plan import Row, choose_prompts, make_grid
from lcm_arith.evaluation.report import csv_bytes, png_bytes
from lcm_arith.evaluation.sheets import contact_sheet
from lcm_arith.families import embedded
from lcm_arith.formats.container import write_bytes

ROOT: Final = Path(__file__).resolve().parents[1]
STYLES: Final = ("none", *pictures.STYLE_SETS)
PASSES: Final = (8, 4, 2, 1)
COLUMNS: Final = (
    "pair_distance",
    "retrieval_top1",
    "style_accuracy",
    "prompt_score",
    "teacher_distance",
    "sharp_ratio",
    "diversity",
)
HEAD: Final = ("style", "row", "how", "NFE", *COLUMNS, "s/picture", "combined − control")
OPEN, CLOSE = "<!-- table -->", "<!-- /table -->"


def measure(style: str, part: str, given: argparse.Namespace, bar: Progress) -> Result:
    """The grid of one style on one part."""
    *vectors, style_set = load_vectors(style, "lcm")
    one = (Decimal(1),)
    grid = make_grid(
        style=style,
        accel="lcm",
        style_set=style_set,
        l1=one,
        l2=one,
        steps=PASSES,
        prompts=choose_prompts(str(given.prompts), part),
        seeds=given.seeds,
        family=embedded(),
    )
    task = bar.add_task(f"{style} {part}", total=None)

    def on_stage(stage: str, done: int, total: int, _: str) -> None:
        bar.update(task, completed=done, total=total, description=f"{style} {part} {stage}")

    return run_grid(
        grid, (vectors[0], vectors[1]), family=embedded(), folder=given.out, on_stage=on_stage
    )


def lines(result: Result) -> list[tuple[str, ...]]:
    """The table's rows of one style."""
    table = dict(zip(result.rows, result.cells.to_dict(orient="records"), strict=True))
    cells = {row.nfe: row for row in result.rows if row.role == "cell"}
    shown: list[tuple[Row, str]] = [(result.grid.teacher, "teacher")]
    for passes in PASSES:
        shown += [(result.control(passes), "control"), (cells[passes], "combined")]
    out = []
    for row, name in shown:
        values = [table[row][column] for column in COLUMNS]
        gap = str(result.against_control(row)) if name == "combined" else ""
        guided = f", s={row.guidance:g}" if row.nfe > row.steps else ""
        out.append(
            (
                result.grid.style if result.grid.style != "none" else "base",
                name,
                f"{row.sampler} {row.steps}{guided}",
                str(row.nfe),
                *("" if value != value else f"{value:.3f}" for value in values),
                f"{table[row]['seconds_per_image']:.3f}",
                gap,
            )
        )
    return out


def ceilings(part: str) -> list[tuple[str, ...]]:
    """What the judge says of true pictures, per set, as drawn and through the VAE."""
    stored = files.ceilings()[part]
    names = ("retrieval_top1", "style_accuracy", "pair_distance", "sharp_ratio")
    rows: list[tuple[str, ...]] = [("set", "pictures", *names)]
    for name in (*pictures.SETS, "base"):
        for how, said in (("real", "as drawn"), ("vae", "through the VAE")):
            values = (stored[name][how].get(metric) for metric in names)
            rows.append((name, said, *("" if v is None else f"{v:.3f}" for v in values)))
    return rows


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    """A table, its first row the head."""
    head, *body = rows
    ruled = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def sheet(results: Sequence[Result]) -> bytes:
    """Six things of part A and four of B: teacher, controls, combined, and a true picture."""
    grid = results[0].grid
    rows = [grid.teacher.label, *(f"control {n} NFE" for n in PASSES)]
    rows += [f"combined {n} NFE" for n in PASSES]
    columns: list[str] = []
    tiles: list[list[object]] = [[] for _ in range(len(rows) + 1)]
    for result, count in zip(results, (6, 4), strict=True):
        cells = {row.nfe: row for row in result.rows if row.role == "cell"}
        chosen = [result.grid.teacher, *map(result.control, PASSES), *(cells[n] for n in PASSES)]
        for index, prompt in enumerate(result.grid.prompts[:count]):
            columns.append(f"{prompt} ({pictures.by_caption()[prompt].part})")
            for line, row in zip(tiles, chosen, strict=False):
                line.append(result.pixels[row][index * len(result.grid.seeds)])
            true = pictures.variants(grid.target_sets[0], pictures.by_caption()[prompt], 1, seed=3)
            tiles[-1].append(true[0])
    labelled = list(zip([*rows, f"true picture\n{grid.target_sets[0]}"], tiles, strict=True))
    return png_bytes(contact_sheet(labelled, columns, f"{grid.style} + lcm, λ₁ = λ₂ = 1"))  # type: ignore[arg-type]  # tiles are arrays


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--prompts", type=int, default=100, help="at most so many a part")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--styles", nargs="+", choices=STYLES, default=STYLES, help="only these")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "table")
    given = parser.parse_args()
    for folder in (given.out, ROOT / "docs", ROOT / "benchmarks" / "results"):
        folder.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str], Result] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        for style in given.styles:
            for part in ("A", "B"):
                result = results[style, part] = measure(style, part, given, bar)
                name = f"{style}_{part}"
                write_bytes(given.out / f"{name}.csv", csv_bytes(result.cells), force=True)
                bar.console.print(markdown([HEAD, *lines(result)]), soft_wrap=True)
            both = [results[style, part] for part in ("A", "B")]
            shown = ROOT / "docs" / f"sheet_{style if style != 'none' else 'base'}.png"
            write_bytes(shown, sheet(both), force=True)
    if set(given.styles) == set(STYLES):
        publish(report(results, given))


def publish(text: str) -> None:
    """Writes the page, and its tables into the README."""
    write_bytes(ROOT / "benchmarks" / "results" / "readme_table.md", text.encode(), force=True)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    before, after = readme.split(OPEN)[0], readme.split(CLOSE)[1]
    short = text.replace("\n## ", "\n### ").split("\n\n", 1)[1]
    filled = f"{before}{OPEN}\n{short}{CLOSE}{after}"
    write_bytes(ROOT / "README.md", filled.encode(), force=True)
    print(text)


def report(results: dict[tuple[str, str], Result], given: argparse.Namespace) -> str:
    """The whole page."""
    when = datetime.now(UTC).date().isoformat()
    text = [
        "# Combined against controls of equal cost",
        f"`python benchmarks/readme_table.py --prompts {given.prompts} --seeds {given.seeds}`, "
        f"{when}, {platform.machine()}, torch {torch.__version__}, "
        f"{torch.get_num_threads()} threads. λ1 = λ2 = 1, LCM sampler, guidance 1. The last column "
        "is the difference in pair_distance with its 95 % interval (below zero: combined is closer "
        "to the true pictures).",
    ]
    for part in ("A", "B"):
        count = len(results["none", part].grid.prompts)
        body = [line for style in STYLES for line in lines(results[style, part])]
        text += [f"## Part {part}: {count} captions × {given.seeds} seeds", markdown([HEAD, *body])]
        text += [f"### The judge's ceilings on part {part}", markdown(ceilings(part))]
    return "\n\n".join(text) + "\n"


if __name__ == "__main__":
    main()
