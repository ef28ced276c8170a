"""Which vectors do the same: similar, dedup, diff, by their fingerprints; no file is read."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from lcm_arith.errors import InvalidContentError
from lcm_arith.registry import shipped
from lcm_arith.registry.fingerprints import ROUNDED, SAME, Distance, distance
from lcm_arith.registry.index import Change
from lcm_arith.registry.records import USER, USES, Record
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Found, Registry


@dataclass(frozen=True)
class Near:
    """Another vector and how far it is."""

    name: str
    distance: Distance


def similar(registry: Registry, found: Found, *, top: int = 10) -> list[Near]:
    """The vectors nearest to one, nearest first; itself is not among them."""
    others = [
        Near(name, distance(found.record.fingerprint, own.record.fingerprint))
        for name, own in _vectors(registry)
        if name != found.name
    ]
    return sorted(others, key=lambda near: (near.distance.relative, near.name))[:top]


@dataclass(frozen=True)
class _Vector:
    """A file and what its user says; the state of a shipped one names no record."""

    record: Record
    state: State


def _vectors(registry: Registry) -> list[tuple[str, _Vector]]:
    """Every vector, shipped ones first; a lost manifest is left to verify."""
    found = [(name, _Vector(shipped.record(name), State())) for name in shipped.names()]
    for row in registry.index.rows():
        if row.state.record is None:
            continue
        try:
            values = registry.manifests.get(row.state.record)
        except InvalidContentError:
            continue
        found.append((row.name, _Vector(Record.of(values, row.state.record), row.state)))
    return found


@dataclass(frozen=True)
class Group:
    """Vectors that do the same.

    Args:
        verdict: ``same file``, ``same tensors``, ``same`` or ``same, rounded``.
        names: Sorted, shipped ones first.
        bytes: That files other than the first take on the disk.
        same_tensors: Whether all of them hold the same tensors with the same alphas and do the
            same, so that no number is lost by one.
        apart: Name → what is said of it that would be lost if it were an alias of the first.
        records: Name → sha256 of the manifest that was compared; None of a shipped one.
    """

    verdict: str
    names: tuple[str, ...]
    bytes: int
    same_tensors: bool
    apart: Mapping[str, str]
    records: Mapping[str, str | None]


def dedup(registry: Registry) -> list[Group]:
    """Groups of vectors that do the same, however they are written; each vector in one group."""
    vectors = dict(_vectors(registry))
    leaders: list[str] = []
    groups: dict[str, list[str]] = defaultdict(list)
    for name, own in vectors.items():
        near = (one for one in leaders if _close(vectors[one].record, own.record))
        leader = next(near, None)
        if leader is None:
            leaders.append(name)
        groups[leader or name].append(name)
    return [
        _group({name: vectors[name] for name in names}) for names in groups.values() if names[1:]
    ]


def _close(one: Record, other: Record) -> bool:
    if one.object == other.object:
        return True
    norms = float(one.norm), float(other.norm)
    if abs(norms[0] - norms[1]) > 2 * ROUNDED * max(norms):
        return False  # ‖τ − τ'‖ is at least this; most pairs of a thousand vectors end here
    if one.fingerprint.keys() != other.fingerprint.keys():
        return False
    return distance(one.fingerprint, other.fingerprint).relative <= ROUNDED


def _group(vectors: Mapping[str, _Vector]) -> Group:
    kept, *others = vectors.values()
    first, rest = kept.record, [own.record for own in others]
    objects = {record.object: record.bytes for record in rest if record.object != first.object}
    far = [distance(first.fingerprint, record.fingerprint) for record in rest]
    same_tensors = all(
        record.object == first.object
        or (record.tensors == first.tensors and record.alphas == first.alphas and gap <= SAME)
        for record, gap in zip(rest, (own.relative for own in far), strict=True)
    )  # alphas may be in the header, and those of two modules be exchanged
    if not objects:
        verdict = "same file"
    elif same_tensors:
        verdict = "same tensors"
    else:
        verdict = max((own.verdict for own in far), key=len)  # the weakest claim is the longest
    lost = {name: _lost(kept, own) for name, own in vectors.items()}
    return Group(
        verdict,
        tuple(vectors),
        sum(objects.values()),
        same_tensors,
        {name: text for name, text in lost.items() if text},
        {name: own.state.record for name, own in vectors.items()},
    )


_KEPT: Final = ("licence", "author", "triggers", "negative_prompt", *USES)
"""What others say that decides who may use a vector, and how; all that a user says counts, too."""


def _lost(kept: _Vector, other: _Vector) -> str:
    """What is said of either that would not be, if both were the first; empty if nothing is."""
    if kept.state.record is None and other.state.record is None:
        return ""  # both came with the program
    own = other.state
    if kept.state.record is None and (own.tags or own.notes or own.settings):
        return "its tags, notes and settings"  # a shipped vector carries none
    both = kept.record.said(_united(kept.state, own))
    lost = []
    for vector in (kept, other):
        for name, said in vector.record.said(vector.state).items():
            left = {_plain(name, row) for row in _rows(both.get(name))}
            lost += [
                f"{name} {row['value']} ({row['source']})"
                for row in _rows(said)
                if _counts(name, row["source"]) and _plain(name, row) not in left
            ]
    return ", ".join(dict.fromkeys(lost))


def _united(kept: State, other: State) -> State:
    """The first's state with what is said of the other."""
    return replace(
        kept,
        tags=tuple(sorted({*kept.tags, *other.tags})),
        notes=kept.notes + other.notes,
        settings={**kept.settings, **other.settings},
    )


def _counts(name: str, source: str) -> bool:
    if source == USER:
        return True
    return name in _KEPT and source != "assumed" and "suggestion" not in source


def _rows(said: Any) -> list[Mapping[str, Any]]:
    if said is None:
        return []
    return said if isinstance(said, list) else [said]


def _plain(name: str, row: Mapping[str, Any]) -> str:
    text = str(row["value"])
    return text.casefold() if name == "licence" else text


def merge(registry: Registry, group: Group) -> list[str]:
    """Makes names of a group aliases of the first; the names that became one.

    Tags, notes and settings go to the first. A name of which something is said that the first would
    not say stays as it is, and so does one that stands for another file since the group was made;
    if the first does, all stay. Only groups of the same tensors: others differ in their numbers.

    Raises:
        ValueError: If the numbers differ.
    """
    if not group.same_tensors:
        raise ValueError("the vectors' numbers differ")
    first, *rest = group.names
    merged: list[str] = []
    with registry.index.change() as change:
        kept = _still(registry, change, group, first)
        if kept is None:
            return merged
        for name in rest:
            other = None if name in shipped.names() else _still(registry, change, group, name)
            if other is None or _lost(kept, other):
                continue
            if kept.state.record is not None:
                kept = replace(kept, state=_united(kept.state, other.state))
                change.update(first, kept.state)
            for own, aliased in change.aliases(name):
                change.update(own, replace(aliased, alias_of=first))
            change.update(name, replace(other.state, record=None, alias_of=first))
            merged.append(name)
    return merged


def _still(registry: Registry, change: Change, group: Group, name: str) -> _Vector | None:
    """A vector as it is now; None if it is another than was compared."""
    if name in shipped.names():
        return _Vector(shipped.record(name), State())
    state = change.state(name)
    if state is None or state.record is None or state.record != group.records[name]:
        return None
    return _Vector(Record.of(registry.manifests.get(state.record), state.record), state)


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
