"""Classifier-free guidance, the paper's ω."""

from __future__ import annotations

from torch import Tensor


def guided(cond: Tensor, uncond: Tensor, omega: float) -> Tensor:
    """(1 + ω) · cond − ω · uncond; diffusers' guidance scale is 1 + ω.

    Guiding the raw output equals guiding Ψ, because x₀, ε and the solver's step are affine in it.
    """
    return cond + omega * (cond - uncond)
