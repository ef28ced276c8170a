"""Style vectors: a LoRA on captioned pictures, the standard noise-prediction loss."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.dataset import TrainingSet
from lcm_arith.families import Training
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.sampling import fast_math
from lcm_arith.training import (
    Checkpoint,
    OnStep,
    Outcome,
    adapted,
    adapter_off,
    adapter_vector,
    add_adapter,
    fit,
    step_generator,
)
from lcm_arith.vector import TaskVector

SNR_GAMMA: Final = 5.0
CAPTION_DROPOUT: Final = 0.1


def snr_weight(
    schedule: Schedule, t: Tensor, *, floor: float = 0.0, gamma: float = SNR_GAMMA
) -> Tensor:
    """clamp(SNR, floor, γ) / SNR of noise prediction at ``t`` ``[B]``.

    Without a floor it is eq. 9 of arXiv:2303.09556. In terms of x₀ that weight is min(SNR, γ), next
    to nothing at the highest noise, where which picture it becomes is decided (SNR 0.005 to 0.05);
    a floor gives it more (arXiv:2411.14793).
    """
    snr = (schedule.alpha_t[t] / schedule.sigma_t[t]).square()
    return snr.clamp(floor, gamma) / snr


def noise_loss(
    unet: Any,
    schedule: Schedule,
    z0: Tensor,
    noise: Tensor,
    t: Tensor,
    c: Tensor,
    *,
    goal: Tensor | None = None,
    floor: float = 0.0,
) -> Tensor:
    """Weighted mean of ‖ε_θ(z_t, t, c) − goal‖² over pictures and elements; the goal is ε."""
    z = schedule.add_noise(z0, noise, t)
    with fast_math(z.device):
        epsilon = unet(z, t, encoder_hidden_states=c).sample
    goal = noise if goal is None else goal
    error = (epsilon.float() - goal).square().flatten(1).mean(1)  # [B]
    loss: Tensor = (snr_weight(schedule, t.cpu(), floor=floor).to(error) * error).mean()
    return loss


def finetune(
    pipeline: Any,
    data: TrainingSet,
    plan: Training,
    *,
    seed: int,
    on_step: OnStep,
    checkpoint: Checkpoint | None = None,
    start: TaskVector | None = None,
    caption_dropout: float = CAPTION_DROPOUT,
    keep_empty: bool = True,
    floor: float = 0.0,
) -> tuple[TaskVector, Outcome]:
    """A style vector trained on ``data``; ``pipeline``'s UNet carries the adapter afterwards.

    Args:
        pipeline: The base model.
        data: Latents and prompt embeddings.
        plan: Rank, target modules, steps, batch, learning rate.
        seed: Of the adapter's start, the batches, noise and dropout.
        on_step: Told about every step.
        checkpoint: Kept while training and gone on with.
        start: Vector to begin with, see :func:`lcm_arith.training.add_adapter`; None is ΔW = 0.
        caption_dropout: Share of pictures that are shown without their caption.
        keep_empty: Without a caption the goal is the base's own answer, not the picture. Guidance
            steps away from that answer: a style in it would be taken out of the picture again,
            above all for captions that the style never saw.
        floor: Least SNR that a noise level is weighted by, see :func:`snr_weight`.

    Raises:
        DivergedError, IncompatibleError: As :func:`lcm_arith.training.fit`.
    """
    unet, schedule = pipeline.unet, Schedule.of_pipeline(pipeline)
    add_adapter(unet, rank=plan.rank, targets=plan.targets, seed=seed, start=start)

    def loss_of(step: int) -> Tensor:
        generator = step_generator(seed, step)
        z0, c = data.draw(plan.batch, generator)
        dropped = torch.rand(plan.batch, generator=generator) < caption_dropout
        c = torch.where(dropped[:, None, None], data.uncond, c)
        t = torch.randint(len(schedule.alpha_t), (plan.batch,), generator=generator)
        noise = torch.randn(z0.shape, generator=generator)
        z0, noise, t, c, dropped = (x.to(unet.device) for x in (z0, noise, t, c, dropped))
        goal = noise.clone()
        if keep_empty and dropped.any():
            z = schedule.add_noise(z0, noise, t)
            with torch.no_grad(), adapter_off(unet), fast_math(z.device):
                kept = unet(z[dropped], t[dropped], encoder_hidden_states=c[dropped]).sample
            goal[dropped] = kept.float()
        return noise_loss(adapted(unet), schedule, z0, noise, t, c, goal=goal, floor=floor)

    outcome = fit(unet, loss_of, plan, on_step, checkpoint=checkpoint)
    origin = {"operation": "finetune", "skipped_steps": outcome.skipped}
    return adapter_vector(unet, origin), outcome
