"""``lcm-arith registry verify`` and ``reindex``: is the registry whole, and an index anew."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

if TYPE_CHECKING:
    from lcm_arith.registry.upkeep import Problem

EXAMPLES = """Examples:

  lcm-arith registry verify

  lcm-arith registry verify --deep              (reads every byte)
"""
REINDEX_EXAMPLES = """Examples:

  lcm-arith registry reindex
"""


def command(
    deep: Annotated[
        bool,
        typer.Option("--deep", help="Read every byte, and put damaged files into quarantine."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Look whether every name has what it needs, unchanged; exit code 8 where it has not."""
    from lcm_arith.errors import VerificationError
    from lcm_arith.registry import upkeep
    from lcm_arith.registry.store import Registry

    found = upkeep.verify(Registry.open(), deep=deep)
    if as_json:
        print_json({**vars(found), "problems": [vars(own) for own in found.problems]})
    else:
        for problem in found.problems:
            stdout.print(_line(problem), soft_wrap=True)
    looked = f"{found.names} names, {found.objects} files"
    if found.problems:
        count = len(found.problems)
        raise VerificationError(
            f"the registry has {count} problem{'' if count == 1 else 's'} ({looked})",
            hint="restore a backup, or add the vectors again; reindex where the index is wrong",
        )
    if not as_json:
        stdout.print(f"{looked}: {'every byte' if deep else 'all'} as it should be")


def _line(problem: Problem) -> str:
    from lcm_arith.text import clean

    who = ", ".join(problem.names) or "no name"
    aside = f" (now {problem.quarantined})" if problem.quarantined else ""
    return clean(f"{who}: {problem.what}{aside}")


def reindex(as_json: options.Json = False) -> None:
    """Make the index anew from the names' files; a damaged one is put aside, no vector is touched.

    Exit code 8 where a name's files are lost.
    """
    from lcm_arith.errors import VerificationError
    from lcm_arith.registry import upkeep
    from lcm_arith.registry.store import Registry
    from lcm_arith.text import clean

    made = upkeep.reindex(Registry.open())
    if as_json:
        print_json(vars(made))
    else:
        stdout.print(f"{made.names} names in the index")
        if made.aside:
            stdout.print(f"the damaged one is {made.aside}", soft_wrap=True)
        for name, why in made.lost.items():
            stdout.print(clean(f"{name}: {why}"), soft_wrap=True)
    if made.lost:
        raise VerificationError(
            f"{', '.join(made.lost)}: cannot be read any more", hint="restore a backup"
        )
