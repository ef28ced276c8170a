"""TaskVector τ: one adapter, or a weighted sum of several, as a vector.

Arithmetic is symbolic: ``0.8 * style + 1.0 * accel`` holds two weights and two references. A
target module's factors are concatenated when that module is asked for, so scaling, adding and
subtracting cost nothing, and equal terms are collected (τ − τ is empty, not noise).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch

from lcm_arith.delta import LowRankDelta, alike, concatenate
from lcm_arith.errors import IncompatibleError, UsageError


class Deltas(Mapping[str, LowRankDelta]):
    """Deltas by target that are read or computed when they are asked for."""

    @property
    @abstractmethod
    def names(self) -> Mapping[str, object]:
        """The targets, in order."""

    def __contains__(self, target: object) -> bool:
        return target in self.names  # Mapping's own would compute it

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, eq=False)
class Lazy(Deltas):
    """Deltas by a function.

    Args:
        over: The targets, in order.
        make: Target → its delta.
    """

    over: Mapping[str, object]
    make: Callable[[str], LowRankDelta]

    @property
    def names(self) -> Mapping[str, object]:
        """The targets, in order."""
        return self.over

    def __getitem__(self, target: str) -> LowRankDelta:
        if target not in self.over:
            raise KeyError(target)
        return self.make(target)


class Once(Deltas):
    """Deltas that are kept once they were computed, but need not be."""

    @abstractmethod
    def once(self, module: str) -> LowRankDelta:
        """A delta that is not kept."""


class Base(Protocol):
    """A whole model, of which DoRA needs the weights."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    def weight(self, module: str) -> torch.Tensor:
        """A module's weight."""
        ...

    def shape_of(self, module: str) -> tuple[int, ...] | None:
        """Shape of a module's weight; None where there is no such module."""
        ...


@dataclass(frozen=True, eq=False)
class Source:
    """Deltas that were read or computed once, and where they come from.

    Args:
        deltas: Target module → delta. Canonical names: diffusers' dotted path with its component,
            ``unet.down_blocks.1…to_q``.
        origin: What made them, as JSON-ready values: ``{"file": name, "sha256": …}`` or
            ``{"operation": …}``. It becomes the provenance of a saved sum.
        metadata: What the file said of itself.
        outlines: The deltas without their numbers, where those are read or computed when they are
            asked for.
        base: The model whose weights the deltas depend on; DoRA's do.
    """

    deltas: Mapping[str, LowRankDelta]
    origin: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    outlines: Mapping[str, LowRankDelta] | None = None
    base: Base | None = None

    def outline(self, module: str) -> LowRankDelta:
        """Shapes and rank of a module's delta, on the meta device."""
        if self.outlines is None:
            return self.deltas[module].outline()
        return self.outlines[module]


@dataclass(frozen=True, eq=False)
class TaskVector(Mapping[str, LowRankDelta]):
    """Σ weight · source, a mapping of target module → :class:`LowRankDelta`.

    ``tau + other``, ``tau - other``, ``-tau`` and ``weight * tau`` are eq. 2 and 3 of
    arXiv:2311.05556; ``tau[module]`` is exact (factors side by side, float32).
    """

    terms: tuple[tuple[float, Source], ...] = ()

    def __post_init__(self) -> None:
        collected: dict[int, tuple[float, Source]] = {}
        for weight, source in self.terms:
            if not math.isfinite(weight):
                raise UsageError(f"weight {weight} is not a finite number")
            before = collected.get(id(source), (0.0, source))[0]
            collected[id(source)] = (before + weight, source)
        terms = tuple(term for term in collected.values() if term[0] != 0.0)
        object.__setattr__(self, "terms", terms)

    def __add__(self, other: TaskVector) -> TaskVector:
        return TaskVector(self.terms + other.terms)

    def __mul__(self, weight: float) -> TaskVector:
        return TaskVector(tuple((weight * own, source) for own, source in self.terms))

    __rmul__ = __mul__

    def __neg__(self) -> TaskVector:
        return -1.0 * self

    def __sub__(self, other: TaskVector) -> TaskVector:
        return self + -other

    @cached_property
    def modules(self) -> tuple[str, ...]:
        """Target modules of all terms, sorted."""
        return tuple(sorted({module for _, source in self.terms for module in source.deltas}))

    @property
    def base(self) -> Base | None:
        """The model whose weights the vector depends on; None where it depends on none.

        Raises:
            IncompatibleError: If two terms depend on two models.
        """
        found = {source.base.path: source.base for _, source in self.terms if source.base}
        if len(found) > 1:
            raise IncompatibleError(
                f"the terms depend on two base models: {' and '.join(map(str, sorted(found)))}",
                hint="a sum of DoRAs needs one base",
            )
        return next(iter(found.values()), None)

    def __contains__(self, module: object) -> bool:
        return any(module in source.deltas for _, source in self.terms)

    def __iter__(self) -> Iterator[str]:
        return iter(self.modules)

    def __len__(self) -> int:
        return len(self.modules)

    def shape_of(self, module: str) -> torch.Size:
        """Shape of a module's dense update, without adding anything up.

        Raises:
            IncompatibleError: If the terms disagree.
        """
        own = [s.outline(module) for _, s in self.terms if module in s.deltas]
        shapes = {outline.shape for outline in alike(own)}
        if len(shapes) > 1:
            raise IncompatibleError(
                f"{module}: updates of different shapes cannot be added: "
                f"{sorted(map(list, shapes))}",
                hint="the adapters were made for different base models",
            )
        return shapes.pop()

    def rank_of(self, module: str) -> int:
        """Rank of a module's factors, without adding anything up."""
        return sum(s.outline(module).rank for _, s in self.terms if module in s.deltas)

    def outline(self, module: str) -> LowRankDelta:
        """``self[module]`` without its numbers, on the meta device."""
        return self._summed(module, [w * s.outline(module) for w, s in self._with(module)])

    def __getitem__(self, module: str) -> LowRankDelta:
        return self._summed(module, [w * s.deltas[module] for w, s in self._with(module)])

    def once(self, module: str) -> LowRankDelta:
        """``self[module]``, of which nothing is kept in memory for another time."""
        return self._summed(
            module,
            [
                w * (s.deltas.once(module) if isinstance(s.deltas, Once) else s.deltas[module])
                for w, s in self._with(module)
            ],
        )

    def _with(self, module: str) -> list[tuple[float, Source]]:
        return [(weight, source) for weight, source in self.terms if module in source.deltas]

    def _summed(self, module: str, own: list[LowRankDelta]) -> LowRankDelta:
        if not own:
            raise KeyError(module)
        try:
            return own[0] if len(own) == 1 else concatenate(own)
        except IncompatibleError as error:
            raise IncompatibleError(f"{module}: {error.message}", hint=error.hint) from error
