"""Whole models as diffusers folders: vectors baked into one, and the vector between two.

``fuse`` writes W + ΔW(τ), one product and one rounding a weight; ``extract`` takes W' − W apart
into factors. Both work tensor by tensor, so that memory holds a few.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.adapters import OWN_METADATA, provenance
from lcm_arith.delta import LowRankDelta
from lcm_arith.elementwise import generator, leading_of
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from lcm_arith.formats import container
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.pool import ahead, one_thread
from lcm_arith.vector import Source, TaskVector

COMPONENTS: Final = ("unet", "text_encoder", "text_encoder_2")
_FILES: Final = ("diffusion_pytorch_model.safetensors", "model.safetensors")


def open_model(folder: Path) -> dict[str, SafeFile]:
    """Component → its checked file, of those that adapters change.

    Raises:
        NotFoundError: If there is no UNet.
        InvalidContentError: If a component is split into several files, or a file is damaged.
    """
    found: dict[str, SafeFile] = {}
    for component in COMPONENTS:
        own = folder / component
        split = sorted(own.glob("*.safetensors.index.json"))
        if split:
            raise InvalidContentError(
                f"{split[0]}: the component is split into several files",
                hint="save the model again with max_shard_size above its size",
            )
        path = next((own / name for name in _FILES if (own / name).is_file()), None)
        if path is not None:
            found[component] = SafeFile.open(path, checkpoint=True)
    if "unet" not in found:
        raise NotFoundError(
            f"{folder}: holds no unet/{_FILES[0]}", hint="give a folder in diffusers' layout"
        )
    return found


def fuse(tau: TaskVector, base: Path, out: Path, *, force: bool = False) -> dict[str, Any]:
    """Writes the model ``base`` with ``tau`` in its weights; returns what was done, JSON-ready.

    Args:
        tau: Any vector.
        base: A diffusers folder.
        out: Folder to make; it appears whole or not at all. Weights keep their number format.
        force: Replace ``out``.

    Raises:
        IncompatibleError: If ``tau`` names a module that the model lacks, or of another shape.
        InvalidContentError: If a sum does not fit the number format.
        OutputExistsError, NotFoundError, StorageError: As for a file.
    """
    files = open_model(base)
    _check_fits(tau, files, base)
    if out.exists() and not force:
        raise OutputExistsError(f"{out}: exists", hint="choose another name or add --force")
    if out.resolve() == base.resolve():
        raise OutputExistsError(f"{out}: is the model itself", hint="name another folder")
    if not out.parent.is_dir():
        raise NotFoundError(f"{out.parent}: no such folder", hint="make it first")
    about = {OWN_METADATA: json.dumps(provenance(tau), sort_keys=True)}
    digests = {}
    try:
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
            part = Path(temporary) / "model"
            changed = {c: f for c, f in files.items() if any(m.startswith(f"{c}.") for m in tau)}
            skipped = {file.path for file in changed.values()}
            shutil.copytree(
                base, part, ignore=lambda at, names: [n for n in names if Path(at) / n in skipped]
            )
            for component, file in changed.items():
                written = part / component / file.path.name
                digests[f"{component}/{written.name}"] = container.write_tensors(
                    written,
                    file.outlines(),
                    _fused(tau, component, file),
                    {**file.metadata, **about},
                )
            if out.exists():
                os.replace(out, Path(temporary) / "before")
            os.replace(part, out)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written ({error.strerror})") from error
    return {"path": str(out), "modules": len(tau), "sha256": digests}


def _check_fits(tau: TaskVector, files: Mapping[str, SafeFile], base: Path) -> None:
    wrong = []
    for module in tau:
        component, path = module.split(".", 1)
        entry = files[component].entries.get(f"{path}.weight") if component in files else None
        if entry is None or entry.shape != tuple(tau.shape_of(module)):
            wrong.append(module)
    if wrong:
        raise IncompatibleError(
            f"{base}: {len(wrong)} of {len(tau)} modules are not there or have another shape, "
            f"{wrong[0]} for one",
            hint="the adapter was made for another architecture",
        )


def _fused(tau: TaskVector, component: str, file: SafeFile) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a file, the updated ones as round(W + ΔW)."""

    def made(name: str) -> tuple[str, Tensor]:
        weight, module = file[name], f"{component}.{name.removesuffix('.weight')}"
        if not name.endswith(".weight") or module not in tau:
            return name, weight
        fused = (weight.float() + tau.once(module).dense()).to(weight.dtype)
        if not fused.isfinite().all():
            raise InvalidContentError(
                f"{module}: the sum does not fit {weight.dtype}", hint="use smaller weights"
            )
        return name, fused

    return ahead(made, file)


def extract(base: Path, tuned: Path, *, rank: int, seed: int = 0) -> TaskVector:
    """The vector from one model to another, each module's difference within a rank.

    Args:
        base: A diffusers folder.
        tuned: Another one of the same architecture.
        rank: Of every module.
        seed: Of the randomized range finder.

    Raises:
        UsageError: If ``rank`` is below 1.
        IncompatibleError: If the two do not hold the same weights.
        InvalidContentError: If nothing differs, or something that is no matrix does, such as a
            bias or a norm: an adapter has no place for it.
    """
    if rank < 1:
        raise UsageError(f"rank {rank}: at least 1")
    one, other = open_model(base), open_model(tuned)
    if {c: _shapes(f) for c, f in one.items()} != {c: _shapes(f) for c, f in other.items()}:
        raise IncompatibleError(
            f"{base} and {tuned} do not hold the same weights",
            hint="they are models of two architectures",
        )
    changed = sorted(
        (component, name)
        for component, file in one.items()
        for name in file
        if not torch.equal(file[name], other[component][name])
    )
    rest = [(c, n) for c, n in changed if len(one[c].entries[n].shape) not in (2, 4)
            or not n.endswith(".weight") or "embedding." in n]  # fmt: skip
    if rest:
        raise InvalidContentError(
            f"{tuned}: {len(rest)} tensors differ that are no matrix of a layer, "
            f"{'.'.join(rest[0])} for one",
            hint="biases, norms and embeddings have no place in an adapter of factors",
        )
    if not changed:
        raise InvalidContentError(f"{base} and {tuned} hold the same weights: nothing to extract")
    places = {f"{c}.{n.removesuffix('.weight')}": (one[c], other[c], n) for c, n in changed}
    origin = {"operation": "extract", "rank": rank, "seed": seed}
    return TaskVector(((1.0, Source(Difference(places, rank, seed), origin)),))


def _shapes(file: SafeFile) -> dict[str, tuple[int, ...]]:
    return {name: entry.shape for name, entry in file.entries.items()}


@dataclass(frozen=True, eq=False)
class Difference(Mapping[str, LowRankDelta]):
    """Module → leading directions of W' − W; each is computed when first asked for, and once."""

    places: Mapping[str, tuple[SafeFile, SafeFile, str]]
    rank: int
    seed: int
    _done: dict[str, LowRankDelta] = field(default_factory=dict)
    _energies: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __getitem__(self, module: str) -> LowRankDelta:
        if module not in self._done:
            one, other, name = self.places[module]
            whole = other[name].float() - one[name].float()
            matrix = whole.flatten(1)
            with one_thread():
                count = min(self.rank, *matrix.shape)
                u, s, v = leading_of(matrix, count, generator(self.seed, module))
            root, ones = s.sqrt(), (1,) * (whole.ndim - 2)
            self._energies[module] = (
                float(s.double().square().sum()),
                float(matrix.double().square().sum()),
            )
            self._done[module] = LowRankDelta(
                (v * root).T.reshape(count, *whole.shape[1:]).contiguous(),
                (u * root).reshape(-1, count, *ones).contiguous(),
            )
        return self._done[module]

    def residual(self) -> float:
        """‖W' − W − ΔW‖ / ‖W' − W‖ over all modules."""
        pairs = [(self[module], self._energies[module])[1] for module in self]
        whole = sum(total for _, total in pairs)
        return math.sqrt(max(0.0, 1 - sum(kept for kept, _ in pairs) / whole)) if whole else 0.0

    def __contains__(self, module: object) -> bool:
        return module in self.places  # Mapping's own would compute it

    def __iter__(self) -> Iterator[str]:
        return iter(self.places)

    def __len__(self) -> int:
        return len(self.places)


def residual_of(tau: TaskVector) -> float:
    """The residual of an extracted vector."""
    ((_, source),) = tau.terms
    if not isinstance(source.deltas, Difference):
        raise UsageError("only an extracted vector has a residual")
    return source.deltas.residual()
