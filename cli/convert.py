"""``lcm-arith convert``: the same adapter in another program's format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import naming, options
from lcm_arith.cli.output import print_json, print_vector, write_vector

EXAMPLES = """Examples:

  lcm-arith convert                             (the embedded lcm, for kohya's tools)

  lcm-arith convert style.safetensors -o style-comfy.safetensors --format comfy

  lcm-arith convert style.safetensors -o peft-folder --format peft

  lcm-arith convert old.safetensors -o new.safetensors --format diffusers --dtype float16

  lcm-arith convert old.bin -o new.safetensors --allow-pickle
"""


def command(
    adapter: options.Vector = "lcm",
    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            help="File to write, or PEFT's folder.",
            show_default="converted.safetensors",
        ),
    ] = None,
    name: naming.Name = None,
    form: options.Format = options.FormatName.kohya,
    dtype: options.Dtype = options.DtypeName.float32,
    base: options.DoraBase = None,
    allow_pickle: options.AllowPickle = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write an adapter in another format: the same updates, whatever their ranks."""
    from lcm_arith.adapters import load
    from lcm_arith.formats.container import refuse_existing_folder
    from lcm_arith.formats.peft_folder import CONFIG
    from lcm_arith.saving import check_output

    with naming.output(out, name, "converted.safetensors") as to:
        if form is options.FormatName.peft and not to.path.suffix:
            refuse_existing_folder(to.path, force=force, mark=CONFIG)
        else:
            check_output(to.path, force=force)
        tau = load(adapter, base, allow_pickle=allow_pickle)
        options.check_base(base, [tau.base is not None])
        result = write_vector(tau, to.path, dtype=dtype, force=force, about={}, form=form.value)
        result = to.put(result, "convert", naming.kind_of(adapter))
    if as_json:
        print_json(result)
    else:
        print_vector(result)
