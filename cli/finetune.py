"""``lcm-arith finetune``: pictures → a style vector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import naming, options
from lcm_arith.cli.output import Stages, print_made, progress

EXAMPLES = """Examples:

  lcm-arith finetune --embedded-style twemoji -o twemoji.safetensors

  lcm-arith finetune --data my-pictures/ --rank 8 --steps 300 -o mine.safetensors

  lcm-arith finetune --data more/ --from mine.safetensors --learning-rate 3e-4 -o 2.safetensors
"""


def command(
    data: options.Data = None,
    embedded_style: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Learn an embedded picture set (its part A).",
            show_default="fluent-emoji",
        ),
    ] = None,
    rank: options.Rank = None,
    steps: options.Steps = None,
    learning_rate: options.Rate = None,
    start: options.Start = None,
    seed: options.Seed = 0,
    dtype: options.Dtype = options.DtypeName.float32,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File to write.", show_default="style.safetensors"),
    ] = None,
    name: naming.Name = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Train a LoRA style vector: noise prediction, min-SNR weighting, caption dropout."""
    from lcm_arith.adapters import DTYPES
    from lcm_arith.embedded import files
    from lcm_arith.errors import UsageError
    from lcm_arith.make_vectors import Request, make_style

    if data is not None and embedded_style is not None:
        raise UsageError("--data and --embedded-style exclude each other")
    with naming.output(out, name, "style.safetensors") as to:
        request = Request(
            to.path,
            data,
            rank,
            steps,
            seed,
            DTYPES[dtype.value],
            force,
            start=start,
            learning_rate=learning_rate,
        )
        with progress() as bar:
            style = embedded_style or str(files.defaults()["style"])
            made = make_style(request, style, Stages(bar))
        made = to.put(made, "finetune")
    print_made(made, as_json=as_json)
