"""Many names at once: what a backup or another registry says of them, all or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from lcm_arith.errors import InvalidContentError, OutputExistsError, UsageError
from lcm_arith.registry import shipped
from lcm_arith.registry.index import Change
from lcm_arith.registry.records import Record, check_settings
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry


def give(
    registry: Registry,
    states: Mapping[str, State],
    *,
    force: bool = False,
    joined: Callable[[str, State, State], State] | None = None,
) -> list[str]:
    """Gives names their states in one transaction.

    Args:
        registry: Where the manifests and files are already.
        states: Checked name → state.
        force: Names with another state get the new one.
        joined: Name, its state here and the new one → the state of a name that stands for the same
            already; without it such a name stays as it is, if not forced.

    Returns:
        The names that were given or changed, sorted.

    Raises:
        OutputExistsError: If names stand for something else here and ``force`` is off, or are
            those of shipped vectors.
        InvalidContentError: If a record's file is not there, a vector cannot be what is said of it,
            or an alias would stand for nothing or for an alias.
        StorageError: If the disk or the database refuses; no name is then changed.
    """
    taken, given = [], []
    with registry.index.change() as change:
        for name, state in sorted(states.items(), key=lambda own: own[1].alias_of is not None):
            before = change.state(name)
            if before is not None and stand_for_same(registry, before, state):
                if joined is None and not force:
                    continue
                state = state if joined is None else joined(name, before, state)
            elif name in shipped.names() or (before is not None and not force):
                taken.append(name)
                continue
            if before == state:
                continue
            if state.record is not None:
                _record(registry, change, name, state)
            if before is None:
                change.insert(name, state)
            else:
                change.update(name, state)
            given.append(name)
        if taken:
            raise OutputExistsError(
                f"{', '.join(sorted(taken))}: there are vectors of these names, with other content",
                hint="rename them, or add --force to give the names to the others",
            )
        for name in given:
            _check_alias(change, name, states[name])
    return sorted(given)


def _record(registry: Registry, change: Change, name: str, state: State) -> None:
    """Brings a name's record into the index."""
    digest = str(state.record)
    record = Record.of(registry.manifests.get(digest), digest)
    if not record.link and not registry.objects.path(record.object).is_file():
        raise InvalidContentError(f"{name}: its file did not come with it")
    try:
        check_settings(record, state.settings)
    except UsageError as error:
        raise InvalidContentError(f"{name}: {error.message}", hint=error.hint) from error
    change.record(record.columns(digest), record.parents)


def _check_alias(change: Change, name: str, state: State) -> None:
    """Raises where an alias stands for nothing or for an alias, itself or as what it was."""
    if state.alias_of is None:
        return
    chained = [own for own, _ in change.aliases(name)]
    if chained:
        raise InvalidContentError(f"{', '.join(chained)}: would stand for {name}, an alias")
    if state.alias_of in shipped.names():
        return
    target = change.state(state.alias_of)
    if target is None or target.alias_of is not None:
        what = "is not there" if target is None else "is an alias itself"
        raise InvalidContentError(f"{name}: stands for {state.alias_of}, which {what}")


def stand_for_same(registry: Registry, before: State, state: State) -> bool:
    """Whether both stand for the same name or the same file."""
    if None in (before.record, state.record):
        return (before.record, before.alias_of) == (state.record, state.alias_of)
    one, other = (registry.manifests.get(str(own.record))["object"] for own in (before, state))
    return bool(one == other)
