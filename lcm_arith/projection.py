"""Re-projection: the best approximation of an update at a smaller rank, without building it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from lcm_arith.budgets import Budget
from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import UsageError
from lcm_arith.modules import GAIN
from lcm_arith.pool import ahead, one_thread
from lcm_arith.tall import Tall, Thin, tall
from lcm_arith.vector import Deltas, Lazy, Source, TaskVector


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


def project(delta: LowRankDelta, rank: int, device: str = "cpu") -> Projected:
    """Best approximation of ``delta`` at ``min(rank, its rank, out, in)``.

    Works on the factors (two thin QR decompositions, one SVD of the small core), so the dense
    ``[out, in]`` update is never built: O((out + in) r²), not O(out in²). Q is never built, either,
    but applied to the singular vectors that stay. An update that has no higher rank than asked for
    passes as it is.

    Args:
        delta: Update of rank r. A convolution counts as ``[out, in * kh * kw]``.
        rank: Rank to keep, at least 1.
        device: Where the products with the factors are done; the small core is decomposed on the
            CPU, which is faster at that.

    Returns:
        A delta with scale 1 on the CPU, float32, singular values split evenly between ``down`` and
        ``up``. Computed in float32, in float64 where terms nearly cancel, see
        :class:`Factored`.

    Raises:
        UsageError: If ``rank`` is below 1.

    Source:
        Eckart and Young 1936.
    """
    if rank < 1:
        raise UsageError(f"rank {rank}: a re-projection keeps at least rank 1")
    if delta.rank <= min(rank, delta.shape[0], delta.down[0].numel()):
        energy = _energy(delta)
        return Projected(concatenate([delta]), energy, energy)
    with one_thread():
        factored = Factored.of(delta.to(device))
        u, s, vh = torch.linalg.svd(factored.core.cpu(), full_matrices=False)  # [p, k], [k], [k, q]
        kept = min(rank, s.numel())
        root = s[:kept].sqrt()
        new_up = factored.up.apply(u[:, :kept] * root).cpu()  # [out, kept]
        new_down = factored.down.apply(vh[:kept].T * root).cpu().T  # [kept, in]
    energies = s.double().square()
    return Projected(
        LowRankDelta(
            new_down.float().reshape(kept, *delta.down.shape[1:]).contiguous(),
            new_up.float().reshape(-1, kept, *delta.up.shape[2:]).contiguous(),
        ),
        float(energies[:kept].sum()),
        float(energies.sum()),
    )


def spectrum(delta: LowRankDelta, device: str = "cpu") -> Tensor:
    """Singular values of the dense update, falling, ``[min(rank, out, in)]``, float64."""
    with one_thread():
        values: Tensor = torch.linalg.svdvals(Factored.of(delta.to(device)).core.cpu()).double()
    return values


def _energy(delta: LowRankDelta) -> float:
    """‖ΔW‖² = Σ (BᵀB) ∘ (AAᵀ) · scale², float64."""
    up, down = delta.up.flatten(1).double(), delta.down.flatten(1).double()
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0)) * delta.scale**2


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
    def _in(cls, delta: LowRankDelta, dtype: torch.dtype) -> Factored:
        up = tall(delta.up.flatten(1).to(dtype) * delta.scale)
        down = tall(delta.down.flatten(1).to(dtype).T)
        return cls(up, down, up.r @ down.r.T)


@dataclass(frozen=True, eq=False)
class LazyProjection(Deltas):
    """Target module → re-projected delta; each is computed when first asked for, and once.

    :meth:`once` keeps its energies alone.
    """

    tau: TaskVector
    budget: Budget
    device: str = "cpu"
    _done: dict[str, Projected] = field(default_factory=dict)
    _energies: dict[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Module → rank, chosen over all modules at once."""
        if self.budget.kind == "rank":
            return dict.fromkeys(self.tau, int(self.budget.value))
        modules = [target for target in self.tau if not target.endswith(GAIN)]
        found = ahead(lambda module: spectrum(self.tau.once(module), self.device), modules)
        spectra = dict(zip(modules, found, strict=True))
        outlines = {module: self.tau.outline(module) for module in modules}
        costs = {m: outline.shape[0] + outline.down[0].numel() for m, outline in outlines.items()}
        gains = {target: 1 for target in self.tau if target.endswith(GAIN)}
        return {**self.budget.ranks(spectra, costs), **gains}

    def once(self, module: str) -> LowRankDelta:
        """The delta, not kept."""
        if module in self._done:
            return self._done[module].delta
        found = project(self.tau.once(module), self.ranks[module], self.device)
        self._energies[module] = (found.kept, found.total)
        return found.delta

    def energies(self, module: str) -> tuple[float, float]:
        """Σ σ² of what is kept, and of everything; a gain is kept whole and has no part in it."""
        if module.endswith(GAIN):
            return 0.0, 0.0
        if module not in self._energies:
            _ = self[module]
        return self._energies[module]

    def __getitem__(self, module: str) -> LowRankDelta:
        if module not in self._done:
            found = self._done[module] = project(self.tau[module], self.ranks[module], self.device)
            self._energies[module] = (found.kept, found.total)
        return self._done[module].delta

    def outline(self, module: str) -> LowRankDelta:
        """The delta without its numbers: its rank is known before it is made."""
        whole = self.tau.outline(module)
        kept = min(self.ranks[module], whole.rank, whole.shape[0], whole.down[0].numel())
        down, up = whole.down.new_empty(kept, *whole.down.shape[1:]), whole.up[:, :kept]
        return LowRankDelta(down.float(), up.float())

    @property
    def names(self) -> Mapping[str, object]:
        """Those of the vector."""
        return self.tau


def reproject(tau: TaskVector, rank: int | Budget, device: str = "cpu") -> TaskVector:
    """``tau`` within a rank or another budget, computed lazily and once.

    Args:
        tau: Any vector.
        rank: Largest rank of every module, or a budget.
        device: torch's name of where the products are done, ``cpu`` or ``cuda``.

    Raises:
        UsageError: If ``rank`` is below 1, or there is no such device.
    """
    check_device(device)
    if isinstance(rank, int) and rank < 1:
        raise UsageError(f"rank {rank}: a re-projection keeps at least rank 1")
    budget = Budget("rank", rank) if isinstance(rank, int) else rank
    origin = {budget.kind: rank if isinstance(rank, int) else budget.value, "of": tau}
    lazy = LazyProjection(tau, budget, device)
    return TaskVector(
        ((1.0, Source(lazy, origin, outlines=Lazy(lazy, lazy.outline), base=tau.base)),)
    )


def check_device(device: str) -> None:
    """Raises where torch cannot compute on a device.

    Raises:
        UsageError: If it is neither the CPU nor a CUDA device that is there.
    """
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda") or (number and not number.isdigit()):
        raise UsageError(f"{device}: no such device", hint="cpu, cuda or cuda:1")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UsageError(
            f"{device}: torch {torch.__version__} finds {torch.cuda.device_count()} CUDA devices",
            hint="use --device cpu, or install a torch with CUDA",
        )


def retained_energy(tau: TaskVector) -> float | None:
    """Σ kept σ² / Σ σ² over all modules of a re-projected vector, 0..1; None of any other."""
    lazy = [s.deltas for _, s in tau.terms if isinstance(s.deltas, LazyProjection)]
    if len(lazy) != 1 or len(tau.terms) != 1:
        return None
    parts = [lazy[0].energies(module) for module in lazy[0]]
    total = sum(whole for _, whole in parts)
    return sum(kept for kept, _ in parts) / total if total else 1.0
