"""``lcm-arith verify``: is this file the sum that it should be?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

if TYPE_CHECKING:
    from lcm_arith.weights import Term

EXAMPLES = """Examples:

  lcm-arith verify combined.safetensors         (by what its header says)

  lcm-arith verify merged.safetensors style.safetensors:0.8 lcm.safetensors:1

  lcm-arith verify small.safetensors big.safetensors --tolerance 0.1
"""


def command(
    file: Annotated[
        str,
        typer.Argument(
            help="The file in question; any program's.", show_default="combined.safetensors"
        ),
    ] = "combined.safetensors",
    terms: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME:λ…", help="What it should be the sum of."),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest ‖file − sum‖ / ‖sum‖ that passes.")
    ] = 1e-3,
    base: options.DoraBase = None,
    as_json: options.Json = False,
) -> None:
    """Compare a file with Σ λ·τ, module by module; exit code 8 where it is something else."""
    from lcm_arith.adapters import load
    from lcm_arith.analysis import distance
    from lcm_arith.combination import combine_terms
    from lcm_arith.errors import VerificationError
    from lcm_arith.weights import parse_term

    tau = load(file, base)
    given = [parse_term(text) for text in terms or []] or recorded(file, tau)
    lost, total = distance(tau, combine_terms(given, base=base))
    error = lost / total if total else float(lost > 0)
    passed = error <= tolerance
    told = {
        "path": file,
        "terms": [{"name": t.name, "weight": str(t.weights)} for t in given],
        "error": error,
        "tolerance": tolerance,
        "passed": passed,
    }
    if as_json:
        print_json(told)
    shown = " + ".join(f"{t.weights} · {t.name}" for t in given)
    if not passed:
        raise VerificationError(
            f"{file}: is not {shown}: ‖file − sum‖ / ‖sum‖ = {error:.3g}",
            hint="a re-projected or half-precision file is further away; see --tolerance",
        )
    if not as_json:
        stdout.print(f"{file} = {shown}: relative error {error:.2g}", soft_wrap=True)


def recorded(file: str, tau: Any) -> list[Term]:
    """The terms that the file's header names, where they are shipped vectors.

    Raises:
        UsageError: If it names none, or files that only their digests tell.
    """
    from decimal import Decimal

    from lcm_arith.adapters import facts
    from lcm_arith.errors import UsageError
    from lcm_arith.weights import Term, Weights

    terms = facts(tau).get("terms", [])
    if not terms or any("name" not in term for term in terms):
        raise UsageError(
            f"{file}: its header does not say by name what it is the sum of",
            hint="name the terms: lcm-arith verify FILE style.safetensors:0.8 accel.safetensors:1",
        )
    return [Term(term["name"], Weights(Decimal(str(term["weight"])))) for term in terms]
