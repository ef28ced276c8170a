"""``lcm-arith distill``: a base model → an acceleration vector."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import naming, options
from lcm_arith.cli.output import Stages, print_made, progress

EXAMPLES = """Examples:

  lcm-arith distill -o lcm.safetensors

  lcm-arith distill --data my-pictures/ --omega 1 --rank 16 --steps 300 -o mine.safetensors

  lcm-arith distill --from lcm --rank 64 --learning-rate 0.0002 -o longer.safetensors
"""


def command(
    data: options.Data = None,
    omega: Annotated[
        float | None,
        typer.Option(
            metavar="ω",
            help="Guidance of the teacher in the paper's form; diffusers' guidance scale is 1 + ω.",
            show_default="the family's",
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
        typer.Option("-o", "--out", help="File to write.", show_default="acceleration.safetensors"),
    ] = None,
    name: naming.Name = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Distil an acceleration vector: Latent Consistency Distillation (Algorithm 1) as a LoRA."""
    from lcm_arith.adapters import DTYPES
    from lcm_arith.cli.output import stderr
    from lcm_arith.families import embedded
    from lcm_arith.make_vectors import Request, make_acceleration

    strength = embedded().omega if omega is None else omega
    stderr.print(f"ω = {strength:g}, diffusers' guidance scale {1 + strength:g}")
    with naming.output(out, name, "acceleration.safetensors") as to:
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
            made = make_acceleration(request, strength, Stages(bar))
        made = to.put(made, "distill")
    print_made(made, as_json=as_json)
