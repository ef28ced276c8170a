"""How two vectors get in each other's way, measured on their factors."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.dit import COMPONENT
from lcm_arith.errors import IncompatibleError, InvalidContentError
from lcm_arith.modules import GAIN, is_vector
from lcm_arith.pool import ahead
from lcm_arith.vector import TaskVector


def inner(one: LowRankDelta, other: LowRankDelta) -> float:
    """⟨ΔW, ΔW'⟩ of two updates of one module, from the factors, float64.

    tr(ΔWᵀ ΔW') = Σ (BᵀB') ∘ (A A'ᵀ): the dense updates are never built.
    """
    ups = one.up.flatten(1).double().T @ other.up.flatten(1).double()  # [r, r']
    downs = one.down.flatten(1).double() @ other.down.flatten(1).double().T
    return one.scale * other.scale * float((ups * downs).sum())


def norm(delta: LowRankDelta) -> float:
    """Frobenius norm of an update."""
    return math.sqrt(max(0.0, inner(delta, delta)))


def block_of(module: str) -> str:
    """Component and block: ``unet.up_blocks.1``, ``text_encoder``; of a transformer, its kind."""
    component, *path = module.split(".")
    if component == COMPONENT:
        return f"{component}.{path[0]}"
    if component != "unet":
        return component
    return ".".join(("unet", path[0], *(path[1:2] if path[1:2] and path[1].isdigit() else ())))


def share_by_block(deltas: Mapping[str, LowRankDelta]) -> dict[str, float]:
    """Block → its share of the squared norm."""
    return shares({module: inner(delta, delta) for module, delta in deltas.items()})


def shares(energies: Mapping[str, float]) -> dict[str, float]:
    """Block → its share of the squared norm.

    Args:
        energies: Module → its squared norm.
    """
    found: dict[str, float] = defaultdict(float)
    for module in sorted(energies):
        found[block_of(module)] += energies[module]
    total = sum(found.values())
    return {block: value / total if total else 0.0 for block, value in found.items()}


@dataclass(frozen=True)
class Interference:
    """Two updates of one module.

    Args:
        module: Which.
        cosine: ⟨ΔW, ΔW'⟩ / (‖ΔW‖ ‖ΔW'‖), −1..1; 0 for independent adapters, so it tells little.
        output: Overlap of the output subspaces as a multiple of what random ones have.
        input: The same of the input subspaces.
        norms: ‖ΔW‖ and ‖ΔW'‖.
    """

    module: str
    cosine: float
    output: float
    input: float
    norms: tuple[float, float]


def interference(one: TaskVector, other: TaskVector) -> list[Interference]:
    """Every layer that both vectors update; biases and norms have no subspaces.

    Raises:
        InvalidContentError: If one is a DoRA.
        IncompatibleError: If there is none, or the updates are of different shapes.
    """
    for tau in (one, other):
        if any(target.endswith(GAIN) for target in tau):
            raise InvalidContentError(
                "a DoRA has no subspaces of its own: it stretches the base's rows",
                hint="fuse it and extract the difference",
            )
    shared = sorted(target for target in set(one) & set(other) if not is_vector(target))
    if not shared:
        raise IncompatibleError(
            "the two have no target module in common", hint="they do not meet anywhere"
        )

    def compared(module: str) -> Interference:
        (one + other).shape_of(module)
        a, b = one[module], other[module]
        norms = norm(a), norm(b)
        product = norms[0] * norms[1]
        return Interference(
            module,
            inner(a, b) / product if product else 0.0,
            overlap(a.up.flatten(1), b.up.flatten(1)),
            overlap(a.down.flatten(1).T, b.down.flatten(1).T),
            norms,
        )

    return list(ahead(compared, shared))


def overlap(one: Tensor, other: Tensor) -> float:
    """‖Q₁ᵀ Q₂‖² over its mean r₁ r₂ / n for random subspaces; 1 is chance.

    Args:
        one: Spans the first subspace, ``[n, r₁]``.
        other: The second, ``[n, r₂]``.
    """
    bases = [_basis(one), _basis(other)]
    ranks = bases[0].shape[1] * bases[1].shape[1]
    if not ranks:
        return 0.0
    shared = float((bases[0].T @ bases[1]).square().sum())
    return shared * one.shape[0] / ranks


def _basis(columns: Tensor) -> Tensor:
    """Orthonormal columns that span what the given ones span, float64."""
    u, s, _ = torch.linalg.svd(columns.double(), full_matrices=False)
    there = (s > s[0] * max(columns.shape) * torch.finfo(s.dtype).eps) & (s > 0)
    basis: Tensor = u[:, there]
    return basis


def distance(one: TaskVector, other: TaskVector) -> tuple[float, float]:
    """‖τ − τ'‖ and ‖τ'‖ over all modules of either; a module that one lacks is zero there.

    Raises:
        IncompatibleError: If a module has different shapes.
    """
    gap = (one - other) if one.terms else -other

    def energies(module: str) -> tuple[float, float]:
        gap.shape_of(module)
        if module.endswith(GAIN):
            return 0.0, 0.0  # with its module
        if module + GAIN in gap:
            return _stretched(gap, module), _stretched(other, module)
        own = other.once(module) if module in other else None
        return _exact(gap.once(module)), 0.0 if own is None else inner(own, own)

    pairs = list(ahead(energies, gap))
    return math.sqrt(sum(lost for lost, _ in pairs)), math.sqrt(sum(whole for _, whole in pairs))


def _stretched(tau: TaskVector, module: str) -> float:
    """‖g ∘ W + U A‖² of a DoRA's module, 0 where it has none."""
    base, total = tau.base, None
    if base is not None and module + GAIN in tau:
        weight = base.weight(module).double().flatten(1)
        total = weight * tau.once(module + GAIN).dense(torch.float64)
    if module in tau:
        update = tau.once(module).dense(torch.float64).flatten(1)
        total = update if total is None else total + update
    return 0.0 if total is None else float(total.square().sum())


def _exact(delta: LowRankDelta) -> float:
    """‖ΔW‖² of factors whose product nearly cancels: by QR, not by inner products."""
    up, down = delta.up.flatten(1).double() * delta.scale, delta.down.flatten(1).double()
    r_up, r_down = torch.linalg.qr(up, mode="r").R, torch.linalg.qr(down.T, mode="r").R
    return float((r_up @ r_down.T).square().sum())
