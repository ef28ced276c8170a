"""Adapters by name or path: ``load`` and ``save``."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith import rounding
from lcm_arith.dora import as_dora
from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.formats import container, dialects, diffusers, peft_folder, pickles, writers
from lcm_arith.formats.keys import sort_keys
from lcm_arith.formats.layouts import Model
from lcm_arith.formats.preflight import SafeFile, finite
from lcm_arith.modules import EMBEDDED, MAGNITUDE, candidates, table
from lcm_arith.pool import ahead
from lcm_arith.projection import size_budget, tightened
from lcm_arith.respelling import respelled
from lcm_arith.vector import Source, TaskVector

OWN_METADATA: Final = "lcm_arith"
TRIGGER: Final = "modelspec.trigger_phrase"
SOURCES_METADATA: Final = "lcm_arith.sources"
_REWRITTEN: Final = (OWN_METADATA, SOURCES_METADATA, diffusers.ADAPTER_METADATA, "format")
KEPT: Final = 64 * 2**20  # bytes; a file up to this size is held in memory
DTYPES: Final = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


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
    else:
        file, metadata = open_adapter(name)
        small = file.size <= KEPT
        origin["sha256"], kept = file.checked(keep=small)
        check_address(file.path, origin["sha256"])
        path, tensors = file.path, kept if small else file
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
    text = json.dumps(terms, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def provenance(tau: TaskVector) -> dict[str, Any]:
    """The sum as JSON-ready values: each weight as a decimal string beside its source's origin."""
    terms = []
    for weight, source in tau.terms:
        origin = dict(source.origin)
        if isinstance(origin.get("of"), TaskVector):
            origin["of"] = provenance(origin["of"])
        terms.append({"weight": repr(weight), **origin})
    return {"terms": terms}


def family_of(tau: TaskVector) -> str | None:
    """The family that the vector fits best; None where none is known."""
    found = candidates({module: tuple(tau.shape_of(module)) for module in tau})
    return found[0].family if found else None


def source_metadata(tau: TaskVector) -> dict[str, dict[str, str]]:
    """sha256 of each file in the sum → what its header said, but for what is written anew."""
    kept: dict[str, dict[str, str]] = {}
    for _, source in tau.terms:
        if isinstance(source.origin.get("of"), TaskVector):
            kept |= source_metadata(source.origin["of"])
        own = {k: v for k, v in source.metadata.items() if k not in _REWRITTEN}
        if own:
            kept[str(source.origin.get("sha256", "unknown"))] = own
    return kept


def check_output(path: Path, *, force: bool) -> None:
    """Raises where an adapter could not be put; call it before long work.

    Raises:
        UsageError: If the name does not end in ``.safetensors``: diffusers would read a pickle.
        OutputExistsError, NotFoundError: As :func:`container.refuse_existing`.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"{path}: is no name of an adapter", hint="end it in .safetensors")
    container.refuse_existing(path, force=force)


@dataclass(frozen=True, eq=False)
class Plan:
    """The file of a vector before its numbers are computed.

    Args:
        tau: As the dialect spells it.
        names: Of its tensors.
        layout: Name → shape and number format.
        metadata: The header's.
    """

    tau: TaskVector
    names: writers.Spelling
    layout: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    @classmethod
    def of(cls, tau: TaskVector, dtype: torch.dtype, about: Mapping[str, Any], form: str) -> Plan:
        """Of any vector."""
        told, family, tau = provenance(tau), family_of(tau), as_dora(tau)
        tau = respelled(tau, writers.dit_spelling(form))
        outlines = {module: tau.outline(module) for module in tau}
        names = writers.spelling(outlines, form, family)
        metadata = dict(names.metadata)
        metadata[OWN_METADATA] = json.dumps({**told, **about}, sort_keys=True)
        if about.get("trigger"):
            metadata[TRIGGER] = str(about["trigger"])  # where others look for it
        kept = source_metadata(tau)
        if kept:
            metadata[SOURCES_METADATA] = json.dumps(kept, sort_keys=True)
        layout = {
            name: _as_stored(name, tensor, dtype)
            for module, outline in outlines.items()
            for name, tensor in names.tensors(module, outline).items()
        }
        return cls(tau, names, layout, metadata)

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(container.header(self.layout, self.metadata)[0]) + sum(
            tensor.numel() * tensor.element_size() for tensor in self.layout.values()
        )


def fitted(
    tau: TaskVector,
    *,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any] | None = None,
    form: str = "diffusers",
) -> TaskVector:
    """``tau`` within its ``size`` budget, the file's header and alphas counted; others pass.

    :func:`save` does it to what it writes.

    Raises:
        UsageError: If rank 1 in every module takes more.
    """
    most = size_budget(tau)
    while most is not None and (size := Plan.of(tau, dtype, about or {}, form).size) > most:
        tau = tightened(tau, math.ceil(size - most))
    return tau


@dataclass(frozen=True)
class Written:
    """A file that was written.

    Args:
        sha256: Of all its bytes.
        rounding: ‖file − τ‖ / ‖τ‖ of its half-precision numbers, to a few percent; None of float32.
    """

    sha256: str
    rounding: float | None = None


def save(
    tau: TaskVector,
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any] | None = None,
    force: bool = False,
    prove: Callable[[Path], None] | None = None,
    form: str = "diffusers",
) -> Written:
    """Writes ``tau`` as one file, any scale in its up factors.

    Args:
        tau: Vector to write; each module is computed as it is written, and not kept.
        path: A ``.safetensors`` file.
        dtype: float32, float16 or bfloat16; non-finite results of the rounding are refused.
        about: Facts to keep in the header beside the provenance, JSON-ready.
        force: Replace an existing file.
        prove: Called with the file before it gets its name; what it raises keeps the old file.
        form: Dialect of the keys, a row of ``writers.WRITERS``.

    Raises:
        UsageError: If ``path`` does not end in ``.safetensors``, or the dialect cannot name the
            model's modules.
        IncompatibleError: If a transformer is spelled in two ways.
        InvalidContentError: If nothing is left to write (every weight is 0) or a factor overflows.
        OutputExistsError, StorageError, VerificationError: As :func:`container.write_tensors`.
    """
    path = Path(path)
    check_output(path, force=force)
    if not tau:
        raise InvalidContentError(
            f"{path}: the vector is empty, there is nothing to write",
            hint="every weight is 0 or the terms cancel; choose other weights",
        )
    tau = fitted(tau, dtype=dtype, about=about, form=form)
    plan = Plan.of(tau, dtype, about or {}, form)
    losses: dict[str, tuple[float, float]] = {}

    def spelled(module: str) -> dict[str, Tensor]:
        exact, names = plan.names.tensors(module, plan.tau.once(module)), plan.names.keys[module]
        if len(names) > 1:
            down, up, *_ = names
            exact[down], exact[up] = rounding.balanced(exact[down], exact[up], dtype)
        rounded = _rounded(exact, dtype, path)
        if dtype != torch.float32 and not module.endswith(MAGNITUDE):
            losses[module] = rounding.lost(exact, rounded, names)
        return rounded

    spread = (named for of in ahead(spelled, plan.tau) for named in of.items())
    digest = container.write_tensors(
        path, plan.layout, spread, plan.metadata, force=force, check=prove
    )
    lost, whole = (sum(losses[m][side] for m in sorted(losses)) for side in (0, 1))
    return Written(digest, math.sqrt(lost / whole) if whole else None)


def save_folder(
    tau: TaskVector,
    folder: Path,
    *,
    dtype: torch.dtype = torch.float32,
    about: Mapping[str, Any] | None = None,
    force: bool = False,
) -> Written:
    """Writes ``tau`` as PEFT's folder, whole or not at all; the digest is of its numbers.

    Raises:
        UsageError, InvalidContentError, StorageError, VerificationError: As :func:`save`.
        OutputExistsError, NotFoundError: As :func:`container.refuse_existing_folder`.
    """
    with container.whole_folder(folder, force=force, mark=peft_folder.CONFIG) as part:
        path = part / peft_folder.WEIGHTS
        written = save(tau, path, dtype=dtype, about=about, form="peft")
        text = peft_folder.config_text(SafeFile.open(path).metadata)
        container.write_bytes(part / peft_folder.CONFIG, text.encode())
    return written


def _as_stored(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """In ``dtype``; an alpha stays float32, since bfloat16 has no 257, and so does a DoRA's m.

    m is as long as the rows of W: rounded, it would cost more than the update is worth.
    """
    whole = not tensor.ndim or name.endswith(("lora_magnitude_vector", "dora_scale"))
    return tensor.to(torch.float32 if whole else dtype)


def _rounded(tensors: Mapping[str, Tensor], dtype: torch.dtype, path: Path) -> dict[str, Tensor]:
    rounded = {name: _as_stored(name, tensor, dtype) for name, tensor in tensors.items()}
    overflow = [name for name, tensor in rounded.items() if not finite(tensor)]
    if overflow:
        raise InvalidContentError(
            f"{path}: {overflow[0]} does not fit {dtype}",
            hint="write float32 or use smaller weights",
        )
    return rounded
