"""``lcm-arith spectrum``: what a rank would cost, for every pair of weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import product
from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

EXAMPLES = """Examples:

  lcm-arith spectrum                            (fluent-emoji and lcm, λ1 from 0 to 1.2)

  lcm-arith spectrum style.safetensors lcm.safetensors --l1 0.5,1 --l2 0.8,1 --ranks 16,32,64

  lcm-arith spectrum noto none --l1 1 --ranks 1:16:1 --csv noto.csv
"""

DEFAULT_WEIGHTS = ("0:1.2:0.2", "1")


def command(
    style: options.Style = None,
    accel: options.Accel = None,
    l1: Annotated[
        str | None,
        typer.Option(
            "--l1",
            metavar="LIST",
            help="Weights of the style vector.",
            show_default=DEFAULT_WEIGHTS[0],
        ),
    ] = None,
    l2: Annotated[
        str | None,
        typer.Option(
            "--l2",
            metavar="LIST",
            help="Weights of the acceleration vector.",
            show_default=DEFAULT_WEIGHTS[1],
        ),
    ] = None,
    ranks: Annotated[str, typer.Option(metavar="LIST", help="Ranks to look at.")] = "4,8,16,32,64",
    csv: Annotated[
        Path | None, typer.Option("--csv", metavar="FILE", help="Also write the table.")
    ] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Show the error of λ1·τ_style + λ2·τ_LCM at each rank; decomposed once for all λ."""
    from lcm_arith.adapters import load
    from lcm_arith.combination import NONE
    from lcm_arith.errors import UsageError
    from lcm_arith.evaluation.plans.lists import parse_counts
    from lcm_arith.families import check_same_family
    from lcm_arith.formats.container import refuse_existing, write_bytes
    from lcm_arith.sweep import Sweep, energies

    names = options.pair(style, accel)
    weights = read_weights(names, (l1, l2))
    wanted = parse_counts(ranks, "--ranks")
    if csv is not None:
        refuse_existing(csv, force=force)
    present = [index for index, name in enumerate(names) if name != NONE]
    if not present:
        raise UsageError("none and none: there is no spectrum", hint="name a vector")
    vectors = [load(names[index]) for index in present]
    check_same_family(dict(zip((names[index] for index in present), vectors, strict=True)))
    sweep = Sweep.of(vectors)
    rows = []
    for pair in product(*(weights[index] for index in present)):
        total, shares = energies(sweep.spectra([float(weight) for weight in pair]), wanted)
        errors = [math.sqrt(max(0.0, 1 - share)) for share in shares]
        shown = dict(zip(present, map(str, pair), strict=True))
        rows.append(Row(shown.get(0), shown.get(1), math.sqrt(total), tuple(errors)))
    if csv is not None:
        write_bytes(csv, csv_text(rows, wanted).encode(), force=force)
    if as_json:
        print_json(
            {
                "vectors": list(names),
                "rows": [
                    {**vars(row), "errors": dict(zip(map(str, wanted), row.errors, strict=True))}
                    for row in rows
                ],
            }
        )
        return
    show(rows, wanted, names)


def read_weights(names: Sequence[str], texts: Sequence[str | None]) -> list[tuple[Decimal, ...]]:
    """λ1 and λ2, each a list.

    Raises:
        UsageError: If one is no list of numbers, or of no vector.
    """
    from lcm_arith.combination import NONE
    from lcm_arith.errors import UsageError
    from lcm_arith.evaluation.plans.lists import parse_decimals

    found = []
    rows = zip(names, texts, DEFAULT_WEIGHTS, ("--l1", "--l2"), strict=True)
    for name, text, default, option in rows:
        if name == NONE and text is not None:
            raise UsageError(f"{option} {text}: weighs no vector", hint="leave it out")
        found.append(parse_decimals(default if text is None else text, option))
    return found


@dataclass(frozen=True)
class Row:
    """One pair of weights.

    Args:
        l1: λ1 as a decimal string, None without a style.
        l2: λ2, None without an acceleration vector.
        norm: ‖Σ λτ‖ over all modules.
        errors: Share of the norm that is lost at each rank.
    """

    l1: str | None
    l2: str | None
    norm: float
    errors: tuple[float, ...]


def head(ranks: Sequence[int]) -> list[str]:
    """Names of the columns."""
    return ["l1", "l2", "norm", *(f"rank {rank}" for rank in ranks)]


def csv_text(rows: Sequence[Row], ranks: Sequence[int]) -> str:
    """The rows with a column for each rank."""
    lines = [head(ranks)]
    lines += [[r.l1 or "", r.l2 or "", *map(repr, (r.norm, *r.errors))] for r in rows]
    return "\n".join(",".join(line) for line in lines) + "\n"


def show(rows: Sequence[Row], ranks: Sequence[int], names: tuple[str, str]) -> None:
    """The table."""
    from rich.table import Table

    title = f"λ1 · {names[0]} + λ2 · {names[1]}"
    table = Table(box=None, pad_edge=False, title=title, title_justify="left")
    for name in head(ranks):
        table.add_column(name, justify="right")
    for row in rows:
        errors = (f"{error:.2%}" for error in row.errors)
        table.add_row(row.l1 or "", row.l2 or "", f"{row.norm:.4g}", *errors)
    stdout.print(table)
    stdout.print("Each rank: the share of the sum's norm that the best file of that rank loses.")
