"""``lcm-arith grid-eval``: the search, and verbs on the folder that it leaves."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any, Final

import typer
from typer.core import TyperGroup

from lcm_arith.cli.grid_eval import folder, run
from lcm_arith.errors import NotFoundError, UsageError

Verb = tuple[str, Callable[..., None], str]
"""Its name, the command, and its examples."""
RUN: Final = "run"


class _RunWhereNoVerb(TyperGroup):
    """``grid-eval noto lcm`` is ``grid-eval run noto lcm``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Puts the verb that need not be typed in front."""
        if args and args[0] not in self.commands:
            _check_no_verb(args[0], list(self.commands))
        typed = args and args[0] in self.commands
        return super().parse_args(ctx, args if typed else [RUN, *args])


def _check_no_verb(word: str, verbs: list[str]) -> None:
    """Raises where a style would be a misspelled verb: neither a file nor a vector."""
    close = difflib.get_close_matches(word, verbs, n=1, cutoff=0.75)
    if not close:
        return
    from lcm_arith.adapters import locate

    try:
        locate(word)
    except NotFoundError:
        raise UsageError(
            f"grid-eval {word}: no verb and no style vector", hint=f"did you mean {close[0]}?"
        ) from None


app = typer.Typer(
    cls=_RunWhereNoVerb,
    help="Measure λ1 × λ2 × steps, with intervals; report, check, repeat what was measured.",
)
VERBS: Final[tuple[Verb, ...]] = (
    (RUN, run.command, run.EXAMPLES),
    ("report", folder.report, folder.REPORT_EXAMPLES),
    ("status", folder.status, folder.STATUS_EXAMPLES),
    ("replay", folder.replay, folder.REPLAY_EXAMPLES),
    ("export", folder.export, folder.EXPORT_EXAMPLES),
    ("gc", folder.gc, folder.GC_EXAMPLES),
)
for _name, _command, _examples in VERBS:
    app.command(_name, epilog=_examples)(_command)
