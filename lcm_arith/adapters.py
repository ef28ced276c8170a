"""Adapters by name or path, and what their files say of themselves."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.formats import dialects, peft_folder, pickles
from lcm_arith.formats.container import OWN_METADATA
from lcm_arith.formats.keys import sort_keys
from lcm_arith.formats.layouts import Model
from lcm_arith.formats.preflight import KEPT, SafeFile
from lcm_arith.modules import EMBEDDED, candidates, table
from lcm_arith.vector import Source, TaskVector


def locate(name: str | Path) -> Path:
    """Path of a shipped vector, of a file, or of a vector in the registry, in this order.

    Raises:
        NotFoundError: If ``name`` is none of them.
        InvalidContentError: If the registry has it, and its file is lost.
    """
    if str(name) in files.vector_names():
        return files.vector_path(str(name))
    path = Path(name)
    plain = "/" not in str(name)
    if path.exists() and not (plain and path.is_dir() and not (path / peft_folder.CONFIG).exists()):
        return path
    if plain:
        from lcm_arith.registry import store  # SQLAlchemy, which files do not need

        registered = store.path_of(str(name))
        if registered is not None:
            return registered
    if path.exists():
        return path  # a folder of something else, which its reader will name
    shipped = files.vector_names()
    close = difflib.get_close_matches(str(name), shipped, n=1)
    raise NotFoundError(
        f"{name}: no vector and no file of that name",
        hint=(f"did you mean {close[0]}? " if close else "")
        + f"shipped: {', '.join(shipped)}; yours: lcm-arith registry ls",
    )


def open_adapter(name: str | Path) -> tuple[SafeFile, dict[str, str]]:
    """The checked file of a shipped name, a file or a PEFT folder, and what is said of it.

    Raises:
        NotFoundError, InvalidContentError, StorageError: As :func:`load`.
    """
    path = peft_folder.whole(locate(name))
    said: dict[str, str] = {}
    if path.is_dir():
        path, said = peft_folder.resolve(path)
    file = SafeFile.open(path)
    return file, {**file.metadata, **said}


def load(name: str | Path, base: Path | None = None, *, allow_pickle: bool = False) -> TaskVector:
    """The task vector of a shipped name, a ``.safetensors`` file in any dialect or a PEFT folder.

    All of the file is checked now. Its numbers stay in memory if it is small; else each module is
    read when it is asked for, and the file must not change until then.

    Args:
        name: Shipped name or path.
        base: The model that the adapter was made for, a folder or file, whose weights a DoRA needs;
            without it the embedded one, if the adapter fits that.
        allow_pickle: Whether it may be a pickle; a process of its own opens that, under limits.

    Raises:
        NotFoundError: If there is no such vector or file.
        InvalidContentError: If the file is no adapter, is cut, holds NaN, needs its base, or is a
            pickle and may not be.
        IncompatibleError: If it needs the base and does not fit it.
        UsageError: If a pickle cannot be opened safely here.
    """
    origin = {"name": str(name)} if str(name) in files.vector_names() else {}
    tensors: Mapping[str, Tensor]
    pickled = _find_pickle(locate(name)) if allow_pickle else None
    if pickled is not None:
        path, metadata = pickled
        origin["sha256"], tensors = pickles.read(path)
        beside = metadata
    else:
        file, metadata = open_adapter(name)
        small = file.size <= KEPT
        origin["sha256"], kept = file.checked(keep=small)
        check_address(file.path, origin["sha256"])
        path, tensors = file.path, kept if small else file
        beside = {} if metadata == dict(file.metadata) else metadata
    if beside:
        origin["config_sha256"] = hashlib.sha256(canonical(beside)).hexdigest()
    model = base_of(tensors, base)
    parsed = dialects.parse(tensors, metadata, str(path), model)
    return TaskVector(((1.0, Source(parsed.deltas, origin, metadata, parsed.outlines, model)),))


def check_address(path: Path, sha256: str) -> None:
    """Raises where a file that is called by its sha256, as the registry's are, has another.

    Raises:
        InvalidContentError: If so.
    """
    if re.fullmatch("[0-9a-f]{64}", path.stem) and path.stem != sha256:
        raise InvalidContentError(
            f"{path}: was changed on the disk, its sha256 is {sha256}",
            hint="lcm-arith registry verify --deep puts it aside; then add the vector again",
        )


def _find_pickle(path: Path) -> tuple[Path, dict[str, str]] | None:
    """A pickle, alone or in a PEFT folder, and what that says of it; None where there is none."""
    said: dict[str, str] = {}
    if path.is_dir():
        path, said = peft_folder.resolve(path, allow_pickle=True)
    if not pickles.is_pickle(path):
        return None
    if not said and (path.parent / peft_folder.CONFIG).is_file():
        raise UsageError(
            f"{path}: its alphas are in {peft_folder.CONFIG} beside it",
            hint=f"give the folder: {path.parent}",
        )
    return path, said


def is_dora(name: str | Path) -> bool:
    """Whether an adapter depends on the weights of its base, by the names in its file.

    Raises:
        NotFoundError, InvalidContentError, StorageError: As :func:`load`.
    """
    return _has_magnitude(sort_keys(open_adapter(name)[0]).parts)


def _has_magnitude(parts: Mapping[str, Mapping[str, str]]) -> bool:
    return any({"magnitude", "dora_scale"} & own.keys() for own in parts.values())


def base_of(keys: Iterable[str], base: Path | None) -> Model | None:
    """The base model of a DoRA, None of other adapters or where it is not known."""
    parts = sort_keys(keys).parts
    if not _has_magnitude(parts):
        return None
    if base is None and not parts.keys() <= table(EMBEDDED).keys():
        return None
    return Model.open(base or files.MODEL)


def file_digest(name: str | Path) -> str:
    """sha256 of the file behind a name.

    Raises:
        NotFoundError, StorageError: If there is none, or it cannot be read.
    """
    file, _ = open_adapter(name)
    return file.checked(keep=False)[0]


def facts(tau: TaskVector) -> dict[str, Any]:
    """What this package wrote into the file that ``tau`` was loaded from; empty for others'."""
    return _own(tau.terms[0][1].metadata) if len(tau.terms) == 1 else {}


def _own(metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        found = json.loads(metadata.get(OWN_METADATA, "{}"))
    except (ValueError, RecursionError) as error:
        said = str(error)[:80]
        raise InvalidContentError(f"header {OWN_METADATA!r} is not JSON ({said})") from error
    return found if isinstance(found, dict) else {}


def recipe_digest(metadata: Mapping[str, str]) -> str | None:
    """sha256 of what a file of ours was made of, as canonical JSON; None of others' files."""
    terms = _own(metadata).get("terms")
    if terms is None:
        return None
    return hashlib.sha256(canonical(terms)).hexdigest()


def canonical(values: Any) -> bytes:
    """JSON, the same bytes for the same content."""
    return json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def family_of(tau: TaskVector) -> str | None:
    """The family that the vector fits best; None where none is known."""
    found = candidates({module: tuple(tau.shape_of(module)) for module in tau})
    return found[0].family if found else None
