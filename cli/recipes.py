"""``lcm-arith recipes``: the options of grid-eval for the questions that people ask."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import print_json, stdout

app = typer.Typer(
    help="Options of grid-eval for the questions that people ask; run one with "
    "grid-eval --recipe NAME, which the other options of the command line go before.",
    no_args_is_help=True,
)
LS_EXAMPLES = """Examples:

  lcm-arith recipes ls
"""
SHOW_EXAMPLES = """Examples:

  lcm-arith recipes show which-sampler
"""
CP_EXAMPLES = """Examples:

  lcm-arith recipes cp which-sampler mine.yaml && lcm-arith grid-eval --recipe mine.yaml
"""
Name = Annotated[
    str, typer.Argument(help="Recipe: name or file.", autocompletion=completion.recipes)
]


def ls(as_json: options.Json = False) -> None:
    """List the recipes and what they ask."""
    from lcm_arith.evaluation.plans.recipe import names, read

    found = [read(name) for name in names()]
    if as_json:
        print_json({"recipes": [{"name": r.name, "question": r.question} for r in found]})
        return
    wide = max(len(recipe.name) for recipe in found)
    for recipe in found:
        stdout.print(f"{recipe.name:{wide}}  {recipe.question}", soft_wrap=True, markup=False)


def show(name: Name) -> None:
    """Print a recipe as it stands."""
    from lcm_arith.evaluation.plans.recipe import locate, read

    read(name)
    stdout.print(locate(name).read_text(encoding="utf-8"), end="", soft_wrap=True, markup=False)


def cp(
    name: Name,
    to: Annotated[
        Path | None, typer.Argument(help="File to write.", show_default="NAME.yaml here")
    ] = None,
    force: options.Force = False,
) -> None:
    """Copy a recipe, to change it."""
    from lcm_arith.evaluation.plans.recipe import locate
    from lcm_arith.formats.container import write_bytes

    source = locate(name)
    path = to or Path(source.name)
    write_bytes(path, source.read_bytes(), force=force)
    stdout.print(f"wrote {path}", soft_wrap=True)


for _name, _command, _examples in (
    ("ls", ls, LS_EXAMPLES),
    ("show", show, SHOW_EXAMPLES),
    ("cp", cp, CP_EXAMPLES),
):
    app.command(_name, epilog=_examples)(_command)
