"""``lcm-arith registry gc``: what no name needs goes."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

EXAMPLES = """Examples:

  lcm-arith registry gc --dry-run

  lcm-arith registry gc --older-than 7d
"""

_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 24 * 3600.0}


def command(
    older_than: Annotated[
        str,
        typer.Option(
            metavar="AGE",
            help="Only files of at least this age: 30m, 24h, 7d. Younger ones may "
            "belong to a vector that is being added.",
        ),
    ] = "24h",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Remove files that no name needs, and pieces of killed programs; it does not ask.

    What named vectors were made of stays, so that rebuild and lineage go on to work.
    """
    from lcm_arith.registry import upkeep
    from lcm_arith.registry.store import Registry

    age = seconds(older_than)
    swept = upkeep.gc(Registry.open(), older_than=age, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **vars(swept)})
        return
    for path in (*swept.files, *swept.pieces):
        stdout.print(path, soft_wrap=True)
    count = len(swept.files) + len(swept.pieces)
    done = "would be removed" if dry_run else "removed"
    stdout.print(f"{count} file{'' if count == 1 else 's'} {done}, {swept.bytes / 2**20:.1f} MiB")


def seconds(text: str) -> float:
    """An age such as ``24h`` in seconds.

    Raises:
        UsageError: If it is none.
    """
    from lcm_arith.errors import UsageError

    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)([smhd]?)", text.strip().lower())
    if not found or (not found[2] and float(found[1])):
        raise UsageError(f"--older-than {text}: is no age", hint="write it as 30m, 24h or 7d")
    return float(found[1]) * _UNITS[found[2] or "s"]
