"""Classifier-free guidance, the paper's ω."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lcm_arith.errors import UsageError


def check_omega(omega: float | tuple[float, float]) -> None:
    """Whether ω, or the range it is drawn from, can be distilled.

    Raises:
        UsageError: Unless all are finite numbers of 0 or more, the lower first.
    """
    low, high = omega if isinstance(omega, tuple) else (omega, omega)
    for value in (low, high):
        if not 0 <= value < math.inf:
            raise UsageError(f"omega {value}: the guidance weight is a number of 0 or more")
    if low > high:
        raise UsageError(f"omega from {low} to {high}: the lower one comes first")


def guided(cond: Tensor, uncond: Tensor, omega: float | Tensor) -> Tensor:
    """(1 + ω) · cond − ω · uncond; diffusers' guidance scale is 1 + ω.

    Guiding the raw output equals guiding Ψ, because x₀, ε and DDIM's step are affine in it.

    Args:
        cond: Output for the prompts, ``[B, …]``.
        uncond: Output for ∅, ``[B, …]``.
        omega: One for all, or ``[B]``.
    """
    if isinstance(omega, Tensor):
        omega = omega.to(cond).reshape(-1, *[1] * (cond.ndim - 1))
    return cond + omega * (cond - uncond)


def omega_embedding(omega: Tensor, dim: int) -> Tensor:
    """How a student is told ω: sines, then cosines of 1000 ω at dim // 2 frequencies.

    Args:
        omega: ``[B]``.
        dim: Width; diffusers' ``time_cond_proj_dim``.

    Returns:
        ``[B, dim]`` in the precision of ``omega``.

    Source:
        diffusers' ``get_guidance_scale_embedding``, which its pipelines call with the guidance
        scale less 1, so with the paper's ω.
    """
    half = dim // 2
    step = torch.log(torch.tensor(10000.0)) / (half - 1)
    frequencies = torch.exp(torch.arange(half, dtype=omega.dtype) * -step).to(omega.device)
    angles = (omega * 1000)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    return torch.nn.functional.pad(waves, (0, dim % 2))
