"""The loss of one batch: the inner lines of Algorithm 1."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lcm_arith.lcd.boundary import consistency
from lcm_arith.lcd.guidance import guided
from lcm_arith.lcd.loss import pseudo_huber
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import ddim_step, predicted_x0

Model = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(z ``[B, …]``, t ``[B]``, c ``[B, …]``) → noise prediction, shaped as z."""


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step is drawn from.

    Args:
        z0: Clean latents ``[B, …]``.
        noise: ε, shaped as ``z0``.
        index: Grid index n per picture, ``[B]``.
        cond: Prompt embeddings c ``[B, …]``.
        uncond: Embeddings of the empty prompt ∅ ``[B, …]``.
    """

    z0: Tensor
    noise: Tensor
    index: Tensor
    cond: Tensor
    uncond: Tensor


def consistency_loss(
    student: Model,
    teacher: Model,
    batch: Batch,
    *,
    schedule: Schedule,
    grid: Grid,
    omega: float,
    target: Model,
) -> Tensor:
    """d(f_θ(z_{t_{n+k}}), f_θ⁻(ẑ_{t_n})), with ẑ one guided DDIM step of the teacher.

    Args:
        student: f_θ's network, the only one that gradients reach.
        teacher: The frozen base; called once with cond and uncond in one batch of 2B.
        batch: Latents, noise, grid indices and conditions.
        schedule: α(t), σ(t).
        grid: Start and end of each solver step.
        omega: The paper's ω (guidance scale 1 + ω).
        target: θ⁻'s network; without EMA it is the student itself.

    Returns:
        The scalar loss. The student runs last, so that its activations are alive for no other pass.
    """
    index = batch.index.cpu()
    t, s = (ends[index].to(batch.z0.device) for ends in (grid.start, grid.end))
    z = schedule.add_noise(batch.z0, batch.noise, t)
    at_t, at_s = schedule.at(t, z), schedule.at(s, z)
    with torch.no_grad():
        both = torch.cat([batch.cond, batch.uncond])
        cond, uncond = teacher(torch.cat([z, z]), torch.cat([t, t]), both).chunk(2)
        z_hat = ddim_step(guided(cond, uncond, omega), z, at_t, at_s)
        x0 = predicted_x0(target(z_hat, s, batch.cond), z_hat, *at_s)
        goal = consistency(x0, z_hat, s)
    x0 = predicted_x0(student(z, t, batch.cond), z, *at_t)
    return pseudo_huber(consistency(x0, z, t), goal)
