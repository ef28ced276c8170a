"""Re-projection: the best approximation of an update at a smaller rank, without building it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import UsageError
from lcm_arith.pool import one_thread
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
    ``[out, in]`` update is never built: O((out + in) r²), not O(out in²). Q is kept as Householder
    reflectors and applied to the singular vectors that stay. An update that has no higher rank than
    asked for passes as it is.

    Args:
        delta: Update of rank r. A convolution counts as ``[out, in * kh * kw]``.
        rank: Rank to keep, at least 1.

    Returns:
        A delta with scale 1 on the device of ``delta``, float32, singular values split evenly
        between ``down`` and ``up``. Computed in float32, in float64 where terms nearly cancel, see
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
        factored = Factored.of(delta)
        u, s, vh = torch.linalg.svd(factored.core, full_matrices=False)  # [p, k], [k], [k, q]
        kept = min(rank, s.numel())
        root = s[:kept].sqrt()
        new_up = factored.up.apply(u[:, :kept] * root)  # [out, kept]
        new_down = factored.down.apply(vh[:kept].T * root).T  # [kept, in]
    energies = s.double().square()
    return Projected(
        LowRankDelta(
            new_down.float().reshape(kept, *delta.down.shape[1:]).contiguous(),
            new_up.float().reshape(-1, kept, *delta.up.shape[2:]).contiguous(),
        ),
        float(energies[:kept].sum()),
        float(energies.sum()),
    )


def spectrum(delta: LowRankDelta) -> Tensor:
    """Singular values of the dense update, falling, ``[min(rank, out, in)]``, float64."""
    with one_thread():
        values: Tensor = torch.linalg.svdvals(Factored.of(delta).core).double()
    return values


def _energy(delta: LowRankDelta) -> float:
    """‖ΔW‖² = Σ (BᵀB) ∘ (AAᵀ) · scale², float64."""
    up, down = delta.up.flatten(1).double(), delta.down.flatten(1).double()
    return float(((up.T @ up) * (down @ down.T)).sum().clamp(min=0)) * delta.scale**2


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
        padded = core.new_zeros(len(self.reflectors), core.shape[1])
        padded[: len(core)] = core
        applied: Tensor = torch.ormqr(self.reflectors, self.tau, padded)
        return applied


_CANCELLED: Final = 1e-2


@dataclass(frozen=True, eq=False)
class Factored:
    """ΔW = Q_B core Q_Aᵀ of an update.

    Args:
        up: Of B · scale, ``[out, r]``.
        down: Of Aᵀ, ``[in, r]``.
        core: R_B R_Aᵀ; it has the update's singular values.
    """

    up: Thin
    down: Thin
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
        up = Thin.of(delta.up.flatten(1).to(dtype) * delta.scale)
        down = Thin.of(delta.down.flatten(1).to(dtype).T)
        return cls(up, down, up.r @ down.r.T)


@dataclass(frozen=True)
class Budget:
    """What a re-projection may keep; a row of BUDGETS with its value.

    Args:
        kind: Name of the row.
        value: In the row's unit.
        itemsize: Bytes of a number in the written file, for ``size``.

    Raises:
        UsageError: If there is no such kind, or the value is outside its range.
    """

    kind: str
    value: float
    itemsize: int = 4

    def __post_init__(self) -> None:
        if self.kind not in BUDGETS:
            raise UsageError(f"{self.kind}: no such budget", hint=f"one of {', '.join(BUDGETS)}")
        low, high = BUDGETS[self.kind].range
        if not low < self.value <= high:
            raise UsageError(
                f"{self.kind} {self.value:g}: above {low:g} and at most {high:g}"
                if math.isfinite(high)
                else f"{self.kind} {self.value:g}: above {low:g}"
            )

    def ranks(self, spectra: Mapping[str, Tensor], costs: Mapping[str, int]) -> dict[str, int]:
        """Module → rank to keep, at least 1.

        Args:
            spectra: Module → its singular values.
            costs: Module → numbers that one more rank costs, out + in · kh · kw.
        """
        return BUDGETS[self.kind].choose(self, spectra, costs)


Choose = Callable[[Budget, Mapping[str, Tensor], Mapping[str, int]], dict[str, int]]


@dataclass(frozen=True)
class BudgetKind:
    """A row of BUDGETS: what is asked, the values that make sense, and how ranks are chosen."""

    help: str
    range: tuple[float, float]
    choose: Choose


def _same_rank(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    return {module: min(int(budget.value), len(s)) for module, s in spectra.items()}


def _by_energy(
    budget: Budget, spectra: Mapping[str, Tensor], costs: Mapping[str, int]
) -> dict[str, int]:
    """The cheapest ranks that keep the share: singular values by σ² / cost, greatest first."""
    order, gains, _ = _ranked(spectra, costs)
    kept = gains.cumsum(0)
    share = budget.value if budget.kind == "energy" else 1 - budget.value**2
    return _taken(spectra, order[: int((kept < share * gains.sum()).sum()) + 1])


def _by_size(
    budget: Budget, spectra: Mapping[str, Tensor], costs: Mapping[str, int]
) -> dict[str, int]:
    """The ranks of the most energy within the bytes, in the same order; every module keeps one."""
    order, _, prices = _ranked(spectra, costs)
    numbers = budget.value * 2**20 / budget.itemsize
    least = sum(costs.values())
    if least > numbers:
        raise UsageError(
            f"size {budget.value:g} MiB: rank 1 in {len(spectra)} modules takes "
            f"{least * budget.itemsize / 2**20:.1f} MiB",
            hint="allow more, write float16, or leave modules out by a weight of 0",
        )
    first = {(module, 0) for module in spectra}
    prices = prices.clone()
    prices[[place in first for place in order]] = 0  # paid already
    fits = prices.cumsum(0) <= numbers - least
    return _taken(spectra, order[: int(fits.long().cumprod(0).sum())])


def _ranked(
    spectra: Mapping[str, Tensor], costs: Mapping[str, int]
) -> tuple[list[tuple[str, int]], Tensor, Tensor]:
    """(module, index) of all singular values by σ² / cost, with their σ² and costs.

    σ falls within a module, so whatever is taken from the front is a rank of each module.
    """
    places = [(module, i) for module, s in spectra.items() for i in range(len(s))]
    gains = torch.cat([s.square() for s in spectra.values()])
    prices = torch.tensor([float(costs[module]) for module, _ in places], dtype=gains.dtype)
    by_worth = torch.argsort(gains / prices, descending=True, stable=True)
    return [places[i] for i in by_worth.tolist()], gains[by_worth], prices[by_worth]


def _taken(spectra: Mapping[str, Tensor], places: list[tuple[str, int]]) -> dict[str, int]:
    ranks = dict.fromkeys(spectra, 1)
    for module, index in places:
        ranks[module] = max(ranks[module], index + 1)
    return ranks


def _by_ratio(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    """Kohya's sv_ratio: singular values above the largest / value."""
    return {module: max(1, int((s > s[0] / budget.value).sum())) for module, s in spectra.items()}


def _by_norm(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    """Kohya's sv_fro: the fewest that hold this share of the Frobenius norm."""
    return {module: _fewest(s.square(), budget.value**2) for module, s in spectra.items()}


def _by_sum(budget: Budget, spectra: Mapping[str, Tensor], _: Any) -> dict[str, int]:
    """Kohya's sv_cumulative: the fewest that hold this share of Σ σ."""
    return {module: _fewest(s, budget.value) for module, s in spectra.items()}


def _fewest(values: Tensor, share: float) -> int:
    """How many leading values hold ``share`` of the sum, at least 1."""
    return min(int((values.cumsum(0) < share * values.sum()).sum()) + 1, len(values))


_SHARE: Final = (0.0, 1.0)
BUDGETS: Final = {
    "rank": BudgetKind("this rank in every module", (0.0, math.inf), _same_rank),
    "energy": BudgetKind("this share of Σ σ² over all modules", _SHARE, _by_energy),
    "max_error": BudgetKind(
        "at most this ‖lost‖ / ‖update‖ over all modules", (0.0, 1.0), _by_energy
    ),
    "size": BudgetKind("at most so many MiB of numbers", (0.0, math.inf), _by_size),
    "sv_ratio": BudgetKind(
        "σ above the module's largest / this (kohya)", (1.0, math.inf), _by_ratio
    ),
    "sv_fro": BudgetKind("this share of each module's norm (kohya)", _SHARE, _by_norm),
    "sv_cumulative": BudgetKind("this share of each module's Σ σ (kohya)", _SHARE, _by_sum),
}


@dataclass(frozen=True, eq=False)
class LazyProjection(Mapping[str, LowRankDelta]):
    """Target module → re-projected delta; each is computed when first asked for, and once.

    :meth:`once` keeps its energies alone.
    """

    tau: TaskVector
    budget: Budget
    _done: dict[str, Projected] = field(default_factory=dict)
    _energies: dict[str, tuple[float, float]] = field(default_factory=dict)

    @cached_property
    def ranks(self) -> Mapping[str, int]:
        """Module → rank, chosen over all modules at once."""
        if self.budget.kind == "rank":
            return dict.fromkeys(self.tau, int(self.budget.value))
        spectra, costs = {}, {}
        for module in self.tau:
            delta = self.tau[module]
            spectra[module] = spectrum(delta)
            costs[module] = delta.shape[0] + delta.down[0].numel()
        return self.budget.ranks(spectra, costs)

    def once(self, module: str) -> LowRankDelta:
        """The delta, not kept."""
        if module in self._done:
            return self._done[module].delta
        found = project(self.tau.once(module), self.ranks[module])
        self._energies[module] = (found.kept, found.total)
        return found.delta

    def energies(self, module: str) -> tuple[float, float]:
        """Σ σ² of what is kept, and of everything."""
        if module not in self._energies:
            _ = self[module]
        return self._energies[module]

    def __getitem__(self, module: str) -> LowRankDelta:
        if module not in self._done:
            found = self._done[module] = project(self.tau[module], self.ranks[module])
            self._energies[module] = (found.kept, found.total)
        return self._done[module].delta

    def __contains__(self, module: object) -> bool:
        return module in self.tau  # Mapping's own would compute it

    def __iter__(self) -> Iterator[str]:
        return iter(self.tau)

    def __len__(self) -> int:
        return len(self.tau)


def reproject(tau: TaskVector, rank: int | Budget) -> TaskVector:
    """``tau`` within a rank or another budget, computed lazily and once.

    Args:
        tau: Any vector.
        rank: Largest rank of every module, or a budget.

    Raises:
        UsageError: If ``rank`` is below 1.
    """
    if isinstance(rank, int) and rank < 1:
        raise UsageError(f"rank {rank}: a re-projection keeps at least rank 1")
    budget = Budget("rank", rank) if isinstance(rank, int) else rank
    origin = {budget.kind: rank if isinstance(rank, int) else budget.value, "of": tau}
    lazy = LazyProjection(tau, budget)
    return TaskVector(((1.0, Source(lazy, origin, outlines=Outlines(lazy))),))


@dataclass(frozen=True, eq=False)
class Outlines(Mapping[str, LowRankDelta]):
    """The deltas of a re-projection without their numbers: ranks are known before any is made."""

    of: LazyProjection

    def __getitem__(self, module: str) -> LowRankDelta:
        whole = self.of.tau.outline(module)
        kept = min(self.of.ranks[module], whole.rank, whole.shape[0], whole.down[0].numel())
        down, up = whole.down.new_empty(kept, *whole.down.shape[1:]), whole.up[:, :kept]
        return LowRankDelta(down.float(), up.float())

    def __contains__(self, module: object) -> bool:
        return module in self.of

    def __iter__(self) -> Iterator[str]:
        return iter(self.of)

    def __len__(self) -> int:
        return len(self.of)


def retained_energy(tau: TaskVector) -> float | None:
    """Σ kept σ² / Σ σ² over all modules of a re-projected vector, 0..1; None of any other."""
    lazy = [s.deltas for _, s in tau.terms if isinstance(s.deltas, LazyProjection)]
    if len(lazy) != 1 or len(tau.terms) != 1:
        return None
    parts = [lazy[0].energies(module) for module in lazy[0]]
    total = sum(whole for _, whole in parts)
    return sum(kept for kept, _ in parts) / total if total else 1.0
