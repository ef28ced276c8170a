"""``lcm-arith extract``: two whole models → the vector between them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import naming, options
from lcm_arith.cli.output import print_json, print_vector, stdout, write_vector

EXAMPLES = """Examples:

  lcm-arith fuse && lcm-arith extract           (the embedded base, and what fuse made of it)

  lcm-arith extract sd15/ my-finetune/ --rank 64 -o my-finetune.safetensors

  lcm-arith extract sdxl.safetensors tuned.safetensors --rank 64 --lora-only
"""


def command(
    base: Annotated[
        Path | None,
        typer.Argument(
            help="Base model: diffusers folder or file.", show_default="the embedded one"
        ),
    ] = None,
    tuned: Annotated[Path, typer.Argument(help="Tuned model: diffusers folder or file.")] = Path(
        "fused"
    ),
    rank: Annotated[int, typer.Option(help="Of every module.")] = 32,
    lora_only: Annotated[
        bool,
        typer.Option(
            "--lora-only", help="Leave out biases, norms and embeddings, which few programs read."
        ),
    ] = False,
    seed: options.Seed = 0,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File to write.", show_default="extracted.safetensors"),
    ] = None,
    name: naming.Name = None,
    form: options.Format = options.FormatName.diffusers,
    dtype: options.Dtype = options.DtypeName.float32,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write the difference of two models as an adapter: randomized SVD of W' − W."""
    from lcm_arith.checkpoints import extract, residual_of
    from lcm_arith.embedded import files
    from lcm_arith.saving import check_output

    with naming.output(out, name, "extracted.safetensors") as to:
        check_output(to.path, force=force)
        tau = extract(base or files.MODEL, tuned, rank=rank, seed=seed, lora_only=lora_only)
        about = {"kind": "extracted"}
        result = write_vector(tau, to.path, dtype=dtype, force=force, about=about, form=form.value)
        result = to.put(result, "extract", {"kind": "task"})
    result["residual"] = residual_of(tau)
    if as_json:
        print_json(result)
        return
    print_vector(result)
    rest = f"beyond rank {rank}" + (" or no matrix of a layer" if lora_only else "")
    stdout.print(f"{result['residual']:.2%} of the difference's norm is {rest}")
