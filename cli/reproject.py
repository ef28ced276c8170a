"""``lcm-arith reproject``: a smaller adapter, as near as its budget allows."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import naming, options
from lcm_arith.cli.output import print_json, print_vector, write_vector

EXAMPLES = """Examples:

  lcm-arith reproject                           (the embedded lcm to 99 % of its energy)

  lcm-arith reproject big.safetensors --rank 16

  lcm-arith reproject big.safetensors --size 10 --dtype float16   (10 MiB, ranks as they pay)
"""

DEFAULT_ENERGY = 0.99


def command(
    adapter: options.Vector = "lcm",
    rank: options.KeepRank = None,
    energy: options.KeepEnergy = None,
    max_error: options.KeepError = None,
    size: options.KeepSize = None,
    device: options.Device = "cpu",
    sv_ratio: Annotated[
        float | None, typer.Option(help="kohya's: keep σ above the module's largest / this.")
    ] = None,
    sv_fro: Annotated[
        float | None, typer.Option(help="kohya's: keep this share of each module's norm.")
    ] = None,
    sv_cumulative: Annotated[
        float | None, typer.Option(help="kohya's: keep this share of each module's Σ σ.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File to write.", show_default="reprojected.safetensors"),
    ] = None,
    name: naming.Name = None,
    form: options.Format = options.FormatName.diffusers,
    dtype: options.Dtype = options.DtypeName.float32,
    base: options.DoraBase = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Re-project an adapter by SVD to a rank, an energy, an error or a size; 0.99 without."""
    from lcm_arith.adapters import load
    from lcm_arith.formats.writers import dit_spelling
    from lcm_arith.projection import reproject
    from lcm_arith.respelling import respelled
    from lcm_arith.saving import check_output

    asked = {"rank": rank, "energy": energy, "max_error": max_error, "size": size}
    asked |= {"sv_ratio": sv_ratio, "sv_fro": sv_fro, "sv_cumulative": sv_cumulative}
    if all(value is None for value in asked.values()):
        asked["energy"] = DEFAULT_ENERGY
    budget = options.budget(dtype, **asked)
    if budget is None:
        raise AssertionError("a budget was chosen above")
    with naming.output(out, name, "reprojected.safetensors") as to:
        check_output(to.path, force=force)
        tau = load(adapter, base)
        options.check_base(base, [tau.base is not None])
        tau = reproject(respelled(tau, dit_spelling(form.value)), budget, device)
        result = write_vector(tau, to.path, dtype=dtype, force=force, about={}, form=form.value)
        result = to.put(result, "reproject", naming.kind_of(adapter))
    if as_json:
        print_json({**result, "budget": budget.kind, "value": budget.value})
    else:
        print_vector(result)
