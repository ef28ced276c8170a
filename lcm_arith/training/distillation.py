"""Algorithm 1 on a base model and data: the loss of any batch, and the error on a fixed one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.condition import moved
from lcm_arith.data.drawing import Drawn, TrainingSet
from lcm_arith.errors import UsageError
from lcm_arith.lcd.guidance import check_omega
from lcm_arith.lcd.lcf import finetuning_loss
from lcm_arith.lcd.loss import LOSSES
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import SOLVERS
from lcm_arith.lcd.step import Batch, consistency_loss
from lcm_arith.training.lesson import Lesson, errors_by_timestep
from lcm_arith.training.loop import step_generator
from lcm_arith.training.plan import Plan
from lcm_arith.training.roles import Roles

MODES: Final = ("lora", "full", "lcf")
TIMESTEPS: Final = ("grid", "literal")


@dataclass(frozen=True, kw_only=True)
class Distillation:
    """Which variant of Algorithm 1.

    Args:
        mode: lora is LCD as a LoRA; full is LCD of all weights, told ω; lcf is Latent Consistency
            Fine-tuning of an accelerated model.
        omega: The paper's ω, or the two ends of a range that each picture's is drawn from.
        grid_points: K of the solver's grid.
        stride: Grid points that a solver step goes back; the skipping interval is stride · T / K.
        timesteps: grid takes t_{n+k} from the grid, which few-step samplers visit; literal any t.
        solver: A name of :data:`lcm_arith.lcd.solver.SOLVERS`.
        loss: A name of :data:`lcm_arith.lcd.loss.LOSSES`.
        target_decay: μ of θ⁻; 0 takes the student itself without gradients.
        anchor: Weight of LCD's loss beside LCF's, which keeps the guidance that was distilled.

    Raises:
        UsageError: If a value is impossible or of no use with the mode.
    """

    omega: float | tuple[float, float]
    mode: str = "lora"
    grid_points: int = 50
    stride: int = 1
    timesteps: str = "grid"
    solver: str = "ddim"
    loss: str = "huber"
    target_decay: float = 0.0
    anchor: float = 0.0

    def __post_init__(self) -> None:
        check_omega(self.omega)
        choices: tuple[tuple[str, tuple[str, ...]], ...] = (
            ("mode", MODES),
            ("timesteps", TIMESTEPS),
            ("solver", tuple(SOLVERS)),
            ("loss", tuple(LOSSES)),
        )
        for name, known in choices:
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r}: one of {', '.join(known)}")
        if not 0 <= self.target_decay < 1:
            raise UsageError(f"target decay {self.target_decay:g}: at least 0 and below 1")
        if not 0 <= self.anchor < float("inf"):
            raise UsageError(f"anchor {self.anchor:g}: a number of 0 or more")
        if self.mode == "full" and not self.target_decay:
            raise UsageError("mode full: its target is a running average, of a decay above 0")
        if self.mode != "lcf" and self.anchor:
            raise UsageError(f"anchor {self.anchor:g}: only mode lcf has one")

    @property
    def taught(self) -> bool:
        """Whether a teacher has a say, with its ω and its solver."""
        return self.mode != "lcf" or self.anchor > 0

    def grid(self, timesteps: int) -> Grid:
        """The points that batches are drawn from."""
        if self.timesteps == "grid":
            return Grid.of(timesteps, self.grid_points, self.stride)
        Grid.of(timesteps, self.grid_points, self.stride)  # refuses what is impossible
        return Grid.every(timesteps, self.stride * (timesteps // self.grid_points))


def distillation(
    roles: Roles,
    data: TrainingSet,
    plan: Plan,
    how: Distillation,
    *,
    schedule: Schedule,
    prediction: str,
    seed: int,
    device: torch.device,
) -> Lesson:
    """Algorithm 1 with these networks on this data.

    Args:
        roles: Student, target, teacher.
        data: Latents and prompt embeddings.
        plan: The batch's size.
        how: The variant.
        schedule: α(t), σ(t) of the base.
        prediction: What the networks predict, a name of :data:`lcm_arith.lcd.solver.PREDICTIONS`.
        seed: Of batches, noise, timesteps and ω.
        device: Of the networks.

    Raises:
        UsageError: If the grid is impossible, or the schedule with this prediction.
    """
    schedule.check(prediction)
    grid = how.grid(len(schedule.alpha_t))
    known: dict[str, Any] = {
        "schedule": schedule, "grid": grid, "prediction": prediction, "loss": how.loss,
    }  # fmt: skip

    def loss_of(batch: Batch, omega: float | Tensor) -> Tensor:
        def lcd() -> Tensor:
            return consistency_loss(
                roles.student, roles.teacher, batch, omega=omega, target=roles.target,
                solver=how.solver, **known,
            )  # fmt: skip

        if how.mode != "lcf":
            return lcd()
        loss = finetuning_loss(roles.student, batch, target=roles.target, **known)
        return loss + how.anchor * lcd() if how.anchor else loss

    def batch_of(drawn: Drawn, index: Tensor, noise: Tensor) -> Batch:
        cond, uncond = (moved(c, device) for c in (drawn.cond, data.uncond(drawn.cond)))
        return Batch(drawn.z0.to(device), noise.to(device), index, cond, uncond)

    def strength(at: Tensor) -> float | Tensor:
        """ω of each picture, at a share of the range; one number where nobody is told it."""
        low, high = _ends(how.omega)
        if low == high and not roles.told_omega:
            return low
        return (low + (high - low) * at).to(device)

    def loss(number: int) -> Tensor:
        drawn, generator = data.batch(number, plan.batch, seed), step_generator(seed, number)
        size = len(drawn.z0)
        noise = torch.randn(drawn.z0.shape, generator=generator)
        index = torch.randint(len(grid.start), (size,), generator=generator)
        omega = strength(torch.rand(size, generator=generator))
        return loss_of(batch_of(drawn, index, noise), omega)

    def error(drawn: Drawn, index: Tensor, noise: Tensor) -> Tensor:
        middle = strength(torch.full((len(index),), 0.5))
        return loss_of(batch_of(drawn, index, noise), middle)

    averages = (roles.average,) if roles.average else ()
    errors = partial(errors_by_timestep, data, grid.start, seed, error)
    shown = roles.student if roles.written is None else roles.target
    return Lesson(roles.trained, loss, errors, shown, averages)


def _ends(omega: float | tuple[float, float]) -> tuple[float, float]:
    return omega if isinstance(omega, tuple) else (omega, omega)
