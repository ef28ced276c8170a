"""Lineage: what a vector was made of, and that of what."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import islice
from typing import Any, Final

import sqlalchemy as sa

from lcm_arith.errors import InvalidContentError
from lcm_arith.registry import shipped
from lcm_arith.registry.database import names, records
from lcm_arith.registry.records import Record
from lcm_arith.registry.rights import SEVERAL
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Found, Registry

MOST_LEVELS: Final = 64
MOST_PATHS: Final = 1_000
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
        """JSON-ready values; the parents of a file that is used twice stand where it is first."""
        return self._json(set())

    def _json(self, seen: set[str]) -> dict[str, Any]:
        above = _again(self, seen)
        parents = [] if above else [own._json(seen) for own in self.parents]
        return {**vars(self), "parents": parents, "above": above}


def _again(node: Node, seen: set[str]) -> bool:
    """Whether a node's parents were shown; notes that they are now."""
    above = bool(node.parents) and node.sha256 in seen
    seen.add(node.sha256)
    return above


@dataclass(frozen=True)
class _Known:
    """A file of the registry under its first name."""

    name: str
    record: Record
    state: State


@dataclass(frozen=True)
class Files:
    """The files that vectors can be made of; a manifest is read when it is reached, and once.

    Args:
        registry: Whose.
        rows: sha256 of a file → a name, the sha256 of its manifest and its state, of each that
            has the file, sorted; without a name last.
    """

    registry: Registry
    rows: Mapping[str, list[tuple[str | None, str, str | None]]]
    _read: dict[str, _Known | None] = field(default_factory=dict)

    @classmethod
    def of(cls, registry: Registry) -> Files:
        """By one query; what is added to the registry later is not among them."""
        rows: dict[str, list[tuple[str | None, str, str | None]]] = defaultdict(list)
        if not registry.index.ready(make=False):
            return cls(registry, rows)
        query = sa.select(
            records.c.object, records.c.sha256, names.c.name, names.c.state
        ).outerjoin(names, names.c.record == records.c.sha256)
        with registry.index.reading() as connection:
            found = connection.execute(query).all()
        for file, sha256, name, state in sorted(found, key=lambda row: (row[2] is None, row[2])):
            rows[file].append((name, sha256, state))
        return cls(registry, rows)

    def get(self, file: str) -> _Known | None:
        """A file under its first name; a shipped one, too; None where there is none.

        Raises:
            InvalidContentError: If its manifest or state is damaged.
        """
        if file not in self._read:
            self._read[file] = self._find(file)
        return self._read[file]

    def _find(self, file: str) -> _Known | None:
        known = _shipped().get(file)
        for name, sha256, state in self.rows.get(file, ()):
            own = State() if state is None else State.of(state, str(name))
            if known is not None:
                if own.settings and not known.state.settings:
                    known = replace(known, state=own)  # the user's word, whatever the name
            elif self.registry.manifests.path(sha256).is_file():
                record = Record.of(self.registry.manifests.get(sha256), sha256)
                known = _Known(name or f"sha256:{file[:12]}", record, own)
        return known


@cache
def _shipped() -> Mapping[str, _Known]:
    found = ((name, shipped.record(name)) for name in shipped.names())
    return {record.object: _Known(name, record, State()) for name, record in found}


def lineage(registry: Registry, found: Found, files: Files | None = None) -> Node:
    """The tree above a vector.

    Args:
        registry: Where its parents are.
        found: The vector.
        files: Of the registry, where several vectors are asked for.

    Raises:
        InvalidContentError: If a record's terms cannot be read, or nest too deep.
    """
    how, parents = _made(found.record, files or Files.of(registry), {}, 0)
    return Node(found.name, found.record.object, None, how, parents, known=True)


_Made = tuple[tuple[str, ...], tuple[Node, ...]]


def _made(record: Record, files: Files, done: dict[tuple[str, int], _Made], level: int) -> _Made:
    """How a file was made, and of what; once for a file and level, however often it is used."""
    key = record.object, level
    if key not in done:
        how: list[str] = []
        parents = []
        for term in leaves(record.made, how, level):
            sha256, weight = str(term["sha256"]), str(term["weight"])
            own = files.get(sha256) if level < MOST_LEVELS else None
            if own is None:
                parents.append(Node(f"sha256:{sha256[:12]}", sha256, weight, (), (), known=False))
            else:
                made = _made(own.record, files, done, level + 1)
                parents.append(Node(own.name, sha256, weight, *made, known=True))
        done[key] = tuple(how), tuple(parents)
    return done[key]


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


def origins(registry: Registry, found: Found, files: Files | None = None) -> list[Origin]:
    """Where a vector comes from at last, in the order of its recipe; empty where it is one itself.

    A vector in between stands there, too, if it has a licence of its own. Where more than
    MOST_PATHS ways lead up, a file stands there once, with the weight SEVERAL.

    Args:
        registry: As :func:`lineage`.
        found: As :func:`lineage`.
        files: As :func:`lineage`.

    Raises:
        InvalidContentError: As :func:`lineage`.
    """
    files = files or Files.of(registry)
    node = lineage(registry, found, files)
    paths = list(islice(_paths(node, ()), MOST_PATHS + 1))
    if len(paths) > MOST_PATHS:
        paths = [(own, SEVERAL) for own in _once(node, set())]
    made_of = []
    for own, weight in paths:
        there = files.get(own.sha256)
        said = there.record.said(there.state) if there else {}
        if not own.parents or "licence" in said:
            made_of.append(Origin(own.name, own.sha256, weight, said))
    return made_of


def _paths(node: Node, weights: tuple[str, ...]) -> Iterator[tuple[Node, str]]:
    """Every way up from a vector: its end, and the weights on it."""
    for own in node.parents:
        through = (*weights, str(own.weight))
        yield own, " × ".join(w for w in through if _number(w) != 1) or "1"
        yield from _paths(own, through)


def _once(node: Node, seen: set[str]) -> Iterator[Node]:
    """Every file above a vector."""
    for own in node.parents:
        if own.sha256 not in seen:
            seen.add(own.sha256)
            yield own
            yield from _once(own, seen)


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
    """Lines of a tree; the parents of a file that is used twice stand where it is first."""
    return list(_lines(node, "", "", set()))


def _lines(node: Node, first: str, rest: str, seen: set[str]) -> Iterator[str]:
    weight = f"{node.weight} · " if node.weight is not None else ""
    lost = "" if node.known else "  (not in the registry)"
    above = _again(node, seen)
    how = f"  [{', '.join(node.how)}]" if node.how and not above else ""
    yield f"{first}{weight}{node.name}{how}{lost}{'  (above)' if above else ''}"
    for number, own in enumerate(() if above else node.parents):
        last = number == len(node.parents) - 1
        yield from _lines(
            own, rest + ("└── " if last else "├── "), rest + ("    " if last else "│   "), seen
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
