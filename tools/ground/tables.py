"""The README's table and sheets: every style and the bare base, combined against controls.

For each style and part: teacher, the best control without acceleration at the same UNet passes, and
the combined vector. Differences are paired over prompt and seed, with 95 % intervals clustered by
prompt.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import torch

from lcm_arith.combination import NONE
from lcm_arith.embedded import files, pictures
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.plans.rows import Row
from lcm_arith.evaluation.report import png_bytes
from lcm_arith.evaluation.showing.sheets import contact_sheet

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

Results = Mapping[tuple[str, str], Result]


def lines(result: Result) -> list[tuple[str, ...]]:
    """The table's rows of one style."""
    table = dict(zip(result.rows, result.cells.to_dict(orient="records"), strict=True))
    cells = {row.nfe: row for row in result.rows if row.role == "cell"}
    shown: list[tuple[Row, str]] = [(result.grid.only.teacher, "teacher")]
    for passes in PASSES:
        shown += [(result.control(cells[passes]), "control"), (cells[passes], "combined")]
    out = []
    for row, name in shown:
        values = [table[row][column] for column in COLUMNS]
        gap = str(result.against_control(row)) if name == "combined" else ""
        guided = f", s={row.guidance:g}" if row.nfe > row.steps else ""
        out.append(
            (
                shown_name(result.grid.only.context.style),
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
    for name in (*pictures.sets(), "base"):
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
    setting = results[0].grid.only
    rows = [setting.teacher.label, *(f"control {n} NFE" for n in PASSES)]
    rows += [f"combined {n} NFE" for n in PASSES]
    columns: list[str] = []
    tiles: list[list[object]] = [[] for _ in range(len(rows) + 1)]
    for result, count in zip(results, (6, 4), strict=False):  # a small ground may lack part B
        cells = {row.nfe: row for row in result.rows if row.role == "cell"}
        fast = [cells[n] for n in PASSES]
        chosen = [result.grid.only.teacher, *map(result.control, fast), *fast]
        for index, prompt in enumerate(result.grid.prompts[:count]):
            columns.append(f"{prompt} ({pictures.by_caption()[prompt].part})")
            for line, row in zip(tiles, chosen, strict=False):
                line.append(result.pixels[row][index * len(result.grid.seeds)])
            true = pictures.variants(
                setting.target_sets[0], pictures.by_caption()[prompt], 1, seed=3
            )
            tiles[-1].append(true[0])
    labelled = list(zip([*rows, f"true picture\n{setting.target_sets[0]}"], tiles, strict=True))
    title = f"{setting.context.style} + lcm, λ₁ = λ₂ = 1"
    return png_bytes(contact_sheet(labelled, columns, title))  # type: ignore[arg-type]  # arrays


def shown_name(style: str) -> str:
    """``base`` for no style."""
    return "base" if style == NONE else style


def write_sheets(results: Results, folder: Path) -> None:
    """``sheet_STYLE.png`` of every style."""
    for style in dict.fromkeys(style for style, _ in results):
        both = [result for (of, _), result in results.items() if of == style]
        files.write_file(folder / f"sheet_{shown_name(style)}.png", sheet(both))


def publish(results: Results, repository: Path) -> None:
    """Writes ``docs/table.md``, and its short form into the README."""
    tables = {(part, style): lines(result) for (style, part), result in results.items()}
    seeds = len(results[NONE, "A"].grid.seeds)
    counts = {part: len(results[NONE, part].grid.prompts) for part in ("A", "B")}
    files.write_file(repository / "docs" / "table.md", page(tables, counts, seeds))
    readme = repository / "README.md"
    shown = readme.read_text(encoding="utf-8")
    before, after = shown.split(OPEN)[0], shown.split(CLOSE)[1]
    text = f"{made()}\n\n{markdown(short(tables))}\n"
    files.write_file(readme, f"{before}{OPEN}\n{text}{CLOSE}{after}")


def made() -> str:
    """What made the figures."""
    when = datetime.now(UTC).date().isoformat()
    return (
        f"`python tools/build_embedded.py report`, {when}, {platform.machine()}, torch "
        f"{torch.__version__}. λ1 = λ2 = 1, LCM sampler, guidance 1."
    )


Tables = Mapping[tuple[str, str], Sequence[tuple[str, ...]]]


def short(tables: Tables) -> list[tuple[str, ...]]:
    """Part and style a row: pair_distance of teacher, control and combined, and the difference."""
    column, passes = HEAD.index("pair_distance"), sorted(PASSES)
    rows = [("part", "style", "teacher", *(f"{n} NFE" for n in passes))]
    for (part, style), table in sorted(tables.items(), key=lambda item: item[0][0]):
        at = {(row[1], row[3]): row for row in table}
        cells = []
        for n in map(str, passes):
            control, combined = at["control", n], at["combined", n]
            cells.append(f"{control[column]} → {combined[column]}<br>{combined[-1]}")
        rows.append((part, shown_name(style), table[0][column], *cells))
    return rows


def page(tables: Tables, counts: Mapping[str, int], seeds: int) -> str:
    """The whole page."""
    text = [
        "# Combined against controls of equal cost",
        f"{made()} s/picture on one core. The last column is the difference in pair_distance with "
        "its 95 % interval (below zero: combined is closer to the true pictures).",
    ]
    for part, count in counts.items():
        body = [line for (of, _), table in tables.items() if of == part for line in table]
        text += [f"## Part {part}: {count} captions × {seeds} seeds", markdown([HEAD, *body])]
        text += [f"### The judge's ceilings on part {part}", markdown(ceilings(part))]
    return "\n\n".join(text) + "\n"
