"""Algorithm 1 and LCF against closed forms of Gaussian data, see :mod:`gaussian`."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from gaussian import (
    CASES,
    FLOW,
    M_0,
    M_C,
    M_OMEGA,
    OMEGA,
    PLAIN,
    SD,
    SPREAD,
    Affine,
    Case,
    T,
    exact,
    exact_total,
    gain,
    moments,
    output,
    with_grid,
)
from torch import Tensor

from lcm_arith.condition import Condition, Model
from lcm_arith.lcd.guidance import guided
from lcm_arith.lcd.loss import LOSSES
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import PREDICTIONS, SOLVERS, Level
from lcm_arith.lcd.step import Batch


def shifted(case: Case, mean: float, shift: Tensor) -> Model:
    """The student at the closed form, moved by ``shift`` ``[K]`` at each grid point."""

    def f(z: Tensor, t: Tensor, _: Condition) -> Tensor:
        index = torch.searchsorted(case.grid.start, t)
        return case.fixed_point(z, t, mean) + torch.where(t > 0, shift[index], 0.0)[:, None]

    student: Model = case.student(f)
    return student


def loss_and_gradient(
    loss_of: Callable[[Model, Batch], Tensor],
    case: Case,
    batch: Batch,
    mean: float,
    where: int | None,
) -> tuple[float, Tensor]:
    """At the closed form of a mean, or 0.01 off it at one grid point."""
    shift = torch.zeros(50, dtype=torch.float64)
    if where is not None:
        shift[where] = 0.01
    shift.requires_grad_()
    loss = loss_of(shifted(case, mean, shift), batch)
    return float(loss.detach()), torch.autograd.grad(loss, shift)[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradient_vanish_at_the_closed_form_alone(
    name: str, solver: str, loss: str
) -> None:
    case = replace(CASES[name], solver=solver, loss=loss)
    at, gradient = loss_and_gradient(case.distillation, case, case.batch(), M_OMEGA, None)
    # float64: f is off by 1e-14, which huber's d²/2c and the square make nothing of.
    assert at < 1e-20
    assert float(gradient.abs().max()) < 1e-12
    for where in (0, 24, 49):
        at, gradient = loss_and_gradient(case.distillation, case, case.batch(), M_OMEGA, where)
        assert at > 1e-6
        assert float(gradient[where]) > 1e-4


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_of_fine_tuning_vanishes_at_the_unguided_closed_form_alone(name: str) -> None:
    # Its loss does not, for many pairs of picture and noise are behind one z_t. Hence the squared
    # loss on exact moments: its gradient is that of the mean over all of them.
    case = replace(CASES[name], loss="l2")
    _, gradient = loss_and_gradient(case.finetuning, case, moments(case), M_C, None)
    assert float(gradient.abs().max()) < 1e-12
    for mean, where in ((M_C, 24), (M_OMEGA, None)):
        _, gradient = loss_and_gradient(case.finetuning, case, moments(case), mean, where)
        assert float(gradient[24].abs()) > 1e-4


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", CASES)
def test_training_from_the_teacher_ends_at_the_closed_form(name: str, solver: str) -> None:
    case = replace(CASES[name], solver=solver, loss="l2")
    assert trained(case, case.distillation, M_OMEGA) > 6
    if solver == "ddim":
        assert trained(case, case.finetuning, M_C) > 0.3


def trained(case: Case, loss_of: Any, mean: float) -> float:
    """How far off the training began, which ends within 1e-9 of the closed form."""
    student, batch = Affine(case), moments(case)
    began = float(student.error(mean, batch).max())
    for _ in range(len(case.grid) + 5):  # what is known at t = 0 goes one grid point a step
        student.descend(loss_of(student, batch))
    assert float(student.error(mean, batch).max()) < 1e-9
    return began


def test_a_target_that_is_the_teachers_own_guess_fails() -> None:
    # The rule of a well-known trainer: target = the teacher's one-step x₀ at ẑ.
    student = shifted(PLAIN, M_OMEGA, torch.zeros(50, dtype=torch.float64))
    assert float(PLAIN.distillation(student, PLAIN.batch(), target=PLAIN.network)) > 0.01


def test_the_fixed_point_of_another_omega_fails() -> None:
    student = shifted(PLAIN, M_OMEGA, torch.zeros(50, dtype=torch.float64))
    assert float(PLAIN.distillation(student, PLAIN.batch(), omega=OMEGA + 0.1)) > 1e-4


def test_a_student_that_is_told_omega_has_a_fixed_point_at_every_one() -> None:
    omega = torch.linspace(0, 15, 1000, dtype=torch.float64)

    def f(z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        mean = M_C + cond["omega"][:, None] * (M_C - M_0)
        return PLAIN.fixed_point(z, t, mean)

    loss = PLAIN.distillation(PLAIN.student(f), PLAIN.batch(), omega=omega)
    assert float(loss) < 1e-20


@pytest.mark.parametrize(
    "grid", [Grid.of(T, 50, 3), Grid.every(T, 1)], ids=["three points back", "every timestep"]
)
def test_other_grids_have_closed_forms_too(grid: Grid) -> None:
    case = replace(PLAIN, grid=grid)
    student = case.student(lambda z, t, _: case.fixed_point(z, t, M_OMEGA))
    assert float(case.distillation(student, case.batch(1))) < 1e-20


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", CASES)
def test_a_guided_solver_step_equals_the_closed_form(name: str, solver: str) -> None:
    case = CASES[name]
    z = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
    start, end = (case.schedule.at(t, z) for t in (case.grid.start, case.grid.end))
    got = SOLVERS[solver].step(guided_exact(name), PREDICTIONS[name], z, start, end)
    wanted = end.alpha_t * M_OMEGA + gain(start, end, solver) * (z - start.alpha_t * M_OMEGA)
    assert float((got - wanted).abs().max()) < 1e-12


def guided_exact(prediction: str) -> Callable[[Tensor, Level], Tensor]:
    """The teacher with guidance, in closed form."""

    def network(z: Tensor, at: Level) -> Tensor:
        cond, uncond = (output(prediction, *exact(z, at, mean), at) for mean in (M_C, M_0))
        return guided(cond, uncond, OMEGA)

    return network


@pytest.mark.parametrize(("solver", "order"), [(s, row.order) for s, row in SOLVERS.items()])
@pytest.mark.parametrize("name", ["epsilon", "flow"])
def test_the_error_of_a_solver_falls_with_its_order(name: str, solver: str, order: int) -> None:
    """From t = 999 to 199, where the path is smooth; against the exact ODE."""
    schedule: Schedule = {"epsilon": SD, "flow": FLOW}[name]
    errors = []
    for steps in (100, 200):
        z = torch.ones(1, 1, dtype=torch.float64)
        levels = [schedule.at(torch.tensor([999 - 800 * i // steps]), z) for i in range(steps + 1)]
        spreads = [((at.alpha_t * SPREAD) ** 2 + at.sigma_t**2).sqrt() for at in levels]
        offset = z - levels[0].alpha_t * M_OMEGA
        for start, end in pairwise(levels):
            z = SOLVERS[solver].step(guided_exact(name), PREDICTIONS[name], z, start, end)
        exactly = levels[-1].alpha_t * M_OMEGA + spreads[-1] / spreads[0] * offset
        errors.append(float((z - exactly).abs()))
    assert torch.tensor(errors[0] / errors[1]).log2() == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("name", CASES)
def test_the_fixed_point_nears_the_exact_consistency_function_with_order_one(name: str) -> None:
    errors = [_excess(with_grid(CASES[name], points)) for points in (50, 500)]
    assert torch.tensor(errors[0] / errors[1]).log10() == pytest.approx(1.0, abs=0.1)
    assert _excess(replace(with_grid(CASES[name], 50), solver="dpm++2s")) < errors[0] / 2


def _excess(case: Case) -> float:
    """How far G of the last grid point is off the exact one, relative to it."""
    exactly = exact_total(case.schedule, int(case.grid.start[-1]))
    return abs(float(case.totals()[-1]) / exactly - 1)


def test_the_closed_form_is_the_one_of_the_note() -> None:
    # Computed there by other code: SD's schedule, s = 0.4.
    assert exact_total(SD, 999) == pytest.approx(0.401678, abs=1e-6)
    assert float(PLAIN.totals()[-1]) == pytest.approx(0.376849, abs=1e-6)
