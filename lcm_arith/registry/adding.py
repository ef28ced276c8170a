"""Adapters from files into the registry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.registry import objects, shipped
from lcm_arith.registry.describing import describe
from lcm_arith.registry.names import check_name, name_of
from lcm_arith.registry.records import Record, check_settings
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry


@dataclass(frozen=True)
class Added:
    """What was added.

    Args:
        name: Its name.
        record: What is known of its file.
        also: Other names of the same file, sorted.
    """

    name: str
    record: Record
    also: tuple[str, ...]


def add(
    registry: Registry,
    path: Path,
    *,
    name: str | None = None,
    settings: Mapping[str, Any] | None = None,
    source: Mapping[str, Any] | None = None,
    link: bool = False,
    tags: tuple[str, ...] = (),
) -> Added:
    """Registers an adapter file; its bytes are copied, or stay where they are.

    Args:
        registry: Where.
        path: A ``.safetensors`` file.
        name: Of the vector; made of the file's by default.
        settings: What the user says of it: kind, triggers, licence …
        source: Where it came from; the file's name by default.
        link: Leave the bytes where they are, and remember the place.
        tags: Words to find it by.

    Raises:
        NotFoundError, InvalidContentError: If there is no such file, or it is no adapter.
        OutputExistsError: If the name is taken.
        UsageError: If the name is none, the record cannot be what the settings say, or a linked
            file's path is no UTF-8.
        StorageError: If the disk or the database refuses; nothing is then added.
    """
    wanted = check_name(name) if name else name_of(path.stem)
    _check_free(registry, wanted)
    with registry.objects.workspace() as folder:
        part = folder / "object.safetensors"
        place = None if not link else _place(path)
        if place is None:
            objects.copy(path, part)
        try:
            with objects.unchanged(path) if link else nullcontext():
                record = describe(
                    path if link else part,
                    source=source or {"file": _readable(path.name)},
                    link=place,
                )
        except InvalidContentError as error:
            message = error.message.replace(str(part), str(path))
            raise InvalidContentError(message, hint=error.hint) from error
        state = State(
            added=datetime.now(UTC).isoformat(timespec="seconds"),
            tags=tuple(sorted(set(tags))),
            settings=dict(settings or {}),
        )
        return register(registry, wanted, record, state, None if link else part)


def _readable(name: str) -> str:
    """A file's name as text, whatever the locale; what is no UTF-8 in it becomes ``�``."""
    return os.fsencode(name).decode("utf-8", "replace")


def _place(path: Path) -> str:
    place = str(path.resolve())
    if _readable(place) != place:
        raise UsageError(f"{_readable(place)}: the path is no UTF-8", hint="add it without --link")
    return place


def register(
    registry: Registry, name: str, record: Record, state: State, part: Path | None
) -> Added:
    """Gives a described file its name: object, then manifest, then one transaction.

    Args:
        registry: Where.
        name: A checked name.
        record: Of the file.
        state: What the user says; the record's digest is put into it.
        part: The file, to be moved into place; None where it stays or is there.

    Raises:
        UsageError, OutputExistsError, StorageError: As :func:`add`.
    """
    check_settings(record, state.settings)
    with registry.index.change() as change:  # holds gc off, so that nothing of it is swept again
        if part is not None:
            registry.objects.put(part, record.object)
        digest = registry.manifests.put(record.manifest())
        change.record(record.columns(digest), record.parents)
        change.insert(name, replace(state, record=digest))
        also = change.names_of(record.object)
    others = {own for own in shipped.names() if shipped.record(own).object == record.object}
    return Added(name, record, tuple(sorted(others | set(also) - {name})))


def _check_free(registry: Registry, name: str) -> None:
    """Raises early where a name is taken; the transaction decides."""
    from lcm_arith.errors import OutputExistsError

    if name in shipped.names() or name in registry.index:
        raise OutputExistsError(
            f"{name}: there is a vector of that name", hint="choose another with --name"
        )
