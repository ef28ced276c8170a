"""What users say of vectors: settings, tags, notes, aliases, other names, and removal."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from lcm_arith.errors import NotFoundError, OutputExistsError, UsageError
from lcm_arith.registry import shipped
from lcm_arith.registry.index import Change
from lcm_arith.registry.names import check_name
from lcm_arith.registry.records import check_settings
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry


def set_values(registry: Registry, name: str, values: Mapping[str, Any]) -> State:
    """Says what a vector is, whatever was guessed; a value of None takes back what was said.

    Raises:
        NotFoundError: If there is no such name.
        UsageError: If the record cannot be that, or the vector was shipped.
    """
    found = registry.find(name)
    check_settings(found.record, values)

    def changed(state: State) -> State:
        merged = {**state.settings, **values}
        return replace(state, settings={k: v for k, v in merged.items() if v is not None})

    return _edit(registry, name, changed)


def tag(
    registry: Registry, name: str, add: Iterable[str] = (), remove: Iterable[str] = ()
) -> State:
    """Adds and removes tags.

    Raises:
        NotFoundError: If there is no such name.
        UsageError: If a tag is empty, or the vector was shipped.
    """
    more, less = {check_tag(own) for own in add}, {check_tag(own) for own in remove}
    return _edit(
        registry,
        name,
        lambda state: replace(state, tags=tuple(sorted({*state.tags, *more} - less))),
    )


def check_tag(text: str) -> str:
    """A tag as it is stored.

    Raises:
        UsageError: If it is empty, longer than 100 characters, or holds what cannot be printed.
    """
    plain = text.strip()
    if not plain or len(plain) > 100 or not plain.isprintable():
        raise UsageError(f"{text!r}: is no tag", hint="1 to 100 printable characters")
    return plain


def note(registry: Registry, name: str, text: str) -> State:
    """Adds a note.

    Raises:
        NotFoundError: If there is no such name.
        UsageError: If it says nothing, or the vector was shipped.
    """
    if not text.strip():
        raise UsageError("an empty note says nothing")
    return _edit(registry, name, lambda state: replace(state, notes=(*state.notes, text)))


def alias(registry: Registry, name: str, target: str) -> None:
    """Makes ``name`` stand for ``target``, or move there from another; only an alias moves.

    Raises:
        NotFoundError: If there is no such target.
        OutputExistsError: If ``name`` is a vector's own.
        UsageError: If it is no name, or would stand for itself.
    """
    own, to = check_name(name), registry.find(target).name
    if own == to:
        raise UsageError(f"{own}: cannot stand for itself")
    if to.startswith("sha256:"):
        raise UsageError(f"{target}: has no name that an alias could stand for")
    if own in shipped.names():
        raise OutputExistsError(f"{own}: is the name of a shipped vector")
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with registry.index.change() as change:
        if to not in shipped.names() and change.state(to) is None:
            raise NotFoundError(f"{to}: was removed meanwhile")
        before = change.state(own)
        if before is None:
            change.insert(own, State(alias_of=to, added=now))
        elif before.alias_of is None:
            raise OutputExistsError(
                f"{own}: is a vector's own name, not an alias", hint="rename or remove it first"
            )
        else:
            change.update(own, replace(before, alias_of=to))


def rename(registry: Registry, name: str, to: str) -> None:
    """Gives a vector or an alias another name; aliases of it follow.

    Raises:
        NotFoundError: If there is no such name.
        OutputExistsError: If the other is taken.
        UsageError: If it is none, or the vector was shipped.
    """
    old, new = registry.row(name).name, check_name(to)
    if new in shipped.names():
        raise OutputExistsError(f"{new}: is the name of a shipped vector")
    with registry.index.change() as change:
        state = _there(change, old)
        change.insert(new, state)
        for own, aliased in change.aliases(old):
            change.update(own, replace(aliased, alias_of=new))
        change.delete(old)


def remove(registry: Registry, name: str, *, force: bool = False) -> list[str]:
    """Removes a name; the file goes with ``gc``. Returns the aliases that went with it.

    Args:
        registry: Where.
        name: Of a vector or an alias.
        force: Remove it though other vectors were made of it, or stand for it.

    Raises:
        NotFoundError: If there is no such name.
        OutputExistsError: If others depend on it.
        UsageError: If the vector was shipped.
    """
    row = registry.row(name)
    file = row.columns.get("object")
    with registry.index.change() as change:
        _there(change, row.name)
        aliases = [own for own, _ in change.aliases(row.name)]
        last = file is not None and change.names_of(file) == [row.name]
        children = change.children(str(file)) if last else []
        if (aliases or children) and not force:
            made = [f"made of it: {', '.join(children)}"] if children else []
            stands = [f"aliases of it: {', '.join(aliases)}"] if aliases else []
            raise OutputExistsError(
                f"{row.name}: others depend on it ({'; '.join(made + stands)})",
                hint="remove those first, or add --force; rebuild and lineage then end here",
            )
        for own in (*aliases, row.name):
            change.delete(own)
    return aliases


def _edit(registry: Registry, name: str, changed: Callable[[State], State]) -> State:
    own = registry.row(name).name
    with registry.index.change() as change:
        state = _there(change, own)
        if state.alias_of is not None:
            own = registry.row(state.alias_of).name
            state = _there(change, own)
        state = changed(state)
        change.update(own, state)
    return state


def _there(change: Change, name: str) -> State:
    state = change.state(name)
    if state is None:
        raise NotFoundError(f"{name}: was removed meanwhile")
    return state
