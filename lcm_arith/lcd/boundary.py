"""The boundary condition f_θ(z, 0) = z through c_skip and c_out."""

from __future__ import annotations

from typing import Final

from torch import Tensor

SIGMA_DATA: Final = 0.5
TIMESTEP_SCALING: Final = 10.0


def scalings(t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """(c_skip, c_out) of timesteps ``t`` ``[B]``, shaped to multiply ``like``.

    c_out lacks the factor σ_data of the consistency models paper, as LCM's own code and
    diffusers' LCMScheduler do (diffusers issue 8547); sampler and training must agree.
    """
    scaled = (t.to(like) * TIMESTEP_SCALING).reshape(-1, *[1] * (like.ndim - 1))
    norm = scaled.square() + SIGMA_DATA**2
    return SIGMA_DATA**2 / norm, scaled / norm.sqrt()


def consistency(x0: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """f_θ(z, t) = c_skip(t) · z + c_out(t) · x₀; at t = 0 z, whatever the finite x₀."""
    c_skip, c_out = scalings(t, z)
    return c_skip * z + c_out * x0
