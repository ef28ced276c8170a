"""Lineage: what a vector was made of, and that of what."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import sqlalchemy as sa

from lcm_arith.errors import InvalidContentError
from lcm_arith.registry import shipped
from lcm_arith.registry.database import names, records
from lcm_arith.registry.records import Record
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Found, Registry

MOST_LEVELS: Final = 64
_UNSHOWN: Final = ("of", "sha256", "name", "weight", "weights", "skipped_steps")


@dataclass(frozen=True)
class Node:
    """A vector and what it was made of.

    Args:
        name: Its name; of a file that the registry does not have, ``sha256:`` and 12 digits.
        sha256: Of its file.
        weight: λ in the one above, a decimal string; None at the top.
        how: What was done to the parents: method, re-projection, parts.
        parents: In the order of the recipe.
        known: Whether the registry has the file.
    """

    name: str
    sha256: str
    weight: str | None
    how: tuple[str, ...]
    parents: tuple[Node, ...]
    known: bool

    def as_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**vars(self), "parents": [own.as_json() for own in self.parents]}


def lineage(registry: Registry, found: Found) -> Node:
    """The tree above a vector; a vector that is used twice stands there twice.

    Raises:
        InvalidContentError: If a record's terms cannot be read, or nest too deep.
    """
    known = _all(registry)
    return _node(found.name, found.record, None, known, 0)


@dataclass(frozen=True)
class Origin:
    """A vector that was not made of others, and its part in one that was.

    Args:
        name: Its name, or ``sha256:`` and 12 digits.
        sha256: Of its file.
        weight: λ, or several with × between them.
        said: Field → what is said of it, as :meth:`Record.said`; empty where the registry does
            not have it.
    """

    name: str
    sha256: str
    weight: str
    said: Mapping[str, Any]


@dataclass(frozen=True)
class _Known:
    """A file of the registry under its first name."""

    name: str
    record: Record
    state: State


def origins(registry: Registry, found: Found) -> list[Origin]:
    """Where a vector comes from at last, in the order of its recipe; empty where it is one itself.

    A vector in between stands there, too, if it has a licence of its own.

    Raises:
        InvalidContentError: As :func:`lineage`.
    """
    known = _all(registry)
    return list(_origins(lineage(registry, found), known, ()))


def _origins(node: Node, known: Mapping[str, _Known], weights: tuple[str, ...]) -> Iterator[Origin]:
    for own in node.parents:
        through = (*weights, str(own.weight))
        there = known.get(own.sha256)
        said = there.record.said(there.state) if there else {}
        if not own.parents or "licence" in said:
            weight = " × ".join(w for w in through if _number(w) != 1) or "1"
            yield Origin(own.name, own.sha256, weight, said)
        yield from _origins(own, known, through)


def _all(registry: Registry) -> dict[str, _Known]:
    """sha256 of a file → its first name, record and state; shipped ones, too."""
    found = {
        shipped.record(own).object: _Known(own, shipped.record(own), State())
        for own in shipped.names()
    }
    if not registry.index.ready(make=False):
        return found
    query = sa.select(records.c.object, records.c.sha256, names.c.name, names.c.state).outerjoin(
        names, names.c.record == records.c.sha256
    )
    with registry.index.reading() as connection:
        rows = connection.execute(query).all()
    for file, sha256, name, state in sorted(rows, key=lambda row: (row[2] is None, row[2])):
        own = State() if state is None else State.of(state, name)
        if file in found:
            if own.settings and not found[file].state.settings:
                found[file] = replace(found[file], state=own)  # the user's word, whatever the name
        elif registry.manifests.path(sha256).is_file():
            record = Record.of(registry.manifests.get(sha256), sha256)
            found[file] = _Known(name or f"sha256:{file[:12]}", record, own)
    return found


def _node(
    name: str,
    record: Record,
    weight: str | None,
    known: Mapping[str, _Known],
    level: int,
) -> Node:
    how: list[str] = []
    above = []
    for term in leaves(record.made, how, level):
        sha256 = str(term["sha256"])
        if sha256 in known and level < MOST_LEVELS:
            own = known[sha256]
            above.append(_node(own.name, own.record, str(term["weight"]), known, level + 1))
        else:
            shown = f"sha256:{sha256[:12]}"
            above.append(Node(shown, sha256, str(term["weight"]), (), (), known=False))
    return Node(name, record.object, weight, tuple(how), tuple(above), known=True)


def leaves(made: Any, how: list[str], level: int = 0) -> Iterator[Mapping[str, Any]]:
    """The files in a header's terms, with their weights; what was done is told into ``how``.

    Raises:
        InvalidContentError: If it is no such header.
    """
    if level > MOST_LEVELS:
        raise InvalidContentError("the recipe nests too deep")
    terms = made.get("terms", []) if isinstance(made, Mapping) else None
    if not isinstance(terms, list) or not all(isinstance(term, Mapping) for term in terms):
        raise InvalidContentError("the header's terms are no list of terms")
    for term in terms:
        told = {k: v for k, v in term.items() if k not in _UNSHOWN}
        how += [
            str(value) if key in ("operation", "method") else f"{key} {value}"
            for key, value in told.items()
            if value is not None
        ]
        if "of" in term:
            factors = [term.get("weight"), term.get("weights")]
            for own in leaves(term["of"], how, level + 1):
                texts = [str(text) for text in (*factors, own["weight"]) if text is not None]
                yield {**own, "weight": " × ".join(t for t in texts if _number(t) != 1) or "1.0"}
        elif isinstance(term.get("sha256"), str) and "weight" in term:
            yield term


def _number(text: str) -> float | None:
    """The number, or None of a list such as ``0.5,up.1=0.25``."""
    try:
        return float(text)
    except ValueError:
        return None


def tree(node: Node) -> list[str]:
    """Lines of a tree."""
    return list(_lines(node, "", ""))


def _lines(node: Node, first: str, rest: str) -> Iterator[str]:
    weight = f"{node.weight} · " if node.weight is not None else ""
    lost = "" if node.known else "  (not in the registry)"
    how = f"  [{', '.join(node.how)}]" if node.how else ""
    yield f"{first}{weight}{node.name}{how}{lost}"
    for number, own in enumerate(node.parents):
        last = number == len(node.parents) - 1
        yield from _lines(
            own, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   ")
        )


def mermaid(node: Node) -> list[str]:
    """Lines of a Mermaid flowchart; every file is one box."""
    lines = ["flowchart BT"]
    seen: set[str] = set()
    edges: list[str] = []
    todo = [node]
    while todo:
        own = todo.pop(0)
        if own.sha256 in seen:
            continue
        seen.add(own.sha256)
        label = re.sub(r"[^\w .:+-]", "", own.name)
        lines.append(f'  {own.sha256[:12]}["{label}"]')
        for parent in own.parents:
            edges.append(f'  {parent.sha256[:12]} -- "{parent.weight}" --> {own.sha256[:12]}')
        todo += own.parents
    return lines + edges
