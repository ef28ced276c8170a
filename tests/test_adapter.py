"""LoRA on one resident base: the same numbers as PEFT's and as weights that are added by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import tiny
import torch
from lessons import Noise, condition, dtypes, shake, spied
from support import random_vector
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

from lcm_arith.errors import IncompatibleError
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.targets import LCM_TARGETS
from lcm_arith.training.adapter import (
    ACCEL,
    TARGET,
    TRAINED,
    adapted,
    adapter_layers,
    adapter_off,
    adapter_vector,
    add_adapter,
    add_frozen,
    explicit_attention,
    parameters_of,
)
from lcm_arith.training.distillation import Distillation, distillation
from lcm_arith.training.loop import Run, fit, step_generator
from lcm_arith.training.numbers import numbers
from lcm_arith.training.plan import Training
from lcm_arith.training.roles import Roles, on_one_base
from lcm_arith.vector import TaskVector

CPU = torch.device("cpu")
SOME = ("to_q", "conv1", "proj_in", "linear_1")
PLAN = Training(rank=3, alpha=5.0, steps=1, batch=2, learning_rate=1e-3)


def unet_of() -> Any:
    unet = tiny.pipeline("sd15").unet
    explicit_attention(unet)  # as trainings have it: bits of the base are compared
    return unet


def inputs() -> tuple[tuple[Tensor, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 4, 8, 8, generator=generator)
    told = condition("sd15", 2, generator)
    return (z, torch.tensor([10, 900])), {"encoder_hidden_states": told["embeds"]}


def shapes_of(unet: Any, endings: Sequence[str]) -> dict[str, tuple[int, ...]]:
    return {
        f"unet.{name}": tuple(layer.weight.shape)
        for name, layer in unet.named_modules()
        if name.endswith(tuple(endings)) and hasattr(layer, "weight")
    }


def out_and_gradients(unet: Any, call: Callable[..., Any]) -> tuple[Tensor, dict[str, Tensor]]:
    arguments, options = inputs()
    out = call(*arguments, **options).sample
    out.square().mean().backward()
    found = {n: p.grad.clone() for n, p in unet.named_parameters() if p.grad is not None}
    unet.zero_grad(set_to_none=True)
    return out.detach(), found


@torch.no_grad()
def with_added(unet: Any, updates: Sequence[tuple[float, TaskVector]]) -> Any:
    """A copy of a plain UNet with Σ λ · τ in its weights."""
    added = copy.deepcopy(unet)
    for weight, tau in updates:
        for module in tau:
            layer = added.get_submodule(module.removeprefix("unet."))
            layer.weight += weight * tau[module].dense()
    return added


# --- what a pass computes ---------------------------------------------------------------------


def test_merged_weights_give_pefts_outputs_and_gradients() -> None:
    unet = unet_of()
    add_adapter(unet, rank=3, alpha=5.0, targets=SOME, seed=0)
    shake(unet, TRAINED)
    (out, gradients), (merged, merged_gradients) = (
        out_and_gradients(unet, call) for call in (unet, adapted(unet))
    )
    # float32 sums in another order, over about 20 layers
    torch.testing.assert_close(merged, out, rtol=1e-4, atol=1e-4)
    assert len(gradients) == 2 * len(adapter_layers(unet)) == len(merged_gradients)
    for name, gradient in gradients.items():
        torch.testing.assert_close(merged_gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["merged", "peft"])
def test_a_vector_in_place_and_a_lora_add_to_the_base_and_off_is_the_base(
    checkpointing: bool,
) -> None:
    plain = unet_of()
    arguments, options = inputs()
    base = plain(*arguments, **options).sample.detach()
    accel = random_vector(2, 3.0, seed=5, modules=shapes_of(plain, ("to_k", "conv1", "conv_in")))
    unet = copy.deepcopy(plain)
    add_adapter(unet, rank=3, alpha=5.0, targets=SOME, seed=0)
    shake(unet, TRAINED)
    add_frozen(unet, accel, weight=0.7)
    lora = adapter_vector({"unet": unet}, {})
    assert {lora[module].scale for module in lora} == {5 / 3}
    if checkpointing:
        unet.train().enable_gradient_checkpointing()
    out, gradients = out_and_gradients(unet, adapted(unet, (ACCEL, TRAINED)))
    want = with_added(plain, ((0.7, accel), (1.0, lora)))(*arguments, **options).sample
    torch.testing.assert_close(out, want, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base, want, atol=1e-2)
    assert len(gradients) == 2 * len(lora)
    assert all(f".{TRAINED}." in name for name in gradients)
    with adapter_off(unet), torch.no_grad():
        assert torch.equal(unet(*arguments, **options).sample, base)
    assert torch.equal(adapted(unet, ())(*arguments, **options).sample.detach(), base)
    alone = adapted(unet, (ACCEL,))(*arguments, **options).sample
    want = with_added(plain, ((0.7, accel),))(*arguments, **options).sample
    torch.testing.assert_close(alone, want, rtol=1e-4, atol=1e-4)


def test_gradients_are_the_same_where_activations_are_computed_twice() -> None:
    unet = unet_of().train()
    add_adapter(unet, rank=3, alpha=5.0, targets=LCM_TARGETS, seed=0)
    add_frozen(unet, random_vector(2, 3.0, 5, shapes_of(unet, ("attn2.to_out.0",))), weight=1.0)
    shake(unet, TRAINED)
    out, kept = out_and_gradients(unet, adapted(unet, (ACCEL, TRAINED)))
    unet.enable_gradient_checkpointing()
    again, twice = out_and_gradients(unet, adapted(unet, (ACCEL, TRAINED)))
    torch.testing.assert_close(again, out, rtol=1e-4, atol=1e-4)
    assert kept.keys() == twice.keys()
    for name, gradient in kept.items():
        torch.testing.assert_close(twice[name], gradient, rtol=1e-3, atol=1e-5)


def test_a_vector_that_does_not_fit_is_not_put_in_place() -> None:
    unet = unet_of()
    add_adapter(unet, rank=1, targets=SOME, seed=0)
    other = random_vector(2, 2.0, 0, {"unet.conv_in": (8, 4, 3, 3), "unet.conv_out": (4, 9, 3, 3)})
    with pytest.raises(IncompatibleError, match=r"1 of 2 modules .* unet\.conv_out for one"):
        add_frozen(unet, other, weight=1.0)


# --- the start and the average ----------------------------------------------------------------


def test_a_training_goes_on_from_a_vector_with_room_for_more() -> None:
    unet = unet_of()
    start = random_vector(2, 3.0, seed=1, modules=shapes_of(unet, SOME))
    add_adapter(unet, rank=5, alpha=7.0, targets=SOME, seed=0, start=start)
    begun = adapter_vector({"unet": unet}, {})
    assert begun.modules == start.modules
    for module in start:  # the new directions add nothing yet; a product more in float32
        want = start[module].dense()
        assert begun[module].rank == 5
        assert begun[module].scale == 7 / 5
        assert float((begun[module].dense() - want).norm()) <= 1e-6 * float(want.norm())
        assert float(begun[module].down[-3:].abs().min()) > 0


@pytest.mark.parametrize(
    ("endings", "rank", "told"),
    [(SOME, 1, "rank 2"), (SOME[1:], 4, "lacks"), ((*SOME, "to_k"), 4, "has beside")],
)
def test_a_vector_that_a_training_cannot_go_on_from_is_refused(
    endings: Sequence[str], rank: int, told: str
) -> None:
    unet = unet_of()
    start = random_vector(2, 2.0, 0, shapes_of(unet, endings))
    with pytest.raises(IncompatibleError, match=told):
        add_adapter(unet, rank=rank, targets=SOME, seed=0, start=start)


def one_base(unet: Any, precision: str = "fp32", **more: Any) -> Roles:
    return on_one_base(unet, PLAN, numbers(precision, CPU), targets=LCM_TARGETS, seed=0, **more)


def lesson_of(roles: Roles, how: Distillation | None = None) -> Any:
    return distillation(
        roles, Noise(), PLAN, how or Distillation(omega=7.5), schedule=SCHEDULE,
        prediction="epsilon", seed=0, device=CPU,
    )  # fmt: skip


SCHEDULE = Schedule.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square())


def test_the_target_is_the_average_of_the_loras_that_were() -> None:
    unet = unet_of()
    roles = one_base(unet, decay=0.8)
    followed = [p.detach().clone() for p in parameters_of(unet)]
    assert all(
        torch.equal(a, b) for a, b in zip(followed, parameters_of(unet, TARGET), strict=True)
    )

    def follow(_: Any) -> None:
        for mean, p in zip(followed, parameters_of(unet), strict=True):
            mean.mul_(0.8).add_(0.2 * p.detach())

    lesson = lesson_of(roles, Distillation(omega=7.5, target_decay=0.8))
    plan = Training(rank=3, steps=3, batch=2, learning_rate=1e-2, rate="constant")
    fit(lesson.model, lesson.loss, plan, follow, run=Run(averages=lesson.averages))
    for mean, own, p in zip(
        followed, parameters_of(unet, TARGET), parameters_of(unet), strict=True
    ):
        torch.testing.assert_close(own, mean, rtol=1e-5, atol=1e-7)
        assert not torch.equal(own, p)
        assert not own.requires_grad
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([9, 99])
    told = condition("sd15", 2, generator)
    with torch.no_grad():  # the target's passes take it
        target = roles.target(z, t, told)
        for p, mean in zip(parameters_of(unet), followed, strict=True):
            p.copy_(mean)
        torch.testing.assert_close(target, roles.student(z, t, told), rtol=1e-4, atol=1e-5)


# --- number formats ---------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_what_is_trained_is_float32_and_z_t_is_exact_on_a_base_of_half_precision(
    precision: str,
) -> None:
    unet = unet_of()
    heard: list[tuple[str, int, Tensor]] = []
    roles = one_base(unet, precision, decay=0.9)
    formats = numbers(precision, CPU)
    lesson = lesson_of(spied(roles, heard))
    plain = [p for n, p in unet.named_parameters() if "lora_" not in n]
    assert dtypes(plain) == {formats.weights} != {torch.float32}
    made: list[torch.optim.Optimizer] = []
    hook = register_optimizer_step_post_hook(lambda o, *_: made.append(o))
    try:
        outcome = fit(lesson.model, lesson.loss, PLAN, lambda _: None, run=Run(numbers=formats))
    finally:
        hook.remove()
    assert outcome.skipped == 0
    factors = [*parameters_of(unet), *parameters_of(unet, TARGET)]
    assert dtypes(factors) == {torch.float32}
    moments = [v for s in made[0].state.values() for k, v in s.items() if k != "step"]
    assert len(moments) == 2 * len(parameters_of(unet))
    assert dtypes(moments) == {torch.float32}
    drawn, generator = Noise().batch(0, 2, 0), step_generator(0, 0)
    noise = torch.randn(drawn.z0.shape, generator=generator)
    index = torch.randint(50, (2,), generator=generator)
    t = 20 * (index + 1) - 1
    a, s = (x[t].reshape(-1, 1, 1, 1) for x in (SCHEDULE.alpha_t, SCHEDULE.sigma_t))
    (z,) = (z for role, _, z in heard if role == "student")
    assert z.dtype == torch.float32
    torch.testing.assert_close(z.double(), a * drawn.z0 + s * noise, rtol=0, atol=1e-6)
