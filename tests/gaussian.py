"""Data of which networks, solver steps and fixed points are known in closed form.

Coordinates z₀ ~ N(m, s²). The condition is the mean itself: ``{"embeds": [B, 1]}`` of M_C for the
prompt, of M_0 for ∅. Guidance by ω moves the mean to m_ω = M_C + ω (M_C − M_0).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.condition import Condition
from lcm_arith.lcd.boundary import consistency, scalings
from lcm_arith.lcd.lcf import finetuning_loss
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import PREDICTIONS, Level
from lcm_arith.lcd.step import Batch, consistency_loss

OMEGA, SPREAD, M_C, M_0 = 7.5, 0.4, 1.1, 0.3
M_OMEGA: Final = M_C + OMEGA * (M_C - M_0)
T: Final = 1000
BETAS: Final = torch.linspace(0.00085**0.5, 0.012**0.5, T, dtype=torch.float64).square()
SD: Final = Schedule.from_betas(BETAS)
ZERO_SNR: Final = Schedule.from_betas(BETAS, zero_terminal_snr=True)
FLOW: Final = Schedule.flow(T)


def output(prediction: str, x0: Tensor, eps: Tensor, at: Level) -> Tensor:
    """What a network of that parameterisation says of x₀ and ε."""
    outputs = {
        "epsilon": eps,
        "v_prediction": at.alpha_t * eps - at.sigma_t * x0,
        "sample": x0,
        "flow": eps - x0,
    }
    return outputs[prediction]


def exact(z: Tensor, at: Level, mean: Tensor | float) -> tuple[Tensor, Tensor]:
    """E[z₀ | z] and E[ε | z]."""
    _, alpha_t, sigma_t = at
    off = (z - alpha_t * mean) / ((alpha_t * SPREAD) ** 2 + sigma_t**2)
    return mean + alpha_t * SPREAD**2 * off, sigma_t * off


def gain(start: Level, end: Level, solver: str = "ddim") -> Tensor:
    """g of one exact step: ẑ − α_s m = g (z − α_t m)."""
    (_, a_t, s_t), (_, a_s, s_s) = start, end
    v_t, v_s = (a_t * SPREAD) ** 2 + s_t**2, (a_s * SPREAD) ** 2 + s_s**2
    first = (a_s * a_t * SPREAD**2 + s_s * s_t) / v_t
    if solver == "ddim":
        return first
    slope = (a_t * SPREAD**2 / v_t + a_s * SPREAD**2 / v_s * first) / 2
    return s_s / s_t + (a_s - s_s * a_t / s_t) * slope


@dataclass(frozen=True, eq=False)
class Case:
    """A distillation of which everything is known."""

    prediction: str = "epsilon"
    schedule: Schedule = SD
    grid: Grid = Grid.of(T, 50)  # noqa: RUF009  # nothing changes it
    solver: str = "ddim"
    loss: str = "huber"

    def network(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """The exact network of N(condition, s²)."""
        at = self.schedule.at(t, z)
        return output(self.prediction, *exact(z, at, cond["embeds"]), at)

    def totals(self) -> Tensor:
        """G_k = g(t_k, s_k) · G of the grid point s_k, or 1 where s_k = 0; ``[K]``."""
        like = torch.zeros(1, dtype=torch.float64)
        start, end = (self.schedule.at(t, like) for t in (self.grid.start, self.grid.end))
        gains = gain(start, end, self.solver).tolist()
        found: dict[int, float] = {0: 1.0}
        ends = zip(self.grid.start.tolist(), self.grid.end.tolist(), gains, strict=True)
        for t, s, own in ends:
            found[t] = own * found[s]
        return torch.tensor([found[t] for t in self.grid.start.tolist()], dtype=torch.float64)

    def fixed_point(self, z: Tensor, t: Tensor, mean: Tensor | float) -> Tensor:
        """f(z, t_k) = α_0 m + G_k (z − α_{t_k} m), where the loss is 0; z itself at t = 0."""
        index = torch.searchsorted(self.grid.start, t)
        total = torch.where(t > 0, self.totals()[index], 1.0)[:, None]
        return self.schedule.alpha_t[0] * mean + total * (z - self.schedule.at(t, z).alpha_t * mean)

    def student(self, f: Any) -> Any:
        """The network whose consistency function is ``f(z, t, cond)``."""

        def network(z: Tensor, t: Tensor, cond: Condition) -> Tensor:
            at, (c_skip, c_out) = self.schedule.at(t, z), scalings(t, z)
            inside = c_out > 0
            x0 = torch.where(inside, f(z, t, cond) - c_skip * z, 0.0) / c_out.where(inside, 1.0)
            eps = (z - at.alpha_t * x0) / at.sigma_t.where(inside, 1.0)
            return output(self.prediction, x0, eps, at)

        return network

    def consistency(self, network: Any, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        """f of a network."""
        at = self.schedule.at(t, z)
        x0 = PREDICTIONS[self.prediction].x0(network(z, t, cond), z, at)
        return consistency(x0, z, t)

    def batch(self, each: int = 20, seed: int = 0, columns: int = 4) -> Batch:
        """Every grid point ``each`` times."""
        generator = torch.Generator().manual_seed(seed)
        index = torch.arange(len(self.grid)).repeat(each)
        unit, noise = torch.randn(2, len(index), columns, generator=generator, dtype=torch.float64)
        means = [torch.full((len(index), 1), mean, dtype=torch.float64) for mean in (M_C, M_0)]
        cond, uncond = ({"embeds": mean} for mean in means)
        return Batch(M_C + SPREAD * unit, noise, index, cond, uncond)

    def distillation(self, student: Any, batch: Batch, **changed: Any) -> Tensor:
        """The loss of Algorithm 1 with the exact teacher; the target is the student."""
        options = dict(omega=OMEGA, target=student, prediction=self.prediction, loss=self.loss)
        options |= dict(schedule=self.schedule, grid=self.grid, solver=self.solver) | changed
        return consistency_loss(student, self.network, batch, **options)

    def finetuning(self, student: Any, batch: Batch) -> Tensor:
        """The loss of LCF; the target is the student."""
        return finetuning_loss(
            student, batch, schedule=self.schedule, grid=self.grid, target=student,
            prediction=self.prediction, loss=self.loss,
        )  # fmt: skip


def moments(case: Case) -> Batch:
    """Every grid point once, four columns: z₀ and ε at ±1 standard deviation.

    Means and covariances are the data's, so that for students affine in z the gradient of a
    squared loss is that of infinitely many samples.
    """
    unit, noise = (
        torch.tensor(signs, dtype=torch.float64).expand(len(case.grid), 4)
        for signs in ([1, 1, -1, -1], [1, -1, 1, -1])
    )
    return replace(case.batch(1), z0=M_C + SPREAD * unit, noise=noise)


class Affine:
    """The exact network of the prompt, plus what is trained: affine in z at each grid point.

    Coefficients ``[2, K]`` begin at 0, the unguided teacher. They are in units of x₀ and of a
    standardised z: one step of gradient descent at the rate K / 2 makes the squared loss 0 where
    the target stands still.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.coefficients = torch.zeros(2, len(case.grid), dtype=torch.float64, requires_grad=True)

    def __call__(self, z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        case, at = self.case, self.case.schedule.at(t, z)
        slope, shift = self.coefficients[:, torch.searchsorted(case.grid.start, t), None]
        spread = ((at.alpha_t * SPREAD) ** 2 + at.sigma_t**2).sqrt()
        wanted = slope * (z - at.alpha_t * M_C) / spread + shift  # added to x₀
        noise = -wanted * at.alpha_t / at.sigma_t.clamp(min=1e-9)  # to ε, for z stays
        return case.network(z, t, cond) + output(case.prediction, wanted, noise, at)

    def descend(self, loss: Tensor) -> None:
        """One step of gradient descent at that rate."""
        (gradient,) = torch.autograd.grad(loss, self.coefficients)
        with torch.no_grad():
            self.coefficients -= len(self.case.grid) / 2 * gradient

    def error(self, mean: float, batch: Batch) -> Tensor:
        """|f − fixed point| at the states of a batch."""
        t = self.case.grid.start[batch.index]
        z = self.case.schedule.add_noise(batch.z0, batch.noise, t)
        with torch.no_grad():
            f = self.case.consistency(self, z, t, batch.cond)
        return (f - self.case.fixed_point(z, t, mean)).abs()


PLAIN: Final = Case()
CASES: Final = {
    "epsilon": PLAIN,
    "v_prediction": Case("v_prediction", ZERO_SNR),
    "sample": Case("sample", ZERO_SNR),
    "flow": Case("flow", FLOW, Grid.of_flow(T, 50)),
}
"""Each parameterisation on a schedule of its own, three of which end in pure noise."""


def with_grid(case: Case, points: int, **changed: Any) -> Case:
    """The same on K points."""
    of = Grid.of_flow if case.prediction == "flow" else Grid.of
    return replace(case, grid=of(T, points), **changed)


def exact_total(schedule: Schedule, t: int) -> float:
    """G of the exact ODE: V_0 / V_t."""
    variances = (schedule.alpha_t * SPREAD) ** 2 + schedule.sigma_t**2
    return float((variances[0] / variances[t]).sqrt())
