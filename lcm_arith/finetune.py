"""Style vectors: a LoRA on captioned pictures, the standard noise-prediction loss."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.dataset import TrainingSet
from lcm_arith.families import LCM_TARGETS, Training
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.training import OnStep, adapter_vector, add_adapter, fit
from lcm_arith.vector import TaskVector

SNR_GAMMA: Final = 5.0
CAPTION_DROPOUT: Final = 0.1


def min_snr_weight(schedule: Schedule, t: Tensor, gamma: float = SNR_GAMMA) -> Tensor:
    """min(SNR, γ) / SNR of noise prediction at ``t`` ``[B]``; eq. 9 of arXiv:2303.09556."""
    snr = (schedule.alpha_t[t] / schedule.sigma_t[t]).square()
    return snr.clamp(max=gamma) / snr


def noise_loss(
    unet: Any, schedule: Schedule, z0: Tensor, noise: Tensor, t: Tensor, c: Tensor
) -> Tensor:
    """Weighted mean of ‖ε_θ(z_t, t, c) − ε‖² over pictures and elements."""
    z = schedule.add_noise(z0, noise, t)
    epsilon = unet(z, t, encoder_hidden_states=c).sample
    error = (epsilon.float() - noise).square().flatten(1).mean(1)  # [B]
    loss: Tensor = (min_snr_weight(schedule, t) * error).mean()
    return loss


def finetune(
    pipeline: Any, data: TrainingSet, plan: Training, *, seed: int, on_step: OnStep
) -> TaskVector:
    """A style vector trained on ``data``; ``pipeline``'s UNet carries the adapter afterwards.

    Args:
        pipeline: The base model.
        data: Latents and prompt embeddings.
        plan: Rank, steps, batch, learning rate.
        seed: Of the adapter's start, the batches, noise and dropout.
        on_step: Told about every step.

    Raises:
        DivergedError: As :func:`lcm_arith.training.fit`.
    """
    unet, schedule = pipeline.unet, Schedule.of_pipeline(pipeline)
    add_adapter(unet, rank=plan.rank, targets=LCM_TARGETS, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def loss_of(_: int) -> Tensor:
        z0, c = data.draw(plan.batch, generator)
        dropped = torch.rand(plan.batch, generator=generator) < CAPTION_DROPOUT
        c = torch.where(dropped[:, None, None], data.uncond, c)
        t = torch.randint(len(schedule.alpha_t), (plan.batch,), generator=generator)
        noise = torch.randn(z0.shape, generator=generator)
        return noise_loss(unet, schedule, z0, noise, t, c)

    skipped = fit(unet, loss_of, plan, on_step)
    return adapter_vector(unet, {"operation": "finetune", "skipped_steps": skipped})
