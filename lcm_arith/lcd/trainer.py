"""The loop of Algorithm 1 as a LoRA: one resident base, adapter off = teacher."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.condition import Condition
from lcm_arith.dataset import TrainingSet
from lcm_arith.families import Training
from lcm_arith.lcd.guidance import check_omega
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.step import Batch, consistency_loss
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

GRID_POINTS: Final = 50  # K of LCMScheduler (original_inference_steps), 20 timesteps apart
STRIDE: Final = 3  # grid points a solver step: 60 timesteps, 17 hops from noise to picture


def distill(
    pipeline: Any,
    data: TrainingSet,
    plan: Training,
    *,
    omega: float,
    seed: int,
    on_step: OnStep,
    checkpoint: Checkpoint | None = None,
    start: TaskVector | None = None,
    stride: int = STRIDE,
) -> tuple[TaskVector, Outcome]:
    """An acceleration vector τ_LCM; ``pipeline``'s UNet carries the adapter afterwards.

    Args:
        pipeline: The base model, teacher and student at once.
        data: Latents and prompt embeddings.
        plan: Rank, target modules, steps, batch, learning rate.
        omega: The paper's ω, fixed: a LoRA student cannot be told a varying one.
        seed: Of the adapter's start, the batches, grid indices and noise.
        on_step: Told about every step.
        checkpoint: Kept while training and gone on with.
        start: Vector to begin with, see :func:`lcm_arith.training.add_adapter`; None is ΔW = 0.
        stride: Grid points that one solver step goes back, see :class:`Grid`.

    Raises:
        UsageError: If ω is negative or not finite.
        DivergedError, IncompatibleError: As :func:`lcm_arith.training.fit`.
    """
    check_omega(omega)
    unet, schedule = pipeline.unet, Schedule.of_pipeline(pipeline)
    grid = Grid.of(len(schedule.alpha_t), GRID_POINTS, stride)
    add_adapter(unet, rank=plan.rank, targets=plan.targets, seed=seed, start=start)
    with_adapter = adapted(unet)

    def student(z: Tensor, t: Tensor, c: Condition) -> Tensor:
        with fast_math(z.device):
            epsilon: Tensor = with_adapter(z, t, encoder_hidden_states=c["embeds"]).sample
        return epsilon.float()

    def teacher(z: Tensor, t: Tensor, c: Condition) -> Tensor:
        with adapter_off(unet), fast_math(z.device):
            epsilon: Tensor = unet(z, t, encoder_hidden_states=c["embeds"]).sample
        return epsilon.float()

    def loss_of(step: int) -> Tensor:
        generator = step_generator(seed, step)
        z0, cond = data.draw(plan.batch, generator)
        noise = torch.randn(z0.shape, generator=generator)
        index = torch.randint(GRID_POINTS, (plan.batch,), generator=generator)
        uncond = data.uncond.expand_as(cond)
        z0, noise, cond, uncond = (x.to(unet.device) for x in (z0, noise, cond, uncond))
        return consistency_loss(
            student,
            teacher,
            Batch(z0, noise, index, {"embeds": cond}, {"embeds": uncond}),
            schedule=schedule,
            grid=grid,
            omega=omega,
            target=student,
        )

    outcome = fit(unet, loss_of, plan, on_step, checkpoint=checkpoint)
    origin = {
        "operation": "distill",
        "omega": repr(float(omega)),
        "skipped_steps": outcome.skipped,
    }
    return adapter_vector(unet, origin), outcome
