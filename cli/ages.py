"""Ages on the command line."""

from __future__ import annotations

import re
from typing import Annotated, Final

import typer

OlderThan = Annotated[
    str,
    typer.Option(
        metavar="AGE",
        help="Only files of at least this age: 30m, 24h, 7d. Younger ones may belong to something "
        "that is being made.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")]
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 24 * 3600.0}


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
