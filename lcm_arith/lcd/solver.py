"""The ODE solver Ψ: DDIM."""

from __future__ import annotations

from torch import Tensor


def predicted_x0(epsilon: Tensor, z: Tensor, alpha_t: Tensor, sigma_t: Tensor) -> Tensor:
    """x₀ = (z − σ ε) / α of noise prediction."""
    return (z - sigma_t * epsilon) / alpha_t


def ddim_step(
    epsilon: Tensor, z: Tensor, start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]
) -> Tensor:
    """The new state ẑ = α_s x₀ + σ_s ε (not the increment; Ψ of Algorithm 1 is ẑ − z).

    Args:
        epsilon: Noise prediction at the start of the step.
        z: State at the start.
        start: (alpha_t, sigma_t) there.
        end: (alpha_t, sigma_t) where the step ends.
    """
    return end[0] * predicted_x0(epsilon, z, *start) + end[1] * epsilon
