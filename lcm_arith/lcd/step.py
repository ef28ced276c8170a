"""The loss of one batch: the inner lines of Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lcm_arith.condition import Condition, Model, joined
from lcm_arith.lcd.boundary import consistency
from lcm_arith.lcd.guidance import guided
from lcm_arith.lcd.loss import LOSSES
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import PREDICTIONS, SOLVERS, Level, Prediction


@dataclass(frozen=True, eq=False)
class Batch:
    """What one step is drawn from.

    Args:
        z0: Clean latents ``[B, …]``.
        noise: ε, shaped as ``z0``.
        index: Grid index n per picture, ``[B]``; best on the CPU, see :meth:`Schedule.at`.
        cond: Condition c of the prompts, B rows.
        uncond: Condition ∅ of as many rows; only a teacher is told it.
    """

    z0: Tensor
    noise: Tensor
    index: Tensor
    cond: Condition
    uncond: Condition = field(default_factory=dict)


def consistency_loss(
    student: Model,
    teacher: Model,
    batch: Batch,
    *,
    schedule: Schedule,
    grid: Grid,
    omega: float | Tensor,
    target: Model,
    prediction: str = "epsilon",
    solver: str = "ddim",
    loss: str = "huber",
) -> Tensor:
    """d(f_θ(z_{t_{n+k}}), f_θ⁻(ẑ_{t_n})), with ẑ one guided solver step of the teacher.

    Args:
        student: f_θ's network, the only one that gradients reach.
        teacher: The frozen base; each pass is one call with cond and uncond, 2B rows.
        batch: Latents, noise, grid indices and conditions.
        schedule: α(t), σ(t).
        grid: Start and end of each solver step.
        omega: The paper's ω (guidance scale 1 + ω), a float or ``[B]``. One that varies is told to
            student and target, as ``omega`` in their condition; those that take no notice learn
            the mean over it.
        target: θ⁻'s network; without EMA it is the student itself.
        prediction: A name of :data:`~lcm_arith.lcd.solver.PREDICTIONS`, what all three output.
        solver: A name of :data:`~lcm_arith.lcd.solver.SOLVERS`.
        loss: A name of :data:`~lcm_arith.lcd.loss.LOSSES`.

    Returns:
        The scalar loss. The student runs last, so that its activations are alive for no other pass.
    """
    row = PREDICTIONS[prediction]
    z, start, end = noised(batch, schedule, grid)
    told = with_omega(batch.cond, omega)
    both = joined(batch.cond, batch.uncond)

    def network(z: Tensor, at: Level) -> Tensor:
        out, out_uncond = teacher(torch.cat([z, z]), torch.cat([at.t, at.t]), both).chunk(2)
        return guided(out, out_uncond, omega)

    with torch.no_grad():
        z_hat = SOLVERS[solver].step(network, row, z, start, end)
        goal = predicted(target, row, z_hat, end, told)
    return LOSSES[loss](predicted(student, row, z, start, told), goal)


def noised(batch: Batch, schedule: Schedule, grid: Grid) -> tuple[Tensor, Level, Level]:
    """State at the start of each picture's solver step, the level there and at the end."""
    index = batch.index.to(grid.start.device)
    start, end = (schedule.at(ends[index], batch.z0) for ends in (grid.start, grid.end))
    return start.alpha_t * batch.z0 + start.sigma_t * batch.noise, start, end


def with_omega(cond: Condition, omega: float | Tensor | None) -> Mapping[str, Tensor]:
    """The condition of a student: ω is named in it where it varies."""
    return {**cond, "omega": omega} if isinstance(omega, Tensor) else cond


def predicted(network: Model, row: Prediction, z: Tensor, at: Level, cond: Condition) -> Tensor:
    """f(z, t) of a network."""
    return consistency(row.x0(network(z, at.t, cond), z, at), z, at.t)
