"""The noise schedule α(t), σ(t) and the grid of the ODE solver."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.errors import UsageError
from lcm_arith.lcd.solver import PREDICTIONS, Level


def _cosine(t: float) -> float:
    return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2


def _cosine_betas(_: float, __: float, count: int) -> Tensor:
    bars = torch.tensor([_cosine(i / count) for i in range(count + 1)], dtype=torch.float64)
    return (1 - bars[1:] / bars[:-1]).clamp(max=0.999)


def _linear_betas(first: float, last: float, count: int) -> Tensor:
    return torch.linspace(first, last, count, dtype=torch.float64)


BETAS: Final[dict[str, Callable[[float, float, int], Tensor]]] = {
    "linear": _linear_betas,
    "scaled_linear": lambda first, last, n: _linear_betas(first**0.5, last**0.5, n).square(),
    "squaredcos_cap_v2": _cosine_betas,
}
"""diffusers' ``beta_schedule`` → betas of (first, last, T), float64 ``[T]``."""


@dataclass(frozen=True, eq=False)
class Schedule:
    """z_t = alpha_t · z_0 + sigma_t · ε, both float64, ``[T]``; t is the index."""

    alpha_t: Tensor
    sigma_t: Tensor

    @classmethod
    def from_betas(cls, betas: Tensor, *, zero_terminal_snr: bool = False) -> Schedule:
        """alpha_t² = ∏ (1 − β), in float64.

        Args:
            betas: Variances of the forward process, ``[T]``.
            zero_terminal_snr: Shift and stretch alpha_t so that the last is exactly 0 and the
                first stays, arXiv:2305.08891, algorithm 1.
        """
        alpha_t = (1 - betas.double()).cumprod(0).sqrt()
        if zero_terminal_snr:
            first, last = alpha_t[0], alpha_t[-1]
            alpha_t = (alpha_t - last) * (first / (first - last))
        return cls(alpha_t, (1 - alpha_t.square()).sqrt())

    @classmethod
    def flow(cls, timesteps: int) -> Schedule:
        """The straight path: sigma_t = t / T, alpha_t = 1 − sigma_t.

        ``[T + 1]``, so that pure noise, t = T, has its place; see :meth:`Grid.of_flow`.
        """
        sigma_t = torch.arange(timesteps + 1, dtype=torch.float64) / timesteps
        return cls(1 - sigma_t, sigma_t)

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Schedule:
        """The training schedule that a diffusers scheduler's configuration describes.

        Computed from the configuration and not from the object: some classes keep ᾱ_T = 2⁻²⁴ where
        the configuration asks for zero terminal signal, some do not know that option.

        Raises:
            UsageError: If its betas are of an unknown kind, or it has none.
        """
        config = dict(scheduler.config)
        kind, given = config.get("beta_schedule"), config.get("trained_betas")
        if given is not None:
            betas = torch.as_tensor(given, dtype=torch.float64)
        elif kind in BETAS:
            ends = config["beta_start"], config["beta_end"]
            betas = BETAS[kind](*ends, config["num_train_timesteps"])
        else:
            raise UsageError(
                f"the base model's {type(scheduler).__name__} has the beta schedule {kind!r}",
                hint=f"training knows {', '.join(BETAS)}",
            )
        return cls.from_betas(betas, zero_terminal_snr=bool(config.get("rescale_betas_zero_snr")))

    def check(self, prediction: str) -> None:
        """Whether a network of this parameterisation can be trained on the schedule.

        Raises:
            UsageError: If ``prediction`` is no name of :data:`~lcm_arith.lcd.solver.PREDICTIONS`,
                or is noise where the schedule ends in noise alone.
        """
        if prediction not in PREDICTIONS:
            raise UsageError(
                f"the base model's prediction type is {prediction!r}",
                hint=f"training knows {', '.join(PREDICTIONS)}",
            )
        if PREDICTIONS[prediction].needs_signal and bool((self.alpha_t == 0).any()):
            raise UsageError(
                f"the base model predicts {prediction} and its schedule ends in pure noise "
                "(zero terminal SNR), where that prediction says nothing of the picture",
                hint="such a base must predict v_prediction or sample; check the prediction_type "
                "and rescale_betas_zero_snr of its scheduler",
            )

    def at(self, t: Tensor, like: Tensor) -> Level:
        """The level of timesteps ``t`` ``[B]``, on the device of ``like`` ``[B, …]``.

        In float32, or in the precision of ``like`` if that is wider. Gathered on the CPU: a ``t``
        that is there costs no waiting for an accelerator.
        """
        shape = (-1, *[1] * (like.ndim - 1))
        dtype = torch.promote_types(like.dtype, torch.float32)
        index = t.to(self.alpha_t.device)
        alpha_t, sigma_t = (
            values[index].to(dtype).reshape(shape).to(like.device)
            for values in (self.alpha_t, self.sigma_t)
        )
        return Level(t.to(like.device), alpha_t, sigma_t)

    def add_noise(self, z0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """z_t in float32 or wider: half precision would train on the wrong noise level."""
        _, alpha_t, sigma_t = self.at(t, z0)
        return alpha_t * z0 + sigma_t * noise


@dataclass(frozen=True, eq=False)
class Grid:
    """Where solver steps start and end.

    Args:
        start: t_{n+k}, ``[K]``, ascending.
        end: t_n, ``[K]``.
    """

    start: Tensor
    end: Tensor

    def __len__(self) -> int:
        """K."""
        return len(self.start)

    @classmethod
    def of(cls, timesteps: int, points: int, stride: int = 1) -> Grid:
        """The grid of LCMScheduler: k−1, 2k−1, …, T−1 with k = T // K; steps end on it or at 0.

        Args:
            timesteps: T.
            points: K; the sampler's timesteps are among them.
            stride: Grid points that one solver step goes back, so that the skipping interval is
                ``stride * k``. What is known at t = 0 reaches t = T in K / stride hops.

        Raises:
            UsageError: If K is not between 1 and T, or the stride not between 1 and K.
        """
        _check_points(timesteps, points, stride)
        return cls._going_back(torch.arange(1, points + 1) * (timesteps // points) - 1, stride)

    @classmethod
    def of_flow(cls, timesteps: int, points: int, stride: int = 1) -> Grid:
        """The same of :meth:`Schedule.flow`, one later: k, 2k, …, T, for its t = 0 is the picture.

        Raises:
            UsageError: As :meth:`of`.
        """
        _check_points(timesteps, points, stride)
        return cls._going_back(torch.arange(1, points + 1) * (timesteps // points), stride)

    @classmethod
    def every(cls, timesteps: int, interval: int) -> Grid:
        """The paper's rule to the letter: t_{n+k} of k, k+1, …, T−1, and k timesteps back.

        Ends below k are no starts: as printed, nothing trains the network there.

        Args:
            timesteps: T.
            interval: k, the skipping interval.

        Raises:
            UsageError: If k is not between 1 and T − 1.
        """
        if not 1 <= interval < timesteps:
            raise UsageError(
                f"skipping interval {interval}: between 1 and {timesteps - 1} timesteps "
                "are possible"
            )
        start = torch.arange(interval, timesteps)
        return cls(start, start - interval)

    @classmethod
    def _going_back(cls, start: Tensor, stride: int) -> Grid:
        return cls(start, torch.cat([torch.zeros(stride, dtype=torch.long), start[:-stride]]))


def _check_points(timesteps: int, points: int, stride: int) -> None:
    if not 1 <= points <= timesteps:
        raise UsageError(f"{points} grid points: between 1 and {timesteps} are possible")
    if not 1 <= stride <= points:
        raise UsageError(f"stride {stride}: between 1 and {points} grid points are possible")
