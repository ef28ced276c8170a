"""``lcm-arith negate``: −τ, what takes a style out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, print_vector, write_vector

EXAMPLES = """Examples:

  lcm-arith negate                              (the embedded fluent-emoji)

  lcm-arith negate my-style.safetensors -o without-my-style.safetensors
"""


def command(
    adapter: Annotated[
        str, typer.Argument(help="Shipped name or file.", show_default="fluent-emoji")
    ] = "fluent-emoji",
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path(
        "negated.safetensors"
    ),
    form: options.Format = options.FormatName.diffusers,
    dtype: options.Dtype = options.DtypeName.float32,
    base: options.DoraBase = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write −τ of an adapter (the sign on the up factors alone)."""
    from lcm_arith.adapters import check_output, load

    check_output(out, force=force)
    tau = load(adapter, base)
    options.check_base(base, [tau.base is not None])
    result = write_vector(-tau, out, dtype=dtype, force=force, about={}, form=form.value)
    if as_json:
        print_json(result)
    else:
        print_vector(result)
