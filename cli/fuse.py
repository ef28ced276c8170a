"""``lcm-arith fuse``: vectors → a whole model that has them in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.combine import read_terms
from lcm_arith.cli.output import print_json, stdout

EXAMPLES = """Examples:

  lcm-arith fuse                                (fluent-emoji and lcm at 0.8 and 1.0, embedded base)

  lcm-arith fuse my-style.safetensors:0.7 lcm-lora.safetensors:1 --base sd15/ -o sd15-fast/
"""


def command(
    terms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STYLE ACCEL | NAME:λ…",
            help="Two vectors, or any number with their weights: shipped name, file, or none.",
            show_default="fluent-emoji:0.8 lcm:1",
        ),
    ] = None,
    base: options.Base = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to make.")] = Path("fused"),
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write the base model with Σ λ·τ baked into its weights, as a diffusers folder."""
    from lcm_arith.checkpoints import fuse
    from lcm_arith.combination import combine_terms
    from lcm_arith.embedded import files

    given = read_terms(terms or [], None, None)
    made = fuse(combine_terms(given), base or files.MODEL, out, force=force)
    if as_json:
        print_json({**made, "terms": [{"name": t.name, "weight": str(t.weights)} for t in given]})
        return
    stdout.print(" + ".join(f"{t.weights} · {t.name}" for t in given), soft_wrap=True)
    stdout.print(f"{made['modules']} modules changed; wrote {made['path']}", soft_wrap=True)
