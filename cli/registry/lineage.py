"""``lcm-arith registry lineage`` and ``rebuild``: what a vector was made of, and the proof."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout
from lcm_arith.cli.registry.arguments import Known

EXAMPLES = """Examples:

  lcm-arith registry lineage ink-fast

  lcm-arith registry lineage ink-fast --format mermaid
"""
REBUILD_EXAMPLES = """Examples:

  lcm-arith registry rebuild ink-fast
"""


class TreeFormat(StrEnum):
    """How a lineage is printed."""

    tree = "tree"
    mermaid = "mermaid"
    json = "json"


def command(
    name: Known,
    form: Annotated[
        TreeFormat, typer.Option("--format", help="For people, for a page, or for programs.")
    ] = TreeFormat.tree,
    as_json: options.Json = False,
) -> None:
    """Show what a vector was made of, with every weight, and that of what."""
    from lcm_arith.registry import lineage
    from lcm_arith.registry.store import Registry
    from lcm_arith.text import clean

    registry = Registry.open()
    node = lineage.lineage(registry, registry.find(name))
    if as_json or form is TreeFormat.json:
        print_json(node.as_json())
        return
    shown = lineage.tree(node) if form is TreeFormat.tree else lineage.mermaid(node)
    for text in shown:
        indent = len(text) - len(text.lstrip())
        stdout.print(text[:indent] + clean(text[indent:]), soft_wrap=True)


def rebuild(
    name: Known,
    base: options.DoraBase = None,
    as_json: options.Json = False,
) -> None:
    """Make a vector again by what its header records; exit code 8 where other numbers come out."""
    from lcm_arith.errors import VerificationError
    from lcm_arith.registry import rebuilding
    from lcm_arith.registry.store import Registry

    registry = Registry.open()
    found = registry.find(name)
    again = rebuilding.rebuild(registry, found, base=base)
    if as_json:
        print_json({"name": found.name, **vars(again), "equal": again.equal})
    if not again.equal:
        raise VerificationError(
            f"{found.name}: made again it holds other numbers "
            f"({again.tensors[:16]}…, recorded {again.recorded[:16]}…)",
            hint="another version of torch, or another number of threads, may round otherwise",
        )
    if not as_json:
        whole = "the same bytes" if again.bytes_equal else "the same numbers, to the last bit"
        stdout.print(f"{found.name}: made again, {whole}", soft_wrap=True)
