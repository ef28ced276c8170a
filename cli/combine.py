"""``lcm-arith combine``: two vectors → one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

EXAMPLES = """Examples:

  lcm-arith combine                             (fluent-emoji and lcm at 0.8 and 1.0)

  lcm-arith combine noto lcm --l1 1.0 --l2 1.0 -o noto-4step.safetensors

  lcm-arith combine my-style.safetensors --rank 32 --force

  lcm-arith combine fluent-emoji none --l1 -1   (negation: −τ)
"""


def command(
    style: options.Style = None,
    accel: options.Accel = None,
    l1: Annotated[
        str, typer.Option("--l1", metavar="λ1", help="Weight of the style vector.")
    ] = "0.8",
    l2: Annotated[
        str, typer.Option("--l2", metavar="λ2", help="Weight of the acceleration vector.")
    ] = "1.0",
    rank: Annotated[
        int | None,
        typer.Option(
            help="Re-project each module to at most this rank; without it the sum is exact."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="File to write.")] = Path(
        "combined.safetensors"
    ),
    dtype: options.Dtype = options.DtypeName.float32,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write λ1·τ_style + λ2·τ_LCM (eq. 3 of arXiv:2311.05556) as one adapter file."""
    from lcm_arith.adapters import DTYPES, check_output, save
    from lcm_arith.combination import combine
    from lcm_arith.evaluation.lists import parse_one
    from lcm_arith.projection import retained_energy

    check_output(out, force=force)
    names = options.pair(style, accel)
    weights = (parse_one(l1, "--l1"), parse_one(l2, "--l2"))
    tau = combine(*names, l1=float(weights[0]), l2=float(weights[1]), rank=rank)
    digest = save(tau, out, dtype=DTYPES[dtype.value], about={"kind": "combined"}, force=force)
    ranks = [tau.rank_of(module) for module in tau]
    energy = retained_energy(tau)
    result = {
        "path": str(out),
        "sha256": digest,
        "style": names[0],
        "accel": names[1],
        "l1": str(weights[0]),
        "l2": str(weights[1]),
        "modules": len(ranks),
        "rank_min": min(ranks),
        "rank_max": max(ranks),
        "retained_energy": energy,
        "dtype": dtype.value,
        "bytes": out.stat().st_size,
    }
    if as_json:
        print_json(result)
        return
    stdout.print(f"{weights[0]} · {names[0]} + {weights[1]} · {names[1]}")
    spread = f"{min(ranks)}" if min(ranks) == max(ranks) else f"{min(ranks)} to {max(ranks)}"
    kept = "exact sum" if energy is None else f"{energy:.4%} of the energy retained"
    stdout.print(f"{len(ranks)} modules of rank {spread}, {kept}, {dtype.value}")
    stdout.print(f"wrote {out} ({out.stat().st_size / 2**20:.1f} MiB)", soft_wrap=True)
