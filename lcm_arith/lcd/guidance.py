"""Classifier-free guidance, the paper's ω."""

from __future__ import annotations

from torch import Tensor

from lcm_arith.errors import UsageError


def check_omega(omega: float) -> None:
    """Raises UsageError unless ω is a finite number of 0 or more."""
    if not 0 <= omega < float("inf"):
        raise UsageError(f"omega {omega}: the guidance weight is a number of 0 or more")


def guided(cond: Tensor, uncond: Tensor, omega: float) -> Tensor:
    """(1 + ω) · cond − ω · uncond; diffusers' guidance scale is 1 + ω.

    Guiding the raw output equals guiding Ψ, because x₀, ε and the solver's step are affine in it.
    """
    return cond + omega * (cond - uncond)
