"""Which vectors do the same: similar, dedup, diff, by their fingerprints; no file is read."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

from lcm_arith.errors import InvalidContentError
from lcm_arith.registry import shipped
from lcm_arith.registry.fingerprints import ROUNDED, Distance, distance
from lcm_arith.registry.records import Record
from lcm_arith.registry.store import Found, Registry


@dataclass(frozen=True)
class Near:
    """Another vector and how far it is."""

    name: str
    distance: Distance


def similar(registry: Registry, found: Found, *, top: int = 10) -> list[Near]:
    """The vectors nearest to one, nearest first; itself is not among them."""
    others = [
        Near(name, distance(found.record.fingerprint, record.fingerprint))
        for name, record in _records(registry)
        if name != found.name
    ]
    return sorted(others, key=lambda near: (near.distance.relative, near.name))[:top]


def _records(registry: Registry) -> list[tuple[str, Record]]:
    """Every vector with its record, shipped ones first; a lost manifest is left to verify."""
    rows = [(name, shipped.record(name)) for name in shipped.names()]
    for row in registry.index.rows():
        if row.state.record is None:
            continue
        try:
            values = registry.manifests.get(row.state.record)
        except InvalidContentError:
            continue
        rows.append((row.name, Record.of(values, row.state.record)))
    return rows


@dataclass(frozen=True)
class Group:
    """Vectors that do the same.

    Args:
        verdict: ``same file``, ``same tensors``, ``same`` or ``same, rounded``.
        names: Sorted, shipped ones first.
        bytes: That files other than the first take on the disk.
        same_tensors: Whether all of them hold the same tensors, so that nothing is lost by one.
    """

    verdict: str
    names: tuple[str, ...]
    bytes: int
    same_tensors: bool


def dedup(registry: Registry) -> list[Group]:
    """Groups of vectors that do the same, however they are written; each vector in one group."""
    vectors = dict(_records(registry))
    leaders: list[str] = []
    groups: dict[str, list[str]] = defaultdict(list)
    for name, record in vectors.items():
        near = (own for own in leaders if _close(vectors[own], record))
        leader = next(near, None)
        if leader is None:
            leaders.append(name)
        groups[leader or name].append(name)
    return [_group(vectors, names) for names in groups.values() if names[1:]]


def _close(one: Record, other: Record) -> bool:
    if one.object == other.object or one.tensors == other.tensors:
        return True
    norms = float(one.norm), float(other.norm)
    if abs(norms[0] - norms[1]) > 2 * ROUNDED * max(norms):
        return False  # ‖τ − τ'‖ is at least this; most pairs of a thousand vectors end here
    if one.fingerprint.keys() != other.fingerprint.keys():
        return False
    return distance(one.fingerprint, other.fingerprint).relative <= ROUNDED


def _group(vectors: dict[str, Record], names: list[str]) -> Group:
    first, *rest = (vectors[name] for name in names)
    objects = {record.object: record.bytes for record in rest if record.object != first.object}
    tensors = {record.tensors for record in (first, *rest)}
    if not objects:
        verdict = "same file"
    elif len(tensors) == 1:
        verdict = "same tensors"
    else:
        found = [distance(first.fingerprint, record.fingerprint).verdict for record in rest]
        verdict = max(found, key=len)  # the weakest claim is the longest word
    return Group(verdict, tuple(names), sum(objects.values()), len(tensors) == 1)


def merge(registry: Registry, group: Group) -> list[str]:
    """Makes all but the first name of a group aliases of the first; the names that became one.

    Tags and notes go to the first; of a shipped one, which cannot carry them, a name with any does
    not become an alias. Only groups of the same tensors: others differ in their numbers.

    Raises:
        ValueError: If the tensors differ.
    """
    if not group.same_tensors:
        raise ValueError("the vectors' numbers differ")
    first, *rest = group.names
    merged = []
    with registry.index.change() as change:
        kept = change.state(first)
        for name in rest:
            state = change.state(name)
            if state is None or name in shipped.names() or state.alias_of is not None:
                continue
            if kept is None and (state.tags or state.notes or state.settings):
                continue
            if kept is not None:
                tags = tuple(sorted({*kept.tags, *state.tags}))
                settings = {**state.settings, **kept.settings}
                kept = replace(kept, tags=tags, notes=kept.notes + state.notes, settings=settings)
                change.update(first, kept)
            for own, aliased in change.aliases(name):
                change.update(own, replace(aliased, alias_of=first))
            change.update(name, replace(state, record=None, alias_of=first))
            merged.append(name)
    return merged


def differences(one: Found, other: Found) -> dict[str, Any]:
    """What two vectors have in common and what not, JSON-ready."""
    apart = distance(one.record.fingerprint, other.record.fingerprint)
    fields = (
        "families", "network", "ranks", "alphas", "dtypes", "modules", "parameters", "norm",
        "metadata",
    )  # fmt: skip
    known = [own.record.shown(own.state) for own in (one, other)]
    said = [own.pop("said") for own in known]
    told = [
        {**{name: own[name] for name in fields}, **words}
        for own, words in zip(known, said, strict=True)
    ]
    return {
        "verdict": "same file" if one.record.object == other.record.object else apart.verdict,
        "distance": apart.relative,
        "cosine": apart.cosine,
        "modules_shared": apart.shared,
        "modules_own": list(apart.own),
        "differs": {
            name: values
            for name in dict.fromkeys([*told[0], *told[1]])
            if (values := [own.get(name) for own in told])[0] != values[1]
        },
    }
