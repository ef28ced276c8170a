"""Where does distillation end, and is it where the closed form says?

    python benchmarks/lcd_oracles.py

Students that are affine in z at each grid point are trained by gradient descent through
``lcm_arith.lcd`` on Gaussian data, of which all is known (``tests/gaussian.py``). One core, about
50 CPU seconds. Writes ``benchmarks/results/lcd_oracles.md``, which begins with the goals that were
missed.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count, repeat
from pathlib import Path
from typing import Any, Final

import torch
from _page import Section, page

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from gaussian import (
    CASES,
    M_0,
    M_C,
    M_OMEGA,
    OMEGA,
    Affine,
    Case,
    exact_total,
    moments,
    with_grid,
)
from torch import Tensor

from lcm_arith.condition import joined
from lcm_arith.lcd.solver import SOLVERS
from lcm_arith.lcd.step import Batch

RESULTS: Final = Path(__file__).resolve().parent / "results"
LCD_GOAL, LCF_GOAL, SLOPE_GOAL = 1e-3, 3e-3, 0.1
POINTS: Final = (10, 20, 50, 100, 200, 500)


def descended(
    case: Case,
    loss_of: Callable[[Any, Batch], Tensor],
    batches: Iterable[Batch],
    steps: int,
    rate: Callable[[int], float],
) -> Affine:
    """A student after training from the unguided teacher."""
    student = Affine(case)
    for step, batch in zip(range(steps), batches, strict=False):
        student.descend(loss_of(student, batch), rate(step))
    return student


def exactly(case: Case, loss_of: Callable[[Any, Batch], Tensor]) -> Affine:
    """Trained on the exact moments of the data; what is known at t = 0 goes one point a step."""
    return descended(case, loss_of, repeat(moments(case)), len(case.grid) + 5, lambda _: 1.0)


def from_draws(case: Case, objective: str, steps: int) -> Affine:
    """Trained on fresh random draws, 16 or (LCF) 64 samples a grid point and step.

    LCF's rate falls: many pictures are behind one z_t, so that its loss keeps its noise.
    """
    drawn = (case.batch(4 if objective == "LCD" else 16, seed=n) for n in count())
    if objective == "LCD":
        return descended(case, case.distillation, drawn, steps, lambda _: 0.5)
    return descended(
        case, case.finetuning, drawn, steps,
        lambda n: 0.1 * min(1.0, (steps - n) / (0.7 * steps)) ** 2,
    )  # fmt: skip


def fixed_points() -> Section:
    section = Section(
        "Trained from afar",
        "|f − closed form| at states that were not trained on, K = 50, ω = 7.5, s = 0.4, "
        f"m_c = {M_C}, m_∅ = {M_0}, so m_ω = {M_OMEGA:g}. Squared loss, float64, gradient descent "
        "from the unguided teacher on random draws: LCD 600 steps, LCF 1,500. Noise prediction on "
        "SD's schedule; v and sample on the same with zero terminal SNR; flow from pure noise. "
        f"Goals: LCD's largest error {LCD_GOAL:g}, LCF's mean error {LCF_GOAL:g}. LCF's rest is "
        "that of its draws: on the data's exact moments it vanishes as LCD's does (last column).",
        ("objective", "predicts", "solver", "at the start", "largest", "mean", "exact moments"),
    )
    for name, plain in CASES.items():
        for objective, solver, steps in (("LCD", "ddim", 600), ("LCD", "dpm++2s", 600),
                                         ("LCF", "none", 1500)):  # fmt: skip
            case = replace(plain, loss="l2", solver="ddim" if solver == "none" else solver)
            mean = M_OMEGA if objective == "LCD" else M_C
            loss_of = case.distillation if objective == "LCD" else case.finetuning
            probe = case.batch(8, seed=10**6)
            start, end, clean = (
                student.error(mean, probe)
                for student in (
                    Affine(case), from_draws(case, objective, steps), exactly(case, loss_of)
                )
            )  # fmt: skip
            largest, average = float(end.max()), float(end.mean())
            what = f"{objective}, {name}, {solver}"
            cells = (f"{largest:.1e}", section.held(average, LCF_GOAL, what))
            if objective == "LCD":
                cells = (section.held(largest, LCD_GOAL, what), f"{average:.1e}")
            section.rows.append(
                (objective, name, solver, f"{float(start.max()):.2f}", *cells,
                 section.held(float(clean.max()), 1e-9, f"{what}, exact moments"))
            )  # fmt: skip
    return section


def convergence() -> Section:
    section = Section(
        "Convergence in K",
        "Relative error of what training ends at against the exact consistency function of the "
        "ODE: ∂f/∂z at the last grid point, measured at the trained student. The slope is that "
        "from K = 50 to 500; the fixed point of Algorithm 1 is of order 1 (goal: 1.0 ± 0.1). With "
        "DPM-Solver++(2S) the order 2 of a smooth path (`tests/test_lcd_oracles.py`) is not "
        "reached yet: near t = 0 a step of the grid crosses much of the log-SNR.",
        ("predicts", "solver", *(f"K = {points}" for points in POINTS), "slope"),
    )
    for name in ("epsilon", "v_prediction", "flow"):
        for solver in SOLVERS:
            errors = [_error_of(name, solver, points) for points in POINTS]
            slope = math.log10(errors[POINTS.index(50)] / errors[POINTS.index(500)])
            if solver == "ddim":
                section.held(abs(slope - 1), SLOPE_GOAL, f"{name}, slope − 1")
            cells = (f"{error:.2%}" for error in errors)
            section.rows.append((name, solver, *cells, f"{slope:.2f}"))
    return section


def _error_of(name: str, solver: str, points: int) -> float:
    case = replace(with_grid(CASES[name], points), solver=solver, loss="l2")
    student = exactly(case, case.distillation)
    found, _ = _gain_and_mean(student)
    return abs(found / exact_total(case.schedule, int(case.grid.start[-1])) - 1)


def _gain_and_mean(student: Affine) -> tuple[float, float]:
    """Of f at the last grid point: ∂f/∂z, and f where the data's mean m_ω is expected."""
    case = student.case
    t = case.grid.start[-1:].repeat(2)
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    cond = {"embeds": torch.full((2, 1), M_C, dtype=torch.float64)}
    with torch.no_grad():
        f = case.consistency(student, z, t, cond)
    slope, at_zero = float(f[1] - f[0]), float(f[0])
    alpha_t = float(case.schedule.alpha_t[t[0]])
    return slope, at_zero / (float(case.schedule.alpha_t[0]) - slope * alpha_t)


def others() -> Section:
    """What another rule would end at."""
    case = replace(CASES["epsilon"], loss="l2")
    untold = torch.tensor([5.0, 15.0], dtype=torch.float64).repeat_interleave(len(case.grid))
    one = moments(case)
    z0, noise, index = (torch.cat([x, x]) for x in (one.z0, one.noise, one.index))
    twice = Batch(z0, noise, index, joined(one.cond, one.cond), joined(one.uncond, one.uncond))
    plain = case.distillation
    rules: dict[str, tuple[Callable[[Any, Batch], Tensor], Batch]] = {
        f"Algorithm 1, ω = {OMEGA}": (plain, one),
        "the same, target = the teacher's own guess of x₀": (
            lambda student, batch: plain(student, batch, target=case.network), one
        ),
        "ω of 5 or 15, of which the student is not told": (
            lambda student, batch: plain(student, batch, omega=untold), twice
        ),
        "LCF": (case.finetuning, one),
    }  # fmt: skip
    section = Section(
        "What other rules end at",
        "At t = 999 of noise prediction, K = 50: ∂f/∂z and the mean that f pulls to, trained on "
        f"exact moments. The closed form of Algorithm 1: {float(case.totals()[-1]):.4f} and "
        f"{M_OMEGA:.2f}. A target that is the teacher's own guess gives blur without guidance. An "
        "ω that is drawn and not told acts as its mean, here 10. LCF forgets guidance.",
        ("rule", "∂f/∂z", "mean"),
    )
    for rule, (loss_of, batch) in rules.items():
        student = descended(case, loss_of, repeat(batch), 55, lambda _: 1.0)
        section.rows.append((rule, *(f"{x:.4f}" for x in _gain_and_mean(student))))
    return section


def main() -> None:
    torch.set_num_threads(1)
    began, sections = time.process_time(), []
    for table_of in (fixed_points, convergence, others):
        sections.append(table_of())
        print(f"{table_of.__name__}: {time.process_time() - began:.0f} s", file=sys.stderr)
    text = page("Where distillation ends", "lcd_oracles.py", sections, time.process_time() - began)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "lcd_oracles.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
