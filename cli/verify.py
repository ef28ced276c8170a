"""``lcm-arith verify``: is this file the sum that it should be?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import print_json, stdout

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lcm_arith.vector import TaskVector
    from lcm_arith.weights import Term

EXAMPLES = """Examples:

  lcm-arith verify combined.safetensors         (by what its header says)

  lcm-arith verify merged.safetensors style.safetensors lcm.safetensors     (the same, of files)

  lcm-arith verify merged.safetensors style.safetensors:0.8 lcm.safetensors:1

  lcm-arith verify small.safetensors big.safetensors --tolerance 0.1
"""


def command(
    file: Annotated[
        str,
        typer.Argument(
            help="The file in question; any program's.",
            show_default="combined.safetensors",
            autocompletion=completion.vectors,
        ),
    ] = "combined.safetensors",
    terms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME:λ…",
            help="What it should be the sum of; λ as its header says.",
            autocompletion=completion.vectors,
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(min=0.0, help="Largest ‖file − sum‖ / ‖sum‖ that passes.")
    ] = 1e-3,
    base: options.DoraBase = None,
    as_json: options.Json = False,
) -> None:
    """Compare a file with Σ λ·τ, module by module; exit code 8 where it is something else."""
    from lcm_arith.adapters import is_dora, load
    from lcm_arith.analysis import distance
    from lcm_arith.combination import NONE, combine_terms
    from lcm_arith.errors import VerificationError
    from lcm_arith.respelling import alike
    from lcm_arith.weights import parse_term

    tau = load(file, base)
    given = [parse_term(text) for text in terms or []]
    if all(term.name == text for term, text in zip(given, terms or [], strict=True)):
        given = recorded(file, tau, given)
    names = [file, *(term.name for term in given if term.name != NONE)]
    options.check_base(base, map(is_dora, names))
    lost, total = distance(tau, alike(combine_terms(given, base=base), tau))
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


def recorded(file: str, tau: TaskVector, named: list[Term]) -> list[Term]:
    """The terms and weights that the file's header records, of vectors that are found again.

    They are shipped, named or registered, and known by their sha256. Of a file without a record
    each named term weighs 1.

    Raises:
        UsageError: If the record is of a method, or of files that are neither named nor registered.
    """
    from lcm_arith.adapters import facts, file_digest
    from lcm_arith.errors import UsageError

    record = facts(tau).get("terms", [])
    if not record:
        if named:
            return named
        raise UsageError(
            f"{file}: its header does not say what it is the sum of",
            hint="name the terms: lcm-arith verify FILE style.safetensors:0.8 accel.safetensors:1",
        )
    names = {file_digest(term.name): term.name for term in named}
    try:
        found = [term for row in record for term in _terms(file, row, names)]
    except UsageError:
        raise
    except (TypeError, AttributeError, KeyError, ValueError, ArithmeticError) as error:
        raise UsageError(
            f"{file}: what its header records is not understood ({type(error).__name__})",
            hint="name the terms with their weights, NAME:λ",
        ) from error
    idle = set(names.values()) - {term.name for term in found}
    if idle:
        raise UsageError(
            f"{file}: its header does not record {', '.join(sorted(idle))}",
            hint="give each term a weight, NAME:λ, to compare with another sum",
        )
    return found


def _terms(file: str, row: dict[str, Any], names: dict[str, str]) -> Iterator[Term]:
    """The terms of one recorded row; a re-projection stands for what it was made of."""
    from decimal import Decimal

    from lcm_arith.errors import UsageError
    from lcm_arith.weights import Term, Weights, parse_term

    inner = row.get("of", {}).get("terms", [])
    if row.get("method"):
        raise UsageError(
            f"{file}: was made by {row['method']}, which is no sum", hint="name terms to compare"
        )
    if "weights" in row and len(inner) == 1:  # a λ for each part
        (term,) = _terms(file, inner[0], names)
        own, factor = parse_term(f"x:{row['weights']}").weights, Decimal(str(row["weight"]))
        if factor != 1:  # of a policy
            parts = tuple((part, weight * factor) for part, weight in own.parts)
            own = Weights(own.overall * factor, parts, own.blocks)
        yield Term(term.name, own)
    elif inner and float(row["weight"]) == 1:
        for own in inner:
            yield from _terms(file, own, names)
    elif row.get("operation") and "sha256" not in row:
        raise UsageError(
            f"{file}: was made by {row['operation']}, which is no sum", hint="name terms to compare"
        )
    else:
        sha256 = row.get("sha256", "")
        name = row.get("name") or names.get(sha256) or _registered(sha256)
        if name is None:
            raise UsageError(
                f"{file}: was made of a file with sha256 {str(sha256)[:16]}…",
                hint="name that file, too (lcm-arith verify FILE TERM TERM), or register it: "
                "lcm-arith registry add FILE",
            )
        if not isinstance(name, str):
            raise TypeError("a name is no text")
        yield Term(name, Weights(Decimal(str(row["weight"]))))


def _registered(sha256: str) -> str | None:
    """The registered vector of that sha256: its name, or its path where the name means another."""
    from lcm_arith.adapters import locate
    from lcm_arith.registry.store import Registry

    registry = Registry.open()
    path = registry.files(sha256)
    if path is None:
        return None
    rows = registry.index.rows()
    name = next((row.name for row in rows if row.columns.get("object") == sha256), None)
    return name if name is not None and locate(name) == path else str(path)
