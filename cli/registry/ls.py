"""``lcm-arith registry ls`` and ``search``: which vectors there are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import print_json, stderr, stdout

if TYPE_CHECKING:
    from lcm_arith.registry.index import Row

EXAMPLES = """Examples:

  lcm-arith registry ls

  lcm-arith registry ls --kind style --family sdxl

  lcm-arith registry ls --tag mine --format csv > mine.csv      (whole values, for programs)
"""
SEARCH_EXAMPLES = """Examples:

  lcm-arith registry search ink

  lcm-arith registry search "line art" --json
"""


class ListFormat(StrEnum):
    """How a list is printed."""

    human = "human"
    json = "json"
    csv = "csv"


As = Annotated[
    ListFormat, typer.Option("--format", help="A table for people, or whole values for programs.")
]
# Column of the table → most characters; together they fit a terminal of 80.
_WIDTHS: Final = {"name": 30, "family": 12, "kind": 14, "rank": 7, "licence": 11}
_GAP: Final = "  "


def command(
    family: Annotated[str | None, typer.Option(help="Only of this family.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only of this kind.", autocompletion=completion.kinds)
    ] = None,
    tag: Annotated[str | None, typer.Option(help="Only with this tag.")] = None,
    licence: Annotated[
        str | None, typer.Option("--licence", "--license", help="Only under this licence.")
    ] = None,
    form: As = ListFormat.human,
    as_json: options.Json = False,
) -> None:
    """List every vector, shipped ones first; a kind with ? is a guess: see show."""
    from lcm_arith.errors import UsageError
    from lcm_arith.registry.records import KINDS
    from lcm_arith.registry.store import Registry

    if kind is not None and kind not in KINDS:
        raise UsageError(f"{kind}: is no kind of vector", hint=f"one of {', '.join(KINDS)}")
    found = [
        entry
        for entry in entries(Registry.open().rows())
        if (family is None or family in entry["family"])
        and (kind is None or entry["kind"] == kind)
        and (tag is None or tag in entry["tags"])
        and (licence is None or entry["licence"].lower() == licence.lower())
    ]
    print_entries(found, ListFormat.json if as_json else form)


def search(
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Words; all of them must be there.")],
    form: As = ListFormat.human,
    as_json: options.Json = False,
) -> None:
    """Find vectors by name, tags, notes, triggers, description, author, family or source."""
    from lcm_arith.registry.store import Registry

    wanted = text.lower().split()
    rows = Registry.open().rows()
    found = [
        entry
        for entry, row in zip(entries(rows), rows, strict=True)
        if all(word in _words(row, entry) for word in wanted)
    ]
    print_entries(found, ListFormat.json if as_json else form)


def _words(row: Row, entry: Mapping[str, Any]) -> str:
    own = (row.name, *row.state.tags, *row.state.notes, entry["kind"], *entry["family"])
    said = (str(value) for value in row.state.settings.values())
    return " ".join((*own, *said, str(row.columns.get("words", "")))).lower()


def entries(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What a list tells of each name, JSON-ready; an alias tells what it stands for."""
    from lcm_arith.registry import shipped

    named = {row.name: row for row in rows}
    came = set(shipped.names())
    return [_entry(row, named.get(row.state.alias_of or row.name, row), came) for row in rows]


def _entry(row: Row, target: Row, came: set[str]) -> dict[str, Any]:
    columns, said = target.columns, target.state.settings
    return {
        "name": row.name,
        "alias_of": row.state.alias_of,
        "family": [str(said.get("family") or own) for own in _families(target)],
        "kind": said.get("kind") or columns.get("kind", "unknown"),
        "kind_assumed": "kind" not in said and columns.get("assumed", True),
        "network": columns.get("network", "unknown"),
        "rank": columns.get("rank", ""),
        "modules": columns.get("modules", 0),
        "bytes": columns.get("bytes", 0),
        "licence": said.get("licence") or columns.get("licence", "unknown"),
        "tags": list(target.state.tags),
        "added": row.state.added,
        "shipped": row.name in came,
        "sha256": columns.get("object", ""),
        "link": columns.get("link"),
    }


def _families(row: Row) -> list[str]:
    families = str(row.columns.get("family", "unknown")).split("|")
    return families[:1] if row.state.settings.get("family") else families


def print_entries(found: Sequence[Mapping[str, Any]], form: ListFormat) -> None:
    """A list in one of its forms; the count of a table goes to stderr."""
    if form is ListFormat.json:
        print_json({"vectors": list(found)})
    elif form is ListFormat.csv:
        print(csv_text(found), end="")
    else:
        print("\n".join(table([_cells(entry) for entry in found], stdout.width)))
        stderr.print(f"{len(found)} vector{'' if len(found) == 1 else 's'}")


def csv_text(found: Iterable[Mapping[str, Any]]) -> str:
    """One row a name; cells that a spreadsheet would run are made plain text."""
    import csv
    import io

    from lcm_arith.text import csv_cell, harmless

    columns = (
        "name", "alias_of", "family", "kind", "kind_assumed", "network", "rank", "modules", "bytes",
        "licence", "tags", "added", "shipped", "sha256", "link",
    )  # fmt: skip
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(columns)
    for entry in found:
        writer.writerow([csv_cell(harmless(_text(entry[name]))) for name in columns])
    return out.getvalue()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "|".join(value)
    return "" if value is None else str(value)


def _cells(entry: Mapping[str, Any]) -> dict[str, str]:
    name = f"{entry['name']} → {entry['alias_of']}" if entry["alias_of"] else entry["name"]
    lost = "" if entry["sha256"] else " (lost)"
    return {
        "name": f"{name}{lost}",
        "family": "|".join(entry["family"]),
        "kind": entry["kind"] + ("?" if entry["kind_assumed"] else ""),
        "rank": entry["rank"],
        "licence": entry["licence"],
    }


def table(rows: Sequence[Mapping[str, str]], width: int) -> list[str]:
    """Lines of a table: a heading, then a row each; long cells end in …, names get spare room."""
    from rich.cells import cell_len, set_cell_size

    from lcm_arith.text import clean

    plain = [{name: clean(text) for name, text in row.items()} for row in rows]
    sizes = {
        name: min(most, max([len(name), *(cell_len(row[name]) for row in plain)]))
        for name, most in _WIDTHS.items()
    }
    longest = max([sizes["name"], *(cell_len(row["name"]) for row in plain)])
    spare = width - sum(sizes.values()) - len(_GAP) * (len(sizes) - 1)
    sizes["name"] = max(8, min(longest, sizes["name"] + spare))

    def cell(text: str, size: int) -> str:
        if cell_len(text) <= size:
            return set_cell_size(text, size)
        return set_cell_size(set_cell_size(text, size - 1).rstrip() + "…", size)

    heading = {name: name.upper() for name in sizes}
    return [
        _GAP.join(cell(row[name], size) for name, size in sizes.items()).rstrip()
        for row in (heading, *plain)
    ]
