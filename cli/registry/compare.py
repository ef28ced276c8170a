"""``lcm-arith registry similar``, ``dedup`` and ``diff``: which vectors do the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import print_json, stderr, stdout
from lcm_arith.cli.registry.arguments import Known

if TYPE_CHECKING:
    from lcm_arith.registry.comparing import Near

SIMILAR_EXAMPLES = """Examples:

  lcm-arith registry similar ink --top 5
"""
DEDUP_EXAMPLES = """Examples:

  lcm-arith registry dedup

  lcm-arith registry dedup --apply && lcm-arith registry gc
"""
DIFF_EXAMPLES = """Examples:

  lcm-arith registry diff ink-v1 ink-v2
"""


def similar(
    name: Known,
    top: Annotated[int, typer.Option(min=1, help="How many.")] = 10,
    as_json: options.Json = False,
) -> None:
    """Show the vectors that do most nearly the same, in whatever file, format or rank."""
    from lcm_arith.registry import comparing
    from lcm_arith.registry.store import Registry

    registry = Registry.open()
    found = comparing.similar(registry, registry.find(name), top=top)
    if as_json:
        print_json({"name": name, "nearest": [_near(own) for own in found]})
        return
    size = max([4, *(len(own.name) for own in found)])
    stdout.print(f"{'NAME':<{size}}  DISTANCE  COSINE  VERDICT", soft_wrap=True)
    for own in found:
        far = own.distance
        stdout.print(
            f"{own.name:<{size}}  {far.relative:8.2g}  {far.cosine:6.3f}  {far.verdict}",
            soft_wrap=True,
        )


def _near(own: Near) -> dict[str, Any]:
    return {"name": own.name, **vars(own.distance), "verdict": own.distance.verdict}


def dedup(
    apply: Annotated[
        bool,
        typer.Option(
            "--apply", help="Keep one file of those with equal tensors; other names become aliases."
        ),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Show vectors that do the same; with --apply, without asking, one file for equal tensors.

    No number is lost by that, nor what you said, nor licences, authors and what is recommended: a
    vector of which something else is said keeps its file. gc frees the room. Vectors whose numbers
    differ are only shown.
    """
    from lcm_arith.registry import comparing
    from lcm_arith.registry.store import Registry
    from lcm_arith.text import clean

    registry = Registry.open()
    groups = comparing.dedup(registry)
    merged = {
        group.names: comparing.merge(registry, group)
        for group in groups
        if apply and group.same_tensors
    }
    if as_json:
        told = [{**vars(own), "merged": merged.get(own.names, [])} for own in groups]
        print_json({"applied": apply, "groups": told})
        return
    for group in groups:
        spare = f" ({group.bytes / 2**20:.1f} MiB more than one)" if group.bytes else ""
        stdout.print(f"{group.verdict}: {', '.join(group.names)}{spare}", soft_wrap=True)
        for name in merged.get(group.names, []):
            stdout.print(f"  {name} → {group.names[0]}", soft_wrap=True)
        for name, lost in group.apart.items() if group.same_tensors else ():
            why = clean(f"{name} stays, or this would be lost: {lost}", 400)
            stdout.print(f"  {why}", soft_wrap=True)
    if not groups:
        stderr.print("no two vectors do the same")


def diff(
    one: Known,
    other: Annotated[
        str,
        typer.Argument(metavar="OTHER", help="Likewise.", autocompletion=completion.known),
    ],
    as_json: options.Json = False,
) -> None:
    """Show what two vectors have in common and what not, by their numbers and their headers."""
    from lcm_arith.registry import comparing
    from lcm_arith.registry.store import Registry
    from lcm_arith.text import clean

    registry = Registry.open()
    names = (one, other)
    told = comparing.differences(registry.find(one), registry.find(other))
    if as_json:
        print_json({"vectors": list(names), **told})
        return
    stdout.print(
        f"{told['verdict']}: distance {told['distance']:.2g}, cosine {told['cosine']:.3f}, "
        f"{told['modules_shared']} modules in both",
        soft_wrap=True,
    )
    for name, count in zip(names, told["modules_own"], strict=True):
        if count:
            stdout.print(f"{count} modules only in {name}", soft_wrap=True)
    for field, values in told["differs"].items():
        shown = [clean(_short(value), 200) for value in values]
        stdout.print(f"{field:<12} {shown[0]}", soft_wrap=True)
        stdout.print(f"{'':<12} {shown[1]}", soft_wrap=True)


def _short(value: Any) -> str:
    if value is None:
        return "nobody says"
    if isinstance(value, dict):
        if value.keys() == {"value", "source"}:
            return f"{value['value']} ({value['source']})"
        return ", ".join(f"{key}: {own}" for key, own in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_short(own) for own in value) or "none"
    return str(value)
