"""Tall matrices as Q R: orthonormal bases of what factors span, kept without building Q."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

import torch
from torch import Tensor

_FACTOR: Final = 1e-2  # bound of Tall's ‖E‖; what is seen is a hundredth of it


class Basis(Protocol):
    """Orthonormal columns Q."""

    def apply(self, core: Tensor) -> Tensor:
        """Q @ ``core``."""
        ...


@dataclass(frozen=True, eq=False)
class Columns:
    """A basis that is there as a matrix.

    Args:
        matrix: Q, ``[n, p]``.
    """

    matrix: Tensor

    def apply(self, core: Tensor) -> Tensor:
        """Q @ ``core`` ``[p, m]``: ``[n, m]``."""
        return self.matrix @ core.to(self.matrix.dtype)


@dataclass(frozen=True, eq=False)
class Thin:
    """A tall matrix as Q R, Q as the reflectors of LAPACK's geqrf.

    Args:
        reflectors: ``[n, min(n, r)]``, below the diagonal.
        tau: Their factors.
        r: Upper triangle, ``[min(n, r), r]``.
    """

    reflectors: Tensor
    tau: Tensor
    r: Tensor

    @classmethod
    def of(cls, matrix: Tensor) -> Thin:
        """Factors ``[n, r]``."""
        packed, tau = torch.geqrf(matrix)
        least = min(matrix.shape)
        return cls(packed[:, :least], tau, packed[:least].triu())

    def apply(self, core: Tensor) -> Tensor:
        """Q @ ``core`` ``[min(n, r), m]``: ``[n, m]``."""
        core = core.to(self.r)
        padded = core.new_zeros(len(self.reflectors), core.shape[1])
        padded[: len(core)] = core
        applied: Tensor = torch.ormqr(self.reflectors, self.tau, padded)
        return applied


@dataclass(frozen=True, eq=False)
class Tall:
    """A tall matrix as Q R with R by Cholesky of its Gram matrix; Q = matrix · R⁻¹ is never built.

    A third of the time of :class:`Thin`, as it is products alone. R is (I + E) times the true one,
    ‖E‖ of about ε r ‖R̂⁻¹‖² with R̂ the R of columns of length 1. A truncation then loses at most
    1 + 2‖E‖ times what the best one does: the error is a factor, nothing is added to it. What
    depends on single directions (all with one singular value, say) is off by ‖E‖ over the gap
    between the last one kept and the first one dropped, and wants the ε of float64.

    Args:
        matrix: ``[n, r]``.
        r: Upper triangle, ``[r, r]``, float32 or float64.
    """

    matrix: Tensor
    r: Tensor

    @classmethod
    def of(cls, matrix: Tensor, dtype: torch.dtype | None = None) -> Tall | None:
        """Factors ``[n, r]``; None where the columns depend on each other too much for its ε.

        Args:
            matrix: The factors.
            dtype: Of R; the matrix's by default.
        """
        rank = matrix.shape[1]
        if rank > len(matrix):
            return None
        exact = matrix.to(dtype or matrix.dtype)
        gram = exact.T @ exact
        lengths = gram.diagonal().sqrt()
        r, failed = torch.linalg.cholesky_ex(gram / lengths / lengths[:, None], upper=True)
        if failed:
            return None
        eye = torch.eye(rank, dtype=r.dtype, device=r.device)
        inverse = torch.linalg.solve_triangular(r, eye, upper=True, left=False)
        factor = float(inverse.norm()) ** 2 * rank * torch.finfo(matrix.dtype).eps
        if not factor <= _FACTOR:  # nor NaN
            return None
        return cls(matrix, r * lengths)

    def apply(self, core: Tensor) -> Tensor:
        """Q @ ``core`` ``[r, m]``: ``[n, m]``."""
        solved: Tensor = torch.linalg.solve_triangular(self.r, core.to(self.r), upper=True)
        solved = solved.to(self.matrix.dtype)
        if self.matrix.is_contiguous():
            return self.matrix @ solved
        return (solved.T @ self.matrix.T).T  # the layout that the factor came in


def tall(matrix: Tensor) -> Thin | Tall:
    """By products where float32 allows it, else by reflectors."""
    fast = Tall.of(matrix) if matrix.dtype == torch.float32 else None
    return fast or Thin.of(matrix)
