"""Whole models, as diffusers folders or single files: vectors in one, and the vector between two.

``fuse`` writes W + ΔW(τ), one product and one rounding a weight; ``extract`` takes W' − W apart
into factors; ``difference`` keeps it whole, for A + λ·(B − C). All work tensor by tensor, so that
memory holds a few.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.elementwise import generator, leading_of
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    OutputExistsError,
    UsageError,
)
from lcm_arith.formats import container
from lcm_arith.formats.container import OWN_METADATA
from lcm_arith.formats.kinds import full_difference
from lcm_arith.formats.layouts import Model, Place
from lcm_arith.formats.preflight import finite
from lcm_arith.modules import GAIN, fits, is_vector
from lcm_arith.pool import ahead, one_thread
from lcm_arith.saving import provenance
from lcm_arith.vector import Deltas, Lazy, Source, TaskVector

Updates = Mapping[tuple[str, str], Sequence[tuple[str, Place]]]
"""File and key of a tensor → the targets in it, and where."""


def fuse(tau: TaskVector, base: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Writes the model ``base`` with ``tau`` in its weights; returns what was done, JSON-ready.

    Args:
        tau: Any vector.
        base: A diffusers folder, or one file as Stability names its parts.
        out: Folder or file to make, as ``base`` is; it appears whole or not at all. Weights keep
            their number format.
        force: Replace ``out``.

    Raises:
        IncompatibleError: If ``tau`` names a module that the model lacks, or of another shape.
        InvalidContentError: If a sum does not fit the number format.
        UsageError: If ``out`` is no name of a file where one is to be made, or lies in the folder
            ``base``.
        OutputExistsError, NotFoundError, StorageError: As for a file.
    """
    model = Model.open(base)
    updates = _updates(tau, model)
    if out.resolve() == base.resolve():
        raise OutputExistsError(f"{out}: is the model itself", hint="name another one")
    if base.is_dir() and out.resolve().is_relative_to(base.resolve()):
        raise UsageError(
            f"{out}: lies in the model {base}, which is copied with all that is in it",
            hint="name a folder beside it",
        )
    if base.is_dir():
        digests = _fuse_folder(tau, model, updates, out, force=force)
    else:
        if out.suffix != ".safetensors":
            raise UsageError(f"{out}: is no name of a model", hint="end it in .safetensors")
        container.refuse_existing(out, force=force)
        digests = {out.name: _fuse_file(tau, model, base.name, updates, out, force=force)}
    return {"path": str(out), "modules": len(tau), "sha256": digests}


def _fuse_folder(
    tau: TaskVector, model: Model, updates: Updates, out: Path, *, force: bool
) -> dict[str, str]:
    changed = sorted({name for name, _ in updates})
    skipped = {model.path / name for name in changed}
    with container.whole_folder(out, force=force, mark="model_index.json") as part:
        shutil.copytree(
            model.path,
            part,
            ignore=lambda at, names: [n for n in names if Path(at) / n in skipped],
            dirs_exist_ok=True,
        )
        digests = {name: _fuse_file(tau, model, name, updates, part / name) for name in changed}
    return digests


def _updates(tau: TaskVector, model: Model) -> Updates:
    """Where each module of ``tau`` goes; raises where one has no place."""
    found: dict[tuple[str, str], list[tuple[str, Place]]] = {}
    wrong = []
    for module in tau:
        place = model.place(module)
        shape = () if place is None else model.shape(place)
        if module.endswith(GAIN):
            shape = shape[:1]
        if place is None or not fits(tuple(tau.shape_of(module)), shape):
            wrong.append(module)
        else:
            found.setdefault((place.file, place.key), []).append((module, place))
    if wrong:
        raise IncompatibleError(
            f"{model.path}: {len(wrong)} of {len(tau)} modules are not there or have another "
            f"shape, {wrong[0]} for one",
            hint="the adapter was made for another architecture",
        )
    return found


def _fuse_file(
    tau: TaskVector, model: Model, name: str, updates: Updates, out: Path, *, force: bool = False
) -> str:
    """Writes one file of a model, the updated tensors as round(W + ΔW); returns its sha256."""
    file = model.files[name]

    def made(key: str) -> tuple[str, Tensor]:
        tensor = file[key]
        here = updates.get((name, key), ())
        if not here:
            return key, tensor
        whole = tensor.float()
        for module, place in sorted(here, key=lambda at: not at[0].endswith(GAIN)):
            part, update = place.of(whole), tau.once(module).dense()
            if module.endswith(GAIN):
                part *= 1 + update.reshape(-1, *(1,) * (part.ndim - 1))
            else:
                part += update.reshape(part.shape)
        fused = whole.to(tensor.dtype)
        if not finite(fused):
            raise InvalidContentError(
                f"{here[0][0]}: the sum does not fit {tensor.dtype}", hint="use smaller weights"
            )
        return key, fused

    about = {OWN_METADATA: json.dumps(provenance(tau), sort_keys=True)}
    return container.write_tensors(
        out, file.outlines(), ahead(made, file), {**file.metadata, **about}, force=force
    )


def difference(base: Path, tuned: Path) -> TaskVector:
    """The whole difference of two models, of full rank: A + λ·(B − C) is a ``fuse`` of it.

    Raises:
        IncompatibleError, InvalidContentError: As :func:`extract`.
    """
    pairs = _changed(base, tuned)
    origin = {"operation": "difference"}
    outlines = Lazy(pairs, lambda target: _whole(pairs[target].outline()))
    return TaskVector(((1.0, Source(Difference(pairs, None, 0), origin, outlines=outlines)),))


def _whole(difference: Tensor) -> LowRankDelta:
    return full_difference({"diff": difference}, None)


def extract(
    base: Path, tuned: Path, *, rank: int, seed: int = 0, lora_only: bool = False
) -> TaskVector:
    """The vector from one model to another, each module's difference within a rank.

    Args:
        base: A diffusers folder or a single file.
        tuned: Another one of the same architecture.
        rank: Of every module.
        seed: Of the randomized range finder.
        lora_only: Leave out what differs and is no matrix of a layer: biases and norms, which are
            kept whole else, and embeddings of tokens, which no adapter has a place for.

    Raises:
        UsageError: If ``rank`` is below 1.
        IncompatibleError: If the two do not hold the same weights.
        InvalidContentError: If nothing differs, or something does that no adapter has a place for,
            such as an embedding of a token.
    """
    if rank < 1:
        raise UsageError(f"rank {rank}: at least 1")
    pairs = _changed(base, tuned)
    alien = [target for target in pairs if ".embeddings." in target]
    if alien and not lora_only:
        raise InvalidContentError(
            f"{tuned}: {len(alien)} embeddings of tokens differ, {alien[0]} for one, which no "
            "adapter has a place for",
            hint="--lora-only leaves them out, and says how much that is",
        )
    kept = {m: p for m, p in pairs.items() if not lora_only or _is_layer(m)}
    if not kept:
        raise InvalidContentError(f"{tuned}: no matrix of a layer differs from {base}")
    origin = {"operation": "extract", "rank": rank, "seed": seed}
    left = {m: p for m, p in pairs.items() if m not in kept}
    return TaskVector(((1.0, Source(Difference(kept, rank, seed, left), origin)),))


def _is_layer(target: str) -> bool:
    return not is_vector(target) and ".embeddings." not in target


@dataclass(frozen=True)
class Pair:
    """A target's values in two models."""

    one: tuple[Model, Place]
    other: tuple[Model, Place]

    def outline(self) -> Tensor:
        """The difference without its numbers, on the meta device."""
        model, place = self.one
        return torch.empty(model.shape(place), device="meta")

    def difference(self) -> Tensor:
        """Other − one, in float32."""
        (model, place), (model2, place2) = self.one, self.other
        found = model2.read(place2).float() - model.read(place).float()
        if not finite(found):
            raise InvalidContentError(
                f"{model.path} or {model2.path}: NaN or infinity in {place.key}",
                hint="the file is damaged, or its training diverged",
            )
        return found


def _changed(base: Path, tuned: Path) -> dict[str, Pair]:
    """Target → its values in both, of all that differ; raises where there is no place for one."""
    one, other = Model.open(base), Model.open(tuned)
    places = {target: other.place(target) for target in one.places}
    unlike = sorted(
        target
        for target, place in places.items()
        if place is None or one.shape(one.places[target]) != other.shape(place)
    )
    if unlike or len(one.places) != len(other.places):
        raise IncompatibleError(
            f"{base} and {tuned} do not hold the same weights ({(unlike or ['more'])[0]})",
            hint="they are models of two architectures",
        )
    _check_others(one, other)
    pairs = {
        target: Pair((one, one.places[target]), (other, place))
        for target, place in sorted(places.items())
        if place is not None
    }
    changed = {t: pair for t, pair in pairs.items() if bool(pair.difference().any())}
    if not changed:
        raise InvalidContentError(f"{base} and {tuned} hold the same weights: nothing to extract")
    return changed


def _check_others(one: Model, other: Model) -> None:
    """Raises where something differs that is no weight or bias of a known module."""
    rest = [
        {(p.file if model.path.is_dir() else "", p.key): p for p in model.others()}
        for model in (one, other)
    ]
    for at in sorted(rest[0].keys() | rest[1].keys()):
        if at in rest[0] and at in rest[1]:
            values, others = one.read(rest[0][at]), other.read(rest[1][at])
            if values.shape == others.shape and torch.equal(values.double(), others.double()):
                continue
        raise InvalidContentError(
            f"{other.path}: {at[1]} differs from {one.path}, and is no weight of a module that is "
            "known",
            hint="the models are of a variant that cannot be compared",
        )


@dataclass(frozen=True, eq=False)
class Difference(Deltas):
    """Target → leading directions of W' − W; each is computed when first asked for, and once.

    Args:
        pairs: The values to take apart.
        rank: Of a matrix; None keeps all of it, and computes it anew each time.
        seed: Of the range finder.
        left: Targets that differ, too, and are left out.
    """

    pairs: Mapping[str, Pair]
    rank: int | None
    seed: int
    left: Mapping[str, Pair] = field(default_factory=dict)
    _done: dict[str, LowRankDelta] = field(default_factory=dict)
    _energies: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __getitem__(self, module: str) -> LowRankDelta:
        if self.rank is None:
            return _whole(self.pairs[module].difference())
        if module not in self._done:
            whole = self.pairs[module].difference()
            self._done[module], kept = _leading(whole, self.rank, self.seed, module)
            self._energies[module] = (kept, _energy(whole))
        return self._done[module]

    def residual(self) -> float:
        """‖W' − W − ΔW‖ / ‖W' − W‖ over all targets, those that are left out among them."""
        kept = whole = 0.0
        for module in self:
            self[module]
            kept, whole = kept + self._energies[module][0], whole + self._energies[module][1]
        whole += sum(_energy(pair.difference()) for pair in self.left.values())
        return math.sqrt(max(0.0, 1 - kept / whole)) if whole else 0.0

    @property
    def names(self) -> Mapping[str, object]:
        """Those that differ and are kept."""
        return self.pairs


def _energy(values: Tensor) -> float:
    return float(values.double().square().sum())


def _leading(whole: Tensor, rank: int, seed: int, module: str) -> tuple[LowRankDelta, float]:
    """The leading directions of a difference, and their energy; a vector is kept whole."""
    if whole.ndim == 1:
        return full_difference({"diff": whole}, None), _energy(whole)
    matrix = whole.flatten(1)
    count = min(rank, *matrix.shape)
    with one_thread():
        u, s, v = leading_of(matrix, count, generator(seed, module))
    root, ones = s.sqrt(), (1,) * (whole.ndim - 2)
    delta = LowRankDelta(
        (v * root).T.reshape(count, *whole.shape[1:]).contiguous(),
        (u * root).reshape(-1, count, *ones).contiguous(),
    )
    return delta, _energy(s)


def residual_of(tau: TaskVector) -> float:
    """The residual of an extracted vector."""
    ((_, source),) = tau.terms
    if not isinstance(source.deltas, Difference):
        raise UsageError("only an extracted vector has a residual")
    return source.deltas.residual()
