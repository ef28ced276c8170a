"""``lcm-arith combine``: vectors → one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcm_arith.cli import completion, naming, options
from lcm_arith.cli.output import print_json, print_vector, stdout, write_vector

if TYPE_CHECKING:
    from lcm_arith.weights import Term

EXAMPLES = """Examples:

  lcm-arith combine                             (fluent-emoji and lcm at 0.8 and 1.0)

  lcm-arith combine noto lcm --l1 1.0 --l2 1.0 -o noto-4step.safetensors

  lcm-arith combine noto:0.5 twemoji:0.5 lcm:1  (any number of vectors)

  lcm-arith combine noto:0.8,up.1=0.4 lcm       (another λ for a block)

  lcm-arith combine my-style.safetensors --rank 32 --force

  lcm-arith combine noto lcm --name noto-fast   (into the registry; later: combine noto-fast …)

  lcm-arith combine noto:1 lcm:1 --method orthogonal --energy 0.99

  lcm-arith combine noto:0.7 twemoji:0.7 lcm:1 --method ties --density 0.4 --rank 32
"""


def command(
    terms: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STYLE ACCEL | NAME:λ…",
            help="Two vectors, or any number with their weights: name, file, or none.",
            autocompletion=completion.vectors,
            show_default="fluent-emoji lcm",
        ),
    ] = None,
    l1: Annotated[
        str | None,
        typer.Option("--l1", metavar="λ1", help="Weight of the style vector.", show_default="0.8"),
    ] = None,
    l2: Annotated[
        str | None,
        typer.Option(
            "--l2", metavar="λ2", help="Weight of the acceleration vector.", show_default="1"
        ),
    ] = None,
    method: Annotated[
        str, typer.Option(help="How the weighted vectors are combined: see docs/arithmetic.md.")
    ] = "linear",
    policy: Annotated[
        str,
        typer.Option(
            metavar="raw|energy|norm",
            help="λ as it is; over √Σλ²; or of vectors brought to the length of the last one.",
        ),
    ] = "raw",
    density: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Of a term's numbers that an element-wise method keeps.",
            show_default="0.5",
        ),
    ] = None,
    space: Annotated[
        str | None,
        typer.Option(
            metavar="core|knots|full",
            help="Coordinates that an element-wise method works in.",
            show_default="core",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of what dare and della drop at random.", show_default="0"),
    ] = None,
    rank: options.KeepRank = None,
    energy: options.KeepEnergy = None,
    max_error: options.KeepError = None,
    size: options.KeepSize = None,
    device: options.Device = "cpu",
    out: Annotated[
        Path | None,
        typer.Option("-o", "--out", help="File to write.", show_default="combined.safetensors"),
    ] = None,
    name: naming.Name = None,
    form: options.Format = options.FormatName.diffusers,
    dtype: options.Dtype = options.DtypeName.float32,
    base: options.DoraBase = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write Σ λ·τ as one adapter file; by default λ1·τ_style + λ2·τ_LCM (arXiv:2311.05556)."""
    from lcm_arith.adapters import is_dora
    from lcm_arith.combination import NONE, combine_terms, distance_to_sum
    from lcm_arith.elementwise import How
    from lcm_arith.formats.writers import dit_spelling
    from lcm_arith.headers import kept
    from lcm_arith.saving import check_output

    given = read_terms(terms or [], l1, l2)
    options.check_base(base, (is_dora(term.name) for term in given if term.name != NONE))
    budget = options.budget(dtype, rank=rank, energy=energy, max_error=max_error, size=size)
    choices = {"density": density, "space": space, "seed": seed}
    chosen = {name: value for name, value in choices.items() if value is not None}
    how = How(**chosen) if chosen else None  # type: ignore[arg-type]  # each has its own type
    told = {
        "terms": [{"name": t.name, "weight": str(t.weights)} for t in given],
        "method": method,
        "policy": policy,
    }
    with naming.output(out, name, "combined.safetensors") as to:
        check_output(to.path, force=force)
        tau = combine_terms(
            given, method=method, budget=budget, how=how, base=base, policy=policy, device=device,
            spelling=dit_spelling(form.value),
        )  # fmt: skip
        about = {"kind": "combined", **kept(tau)}
        result = write_vector(tau, to.path, dtype=dtype, force=force, about=about, form=form.value)
        result = to.put(result, "combine")
    result["distance_to_sum"] = distance_to_sum(tau)
    if as_json:
        pair = {"style": given[0].name, "accel": given[1].name} if len(given) == 2 else {}
        weights = {"l1": str(given[0].weights), "l2": str(given[1].weights)} if pair else {}
        print_json({**result, **told, **pair, **weights})
        return
    stdout.print(" + ".join(f"{t.weights} · {t.name}" for t in given), soft_wrap=True)
    print_vector(result)
    if result["distance_to_sum"] is not None:
        stdout.print(
            f"{method}: {result['distance_to_sum']:.1%} of the norm away from the plain sum"
        )


def read_terms(texts: list[str], l1: str | None, l2: str | None) -> list[Term]:
    """Up to two names with λ1 and λ2, or any number of NAME:λ.

    Raises:
        UsageError: If λ is given twice, or one of the lists is wrong.
    """
    from lcm_arith.combination import NONE
    from lcm_arith.errors import UsageError
    from lcm_arith.weights import Term, Weights, decimal, parse_term

    weighted = any(text and parse_term(text).name != text for text in texts)
    if not weighted and len(texts) <= 2:
        names = options.pair(*(*texts, None, None)[:2])
        numbers = (
            decimal("0.8" if l1 is None else l1, f"--l1 {l1}"),
            decimal("1" if l2 is None else l2, f"--l2 {l2}"),
        )
        for name, option, text in zip(names, ("--l1", "--l2"), (l1, l2), strict=True):
            if name == NONE and text is not None:
                raise UsageError(f"{option} {text}: weighs none, which is no vector")
        return [Term(n, Weights(w)) for n, w in zip(names, numbers, strict=True)]
    if l1 is not None or l2 is not None:
        raise UsageError("--l1 and --l2 are for two vectors without weights of their own")
    return [parse_term(text) for text in texts]
