"""``lcm-arith fuse``: vectors → a whole model that has them in its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.combine import read_terms
from lcm_arith.cli.output import print_json, stdout

EXAMPLES = """Examples:

  lcm-arith fuse                                (fluent-emoji and lcm at 0.8 and 1.0, embedded base)

  lcm-arith fuse my-style.safetensors:0.7 lcm-lora.safetensors:1 --base sd15/ -o sd15-fast/

  lcm-arith fuse lcm-lora.safetensors:1 --base xl.safetensors -o xl-fast.safetensors

  lcm-arith fuse --base a.safetensors --plus b.safetensors --minus c.safetensors --times 0.8 \\
      -o a-plus.safetensors                     (add difference: A + 0.8·(B − C))
"""


def command(
    terms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STYLE ACCEL | NAME:λ…",
            help="Two vectors, or any number with their weights: name, file, or none.",
            autocompletion=completion.vectors,
            show_default="fluent-emoji:0.8 lcm:1",
        ),
    ] = None,
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL",
            help="Base model: a diffusers folder, or one file as Stability names its parts.",
            show_default="the embedded one",
        ),
    ] = None,
    plus: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="Add --times the difference of this model …"),
    ] = None,
    minus: Annotated[Path | None, typer.Option(metavar="MODEL", help="… from this one.")] = None,
    times: Annotated[float, typer.Option(help="Weight of that difference.")] = 1.0,
    out: Annotated[
        Path, typer.Option("-o", "--out", help="Folder or file to make, as the base is.")
    ] = Path("fused"),
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write the base model with Σ λ·τ baked into its weights, as a folder or file."""
    from lcm_arith.checkpoints import difference, fuse
    from lcm_arith.combination import combine_terms
    from lcm_arith.embedded import files
    from lcm_arith.errors import UsageError

    if (plus is None) != (minus is None):
        raise UsageError("--plus and --minus: a difference takes both")
    if times != 1 and plus is None:
        raise UsageError("--times: is the weight of a difference, --plus and --minus")
    given = [] if plus is not None and not terms else read_terms(terms or [], None, None)
    tau = combine_terms(given, base=base)
    if plus is not None and minus is not None:
        tau = tau + times * difference(minus, plus)
    made = fuse(tau, base or files.MODEL, out, force=force)
    if as_json:
        print_json({**made, "terms": [{"name": t.name, "weight": str(t.weights)} for t in given]})
        return
    shown = [f"{t.weights} · {t.name}" for t in given]
    shown += [f"{times} · ({plus} − {minus})"] if plus else []
    stdout.print(" + ".join(shown), soft_wrap=True)
    stdout.print(f"{made['modules']} modules changed; wrote {made['path']}", soft_wrap=True)
