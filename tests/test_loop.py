"""The training loop against formulas written out here, on a model of two numbers."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lcm_arith.errors import (
    DivergedError,
    IncompatibleError,
    InterruptedTraining,
    InvalidContentError,
    UsageError,
)
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.loop import Look, Outcome, Run, Step, fit, step_generator
from lcm_arith.training.numbers import FULL
from lcm_arith.training.plan import RATES, Plan

PLAN = Plan(steps=30, batch=1, learning_rate=0.1, ema=0.9)
SCALED = replace(FULL, scaled=True)


def small() -> tuple[nn.Module, Callable[[int], Tensor]]:
    """A model of two numbers, and a noisy loss whose noise depends on the step alone."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(1.0)
        model.bias.fill_(-1.0)

    def loss_of(step: int) -> Tensor:
        x = torch.randn(8, 1, generator=step_generator(3, step))
        loss: Tensor = (model(x) - 2 * x).square().mean()
        return loss

    return model, loss_of


def quiet(_: Step) -> None:
    """No progress."""


def values(model: nn.Module) -> list[float]:
    return [float(p.detach()) for p in model.parameters()]


def trained(plan: Plan, run: Run | None = None) -> tuple[list[float], Outcome]:
    """The two numbers after a training, and what was done."""
    model, loss_of = small()
    outcome = fit(model, loss_of, plan, quiet, run=run)
    return values(model), outcome


def by_hand(plan: Plan) -> tuple[list[float], list[float], list[float]]:
    """The same in float64 from the formulas: the numbers, their average, the gradients' norms."""
    theta, m, v = [1.0, -1.0], [0.0, 0.0], [0.0, 0.0]
    average, norms = list(theta), []
    for step in range(plan.steps):
        gradient = [0.0, 0.0]
        for part in range(plan.accumulation):
            number = step * plan.accumulation + part
            drawn = torch.randn(8, 1, generator=step_generator(3, number))
            for x in drawn.flatten().tolist():
                error = theta[0] * x + theta[1] - 2 * x
                gradient[0] += 2 * error * x / 8 / plan.accumulation
                gradient[1] += 2 * error / 8 / plan.accumulation
        norms.append(math.hypot(*gradient))
        shrink = min(1.0, plan.max_grad_norm / (norms[-1] + 1e-6))
        for i, g in enumerate(gradient):
            m[i] = 0.9 * m[i] + 0.1 * g * shrink
            v[i] = 0.999 * v[i] + 0.001 * (g * shrink) ** 2
            hats = m[i] / (1 - 0.9 ** (step + 1)), v[i] / (1 - 0.999 ** (step + 1))
            theta[i] *= 1 - plan.rate_at(step) * plan.weight_decay
            theta[i] -= plan.rate_at(step) * hats[0] / (math.sqrt(hats[1]) + 1e-8)
        decay = min(plan.ema, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * t for a, t in zip(average, theta, strict=True)]
    return theta, average, norms


# --- the steps --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"ema": 0.9},
        {"accumulation": 2},
        {"accumulation": 3, "max_grad_norm": 0.05, "weight_decay": 0.1},
        {"rate": "cosine", "warmup": 0.5},
    ],
)
def test_a_training_is_adamw_on_the_clipped_mean_gradient(own: dict[str, Any]) -> None:
    plan = Plan(steps=12, batch=1, learning_rate=0.1, **own)
    theta, average, norms = by_hand(plan)
    found, outcome = trained(plan)
    # float32 beside float64, over 12 steps
    assert found == pytest.approx(average if plan.ema else theta, abs=1e-5)
    assert [step.grad_norm for step in outcome.steps] == pytest.approx(norms, rel=1e-4)
    rates = [plan.rate_at(step) for step in range(12)]
    assert [step.learning_rate for step in outcome.steps] == pytest.approx(rates)


def test_a_small_cap_changes_the_result_and_the_norm_before_it_is_told() -> None:
    plan = Plan(steps=6, batch=1, learning_rate=0.1)
    free, _ = trained(replace(plan, max_grad_norm=1e3))
    capped, outcome = trained(replace(plan, max_grad_norm=1e-3))
    assert math.dist(free, capped) > 1e-3
    assert min(step.grad_norm for step in outcome.steps) > 1e-3


@pytest.mark.parametrize(
    ("rate", "factors"),
    [
        # after 0, 10, 25, 50, 75 and 99 of 100 steps; a tenth is the warm-up, (step + 1) / 10
        ("hold", (0.1, 1.0, 1.0, 1.0, 0.5, 0.02)),
        ("constant", (0.1, 1.0, 1.0, 1.0, 1.0, 1.0)),
        ("linear", (0.1, 0.9, 0.75, 0.5, 0.25, 0.01)),
        ("cosine", (0.1, 0.975528, 0.853553, 0.5, 0.146447, 0.000247)),
    ],
)
def test_learning_rates_warm_up_and_take_their_course(
    rate: str, factors: tuple[float, ...]
) -> None:
    plan = Plan(steps=100, batch=1, learning_rate=2.0, rate=rate, warmup=0.1)
    found = [plan.rate_at(step) / 2 for step in (0, 10, 25, 50, 75, 99)]
    assert found == pytest.approx(factors, abs=1e-6)


def test_every_course_of_the_learning_rate_is_held_against_numbers() -> None:
    mark = test_learning_rates_warm_up_and_take_their_course.pytestmark[0]  # type: ignore[attr-defined]
    assert [row[0] for row in mark.args[1]] == list(RATES)


def test_eight_bit_adamw_that_is_not_installed_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim", None)
    with pytest.raises(UsageError, match="bitsandbytes is not installed") as caught:
        trained(replace(PLAN, optimizer="adamw8bit"))
    assert 'pip install "lcm-arith[8bit]"' in caught.value.hint


# --- steps that are not finite ----------------------------------------------------------------


def spoilt(bad: Sequence[int]) -> tuple[nn.Module, Callable[[int], Tensor]]:
    """As :func:`small`, with a loss of NaN in some steps."""
    model, loss_of = small()
    return model, lambda step: loss_of(step) * (float("nan") if step in bad else 1.0)


def test_steps_that_are_not_finite_change_nothing_and_are_counted(tmp_path: Path) -> None:
    seen: list[list[float]] = []
    model, loss_of = spoilt((1, 2, 5))
    plan = replace(PLAN, steps=8, max_nonfinite=3, ema=0.0)
    outcome = fit(model, loss_of, plan, lambda _: seen.append(values(model)))
    assert [step.skipped for step in outcome.steps] == [n in (1, 2, 5) for n in range(8)]
    assert outcome.skipped == 3
    same = [one == two for one, two in pairwise(seen)]
    assert same == [n in (1, 2, 5) for n in range(1, 8)]


def test_a_skipped_step_moves_no_average_either() -> None:
    kept: list[list[float]] = []
    for bad in ((), (3,)):
        model, loss_of = spoilt(bad)

        def look(_: int, own: nn.Module = model) -> None:
            kept.append(values(own))

        fit(model, loss_of, replace(PLAN, steps=4), quiet, run=Run(looks=(Look(1, look),)))
    assert kept[:3] == kept[4:7]
    assert kept[7] == kept[6] != kept[3]


def test_too_many_in_a_row_end_the_training_and_keep_what_was_good(tmp_path: Path) -> None:
    model, loss_of = spoilt(range(4, 99))
    plan = replace(PLAN, steps=20, max_nonfinite=3, ema=0.0)
    checkpoint = Checkpoint(tmp_path / "x.pt")
    with pytest.raises(DivergedError, match=r"step 7: .* for 3 steps in a row") as caught:
        fit(model, loss_of, plan, quiet, run=Run(checkpoint=checkpoint))
    assert caught.value.exit_code == 8
    stored = torch.load(checkpoint.path, weights_only=True)
    assert [float(p) for p in stored["parameters"]] == values(model)
    assert all(math.isfinite(x) for x in values(model))
    assert len(stored["steps"]) == 7


def test_non_finite_steps_are_counted_across_an_interruption(tmp_path: Path) -> None:
    plan = replace(PLAN, steps=20, max_nonfinite=3, ema=0.0)
    checkpoint = Checkpoint(tmp_path / "x.pt")
    made: list[Step] = []
    with pytest.raises(InterruptedTraining):  # after the second of them
        fit(*spoilt(range(4, 99)), plan, made.append,
            run=Run(checkpoint=checkpoint, stop=lambda: len(made) == 6))  # fmt: skip
    with pytest.raises(DivergedError, match="step 7: "):
        fit(*spoilt(range(4, 99)), plan, quiet, run=Run(checkpoint=checkpoint))


def test_fp16s_scale_halves_after_an_overflow_and_is_kept(tmp_path: Path) -> None:
    def fitted(steps: int, run: Run) -> list[float]:
        model, loss_of = small()
        plan = replace(PLAN, steps=steps, rate="constant", ema=0.0)
        huge = 1e36  # times 2^16 is no float32
        fit(model, lambda step: loss_of(step) * (huge if step == 2 else 1.0), plan, quiet, run=run)
        return values(model)

    run = Run(numbers=SCALED, checkpoint=Checkpoint(tmp_path / "x.pt"))
    scaled = fitted(6, run)
    assert torch.load(tmp_path / "x.pt", weights_only=True)["scaler"]["scale"] == 2.0**15
    # scales are powers of two: where nothing overflows the bits are those without
    model, loss_of = spoilt((2,))
    fit(model, loss_of, replace(PLAN, steps=6, rate="constant", ema=0.0), quiet)
    assert scaled == values(model)


# --- averages and looks -----------------------------------------------------------------------


def test_looks_see_the_average_and_leave_the_training_as_it_is() -> None:
    model, loss_of = small()
    seen: dict[int, list[float]] = {}
    path: list[list[float]] = []
    looks = (Look(4, lambda number: seen.update({number: values(model)})),)
    fit(model, loss_of, replace(PLAN, steps=10), lambda _: path.append(values(model)),
        run=Run(looks=looks))  # fmt: skip
    average, expected = [1.0, -1.0], {}
    for step, point in enumerate(path):
        decay = min(0.9, (1 + step) / (10 + step))
        average = [decay * a + (1 - decay) * p for a, p in zip(average, point, strict=True)]
        expected[step + 1] = average
    assert sorted(seen) == [4, 8, 10]
    for number, found in seen.items():
        assert found == pytest.approx(expected[number], rel=1e-5)
    assert values(model) == seen[10]
    assert trained(replace(PLAN, steps=10))[0] == values(model)


# --- checkpoints ------------------------------------------------------------------------------


def test_a_cut_training_ends_with_the_bits_of_a_whole_one(tmp_path: Path) -> None:
    expected, whole = trained(PLAN)

    def cut_at_ten(step: Step) -> None:
        if step.number == 10:
            raise KeyboardInterrupt

    run = Run(checkpoint=Checkpoint(tmp_path / "x.pt", {"seed": 3}, every=1))
    model, loss_of = small()
    with pytest.raises(KeyboardInterrupt):
        fit(model, loss_of, PLAN, cut_at_ten, run=run)
    model, loss_of = small()
    seen: list[int] = []
    resumed = fit(model, loss_of, PLAN, lambda step: seen.append(step.number), run=run)
    assert seen == list(range(10, 31))  # the tenth was cut before its checkpoint
    assert resumed == whole
    assert values(model) == expected
    assert trained(PLAN, run) == (expected, whole)  # a finished one is returned


def test_a_training_that_is_told_to_stop_saves_and_goes_on(tmp_path: Path) -> None:
    expected, whole = trained(PLAN)
    made: list[Step] = []
    run = Run(checkpoint=Checkpoint(tmp_path / "x.pt"), stop=lambda: len(made) in (7, 30))
    with pytest.raises(InterruptedTraining, match="step 7 of 30") as caught:
        fit(*small(), PLAN, made.append, run=run)
    assert caught.value.exit_code == 130
    model, loss_of = small()  # told so after the last step, it has ended anyway
    assert fit(model, loss_of, PLAN, made.append, run=run) == whole
    assert values(model) == expected


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda plan, run: (plan, replace(run, checkpoint=replace(run.checkpoint, about={}))),
         "seed: 3 there, None here"),
        (lambda plan, run: (replace(plan, learning_rate=0.2), run),
         "learning_rate: 0.1 there, 0.2 here"),
        (lambda plan, run: (plan, replace(run, numbers=replace(FULL, products=torch.bfloat16))),
         "products: None there, torch.bfloat16 here"),
    ],
)  # fmt: skip
def test_a_checkpoint_of_another_training_is_refused_with_the_difference(
    tmp_path: Path, change: Callable[[Plan, Run], tuple[Plan, Run]], told: str
) -> None:
    run = Run(checkpoint=Checkpoint(tmp_path / "x.pt", {"seed": 3}))
    plan = replace(PLAN, steps=1)
    trained(plan, run)
    with pytest.raises(IncompatibleError, match=told):
        trained(*change(plan, run))


def flipped(data: bytes) -> bytes:
    """One bit of a parameter is another."""
    at = data.index(torch.tensor(trained(replace(PLAN, steps=1))[0][0]).numpy().tobytes())
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"no checkpoint", lambda data: data[: len(data) // 2],
     lambda data: data[:-1], flipped],
)  # fmt: skip
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    run, plan = Run(checkpoint=Checkpoint(tmp_path / "x.pt")), replace(PLAN, steps=1)
    trained(plan, run)
    path = tmp_path / "x.pt"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidContentError, match=r"x\.pt: .*read") as caught:
        trained(plan, run)
    assert caught.value.exit_code == 4
