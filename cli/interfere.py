"""``lcm-arith interfere``: do two vectors get in each other's way?"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

if TYPE_CHECKING:
    from lcm_arith.analysis import Interference

EXAMPLES = """Examples:

  lcm-arith interfere                           (fluent-emoji and lcm)

  lcm-arith interfere my-style.safetensors other.safetensors --plot

  lcm-arith interfere noto twemoji --json
"""


def command(
    style: options.Style = None,
    accel: options.Accel = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw it, a PNG.", metavar="FILE")] = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Compare two vectors module by module: cosine, shared subspaces (1 = chance), norms."""
    from lcm_arith.adapters import load
    from lcm_arith.analysis import interference
    from lcm_arith.errors import UsageError
    from lcm_arith.formats.container import refuse_existing, write_bytes
    from lcm_arith.respelling import alike

    names = options.pair(style, accel)
    if "none" in names:
        raise UsageError("none: there is nothing to compare with", hint="name two vectors")
    if plot is not None:
        refuse_existing(plot, force=force)
    one, other = (load(name) for name in names)
    modules = interference(one, alike(other, one))
    rows = by_block(modules)
    if plot is not None:
        from lcm_arith.evaluation.showing.plots import interference_png

        write_bytes(plot, interference_png(rows, names), force=force)
    if as_json:
        print_json(
            {
                "vectors": list(names),
                "blocks": [dict(zip(COLUMNS, row, strict=True)) for row in rows],
                "modules": [vars(m) for m in modules],
            }
        )
        return
    from rich.table import Table

    table = Table(
        box=None, pad_edge=False, title=f"{names[0]} and {names[1]}", title_justify="left"
    )
    table.add_column(COLUMNS[0], min_width=max(len(row[0]) for row in rows))
    for column in COLUMNS[1:]:
        table.add_column(column, justify="right", max_width=8)  # a heading may take two lines
    for block, *values in rows:
        table.add_row(block, *(f"{value:.3g}" for value in values))
    stdout.print(table)
    stdout.print("Overlaps are multiples of what random subspaces share: 1 is chance.")


COLUMNS = ("block", "modules", "cosine", "output overlap", "input overlap", "norm 1", "norm 2")


def by_block(
    modules: list[Interference],
) -> list[tuple[str, int, float, float, float, float, float]]:
    """A row for each block and one for all: sums for cosine and norms, means for overlaps."""
    from lcm_arith.analysis import block_of

    groups: dict[str, list[Interference]] = {}
    for module in modules:
        groups.setdefault(block_of(module.module), []).append(module)
    if len(groups) > 1:
        groups["all"] = modules
    rows = []
    for block, own in groups.items():
        norms = [math.sqrt(sum(m.norms[i] ** 2 for m in own)) for i in (0, 1)]
        inner = sum(m.cosine * m.norms[0] * m.norms[1] for m in own)
        product = norms[0] * norms[1]
        rows.append(
            (
                block,
                len(own),
                inner / product if product else 0.0,
                sum(m.output for m in own) / len(own),
                sum(m.input for m in own) / len(own),
                norms[0],
                norms[1],
            )
        )
    return rows
