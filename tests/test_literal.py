"""A production step, from its data to its gradients, against Algorithm 1 with networks apart."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from literal import algorithm_1
from peft import LoraConfig
from tiny import pipeline
from torch import Tensor

from lcm_arith.data.drawing import Row, TrainingSet
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.targets import LCM_TARGETS
from lcm_arith.training.adapter import TARGET, TRAINED, parameters_of
from lcm_arith.training.distillation import Distillation, distillation
from lcm_arith.training.loop import step_generator
from lcm_arith.training.numbers import Numbers
from lcm_arith.training.plan import Training
from lcm_arith.training.roles import on_one_base

PLAN = Training(steps=1, batch=3, learning_rate=1e-3, rank=4, alpha=6)
SEED = 5


def tiny_data(dtype: torch.dtype) -> TrainingSet:
    random = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).to(dtype)

    captions = [f"caption {n}" for n in range(PLAN.batch)]
    rows = tuple(Row(c, (64, 64), (c,), (), (c,)) for c in captions)
    store: Any = {f"{c}.z0": drawn(4, 8, 8) for c in captions}
    store |= {f"{c}.embeds": drawn(77, 16) for c in [*captions, ""]}
    return TrainingSet(rows, {c: c for c in captions}, "", store, "sd", {})


def network_apart(unet: Any, factors: list[Tensor]) -> tuple[Any, list[Tensor]]:
    """A network of its own with a plain PEFT adapter of these values, and its parameters."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=PLAN.rank, lora_alpha=6, target_modules=list(LCM_TARGETS)))
    unet.to(factors[0].dtype)
    trained = [p for p in unet.parameters() if p.requires_grad]
    with torch.no_grad():
        for own, value in zip(trained, factors, strict=True):
            own.copy_(value)
    return unet, trained


def shaken(factors: Sequence[Tensor], seed: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        return [p.copy_(torch.randn(p.shape, generator=random) / 10) for p in factors]


@pytest.mark.parametrize(
    ("dtype", "decay", "tolerance"),
    [(torch.float64, 0.0, 1e-10), (torch.float64, 0.95, 1e-10), (torch.float32, 0.0, 1e-5)],
)
def test_a_production_step_is_algorithm_1(
    dtype: torch.dtype, decay: float, tolerance: float
) -> None:
    """Loss and gradients, layers run once or twice. An operation errs by 1e-16, or 1e-7 in float32;
    l2, for Huber bends within 1e-3 of zero, where float32's 1e-6 in f would be a thousandth."""
    pipe = pipeline("sd15")
    unet, others = pipe.unet, [copy.deepcopy(pipe.unet) for _ in range(3)]
    schedule = Schedule.of_scheduler(pipe.scheduler)
    roles = on_one_base(
        unet, PLAN, Numbers(dtype, None), targets=LCM_TARGETS, seed=1, decay=decay
    )  # fmt: skip
    unet.to(dtype)  # the factors, too, which training keeps in float32
    student, trained = network_apart(others[0], shaken(parameters_of(unet, TRAINED), 2))
    target = None
    if decay:
        target, _ = network_apart(others[1], shaken(parameters_of(unet, TARGET), 3))
    data = tiny_data(dtype)
    how = Distillation(omega=(3.0, 7.5), loss="l2", target_decay=decay)
    lesson = distillation(
        roles, data, PLAN, how, schedule=schedule, prediction="epsilon", seed=SEED,
        device=torch.device("cpu"),
    )  # fmt: skip

    drawn, random, grid = data.batch(0, PLAN.batch, SEED), step_generator(SEED, 0), how.grid(1000)
    noise = torch.randn(drawn.z0.shape, generator=random)
    index = torch.randint(len(grid.start), (PLAN.batch,), generator=random)
    omega = 3.0 + 4.5 * torch.rand(PLAN.batch, generator=random)
    literal = algorithm_1(
        student, others[2].to(dtype), tables=(schedule.alpha_t, schedule.sigma_t),
        prediction="epsilon", z0=drawn.z0, noise=noise.to(dtype),
        ends=(grid.start[index], grid.end[index]),
        prompts=(drawn.cond["embeds"], data.uncond(drawn.cond)["embeds"]), omega=omega, loss="l2",
        target=target,
    )  # fmt: skip
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(literal, trained)])
    for checkpointing in (False, True):
        if checkpointing:
            unet.enable_gradient_checkpointing()
        unet.train().zero_grad()
        loss = lesson.loss(0)
        loss.backward()
        assert float(loss.detach()) == pytest.approx(float(literal.detach()), rel=tolerance)
        gradients = [p.grad for p in parameters_of(unet) if p.grad is not None]
        ours = torch.cat([g.flatten() for g in gradients])
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())
