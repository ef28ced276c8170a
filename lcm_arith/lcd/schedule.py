"""The noise schedule α(t), σ(t) and the grid of the ODE solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcm_arith.errors import UsageError


@dataclass(frozen=True, eq=False)
class Schedule:
    """z_t = alpha_t · z_0 + sigma_t · ε, both float32 or wider, ``[T]``."""

    alpha_t: Tensor
    sigma_t: Tensor

    @classmethod
    def from_betas(cls, alphas_cumprod: Tensor) -> Schedule:
        """The schedule of a diffusers scheduler's ``alphas_cumprod``, ``[T]``."""
        wide = alphas_cumprod.double()
        return cls(wide.sqrt().float(), (1 - wide).sqrt().float())

    @classmethod
    def of_pipeline(cls, pipeline: Any) -> Schedule:
        """The training schedule of a pipeline's scheduler.

        Raises:
            UsageError: If the base does not predict noise, the only parameterisation so far, or has
                zero terminal signal, where noise prediction cannot be turned into x₀.
        """
        prediction = pipeline.scheduler.config.prediction_type
        if prediction != "epsilon":
            raise UsageError(
                f"the base model's prediction type is {prediction}, training knows epsilon"
            )
        if float(pipeline.scheduler.alphas_cumprod[-1]) == 0:
            raise UsageError("the base model ends in pure noise, where epsilon says nothing of z_0")
        return cls.from_betas(pipeline.scheduler.alphas_cumprod)

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha_t, sigma_t) of timesteps ``t`` ``[B]``, shaped to multiply ``like`` ``[B, …]``."""
        shape = (-1, *[1] * (like.ndim - 1))
        t = t.to(self.alpha_t.device)
        alpha_t, sigma_t = self.alpha_t[t].reshape(shape), self.sigma_t[t].reshape(shape)
        return alpha_t.to(like.device), sigma_t.to(like.device)

    def add_noise(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t, in the schedule's precision: half precision would train on the wrong noise level."""
        alpha_t, sigma_t = self.at(t, z0)
        return alpha_t * z0 + sigma_t * noise


@dataclass(frozen=True, eq=False)
class Grid:
    """The solver's grid: K timesteps t_k, k apart, and where a step from each ends.

    Args:
        start: t_{n+k}, ``[K]``: k−1, 2k−1, …, T−1 (k = T // K).
        end: t_n, ``[K]``: the grid point that a step from there ends at; 0 below the first.
    """

    start: Tensor
    end: Tensor

    @classmethod
    def of(cls, timesteps: int, points: int, stride: int = 1) -> Grid:
        """The grid of LCMScheduler: ``timesteps`` T on the schedule, ``points`` K.

        Args:
            timesteps: T.
            points: K; the sampler's timesteps are among them.
            stride: Grid points that one solver step goes back, so that the skipping interval is
                ``stride * k``. What is known at t = 0 reaches t = T in K / stride hops.

        Raises:
            UsageError: If K is not between 1 and T, or the stride not between 1 and K.
        """
        if not 1 <= points <= timesteps:
            raise UsageError(f"{points} grid points: between 1 and {timesteps} are possible")
        if not 1 <= stride <= points:
            raise UsageError(f"stride {stride}: between 1 and {points} grid points are possible")
        start = torch.arange(1, points + 1) * (timesteps // points) - 1
        return cls(start, torch.cat([torch.zeros(stride, dtype=torch.long), start[:-stride]]))
