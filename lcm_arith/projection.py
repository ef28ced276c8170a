"""Re-projection: the best approximation of an update at a smaller rank, without building it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from lcm_arith.budgets import Budget
from lcm_arith.decomposition import Decomposition, Factored
from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import UsageError
from lcm_arith.modules import GAIN
from lcm_arith.pool import ahead, one_thread
from lcm_arith.vector import Lazy, Once, Source, TaskVector


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


def project(
    delta: LowRankDelta, rank: int, device: str = "cpu", known: Decomposition | None = None
) -> Projected:
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
        known: What :meth:`Decomposition.of` made of it before.

    Returns:
        A delta with scale 1 on the CPU, float32, singular values split evenly between ``down`` and
        ``up``. Computed in float32, in float64 where terms nearly cancel (:class:`Factored`) or the
        cut is between two close singular values (:meth:`Decomposition.sharp`).

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
        delta = delta.to(device)
        found = Decomposition.of(delta) if known is None else known.dressed(delta)
        kept = min(rank, found.s.numel())
        found = found.sharp(delta, kept)
        root = found.s[:kept].sqrt()
        new_up = found.factored.up.apply(found.u[:, :kept] * root).cpu()  # [out, kept]
        new_down = found.factored.down.apply(found.vh[:kept].T * root).cpu().T  # [kept, in]
    energies = found.s.double().square()
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


KEPT: Final = 128 * 2**20  # bytes of decompositions; with what malloc loses, twice that


@dataclass(frozen=True, eq=False)
class LazyProjection(Once):
    """Target module → re-projected delta; each is computed when first asked for, and once.

    :meth:`once` keeps its energies alone. Where ranks follow from all spectra, what they were found
    by is kept until it is cut, up to ``KEPT`` bytes; what goes beyond is decomposed twice.
    """

    tau: TaskVector
    budget: Budget
    device: str = "cpu"
    _done: dict[str, Projected] = field(default_factory=dict)
    _energies: dict[str, tuple[float, float]] = field(default_factory=dict)
    _spectra: dict[str, Tensor] = field(default_factory=dict)
    _known: dict[str, Decomposition] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Module → rank, chosen over all modules at once."""
        if self.budget.kind == "rank":
            return dict.fromkeys(self.tau, int(self.budget.value))
        modules = [target for target in self.tau if not target.endswith(GAIN)]
        if not self._spectra:
            self._decompose(modules)
        outlines = {module: self.tau.outline(module) for module in modules}
        costs = {m: outline.shape[0] + outline.down[0].numel() for m, outline in outlines.items()}
        gains = {target: 1 for target in self.tau if target.endswith(GAIN)}
        return {**self.budget.ranks(self._spectra, costs), **gains}

    def _decompose(self, modules: Sequence[str]) -> None:
        """Finds the spectra, and keeps of the decompositions what fits."""
        made = any(isinstance(source.deltas, Once) for _, source in self.tau.terms)

        def decompose(module: str) -> Decomposition:
            delta = self.tau.once(module)
            with one_thread():
                found = Decomposition.of(delta.to(self.device))
            return found.bare(delta if made else None)

        held = 0
        for module, found in zip(modules, ahead(decompose, modules), strict=True):
            self._spectra[module] = found.s.double()
            held += found.nbytes
            if held <= KEPT:
                self._known[module] = found

    def _project(self, module: str, *, once: bool) -> Projected:
        rank = self.ranks[module]  # before what finding it has left is taken
        known = self._known.pop(module, None)
        delta = known.delta if known is not None else None
        if delta is None:
            delta = self.tau.once(module) if once else self.tau[module]
        found = project(delta, rank, self.device, known)
        self._energies[module] = (found.kept, found.total)
        return found

    def once(self, module: str) -> LowRankDelta:
        """The delta, not kept."""
        if module in self._done:
            return self._done[module].delta
        return self._project(module, once=True).delta

    def energies(self, module: str) -> tuple[float, float]:
        """Σ σ² of what is kept, and of everything; a gain is kept whole and has no part in it."""
        if module.endswith(GAIN):
            return 0.0, 0.0
        if module not in self._energies:
            _ = self[module]
        return self._energies[module]

    def __getitem__(self, module: str) -> LowRankDelta:
        if module not in self._done:
            self._done[module] = self._project(module, once=False)
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


def size_budget(tau: TaskVector) -> float | None:
    """Bytes that the file of a re-projected vector may have; None of any other."""
    lazy = _projection(tau)
    return lazy.budget.value * 2**20 if lazy and lazy.budget.kind == "size" else None


def tightened(tau: TaskVector, excess: int) -> TaskVector:
    """A re-projected vector with so many bytes less for its numbers; nothing is decomposed anew.

    Raises:
        UsageError: If rank 1 takes more than what is left.
    """
    lazy = _projection(tau)
    if lazy is None:
        raise UsageError("only a re-projected vector has a budget")
    budget = replace(lazy.budget, reserved=lazy.budget.reserved + excess)
    smaller = replace(lazy, budget=budget, _done={}, _energies={})
    ((weight, source),) = tau.terms
    outlines = Lazy(smaller, smaller.outline)
    return TaskVector(((weight, replace(source, deltas=smaller, outlines=outlines)),))


def _projection(tau: TaskVector) -> LazyProjection | None:
    lazy = [s.deltas for _, s in tau.terms if isinstance(s.deltas, LazyProjection)]
    return lazy[0] if len(lazy) == len(tau.terms) == 1 else None


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
    lazy = _projection(tau)
    if lazy is None:
        return None
    parts = [lazy.energies(module) for module in lazy]
    total = sum(whole for _, whole in parts)
    return sum(kept for kept, _ in parts) / total if total else 1.0
