"""``lcm-arith registry set``, ``tag``, ``untag`` and ``note``: what users say of vectors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout
from lcm_arith.cli.registry import arguments

if TYPE_CHECKING:
    from lcm_arith.registry.states import State

SET_EXAMPLES = """Examples:

  lcm-arith registry set ink --kind style --trigger "ink drawing" --weight 0.8

  lcm-arith registry set fast --kind acceleration --sampler lcm --steps 4 --guidance 1

  lcm-arith registry set ink --unset kind --unset weight        (back to what was guessed)
"""
TAG_EXAMPLES = """Examples:

  lcm-arith registry tag ink mine "line art"
"""
UNTAG_EXAMPLES = """Examples:

  lcm-arith registry untag ink mine
"""
NOTE_EXAMPLES = """Examples:

  lcm-arith registry note ink "too strong above 0.9"
"""


def set_values(
    name: arguments.Own,
    kind: arguments.Kind = None,
    family: Annotated[
        str | None, typer.Option(help="One of the families whose shapes it fits.")
    ] = None,
    trigger: arguments.Trigger = None,
    licence: arguments.Licence = None,
    weight: arguments.Weight = None,
    sampler: arguments.Sampler = None,
    steps: arguments.Steps = None,
    guidance: arguments.Guidance = None,
    title: Annotated[str | None, typer.Option(metavar="TEXT", help="Its name for people.")] = None,
    author: Annotated[str | None, typer.Option(metavar="TEXT", help="Who made it.")] = None,
    url: Annotated[str | None, typer.Option(help="Its page.")] = None,
    negative_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="What the prompt should not have.")
    ] = None,
    description: Annotated[str | None, typer.Option(metavar="TEXT", help="Any text.")] = None,
    unset: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="Take back what was said of it; repeatable."),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Say what a vector is; that outranks what its file says and what is guessed."""
    from lcm_arith.errors import UsageError
    from lcm_arith.registry import editing
    from lcm_arith.registry.store import Registry

    said = arguments.settings(
        kind=kind, family=family, triggers=trigger, licence=licence, weight=weight,
        sampler=sampler, steps=steps, guidance=guidance, title=title, author=author, url=url,
        negative_prompt=negative_prompt, description=description,
    )  # fmt: skip
    back = {"triggers" if own == "trigger" else own.replace("-", "_") for own in unset or []}
    if back & said.keys():
        raise UsageError(f"{', '.join(sorted(back & said.keys()))}: is set and taken back at once")
    if not said and not back:
        raise UsageError(f"{name}: nothing was said of it", hint="give an option, such as --kind")
    state = editing.set_values(Registry.open(), name, {**said, **dict.fromkeys(back)})
    _print(name, state, as_json=as_json)


def tag(
    name: arguments.Own,
    tags: Annotated[list[str], typer.Argument(metavar="TAG…", help="Words to find it by.")],
    as_json: options.Json = False,
) -> None:
    """Add tags to a vector."""
    from lcm_arith.registry import editing
    from lcm_arith.registry.store import Registry

    _print(name, editing.tag(Registry.open(), name, tags), as_json=as_json)


def untag(
    name: arguments.Own,
    tags: Annotated[list[str], typer.Argument(metavar="TAG…", help="Tags to take away.")],
    as_json: options.Json = False,
) -> None:
    """Take tags away; one that is not there is no mistake."""
    from lcm_arith.registry import editing
    from lcm_arith.registry.store import Registry

    _print(name, editing.tag(Registry.open(), name, remove=tags), as_json=as_json)


def note(
    name: arguments.Own,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Any text; earlier notes stay.")],
    as_json: options.Json = False,
) -> None:
    """Add a note to a vector."""
    from lcm_arith.registry import editing
    from lcm_arith.registry.store import Registry

    _print(name, editing.note(Registry.open(), name, text), as_json=as_json)


def _print(name: str, state: State, *, as_json: bool) -> None:
    """What is said of a vector now."""
    from lcm_arith.text import clean

    if as_json:
        told = {"settings": dict(state.settings), "tags": state.tags, "notes": state.notes}
        print_json({"name": name, **told})
        return
    said = [
        f"{field} {', '.join(value) if isinstance(value, list) else value}"
        for field, value in state.settings.items()
    ]
    said += [f"tags {', '.join(state.tags)}"] if state.tags else []
    said += [f"note {text}" for text in state.notes]
    stdout.print(clean(f"{name}: {'; '.join(said) or 'nothing is said of it'}"), soft_wrap=True)
