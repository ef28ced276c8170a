"""``lcm-arith registry alias``, ``rename`` and ``rm``: names come, change and go."""

from __future__ import annotations

from typing import Annotated

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import print_json, stdout
from lcm_arith.cli.registry.arguments import Own

ALIAS_EXAMPLES = """Examples:

  lcm-arith registry alias best ink-v2          (combine best lcm; later: alias best ink-v3)
"""
RENAME_EXAMPLES = """Examples:

  lcm-arith registry rename ink-v2 ink
"""
RM_EXAMPLES = """Examples:

  lcm-arith registry rm ink-v1

  lcm-arith registry rm ink-v1 ink-v2 --force
"""


def alias(
    name: Annotated[str, typer.Argument(metavar="NAME", help="New, or an alias that moves.")],
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET", help="What it stands for.", autocompletion=completion.known
        ),
    ],
    as_json: options.Json = False,
) -> None:
    """Make a name stand for another vector; an alias can be moved, a vector's own name cannot."""
    from lcm_arith.registry import editing
    from lcm_arith.registry.names import check_name
    from lcm_arith.registry.store import Registry

    registry = Registry.open()
    editing.alias(registry, name, target)
    own = check_name(name)
    to = registry.row(own).state.alias_of
    if as_json:
        print_json({"name": own, "alias_of": to})
    else:
        stdout.print(f"{own} → {to}", soft_wrap=True)


def rename(
    name: Own,
    to: Annotated[str, typer.Argument(metavar="NEW", help="New name.")],
    as_json: options.Json = False,
) -> None:
    """Give a vector or an alias another name; aliases of it follow."""
    from lcm_arith.registry import editing
    from lcm_arith.registry.names import check_name
    from lcm_arith.registry.store import Registry

    editing.rename(Registry.open(), name, to)
    if as_json:
        print_json({"name": check_name(to), "renamed_from": check_name(name)})
    else:
        stdout.print(f"{check_name(name)} is {check_name(to)} now", soft_wrap=True)


def rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME…", help="Registered names.", autocompletion=completion.own),
    ],
    force: Annotated[
        bool,
        typer.Option("--force", help="Though others were made of it; its aliases go, too."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Remove names, without asking: the files stay until gc, so that adding them again is quick."""
    from lcm_arith.errors import OutputExistsError
    from lcm_arith.registry import editing
    from lcm_arith.registry.store import Registry

    registry = Registry.open()
    todo = list(dict.fromkeys(registry.row(name).name for name in names))
    gone: list[str] = []
    while todo:  # what was made of another goes first, in whatever order they were named
        refused: list[tuple[str, OutputExistsError]] = []
        for name in todo:
            try:
                gone += [*editing.remove(registry, name, force=force), name]
            except OutputExistsError as error:
                refused.append((name, error))
        if len(refused) == len(todo):
            _print_gone(gone, as_json=as_json)
            raise refused[0][1]
        todo = [name for name, _ in refused if name not in gone]
    _print_gone(gone, as_json=as_json)


def _print_gone(gone: list[str], *, as_json: bool) -> None:
    if as_json:
        print_json({"removed": gone})
    elif gone:
        stdout.print(f"removed {', '.join(gone)}", soft_wrap=True)
