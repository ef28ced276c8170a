"""Updates in their singular vectors, found on the factors: what a re-projection cuts."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.tall import Tall, Thin, tall

_CANCELLED: Final = 1e-2


@dataclass(frozen=True, eq=False)
class Factored:
    """ΔW = Q_B core Q_Aᵀ of an update.

    Args:
        up: Of B · scale, ``[out, r]``.
        down: Of Aᵀ, ``[in, r]``.
        core: R_B R_Aᵀ; it has the update's singular values.
    """

    up: Thin | Tall
    down: Thin | Tall
    core: Tensor

    @classmethod
    def of(cls, delta: LowRankDelta) -> Factored:
        """In float32, whose error of 1e-6 · ‖B‖‖A‖ counts nothing beside that of the written file.

        Where ‖ΔW‖ is below 1e-2 · ‖B‖‖A‖ its terms cancel, and it is done again in float64, so that
        nothing is lost that float32 factors hold.
        """
        found = cls._in(delta, torch.float32)
        whole = found.up.r.norm() * found.down.r.norm()
        if found.core.norm() < _CANCELLED * whole or not whole.isfinite():
            return cls._in(delta, torch.float64)
        return found

    @classmethod
    def exact(cls, delta: LowRankDelta) -> Factored:
        """The core in float64, of float32 factors."""
        up, down = (
            Tall.of(side, torch.float64) or Thin.of(side.double())
            for side in _sides(delta, torch.float32)
        )
        return cls(up, down, up.r.double() @ down.r.double().T)

    @classmethod
    def _in(cls, delta: LowRankDelta, dtype: torch.dtype) -> Factored:
        up, down = (tall(side) for side in _sides(delta, dtype))
        return cls(up, down, up.r @ down.r.T)


def _sides(delta: LowRankDelta, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """B · scale ``[out, r]`` and Aᵀ ``[in, r]``."""
    return delta.up.flatten(1).to(dtype) * delta.scale, delta.down.flatten(1).to(dtype).T


_BLUR: Final = 20.0  # see Decomposition.sharp
_MUCH: Final = 50.0


@dataclass(frozen=True, eq=False)
class Decomposition:
    """ΔW = Q_B U diag(s) Vᵀ Q_Aᵀ of an update, to be cut at any rank.

    Args:
        factored: Q_B and Q_A.
        u: ``[p, k]``.
        s: Falling, ``[k]``.
        vh: ``[k, q]``.
        delta: The update, where it is kept, too.
    """

    factored: Factored
    u: Tensor
    s: Tensor
    vh: Tensor
    delta: LowRankDelta | None = None

    @classmethod
    def of(cls, delta: LowRankDelta) -> Decomposition:
        """Of an update; its core is decomposed on the CPU."""
        return cls._of_core(factored := Factored.of(delta), factored.core)

    @classmethod
    def _of_core(cls, factored: Factored, core: Tensor) -> Decomposition:
        return cls(factored, *torch.linalg.svd(core.cpu(), full_matrices=False))

    def sharp(self, delta: LowRankDelta, rank: int) -> Decomposition:
        """The same, in float64 where float32 would leave in doubt which directions are kept.

        A cut between two close values turns what is kept by 1 to 5 times 1e-7 · blur, with
        blur = σ_1 / ‖kept‖ · σ_r / (σ_r − σ_r+1). Two thirds of that come from the decomposition of
        the core; where the blur is large, R is found again, too.
        """
        blur = _blur(self.s, rank)
        if blur <= _BLUR or self.s.dtype == torch.float64:
            return self
        if blur > _MUCH:
            return self._of_core(exact := Factored.exact(delta), exact.core)
        up, down = self.factored.up, self.factored.down
        return self._of_core(self.factored, up.r.double() @ down.r.double().T)

    def bare(self, delta: LowRankDelta | None) -> Decomposition:
        """What is to be kept: the update, or else nothing that can be had from it again."""
        up, down = (
            replace(side, matrix=side.matrix.new_empty(0)) if isinstance(side, Tall) else side
            for side in (self.factored.up, self.factored.down)
        )
        factored = Factored(up, down, self.factored.core.new_empty(0))
        return replace(self, factored=factored, delta=delta)

    def dressed(self, delta: LowRankDelta) -> Decomposition:
        """What :meth:`bare` was made of, but for the core."""
        up, down = (
            replace(side, matrix=matrix) if isinstance(side, Tall) else side
            for side, matrix in zip(
                (self.factored.up, self.factored.down),
                _sides(delta, self.s.dtype),
                strict=True,
            )
        )
        return replace(self, factored=replace(self.factored, up=up, down=down))

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers in it."""
        sides = (self.factored.up, self.factored.down)
        held = [self.factored.core, self.u, self.s, self.vh, *(side.r for side in sides)]
        held += [s.matrix if isinstance(s, Tall) else s.reflectors for s in sides]
        held += [self.delta.up, self.delta.down] if self.delta else []
        return sum(tensor.nbytes for tensor in held)


def _blur(s: Tensor, rank: int) -> float:
    """By how much a cut below the value of a rank enlarges an error, see Decomposition.sharp."""
    if rank >= len(s) or not s[rank - 1] > 0:
        return 0.0
    last, gap = float(s[rank - 1]), float(s[rank - 1] - s[rank])
    return float(s[0] / s[:rank].norm()) * last / gap if gap > 0 else math.inf
