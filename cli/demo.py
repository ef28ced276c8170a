"""``lcm-arith demo``: the main job on the embedded model, in a few minutes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import Stages, print_grid, print_json, progress, stdout

EXAMPLES = """Examples:

  lcm-arith demo

  lcm-arith demo --out /tmp/demo --json
"""


def command(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for everything.")] = Path("demo"),
    as_json: options.Json = False,
) -> None:
    """Combine at 0.8 / 1.0, draw it beside teacher and controls, and search a small grid."""
    from lcm_arith.evaluation.demo import run_demo
    from lcm_arith.evaluation.report import ceilings_line

    options.writable_folder(out)
    with progress() as bar:
        shown = run_demo(out, Stages(bar))
    if as_json:
        print_json({"paths": [str(path) for path in shown.paths], "result": shown.sentence})
        return
    print_grid(shown.result)
    stdout.print(ceilings_line(shown.result), soft_wrap=True)
    for path in shown.paths:
        stdout.print(f"wrote {path}", soft_wrap=True)
    stdout.print(shown.sentence, soft_wrap=True)
