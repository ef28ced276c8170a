"""The loop of Algorithm 1 as a LoRA: one resident base, adapter off = teacher."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.dataset import TrainingSet
from lcm_arith.families import LCM_TARGETS, Training
from lcm_arith.lcd.guidance import check_omega
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.step import Batch, consistency_loss
from lcm_arith.training import OnStep, adapter_off, adapter_vector, add_adapter, fit
from lcm_arith.vector import TaskVector

GRID_POINTS: Final = 50  # K of LCMScheduler (original_inference_steps): a skipping interval of 20


def distill(
    pipeline: Any,
    data: TrainingSet,
    plan: Training,
    *,
    omega: float,
    seed: int,
    on_step: OnStep,
) -> TaskVector:
    """An acceleration vector τ_LCM; ``pipeline``'s UNet carries the adapter afterwards.

    Args:
        pipeline: The base model, teacher and student at once.
        data: Latents and prompt embeddings.
        plan: Rank, steps, batch, learning rate.
        omega: The paper's ω, fixed: a LoRA student cannot be told a varying one.
        seed: Of the adapter's start, the batches, grid indices and noise.
        on_step: Told about every step.

    Raises:
        UsageError: If ω is negative or not finite.
        DivergedError: As :func:`lcm_arith.training.fit`.
    """
    check_omega(omega)
    unet, schedule = pipeline.unet, Schedule.of_pipeline(pipeline)
    grid = Grid.of(len(schedule.alpha_t), GRID_POINTS)
    add_adapter(unet, rank=plan.rank, targets=LCM_TARGETS, seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def student(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        epsilon: Tensor = unet(z, t, encoder_hidden_states=c).sample
        return epsilon.float()

    def teacher(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with adapter_off(unet):
            return student(z, t, c)

    def loss_of(_: int) -> Tensor:
        z0, cond = data.draw(plan.batch, generator)
        batch = Batch(
            z0,
            torch.randn(z0.shape, generator=generator),
            torch.randint(GRID_POINTS, (plan.batch,), generator=generator),
            cond,
            data.uncond.expand_as(cond),
        )
        return consistency_loss(
            student, teacher, batch, schedule=schedule, grid=grid, omega=omega, target=student
        )

    skipped = fit(unet, loss_of, plan, on_step)
    origin = {"operation": "distill", "omega": repr(float(omega)), "skipped_steps": skipped}
    return adapter_vector(unet, origin)
