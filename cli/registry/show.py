"""``lcm-arith registry show`` and ``path``: one vector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout
from lcm_arith.cli.registry.arguments import Known
from lcm_arith.cli.registry.share import asked

if TYPE_CHECKING:
    from lcm_arith.registry.lineage import Node
    from lcm_arith.registry.rights import Effective
    from lcm_arith.registry.store import Found

EXAMPLES = """Examples:

  lcm-arith registry show noto

  lcm-arith registry show sha256:3f2a9c10 --json
"""
PATH_EXAMPLES = """Examples:

  lcm-arith registry path ink

  cp "$(lcm-arith registry path ink)" ~/webui/models/Lora/ink.safetensors
"""

_SHOWN: Final = 12  # lines of metadata
_FIRST: Final = (
    "kind", "family", "title", "author", "licence", "triggers", "weight", "sampler", "steps",
    "guidance",
)  # fmt: skip


def command(name: Known, as_json: options.Json = False) -> None:
    """Show all that is known and said of a vector, and who says it."""
    from lcm_arith.registry.exporting import rights
    from lcm_arith.registry.lineage import Files, lineage
    from lcm_arith.registry.store import Registry, described

    registry = Registry.open()
    found = registry.find(name)
    if as_json:
        place = {"name": found.name, "path": str(found.path), "shipped": found.shipped}
        print_json({**place, **described(found)})
        return
    files = Files.of(registry)
    node, effective = lineage(registry, found, files), rights(registry, found, files)
    for title, value in lines(found, node, effective):
        stdout.print(f"{title:<15} {value}", soft_wrap=True)


def path(name: Known, as_json: options.Json = False) -> None:
    """Print where a vector's file lies; it is not to be changed there."""
    from lcm_arith.errors import InvalidContentError
    from lcm_arith.registry.store import Registry

    found = Registry.open().find(name)
    if not found.path.is_file():
        raise InvalidContentError(
            f"{name}: its file is missing ({found.path})",
            hint="restore a backup, add it again, or see: lcm-arith registry verify",
        )
    if as_json:
        print_json({"name": found.name, "path": str(found.path), "sha256": found.record.object})
    else:
        print(found.path)


def lines(found: Found, origin: Node, effective: Effective) -> list[tuple[str, str]]:
    """The sheet: a name and a value a line, harmless for any terminal."""
    from lcm_arith.text import clean

    rows = [
        ("name", found.name),
        *_words(found),
        *_numbers(found),
        *_origin(found, origin, effective),
    ]
    metadata = list(found.record.metadata.items())
    rows += [("metadata", f"{key}: {value[:200]}") for key, value in metadata[:_SHOWN]]
    if len(metadata) > _SHOWN:
        rows.append(("", f"… and {len(metadata) - _SHOWN} more, with --json"))
    return [(title, clean(value)) for title, value in rows]


def _numbers(found: Found) -> list[tuple[str, str]]:
    """What the file itself shows."""
    record = found.record
    families = ", ".join(
        f"{own} ({float(share):.0%} of its kind)" for own, share in record.families
    )
    kinds = ", ".join(f"{count} {kind}" for kind, count in record.network.items())
    size = f"{record.bytes / 2**20:.1f} MiB"
    return [
        ("fits", families or "no family that is known"),
        ("file", f"{record.dialect}; {', '.join(record.dtypes)}; {size}"),
        ("sha256", record.object),
        ("modules", f"{kinds}; {', '.join(record.components)}; {record.parameters:,} numbers"),
        ("rank", _counts(record.ranks)),
        ("alpha", _counts(record.alphas)),
        ("norm", f"{record.norm} (Frobenius, all modules)"),
        *((f"  {float(share):.0%}", block) for block, share in record.blocks.items()),
    ]


def _counts(values: Mapping[str, int]) -> str:
    shown = ", ".join(f"{value} in {count}" for value, count in list(values.items())[:6])
    return shown + ("" if len(values) <= 6 else ", …")


def _words(found: Found) -> list[tuple[str, str]]:
    """What is said of it, each value with its source; the user's word counts most."""
    said = found.record.said(found.state)
    said.setdefault("licence", {"value": "unknown", "source": "nobody says"})
    rows = []
    for name in dict.fromkeys([*_FIRST, *sorted(said)]):
        values = said.get(name, [])
        for own in values if isinstance(values, list) else [values]:
            rows.append((name, f"{own['value']} ({own['source']})"))
    rows += [("because", str(text)) for text in found.record.guess.get("evidence", ())]
    if found.state.tags:
        rows.append(("own tags", ", ".join(found.state.tags)))
    return rows + [("own note", text) for text in found.state.notes]


def _origin(found: Found, origin: Node, effective: Effective) -> list[tuple[str, str]]:
    """Where it came from and where it is."""
    rows: list[tuple[str, str]] = []
    if origin.parents:
        rows.append(("made of", " + ".join(f"{own.weight} · {own.name}" for own in origin.parents)))
        rows += [("", how) for how in origin.how]
        rows.append(("", asked(effective)))
    source: Mapping[str, Any] = found.record.source
    rows.append(("source", ", ".join(f"{key} {value}" for key, value in source.items())))
    if found.state.added:
        rows.append(("added", found.state.added))
    rows.append(("path", f"{found.path}{' (linked)' if found.record.link else ''}"))
    return rows
