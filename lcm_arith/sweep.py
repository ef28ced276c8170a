"""λ-sweeps: a decomposition of the factors does not depend on λ, so it is done once for all.

Of each module only the small R factors are kept; the singular values of Σ λᵢ ΔWᵢ are those of
Σ λᵢ R_B[:, i] R_A[:, i]ᵀ (:mod:`lcm_arith.stack`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lcm_arith.errors import IncompatibleError, InvalidContentError, UsageError
from lcm_arith.modules import GAIN
from lcm_arith.pool import ahead
from lcm_arith.stack import Stack
from lcm_arith.vector import TaskVector

Cores = tuple[tuple[int, Tensor], ...]
"""Which vector → its core Mᵢ, ``[p, q]`` float32, of the vectors that have the module."""


@dataclass(frozen=True, eq=False)
class Sweep:
    """Vectors whose weighted sums are to be looked at for many weights.

    Args:
        count: How many vectors.
        cores: Module → their cores.
    """

    count: int
    cores: Mapping[str, Cores]

    @classmethod
    def of(cls, vectors: Sequence[TaskVector]) -> Sweep:
        """Decomposes every module once.

        Raises:
            IncompatibleError: If two vectors have a module in different shapes.
            InvalidContentError: If one is a DoRA, whose updates are no factors alone.
        """
        modules = sorted({module for tau in vectors for module in tau})
        if any(module.endswith(GAIN) for module in modules):
            raise InvalidContentError(
                "a DoRA stretches the base's rows, its factors alone have no spectrum"
            )

        def cores(module: str) -> Cores:
            there = [(i, tau.once(module)) for i, tau in enumerate(vectors) if module in tau]
            try:
                stack = Stack.of([delta for _, delta in there], fast=True)
            except IncompatibleError as error:
                raise IncompatibleError(f"{module}: {error.message}", hint=error.hint) from error
            return tuple((i, core.float()) for (i, _), core in zip(there, stack.cores, strict=True))

        return cls(len(vectors), dict(zip(modules, ahead(cores, modules), strict=True)))

    def spectra(self, weights: Sequence[float]) -> dict[str, Tensor]:
        """Module → singular values of its Σ λᵢ ΔWᵢ, falling, float32.

        Args:
            weights: λᵢ, one a vector.

        Raises:
            UsageError: If there are more or fewer weights than vectors.
        """
        if len(weights) != self.count:
            raise UsageError(f"{len(weights)} weights for {self.count} vectors")

        def values(module: str) -> Tensor:
            total = torch.stack([weights[i] * core for i, core in self.cores[module]]).sum(0)
            found: Tensor = torch.linalg.svdvals(total)
            return found

        return dict(zip(self.cores, ahead(values, self.cores), strict=True))


def energies(spectra: Mapping[str, Tensor], ranks: Sequence[int]) -> tuple[float, list[float]]:
    """Σ σ² over all modules, and the share of it that each rank keeps (1 where all is zero)."""
    squares = [values.double().square() for values in spectra.values()]
    total = sum(float(square.sum()) for square in squares)
    kept = [sum(float(square[:rank].sum()) for square in squares) for rank in ranks]
    return total, [share / total if total else 1.0 for share in kept]
