"""Re-projection: the best approximation of an update at a smaller rank, without building it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import UsageError
from lcm_arith.vector import Source, TaskVector


@dataclass(frozen=True, eq=False)
class Projected:
    """A re-projected delta and what was kept.

    Args:
        delta: The truncated update, scale 1.
        kept: Σ σ_i² over the kept singular values.
        total: Σ σ_i² over all of them; retained energy is kept / total.
    """

    delta: LowRankDelta
    kept: float
    total: float


def project(delta: LowRankDelta, rank: int) -> Projected:
    """Best approximation of ``delta`` at ``min(rank, its rank, out, in)``.

    Works on the factors (two thin QR decompositions, one SVD of the small core), so the dense
    ``[out, in]`` update is never built: O((out + in) r²), not O(out in²).

    Args:
        delta: Update of rank r. A convolution counts as ``[out, in * kh * kw]``.
        rank: Rank to keep, at least 1.

    Returns:
        A delta with scale 1 on the device of ``delta``, float32, singular values split evenly
        between ``down`` and ``up``. Computed in float64, so that terms which nearly cancel lose
        nothing that float32 input holds.

    Raises:
        UsageError: If ``rank`` is below 1.

    Source:
        Eckart and Young 1936.
    """
    if rank < 1:
        raise UsageError(f"rank {rank}: a re-projection keeps at least rank 1")
    up, down = delta.up.flatten(1).double() * delta.scale, delta.down.flatten(1).double()
    q_up, r_up = torch.linalg.qr(up)  # [out, r], [r, r]
    q_down, r_down = torch.linalg.qr(down.T)  # [in, r], [r, r]
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)  # [r, r], [r], [r, r]
    kept = min(rank, delta.rank, s.numel())
    root = s[:kept].sqrt()
    new_up = (q_up @ u[:, :kept]) * root  # [out, kept]
    new_down = root[:, None] * (vh[:kept] @ q_down.T)  # [kept, in]
    energy = s.square()
    return Projected(
        LowRankDelta(
            new_down.float().reshape(kept, *delta.down.shape[1:]),
            new_up.float().reshape(-1, kept, *delta.up.shape[2:]),
        ),
        float(energy[:kept].sum()),
        float(energy.sum()),
    )


@dataclass(frozen=True, eq=False)
class LazyProjection(Mapping[str, LowRankDelta]):
    """Target module → re-projected delta; each is computed when first asked for, and once."""

    tau: TaskVector
    rank: int
    _done: dict[str, Projected] = field(default_factory=dict)

    def projected(self, module: str) -> Projected:
        """The re-projection of one module with its energies."""
        if module not in self._done:
            self._done[module] = project(self.tau[module], self.rank)
        return self._done[module]

    def __getitem__(self, module: str) -> LowRankDelta:
        return self.projected(module).delta

    def __iter__(self) -> Iterator[str]:
        return iter(self.tau)

    def __len__(self) -> int:
        return len(self.tau)


def reproject(tau: TaskVector, rank: int) -> TaskVector:
    """``tau`` with every module at rank ``min(rank, its rank)``, computed lazily and once.

    Raises:
        UsageError: If ``rank`` is below 1.
    """
    if rank < 1:
        raise UsageError(f"rank {rank}: a re-projection keeps at least rank 1")
    return TaskVector(((1.0, Source(LazyProjection(tau, rank), {"rank": rank, "of": tau})),))


def retained_energy(tau: TaskVector) -> float | None:
    """Σ kept σ² / Σ σ² over all modules of a re-projected vector, 0..1; None of any other."""
    lazy = [s.deltas for _, s in tau.terms if isinstance(s.deltas, LazyProjection)]
    if len(lazy) != 1 or len(tau.terms) != 1:
        return None
    parts = [lazy[0].projected(module) for module in lazy[0]]
    total = sum(part.total for part in parts)
    return sum(part.kept for part in parts) / total if total else 1.0
