"""``lcm-arith negate``: −τ, what takes a style out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import naming, options
from lcm_arith.cli.output import print_json, print_vector, write_vector

EXAMPLES = """Examples:

  lcm-arith negate                              (the embedded fluent-emoji)

  lcm-arith negate my-style.safetensors -o without-my-style.safetensors
"""


def command(
    adapter: options.Vector = "fluent-emoji",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File to write.", show_default="negated.safetensors"),
    ] = None,
    name: naming.Name = None,
    form: options.Format = options.FormatName.diffusers,
    dtype: options.Dtype = options.DtypeName.float32,
    base: options.DoraBase = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write −τ of an adapter (the sign on the up factors alone)."""
    from lcm_arith.adapters import load
    from lcm_arith.saving import check_output

    with naming.output(out, name, "negated.safetensors") as to:
        check_output(to.path, force=force)
        tau = load(adapter, base)
        options.check_base(base, [tau.base is not None])
        result = write_vector(-tau, to.path, dtype=dtype, force=force, about={}, form=form.value)
        result = to.put(result, "negate", {"kind": "task"})
    if as_json:
        print_json(result)
    else:
        print_vector(result)
