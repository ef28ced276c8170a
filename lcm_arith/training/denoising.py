"""Style vectors: the standard denoising loss on captioned pictures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from lcm_arith.condition import Condition, Model, chosen, moved, rows
from lcm_arith.data.drawing import Drawn, TrainingSet
from lcm_arith.errors import UsageError
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.training.lesson import Lesson, errors_by_timestep
from lcm_arith.training.loop import step_generator
from lcm_arith.training.plan import Plan

SNR_GAMMA: Final = 5.0
CAPTION_DROPOUT: Final = 0.1

Read = Callable[[Sequence[str], Condition, Tensor], Condition]
"""(captions, their cached condition, whose caption is dropped ``[B]``) → a trained encoder's."""

Draw = Callable[[Tensor, int, torch.Generator], Tensor]
"""(log SNR of each timestep ``[T]``, count, random numbers) → timesteps ``[count]``."""


def _uniform(log_snr: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.randint(len(log_snr), (count,), generator=generator)


def _logit_normal(log_snr: Tensor, count: int, generator: torch.Generator) -> Tensor:
    share = torch.randn(count, generator=generator).sigmoid()
    return (share * len(log_snr)).long()


def _style_friendly(log_snr: Tensor, count: int, generator: torch.Generator) -> Tensor:
    wanted = -6.0 + 2.0 * torch.randn(count, generator=generator, dtype=torch.float64)
    rising = -log_snr.double()  # ascending with t
    return torch.searchsorted(rising, -wanted).clamp(max=len(rising) - 1)


DRAWS: Final[dict[str, Draw]] = {
    "uniform": _uniform,
    "logit-normal": _logit_normal,  # arXiv:2403.03206, mean 0 and deviation 1
    "style-friendly": _style_friendly,  # arXiv:2411.14793: log SNR of mean -6 and deviation 2
}
"""How timesteps are drawn; style-friendly ones lie where noise is high and style is decided."""

_VALUES: Final[dict[str, tuple[Callable[..., Tensor], Callable[[Tensor], Tensor]]]] = {
    "epsilon": (lambda z0, noise, a, s: noise, lambda snr: snr),
    "v_prediction": (lambda z0, noise, a, s: a * noise - s * z0, lambda snr: snr + 1),
    "sample": (lambda z0, noise, a, s: z0, torch.ones_like),
}
"""Prediction → its true value of (z_0, ε, α, σ), and SNR → its error over that of x₀, squared."""


@dataclass(frozen=True, kw_only=True)
class Denoising:
    """How a style is learnt.

    Args:
        timesteps: A name of :data:`DRAWS`.
        caption_dropout: Share of pictures that are shown without their caption.
        keep_empty: Without a caption the goal is the answer of what was there before, not the
            picture. Guidance steps away from that answer: a style in it would be taken out of the
            picture again, above all for captions that the style never saw.
        gamma: Most SNR that a noise level is weighted by, eq. 9 of arXiv:2303.09556.
        floor: Least SNR; see :func:`snr_weight`.

    Raises:
        UsageError: If a value is impossible.
    """

    timesteps: str = "uniform"
    caption_dropout: float = CAPTION_DROPOUT
    keep_empty: bool = True
    gamma: float = SNR_GAMMA
    floor: float = 0.0

    def __post_init__(self) -> None:
        if self.timesteps not in DRAWS:
            raise UsageError(f"timesteps {self.timesteps!r}: one of {', '.join(DRAWS)}")
        if not 0 <= self.caption_dropout <= 1:
            raise UsageError(f"caption dropout {self.caption_dropout:g}: a share of 0 to 1")
        if not 0 <= self.floor <= self.gamma < math.inf or not self.gamma:
            raise UsageError(f"SNR from {self.floor:g} to {self.gamma:g}: numbers of 0 or more")


def snr_weight(
    schedule: Schedule,
    t: Tensor,
    prediction: str = "epsilon",
    *,
    floor: float = 0.0,
    gamma: float = SNR_GAMMA,
) -> Tensor:
    """Weight of the squared error of a prediction at ``t`` ``[B]``: clamp(SNR, floor, γ) of x₀'s.

    Without a floor it is eq. 9 of arXiv:2303.09556. In terms of x₀ that weight is min(SNR, γ), next
    to nothing at the highest noise, where which picture it becomes is decided (SNR 0.005 to 0.05);
    a floor gives it more (arXiv:2411.14793).
    """
    snr = (schedule.alpha_t[t] / schedule.sigma_t[t]).square()
    return snr.clamp(floor, gamma) / _VALUES[prediction][1](snr)


def denoising_loss(
    model: Model,
    schedule: Schedule,
    z0: Tensor,
    noise: Tensor,
    t: Tensor,
    c: Condition,
    *,
    prediction: str = "epsilon",
    goal: Tensor | None = None,
    how: Denoising | None = None,
) -> Tensor:
    """Weighted mean of ‖model(z_t, t, c) − goal‖² over pictures and elements.

    Args:
        model: What is trained.
        schedule: α(t), σ(t).
        z0: Clean latents ``[B, …]``.
        noise: ε, shaped as ``z0``.
        t: Timesteps ``[B]``, on the CPU.
        c: Condition of B rows.
        prediction: epsilon, v_prediction or sample.
        goal: What the answer should be; None is the prediction's true value.
        how: Weights; None is the defaults.
    """
    how = how or Denoising()
    at = schedule.at(t, z0)
    z = at.alpha_t * z0 + at.sigma_t * noise
    if goal is None:
        goal = _VALUES[prediction][0](z0, noise, at.alpha_t, at.sigma_t)
    error = (model(z, at.t, c) - goal).square().flatten(1).mean(1)  # [B]
    weight = snr_weight(schedule, t, prediction, floor=how.floor, gamma=how.gamma)
    loss: Tensor = (weight.to(error) * error).mean()
    return loss


def denoising(
    trained: nn.Module,
    student: Model,
    before: Model,
    data: TrainingSet,
    plan: Plan,
    how: Denoising,
    *,
    schedule: Schedule,
    prediction: str,
    seed: int,
    device: torch.device,
    read: Read | None = None,
) -> Lesson:
    """The standard denoising loss of this data.

    Args:
        trained: Module whose parameters that require gradients are trained.
        student: The network with what is trained.
        before: The network without it, whose answer to ∅ is kept.
        data: Latents and prompt embeddings.
        plan: The batch's size.
        how: Timesteps, weights, captions.
        schedule: α(t), σ(t) of the base.
        prediction: What the networks predict.
        seed: Of batches, noise, timesteps and dropout.
        device: Of the networks.
        read: By text encoders that are trained as well; None takes the cached condition.

    Raises:
        UsageError: If the schedule is impossible with this prediction.
    """
    schedule.check(prediction)
    log_snr = 2 * (schedule.alpha_t / schedule.sigma_t).log()

    def loss_of(drawn: Drawn, t: Tensor, noise: Tensor, dropped: Tensor) -> Tensor:
        uncond = moved(data.uncond(drawn.cond), device)
        if read is None:
            c = chosen(dropped.to(device), uncond, moved(drawn.cond, device))
        else:
            c = read(drawn.captions, moved(drawn.cond, device), dropped)
        z0, noise = drawn.z0.to(device), noise.to(device)
        goal = None
        if how.keep_empty and bool(dropped.any()):
            goal = _true(schedule, prediction, z0, noise, t)
            z, own = schedule.add_noise(z0, noise, t), dropped.to(device)
            with torch.no_grad():
                goal[own] = before(z[own], t.to(device)[own], rows(uncond, own))
        return denoising_loss(
            student, schedule, z0, noise, t, c, prediction=prediction, goal=goal, how=how
        )

    def loss(number: int) -> Tensor:
        drawn, generator = data.batch(number, plan.batch, seed), step_generator(seed, number)
        size = len(drawn.z0)
        dropped = torch.rand(size, generator=generator) < how.caption_dropout
        t = DRAWS[how.timesteps](log_snr, size, generator)
        return loss_of(drawn, t, torch.randn(drawn.z0.shape, generator=generator), dropped)

    def error(drawn: Drawn, t: Tensor, noise: Tensor) -> Tensor:
        return loss_of(drawn, t, noise, torch.zeros(len(t), dtype=torch.bool))

    times = torch.arange(len(log_snr))
    errors = partial(errors_by_timestep, data, times, seed, error)
    return Lesson(trained, loss, errors, student)


def _true(schedule: Schedule, prediction: str, z0: Tensor, noise: Tensor, t: Tensor) -> Any:
    at = schedule.at(t, z0)
    return _VALUES[prediction][0](z0, noise, at.alpha_t, at.sigma_t).clone()
