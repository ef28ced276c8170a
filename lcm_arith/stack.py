"""The terms of one target module in the basis of their stacked factors.

With Q_B R_B = [B₁ … B_T] and Q_A R_A = [A₁ᵀ … A_Tᵀ], term i is ΔWᵢ = Q_B Mᵢ Q_Aᵀ with the core
Mᵢ = scaleᵢ · R_B[:, i] R_A[:, i]ᵀ. Nothing is lost, and whatever commutes with rotations (sums,
singular value decompositions, projections) can be done on the cores alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import IncompatibleError


@dataclass(frozen=True, eq=False)
class Stack:
    """Terms of one module in one shared basis.

    Args:
        basis_up: Q_B, orthonormal columns, ``[out, p]``.
        basis_down: Q_A, orthonormal columns, ``[in, q]``; a convolution's in is in · kh · kw.
        cores: Mᵢ of each term, ``[p, q]``; p, q ≤ Σ rank.
        ranks: Rank of each term's factors.
        kernel: ``(kh, kw)`` of a convolution, else ``()``.
    """

    basis_up: Tensor
    basis_down: Tensor
    cores: tuple[Tensor, ...]
    ranks: tuple[int, ...]
    kernel: tuple[int, ...] = ()

    @classmethod
    def of(cls, terms: Sequence[LowRankDelta], dtype: torch.dtype = torch.float64) -> Stack:
        """Two thin QR decompositions, in ``dtype``.

        Raises:
            IncompatibleError: If the terms are updates of differently shaped weights.
        """
        shapes = {tuple(term.shape) for term in terms}
        if len(shapes) != 1:
            raise IncompatibleError(
                f"updates of different shapes cannot be combined: {sorted(map(list, shapes))}",
                hint="the adapters were made for different base models",
            )
        up = torch.cat([term.up.flatten(1).to(dtype) for term in terms], 1)  # [out, Σr]
        down = torch.cat([term.down.flatten(1).to(dtype) for term in terms], 0)  # [Σr, in]
        basis_up, r_up = torch.linalg.qr(up)  # [out, p], [p, Σr]
        basis_down, r_down = torch.linalg.qr(down.T)  # [in, q], [q, Σr]
        ranks = tuple(term.rank for term in terms)
        cores = tuple(
            term.scale * (own_up @ own_down.T)
            for term, own_up, own_down in zip(
                terms, r_up.split(ranks, 1), r_down.split(ranks, 1), strict=True
            )
        )
        return cls(basis_up, basis_down, cores, ranks, tuple(terms[0].down.shape[2:]))

    def singular(self) -> Stack:
        """The same terms in the singular bases that they share.

        Q_B becomes the left singular vectors of [Δ₁ … Δ_T], Q_A the right ones of [Δ₁; …; Δ_T],
        each column with its largest number positive. Unlike a QR basis it does not depend on how an
        update is split into factors.
        """
        left, _, _ = torch.linalg.svd(torch.cat(self.cores, 1), full_matrices=False)
        _, _, right = torch.linalg.svd(torch.cat(self.cores, 0), full_matrices=False)
        basis_up, u = _signed(self.basis_up @ left, left)
        basis_down, v = _signed(self.basis_down @ right.T, right.T)
        cores = tuple(u.T @ core @ v for core in self.cores)
        return Stack(basis_up, basis_down, cores, self.ranks, self.kernel)

    @property
    def full_rank(self) -> int:
        """The largest rank that a sum of the terms can have: min(Σ rank, out, in)."""
        return min(self.cores[0].shape)

    def delta(self, u: Tensor, s: Tensor, v: Tensor) -> LowRankDelta:
        """Q_B U diag(s) Vᵀ Q_Aᵀ as float32 factors, √s on each side.

        Args:
            u: ``[p, r]``.
            s: Not negative, ``[r]``.
            v: ``[q, r]``.
        """
        root = s.sqrt()
        up = ((self.basis_up @ u) * root).float()  # [out, r]
        down = ((self.basis_down @ v) * root).T.float()  # [r, in]
        channels = down.shape[1] // max(1, _product(self.kernel))
        return LowRankDelta(
            down.reshape(len(down), channels, *self.kernel).contiguous(),
            up.reshape(*up.shape, *(1 for _ in self.kernel)).contiguous(),
        )


def _signed(basis: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the sign that makes the largest number of each column of ``basis`` positive."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(basis.dtype)
    return basis * sign, rotation * sign


def _product(values: Sequence[int]) -> int:
    result = 1
    for value in values:
        result *= value
    return result
