"""Push and pull: vectors to and from a repository on the hub, or any folder that fsspec knows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Final

from lcm_arith.errors import InvalidContentError, NotFoundError, OutputExistsError, UsageError
from lcm_arith.registry import shipped
from lcm_arith.registry.adding import like_parents
from lcm_arith.registry.describing import describe
from lcm_arith.registry.exporting import rights
from lcm_arith.registry.facts import Facts
from lcm_arith.registry.lineage import Files
from lcm_arith.registry.manifests import MOST_BYTES, canonical, digest, parse
from lcm_arith.registry.names import check_name
from lcm_arith.registry.naming import give
from lcm_arith.registry.records import Record
from lcm_arith.registry.remotes import Remote
from lcm_arith.registry.rights import blocks_push
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Found, Registry

SCHEMA: Final = 1


@dataclass(frozen=True)
class Synced:
    """What was pushed or pulled.

    Args:
        names: Those that are new or changed on the other side, sorted.
        same: Those that were there already.
        version: Of the remote's list of names.
        told: Name → fields that a pull took over for a vector that was here already.
        other: Name → settings of which the sides say different things: each keeps its own, or with
            ``force`` the side that was written has got the other's.
    """

    names: tuple[str, ...]
    same: tuple[str, ...]
    version: str
    told: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    other: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def united(first: State, more: State) -> tuple[State, tuple[str, ...]]:
    """What both say of one vector, and the settings of which they say different things.

    Args:
        first: Its settings count where both say something else; its notes come first.
        more: What only this one says is added, so that no licence is lost.
    """
    both = first.settings.keys() & more.settings.keys()
    other = sorted(name for name in both if first.settings[name] != more.settings[name])
    state = replace(
        first,
        tags=tuple(sorted({*first.tags, *more.tags})),
        notes=(*first.notes, *(own for own in more.notes if own not in first.notes)),
        settings={**more.settings, **first.settings},
    )
    return state, tuple(other)


def push(
    registry: Registry,
    remote: Remote,
    wanted: Iterable[str] = (),
    *,
    force: bool = False,
    have_rights: bool = False,
    with_notes: bool = False,
) -> Synced:
    """Puts vectors and their names onto a remote, all of them or none.

    What others said of the same vector there stays, and what is said here is added.

    Args:
        registry: Whose.
        remote: Where to.
        wanted: Names; all by default. An alias takes the vector that it stands for with it.
        force: Replace names that stand for something else there, and what is said else there.
        have_rights: Push mixes whose parents' licences forbid it, too.
        with_notes: Push notes, too, which may be private.

    Raises:
        NotFoundError: If there is no such name.
        UsageError: If a parent's licence forbids passing a mix on, or the vector was shipped.
        OutputExistsError: If a name stands for something else there, or a setting says something
            else.
        ConflictError: If somebody else pushed meanwhile.
        NetworkError, StorageError: If the remote or the disk refuses.
    """
    states = _chosen(registry, wanted)
    found = {name: registry.find(name) for name, state in states.items() if state.record}
    if not have_rights:
        _check_rights(registry, found)
    data, version = remote.read_names()
    listed = _listed(data, remote.url) if data else {}
    with registry.objects.workspace() as folder:
        adds: dict[str, Path] = {}
        rows = {
            name: _row(registry, state, found.get(name), folder, adds, with_notes=with_notes)
            for name, state in states.items()
        }
        rows, other = _onto(remote.url, listed, rows, force=force)
        values = {name: _values(state) for name, state in rows.items()}
        changed = sorted(name for name, row in values.items() if listed.get(name) != row)
        same = tuple(sorted(rows.keys() - set(changed)))
        if not changed:
            return Synced((), same, version, other=other)
        there = remote.present(adds)
        text = canonical({"schema": SCHEMA, "names": {**listed, **values}})
        version = remote.commit({p: f for p, f in adds.items() if p not in there}, text, version)
    return Synced(tuple(changed), same, version, other=other)


def _onto(
    url: str, listed: Mapping[str, Mapping[str, Any]], rows: Mapping[str, State], *, force: bool
) -> tuple[dict[str, State], dict[str, tuple[str, ...]]]:
    """Name → its state with what the remote says, and → settings of which both say other things.

    Raises:
        OutputExistsError: If names stand for other vectors there, or settings say something else,
            and ``force`` is off.
    """
    made, other, taken = dict(rows), dict[str, tuple[str, ...]](), []
    for name in sorted(rows.keys() & listed.keys()):
        mine, theirs = rows[name], _state(listed[name], f"{url}: {name}")
        if (mine.record, mine.alias_of) != (theirs.record, theirs.alias_of):
            taken.append(name)
            continue
        made[name], fields = united(mine, theirs) if force else united(theirs, mine)
        if fields:
            other[name] = fields
    if taken and not force:
        raise OutputExistsError(
            f"{url}: {', '.join(taken)} stand for other vectors there",
            hint="rename yours, or add --force to replace them",
        )
    if other and not force:
        raise OutputExistsError(
            f"{url}: something else is said there of {_fields(other)}",
            hint="say the same here (lcm-arith registry set), or add --force to replace it there",
        )
    return made, other


def _fields(found: Mapping[str, tuple[str, ...]]) -> str:
    return ", ".join(f"{name} ({', '.join(fields)})" for name, fields in found.items())


def _chosen(registry: Registry, wanted: Iterable[str]) -> dict[str, State]:
    names = [registry.row(name).name for name in wanted]
    every = {row.name: row.state for row in registry.index.rows()}
    if not names:
        return every
    for name in names:
        target = every[name].alias_of
        if target is not None and target in every:
            names.append(target)
    return {name: every[name] for name in sorted(set(names))}


def _check_rights(registry: Registry, found: Mapping[str, Found]) -> None:
    """Raises where a mix's parents forbid it to be passed on."""
    files = Files.of(registry)
    forbidden = {name: blocks_push(rights(registry, own, files)) for name, own in found.items()}
    lines = [f"\n  {name}: {'; '.join(why)}" for name, why in forbidden.items() if why]
    if lines:
        raise UsageError(
            f"{len(lines)} of the vectors may not be passed on:{''.join(lines)}",
            hint="--i-have-rights pushes them all the same",
        )


def _row(
    registry: Registry,
    state: State,
    found: Found | None,
    folder: Path,
    adds: dict[str, Path],
    *,
    with_notes: bool,
) -> State:
    """A name's state for the remote's list; its files go into ``adds``."""
    told = replace(state, added="", notes=state.notes if with_notes else ())
    if found is None:
        return told
    record = replace(found.record, link=None)
    data = canonical(record.manifest())
    sha256 = digest(data)
    part = folder / f"{sha256}.json"
    part.write_bytes(data)
    adds[_relative(registry, registry.manifests.path(sha256))] = part
    if not found.path.is_file():
        raise InvalidContentError(f"{found.name}: its file is missing ({found.path})")
    adds[_relative(registry, registry.objects.path(record.object))] = found.path
    for own in record.previews:
        picture = registry.objects.path(own["sha256"], own["suffix"])
        adds[_relative(registry, picture)] = picture
    return replace(told, record=sha256)


def _values(state: State) -> dict[str, Any]:
    """A state's values as JSON gives them back."""
    return parse(state.text().encode("utf-8", "surrogatepass"), "state")


def _state(row: Mapping[str, Any], where: str) -> State:
    """The state that an entry of a list says.

    Raises:
        InvalidContentError: If it is none.
    """
    try:
        data = canonical(row)
    except (TypeError, RecursionError):
        raise InvalidContentError(f"{where}: is no state of a name") from None
    return State.of(data, where)


def _relative(registry: Registry, path: Path) -> str:
    return path.relative_to(registry.root).as_posix()


def _listed(data: bytes, where: str) -> dict[str, dict[str, Any]]:
    """A remote's list: name → the state's values.

    Raises:
        InvalidContentError: If it is none.
    """
    values = parse(data, where)
    rows = values.get("names")
    if values.get("schema") != SCHEMA or not isinstance(rows, dict):
        raise InvalidContentError(f"{where}: is no list of names of schema {SCHEMA}")
    found = {}
    for name, row in rows.items():
        try:
            same = check_name(name) == name
        except UsageError:
            same = False
        if not same or not isinstance(row, dict):
            raise InvalidContentError(f"{where}: {name[:100]!r} is no name of a vector")
        found[name] = row
    try:
        canonical(found)  # a push writes them again
    except (TypeError, RecursionError):
        raise InvalidContentError(f"{where}: its list holds what no list of ours does") from None
    return found


def pull(
    registry: Registry, remote: Remote, wanted: Iterable[str] = (), *, force: bool = False
) -> Synced:
    """Gets vectors and their names from a remote; nothing of what it says of a file is believed.

    Each file is described anew, and only what others say of it (triggers, licence …) is taken over.
    Of a vector that is here already, what is said there and not here is added.

    Args:
        registry: Whose.
        remote: Where from.
        wanted: Names; all by default. An alias takes the vector that it stands for with it.
        force: Names that stand for something else here get the remote's, and what is said else.

    Raises:
        NotFoundError: If the remote has no such name, or is empty.
        InvalidContentError: If a file there is not what its name says, or no adapter.
        OutputExistsError: If a name stands for something else here.
        NetworkError, StorageError: If the remote or the disk refuses.
    """
    data, version = remote.read_names()
    if data is None:
        raise NotFoundError(f"{remote.url}: nothing was pushed there")
    listed = _listed(data, remote.url)
    names = [check_name(name) for name in wanted] or sorted(listed)
    states: dict[str, State] = {}
    with registry.objects.workspace() as folder:
        for name in names:
            if name not in listed:
                raise NotFoundError(f"{remote.url}: has no {name}", hint="pull without names")
            state = _state(listed[name], f"{remote.url}: {name}")
            if state.alias_of is not None and state.alias_of not in (*names, *shipped.names()):
                names.append(check_name(state.alias_of))
            states[name] = (
                state if state.record is None else _taken(registry, remote, state, folder)
            )
    kept = {n: _as_here(registry, n, state) for n, state in states.items()}
    told: dict[str, tuple[str, ...]] = {}
    other: dict[str, tuple[str, ...]] = {}

    def joined(name: str, here: State, there: State) -> State:
        state, fields = united(there, here) if force else united(here, there)
        if fields:
            other[name] = fields
        if new := _new(here, state):
            told[name] = new
        return state

    given = give(registry, kept, force=force, joined=joined)
    same = tuple(sorted(states.keys() - set(given)))
    return Synced(tuple(given), same, version, told, other)


def _new(before: State, after: State) -> tuple[str, ...]:
    """Fields that say something else than before."""
    names = sorted(after.settings)
    fields = [own for own in names if after.settings[own] != before.settings.get(own)]
    fields += [own for own in ("tags", "notes") if getattr(after, own) != getattr(before, own)]
    return tuple(fields)


def _taken(registry: Registry, remote: Remote, state: State, folder: Path) -> State:
    """A record's files, fetched, checked and put into their places; the state that names it."""
    place = folder / "manifest.json"
    path = registry.manifests.path(str(state.record))
    remote.get(_relative(registry, path), place, MOST_BYTES)
    told = Record.of(parse(place.read_bytes(), remote.url), remote.url)
    place.unlink()
    part = folder / "object.safetensors"
    if not registry.objects.path(told.object).is_file():
        remote.get(_relative(registry, registry.objects.path(told.object)), part)
        registry.objects.put(part, told.object)
    for own in told.previews:
        picture = registry.objects.path(own["sha256"], own["suffix"])
        if not picture.is_file():
            remote.get(_relative(registry, picture), part, MOST_BYTES)  # none is larger, either
            registry.objects.put(part, own["sha256"], own["suffix"])
    facts = Facts.from_json(told.facts, remote.url)
    place_of = told.source.get("file") or told.source.get("url", "")  # older ones lack the file
    record = describe(
        registry.objects.path(told.object),
        source=told.source,
        facts=facts,
        name=PurePosixPath(str(place_of)).name,
    )
    record = replace(like_parents(registry, record), previews=told.previews)
    return replace(state, record=registry.manifests.put(record.manifest()))


def _as_here(registry: Registry, name: str, state: State) -> State:
    """With the date and the notes that the name has here, which are not all pushed."""
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat(timespec="seconds")
    if name not in registry.index:
        return replace(state, added=now)
    here = registry.index.row(name).state
    new = (own for own in state.notes if own not in here.notes)
    return replace(state, added=here.added, notes=(*here.notes, *new))
