"""A training set as a file in its cache, so that the cache alone can be trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith import durable
from lcm_arith.data.drawing import TOLD, Row, TrainingSet
from lcm_arith.data.options import DataOptions
from lcm_arith.data.store import SET, Store
from lcm_arith.errors import IncompatibleError, InvalidContentError, UsageError

VERSION: Final = 1
_UNUSED: Final = ("unet",)  # parts of a base that do not matter once all is encoded


def digest(data: TrainingSet) -> str:
    """sha256 of which tensors are drawn how often with which captions; names do not count."""
    content = json.dumps(
        [[[*row.bucket], row.latents, row.time_ids, row.captions, row.repeats] for row in data.rows]
        + [sorted(data.embeds.items()), data.nothing]
    )
    return hashlib.sha256(content.encode()).hexdigest()


def save(data: TrainingSet, folder: Path, identity: str, parts: Mapping[str, str]) -> Path:
    """Writes ``set-….json``; the set of the same source, made before, is replaced.

    Raises:
        StorageError: If the disk refuses.
    """
    path = folder / f"{SET}{identity[:12]}.json"
    content = {
        "version": VERSION,
        "dtype": str(data.store.dtype).removeprefix("torch."),
        "kind": data.kind,
        "encoders": {part: parts[part] for part in sorted(parts) if part not in _UNUSED},
        "origin": data.origin,
        "skipped": data.skipped,
        "nothing": data.nothing,
        "embeds": data.embeds,
        "rows": [vars(row) for row in data.rows],
    }
    durable.write(path, json.dumps(content).encode())
    return path


def load(path: Path, parts: Mapping[str, str], options: DataOptions) -> TrainingSet:
    """The set of a file that :func:`save` wrote.

    Args:
        path: ``set-….json`` in its cache.
        parts: Of the base model that is to be trained.
        options: Those that are given must be what the set was made with.

    Raises:
        InvalidContentError: If the file is damaged, or the cache lacks some of its tensors.
        IncompatibleError: If other encoders made it.
        UsageError: If options are given that it was not made with.
    """
    content = _content(path)
    made_with = content["origin"]["options"]
    if wrong := [name for name, v in options.given().items() if made_with.get(name) != v]:
        raise UsageError(
            f"{path}: was made with other values of {', '.join(sorted(wrong))}",
            hint="name the pictures, and this folder as the cache",
        )
    others = [part for part, sha in content["encoders"].items() if parts.get(part) != sha]
    if others:
        raise IncompatibleError(
            f"{path}: was encoded with another {' and '.join(others)} than the base model's",
            hint="name the pictures, and this folder as the cache; or take that base model",
        )
    store = Store(path.parent, getattr(torch, content["dtype"]))
    data = TrainingSet(
        tuple(_row(**row) for row in content["rows"]),
        content["embeds"],
        content["nothing"],
        store,
        content["kind"],
        content["origin"],
        tuple(content["skipped"]),
    )
    _check_there(path, data)
    return data


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            raise ValueError(f"of version {content['version']}")
        return dict(content)
    except (ValueError, KeyError, TypeError) as error:
        raise InvalidContentError(
            f"{path}: is no training set of this program ({error})",
            hint="name the pictures, and this folder as the cache",
        ) from error


def _row(**told: Any) -> Row:
    told |= {name: tuple(told[name]) for name in ("bucket", "latents", "captions")}
    return Row(**{**told, "time_ids": tuple(map(tuple, told["time_ids"]))})


def _check_there(path: Path, data: TrainingSet) -> None:
    names = [f"{key}.z0" for row in data.rows for key in row.latents]
    captions = (*data.embeds.values(), data.nothing)
    names += [f"{key}.{name}" for key in captions for name in TOLD[data.kind]]
    missing = sum(name not in data.store for name in names)
    if missing:
        raise InvalidContentError(
            f"{path}: {missing} of {len(names)} tensors are not in the shards beside it",
            hint="name the pictures, and this folder as the cache",
        )
