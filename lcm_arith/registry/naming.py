"""Many names at once: what a backup or another registry says of them, all or none."""

from __future__ import annotations

from collections.abc import Mapping

from lcm_arith.errors import InvalidContentError, OutputExistsError
from lcm_arith.registry import shipped
from lcm_arith.registry.records import Record
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry


def give(registry: Registry, states: Mapping[str, State], *, force: bool = False) -> list[str]:
    """Gives names their states in one transaction; those that stand for the same already stay.

    Args:
        registry: Where the manifests and files are already.
        states: Checked name → state.
        force: Names with another state get the new one.

    Returns:
        The names that were given or changed, sorted.

    Raises:
        OutputExistsError: If names are there with another state and ``force`` is off, or shipped.
        InvalidContentError: If a record's file is not there.
        StorageError: If the disk or the database refuses; no name is then changed.
    """
    taken, given = [], []
    with registry.index.change() as change:
        for name, state in sorted(states.items(), key=lambda own: own[1].alias_of is not None):
            before = change.state(name)
            same = before is not None and _same(registry, before, state)
            if before == state or (same and not force):
                continue  # what is said of it here stays
            if name in shipped.names() or (before is not None and not force):
                taken.append(name)
                continue
            if state.record is not None:
                record = Record.of(registry.manifests.get(state.record), state.record)
                if not record.link and not registry.objects.path(record.object).is_file():
                    raise InvalidContentError(f"{name}: its file did not come with it")
                change.record(record.columns(state.record), record.parents)
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
    return sorted(given)


def _same(registry: Registry, before: State, state: State) -> bool:
    """Whether both stand for the same name or the same file."""
    if None in (before.record, state.record):
        return (before.record, before.alias_of) == (state.record, state.alias_of)
    one, other = (registry.manifests.get(str(own.record))["object"] for own in (before, state))
    return bool(one == other)
