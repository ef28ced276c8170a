"""Rebuild: a recorded operation done again, which proves the record or refutes it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith import methods
from lcm_arith.adapters import check_address, family_of, load
from lcm_arith.budgets import BUDGETS, Budget
from lcm_arith.combination import by_method
from lcm_arith.dora import as_dora
from lcm_arith.elementwise import How
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.formats import writers
from lcm_arith.formats.container import DTYPES, OWN_METADATA, tensors_digest
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.projection import reproject
from lcm_arith.registry import shipped
from lcm_arith.registry.lineage import MOST_LEVELS
from lcm_arith.registry.store import Found, Registry
from lcm_arith.respelling import respelled
from lcm_arith.saving import save
from lcm_arith.vector import TaskVector
from lcm_arith.weights import parse_term, weigh

_WHOLE: Final = ("lora_magnitude_vector", "dora_scale")  # always float32


@dataclass(frozen=True)
class Rebuilt:
    """A file that was made again by its record.

    Args:
        tensors: sha256 of its tensors, made again.
        recorded: The same of the file in the registry.
        bytes_equal: Whether the whole files are equal, header and all.
    """

    tensors: str
    recorded: str
    bytes_equal: bool

    @property
    def equal(self) -> bool:
        """Whether the numbers are the same, to the last bit."""
        return self.tensors == self.recorded


def rebuild(registry: Registry, found: Found, *, base: Path | None = None) -> Rebuilt:
    """Does again what a vector's header records, from the files that it names by sha256.

    Args:
        registry: Where those files are.
        found: The vector.
        base: The model that DoRAs among them were made for.

    Raises:
        UsageError: If there is no record, or it is of a training.
        NotFoundError: If a file is not in the registry.
        InvalidContentError: If the record cannot be read.
    """
    file = SafeFile.open(found.path)
    check_address(found.path, file.checked(keep=False)[0])
    made = found.record.made
    if not made.get("terms"):
        raise UsageError(
            f"{found.name}: its header does not say what it was made of",
            hint="only what this program combined, re-projected or converted can be made again",
        )
    dtype = _dtype(file)
    tau = Replay(registry, dtype, base).summed(made)
    about = _about(file)
    with registry.objects.workspace() as folder:
        path = folder / "again.safetensors"
        digest = save(tau, path, dtype=dtype, about=about, form=_form(tau, file)).sha256
        again = SafeFile.open(path)
        tensors = tensors_digest(again, again.outlines())
    return Rebuilt(tensors, found.record.tensors, digest == found.record.object)


def _about(file: SafeFile) -> dict[str, Any]:
    """What the header says beside the terms."""
    import json

    values = json.loads(file.metadata[OWN_METADATA])
    return {key: value for key, value in values.items() if key != "terms"}


def _dtype(file: SafeFile) -> torch.dtype:
    """Of the factors; an alpha and a DoRA's magnitude are float32 whatever they are."""
    factors = {
        entry.dtype
        for name, entry in file.entries.items()
        if entry.shape and not name.endswith(_WHOLE)
    }
    if len(factors) != 1 or not factors <= set(DTYPES.values()):
        raise InvalidContentError(f"{file.path}: its tensors are of {len(factors)} number formats")
    return factors.pop()


def _form(tau: TaskVector, file: SafeFile) -> str:
    """The dialect whose names for the vector are the file's.

    Raises:
        InvalidContentError: If it is none of ours.
    """
    for form in writers.WRITERS:
        try:
            spelled = respelled(as_dora(tau), writers.dit_spelling(form))
            outlines = {module: spelled.outline(module) for module in spelled}
            names = writers.spelling(outlines, form, family_of(tau))
        except (UsageError, InvalidContentError):
            continue  # a dialect that cannot hold it did not write it
        if {own for keys in names.keys.values() for own in keys if own} == file.keys():
            return form
    raise InvalidContentError(f"{file.path}: no dialect gives its {len(file)} names")


@dataclass(frozen=True)
class Replay:
    """Recorded terms → vectors.

    Args:
        registry: Where the files are.
        dtype: Of the written file, on which a budget of bytes depends.
        base: The model that DoRAs were made for.
    """

    registry: Registry
    dtype: torch.dtype
    base: Path | None = None

    def summed(self, made: Mapping[str, Any], level: int = 0) -> TaskVector:
        """Σ weight · term."""
        return sum(self._terms(made, level), TaskVector())

    def _terms(self, made: Mapping[str, Any], level: int) -> list[TaskVector]:
        if level > MOST_LEVELS:
            raise InvalidContentError("the recipe nests too deep")
        try:
            return [float(term["weight"]) * self._term(term, level) for term in made["terms"]]
        except (KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise InvalidContentError(
                f"the recorded recipe is not understood ({type(error).__name__}: {error})"
            ) from error

    def _term(self, term: Mapping[str, Any], level: int) -> TaskVector:
        budget = next((kind for kind in BUDGETS if kind in term), None)
        if "operation" in term:
            raise UsageError(
                f"a part of it was made by {term['operation']}, which is not done again",
                hint="lineage shows the rest",
            )
        if "sha256" in term:
            return self._file(term)
        if "method" in term:
            how = (
                How(float(term["density"]), term["space"], term["seed"])
                if "space" in term
                else None
            )
            row, weighed = methods.method(term["method"]), self._terms(term["of"], level + 1)
            return by_method(weighed, row, rank=term["rank"], how=how)
        tau = self.summed(term["of"], level + 1)
        if "weights" in term:
            return weigh(tau, parse_term(f"x:{term['weights']}").weights, "recorded term")
        if "spelling" in term:
            return respelled(tau, term["spelling"])
        if budget is not None:
            value = term[budget]
            if budget == "rank":
                return reproject(tau, int(value))
            return reproject(tau, Budget(budget, float(value), self.dtype.itemsize))
        raise InvalidContentError(f"the recorded recipe is not understood: {sorted(term)}")

    def _file(self, term: Mapping[str, Any]) -> TaskVector:
        """A file's vector, a source of its own: the same file twice was two sources, too."""
        sha256, name = str(term["sha256"]), term.get("name")
        if name in shipped.names() and shipped.record(name).object == sha256:
            return load(name, self.base)
        path = self.registry.files(sha256)
        if path is None:
            called = f"{name}, " if name else ""
            raise NotFoundError(
                f"it was made of {called}sha256 {sha256[:16]}…, which the registry does not have",
                hint="add that file: lcm-arith registry add",
            )
        tau = load(path, self.base)
        return TaskVector(tuple((weight, replace(source)) for weight, source in tau.terms))
