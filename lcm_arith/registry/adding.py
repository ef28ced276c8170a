"""Adapters from files into the registry."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError, OutputExistsError, UsageError
from lcm_arith.formats.peft_folder import whole
from lcm_arith.registry import objects, shipped
from lcm_arith.registry.describing import describe
from lcm_arith.registry.facts import Facts, merge
from lcm_arith.registry.names import check_name, name_of
from lcm_arith.registry.objects import ADAPTER
from lcm_arith.registry.records import USES, Record, check_settings
from lcm_arith.registry.sidecars import sidecars
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry

_PICTURES: Final = (".png", ".jpg", ".jpeg", ".webp")


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
    facts: Facts | None = None,
    beside: bool = True,
    link: bool = False,
    tags: tuple[str, ...] = (),
    base: Path | None = None,
    allow_pickle: bool = False,
) -> Added:
    """Registers an adapter; its bytes are copied, or stay where they are.

    A PEFT folder or a pickle becomes a ``.safetensors`` file in diffusers' format, since one file
    must say all; every other file stays as it is, byte for byte.

    Args:
        registry: Where.
        path: A ``.safetensors`` file, a PEFT folder, or a pickle that is allowed.
        name: Of the vector; made of the file's by default.
        settings: What the user says of it: kind, triggers, licence …
        source: Where it came from; the file's name by default.
        facts: What was said where it came from.
        beside: Whether files beside it are read: ``.civitai.info``, README.md, pictures …
        link: Leave the bytes where they are, and remember the place.
        tags: Words to find it by.
        base: The model that a DoRA was made for, where it has to be converted.
        allow_pickle: Whether it may be a pickle; a process of its own opens that, under limits.

    Raises:
        NotFoundError, InvalidContentError: If there is no such file, or it is no adapter.
        OutputExistsError: If the name is taken.
        UsageError: If the name is none, the record cannot be what the settings say, a folder or a
            pickle was to be linked, or a linked file's path is no UTF-8.
        StorageError: If the disk or the database refuses; nothing is then added.
    """
    path = whole(path)
    wanted = check_name(name) if name else name_of(path.stem)
    check_free(registry, wanted)
    said = merge(*filter(None, (sidecars(path) if beside else None, facts)))
    state = State(
        added=datetime.now(UTC).isoformat(timespec="seconds"),
        tags=tuple(sorted(set(tags))),
        settings=dict(settings or {}),
    )
    with registry.objects.workspace() as folder:
        part = folder / "object.safetensors"
        origin = dict(source or {"file": _readable(path.name)})
        place = _copied(path, part, origin, link=link, base=base, allow_pickle=allow_pickle)
        try:
            with objects.unchanged(path) if link else nullcontext():
                record = describe(
                    path if link else part,
                    source=origin,
                    facts=said,
                    name=_readable(path.name),
                    link=place,
                    previews=_pictures(registry, said, folder),
                )
        except InvalidContentError as error:
            message = error.message.replace(str(part), str(path))
            hint = error.hint.replace(str(part), str(path))
            raise InvalidContentError(message, hint=hint) from error
        record = like_parents(registry, record)
        return register(registry, wanted, record, state, None if link else part)


def like_parents(registry: Registry, record: Record) -> Record:
    """With the kind that its recipe tells, where its header does not say one.

    What was made of one vector is of its kind; what was made of several is combined.
    """
    if record.guess.get("declared") or not record.parents:
        return record
    kinds = [registry.kind_of(sha256) for sha256 in record.parents]
    kind = kinds[0] if len(kinds) == 1 else "combined"
    if kind is None:
        return record
    made = f"its header says that it was made of {len(kinds)} vector{'s' * (len(kinds) > 1)}"
    guess = {own: "" for own in USES} if kind != record.guess["kind"] else {}
    return replace(record, guess={**record.guess, **guess, "kind": kind, "evidence": [made]})


def _copied(
    path: Path, part: Path, origin: dict[str, Any], *, link: bool, base: Path | None,
    allow_pickle: bool,
) -> str | None:  # fmt: skip
    """Puts the adapter at ``part``, or returns where it is to stay."""
    converted = path.is_dir() or (allow_pickle and path.suffix != ADAPTER)
    if link and converted:
        raise UsageError(f"{path}: is converted, so it cannot be linked", hint="leave out --link")
    if link:
        origin["mtime_ns"] = path.stat().st_mtime_ns
        return _place(path, part.parents[1])
    if not converted:
        objects.copy(path, part)
        return None
    from lcm_arith.adapters import load
    from lcm_arith.saving import save

    tau = load(path, base, allow_pickle=allow_pickle)
    save(tau, part)
    origin["converted_from"] = str(tau.terms[0][1].origin["sha256"])
    return None


def _pictures(registry: Registry, facts: Facts, folder: Path) -> tuple[dict[str, str], ...]:
    """The pictures beside an adapter, as objects."""
    found = []
    for said in facts.previews:
        path = Path(said.value)
        if not said.source.startswith("sidecar picture") or path.suffix.lower() not in _PICTURES:
            continue
        part = folder / "picture"
        sha256, _ = objects.copy(path, part)
        registry.objects.put(part, sha256, path.suffix.lower())
        part.unlink(missing_ok=True)
        found.append({"sha256": sha256, "suffix": path.suffix.lower()})
    return tuple(found)


def _readable(name: str) -> str:
    """A file's name as text, whatever the locale; what is no UTF-8 in it becomes ``�``."""
    return os.fsencode(name).decode("utf-8", "replace")


def _place(path: Path, ours: Path) -> str:
    """Where a linked file stays.

    Args:
        path: The file.
        ours: The folder of the registry's workspaces.
    """
    found = path.resolve()
    place = str(found)
    if _readable(place) != place:
        raise UsageError(f"{_readable(place)}: the path is no UTF-8", hint="add it without --link")
    for folder in (ours.parent, files.VECTORS):
        if found.is_relative_to(folder.resolve()):
            raise UsageError(
                f"{path}: is in the registry or came with the program, it may go from there",
                hint="add it without --link",
            )
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


def check_free(registry: Registry, name: str) -> None:
    """Raises early where a name is taken; the transaction decides.

    Raises:
        OutputExistsError: If it is.
        StorageError: If the index cannot be read.
    """
    if name in shipped.names() or name in registry.index:
        raise OutputExistsError(
            f"{name}: there is a vector of that name", hint="choose another with --name"
        )
