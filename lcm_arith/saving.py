"""Task vectors into files: what is written beside the numbers, and how large it becomes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith import rounding
from lcm_arith.adapters import family_of
from lcm_arith.dora import as_dora
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.formats import container, diffusers, peft_folder, writers
from lcm_arith.formats.container import OWN_METADATA
from lcm_arith.formats.preflight import SafeFile, finite
from lcm_arith.modules import MAGNITUDE
from lcm_arith.pool import ahead
from lcm_arith.projection import size_budget, tightened
from lcm_arith.respelling import respelled
from lcm_arith.vector import TaskVector

TRIGGER: Final = "modelspec.trigger_phrase"
SOURCES_METADATA: Final = "lcm_arith.sources"
_REWRITTEN: Final = (OWN_METADATA, SOURCES_METADATA, diffusers.ADAPTER_METADATA, "format")


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


def provenance(tau: TaskVector) -> dict[str, Any]:
    """The sum as JSON-ready values: each weight as a decimal string beside its source's origin."""
    terms = []
    for weight, source in tau.terms:
        origin = dict(source.origin)
        if isinstance(origin.get("of"), TaskVector):
            origin["of"] = provenance(origin["of"])
        terms.append({"weight": repr(weight), **origin})
    return {"terms": terms}
