"""``lcm-arith``: the commands, and the one place that turns errors into exit codes."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer
from rich.text import Text

from lcm_arith.cli import (
    combine,
    convert,
    demo,
    distill,
    extract,
    finetune,
    fuse,
    generate,
    grid_eval,
    inspect,
    interfere,
    negate,
    recipes,
    registry,
    reproject,
    spectrum,
    verify,
)
from lcm_arith.cli.output import stderr
from lcm_arith.errors import LcmArithError, StorageError
from lcm_arith.text import clean_lines

app = typer.Typer(
    name="lcm-arith",
    help="Task arithmetic for diffusion adapters: style vector + acceleration vector, weighted, "
    "in one file. Every command works without options on the embedded model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        print(f"lcm-arith {version('lcm-arith')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


for _name, _module in (
    ("combine", combine),
    ("negate", negate),
    ("reproject", reproject),
    ("convert", convert),
    ("fuse", fuse),
    ("extract", extract),
    ("inspect", inspect),
    ("interfere", interfere),
    ("spectrum", spectrum),
    ("verify", verify),
    ("generate", generate),
    ("finetune", finetune),
    ("distill", distill),
    ("demo", demo),
):
    app.command(_name, epilog=_module.EXAMPLES)(_module.command)
app.add_typer(recipes.app, name="recipes")
app.add_typer(grid_eval.app, name="grid-eval")
app.add_typer(registry.app, name="registry")

# The libraries' own messages and bars are not for our users; set these variables to see them.
_QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def main() -> None:
    """Runs the command line; a traceback only with ``LCM_ARITH_DEBUG=1``."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        app()
    except LcmArithError as error:
        _fail(error)
    except OSError as error:
        _fail(StorageError(f"{error.filename or 'file'}: {error.strerror or error}"))
    except Exception as error:
        hint = "this is a mistake of ours; LCM_ARITH_DEBUG=1 shows where, please report it"
        _fail(LcmArithError(f"{type(error).__name__}: {error}", hint=hint), cause=error)


def _fail(error: LcmArithError, cause: Exception | None = None) -> None:
    if os.environ.get("LCM_ARITH_DEBUG") == "1":
        raise cause or error
    stderr.print(Text.assemble(("Error: ", "bold red"), clean_lines(error.message)), soft_wrap=True)
    if error.hint:
        stderr.print(Text.assemble(("Hint: ", "bold"), clean_lines(error.hint)), soft_wrap=True)
    sys.exit(error.exit_code)
