"""The terms of one target module in the basis of their stacked factors.

With Q_B R_B = [B₁ … B_T] and Q_A R_A = [A₁ᵀ … A_Tᵀ], term i is ΔWᵢ = Q_B Mᵢ Q_Aᵀ with the core
Mᵢ = scaleᵢ · R_B[:, i] R_A[:, i]ᵀ. Nothing is lost, and whatever commutes with rotations (sums,
singular value decompositions, projections) can be done on the cores alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta, alike
from lcm_arith.errors import IncompatibleError
from lcm_arith.tall import Basis, Columns, Tall, Thin


@dataclass(frozen=True, eq=False)
class Stack:
    """Terms of one module in one shared basis.

    Args:
        basis_up: Q_B, orthonormal columns, ``[out, p]``.
        basis_down: Q_A, orthonormal columns, ``[in, q]``; a convolution's in is in · kh · kw.
        terms: Factors of each Mᵢ, ``[p, rᵢ]`` with the term's scale and ``[q, rᵢ]``; p, q ≤ Σ rank.
        kernel: ``(kh, kw)`` of a convolution, else ``()``.
    """

    basis_up: Basis
    basis_down: Basis
    terms: tuple[tuple[Tensor, Tensor], ...]
    kernel: tuple[int, ...] = ()

    @classmethod
    def of(cls, terms: Sequence[LowRankDelta], *, fast: bool = False) -> Stack:
        """Two thin QR decompositions; the cores are float64.

        Args:
            terms: Of one module.
            fast: Decompose by products where float32 factors allow it (:class:`Tall`).

        Raises:
            IncompatibleError: If the terms are updates of differently shaped weights.
        """
        terms = alike(terms)
        shapes = {tuple(term.shape) for term in terms}
        if len(shapes) != 1:
            raise IncompatibleError(
                f"updates of different shapes cannot be combined: {sorted(map(list, shapes))}",
                hint="the adapters were made for different base models",
            )
        up = torch.cat([term.up.flatten(1).float() for term in terms], 1)  # [out, Σr]
        down = torch.cat([term.down.flatten(1).float() for term in terms], 0).T  # [in, Σr]
        basis_up, basis_down = (
            (Tall.of(matrix, torch.float64) if fast else None) or Thin.of(matrix.double())
            for matrix in (up, down)
        )
        ranks = tuple(term.rank for term in terms)
        ups, downs = (b.r.double().split(ranks, 1) for b in (basis_up, basis_down))
        scaled = (term.scale * own for term, own in zip(terms, ups, strict=True))
        kernel = tuple(terms[0].down.shape[2:])
        own = tuple(zip(scaled, downs, strict=True))
        return cls(basis_up, basis_down, own, kernel)

    @property
    def ranks(self) -> tuple[int, ...]:
        """Rank of each term's factors."""
        return tuple(up.shape[1] for up, _ in self.terms)

    @cached_property
    def cores(self) -> tuple[Tensor, ...]:
        """Mᵢ of each term, ``[p, q]``."""
        return tuple(up @ down.T for up, down in self.terms)

    def singular(self) -> Stack:
        """The same terms in the singular bases that they share.

        Q_B becomes the left singular vectors of [Δ₁ … Δ_T], Q_A the right ones of [Δ₁; …; Δ_T],
        each column with its largest number positive. Unlike a QR basis it does not depend on how an
        update is split into factors.
        """
        left, _, _ = torch.linalg.svd(torch.cat(self.cores, 1), full_matrices=False)
        _, _, right = torch.linalg.svd(torch.cat(self.cores, 0), full_matrices=False)
        basis_up, u = _signed(self.basis_up.apply(left), left)
        basis_down, v = _signed(self.basis_down.apply(right.T), right.T)
        terms = tuple((u.T @ up, v.T @ down) for up, down in self.terms)
        return Stack(Columns(basis_up), Columns(basis_down), terms, self.kernel)

    @property
    def full_rank(self) -> int:
        """The largest rank that a sum of the terms can have: min(Σ rank, out, in)."""
        up, down = self.terms[0]
        return min(len(up), len(down))

    def delta(self, u: Tensor, s: Tensor, v: Tensor) -> LowRankDelta:
        """Q_B U diag(s) Vᵀ Q_Aᵀ as float32 factors, √s on each side.

        Args:
            u: ``[p, r]``.
            s: Not negative, ``[r]``.
            v: ``[q, r]``.
        """
        root = s.sqrt()
        up = self.basis_up.apply(u * root).float()  # [out, r]
        down = self.basis_down.apply(v * root).T.float()  # [r, in]
        channels = down.shape[1] // math.prod(self.kernel)
        return LowRankDelta(
            down.reshape(len(down), channels, *self.kernel).contiguous(),
            up.reshape(*up.shape, *(1 for _ in self.kernel)).contiguous(),
        )


def _signed(basis: Tensor, rotation: Tensor) -> tuple[Tensor, Tensor]:
    """Both with the sign that makes the largest number of each column of ``basis`` positive."""
    largest = basis.gather(0, basis.abs().argmax(0, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0).to(basis.dtype)
    return basis * sign, rotation * sign
