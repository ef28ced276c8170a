"""The loss of Latent Consistency Fine-tuning, algorithm 4 of arXiv:2310.04378."""

from __future__ import annotations

import torch
from torch import Tensor

from lcm_arith.condition import Model
from lcm_arith.lcd.loss import LOSSES
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import PREDICTIONS
from lcm_arith.lcd.step import Batch, noised, predicted, with_omega


def finetuning_loss(
    student: Model,
    batch: Batch,
    *,
    schedule: Schedule,
    grid: Grid,
    target: Model,
    omega: Tensor | None = None,
    prediction: str = "epsilon",
    loss: str = "huber",
) -> Tensor:
    """d(f_θ(z_{t_{n+k}}), f_θ⁻(z_{t_n})), both noised by the same ε; there is no teacher.

    The student is a latent consistency model already. Its goal knows nothing of ω: a long training
    ends at the consistency function of the data without guidance. The loss of
    :func:`~lcm_arith.lcd.step.consistency_loss` on the same batch, times a weight, added to this
    one anchors it.

    Args:
        student: f_θ's network, the only one that gradients reach.
        batch: Latents of the new data, noise, grid indices and ``cond``.
        schedule: α(t), σ(t).
        grid: Start and end of each step.
        target: θ⁻'s network; without EMA it is the student itself.
        omega: For a student that is told ω, ``[B]``.
        prediction: A name of :data:`~lcm_arith.lcd.solver.PREDICTIONS`.
        loss: A name of :data:`~lcm_arith.lcd.loss.LOSSES`.

    Returns:
        The scalar loss, after one call of the target and one of the student.
    """
    row = PREDICTIONS[prediction]
    z, start, end = noised(batch, schedule, grid)
    told = with_omega(batch.cond, omega)
    with torch.no_grad():
        z_end = end.alpha_t * batch.z0 + end.sigma_t * batch.noise
        goal = predicted(target, row, z_end, end, told)
    return LOSSES[loss](predicted(student, row, z, start, told), goal)
