"""Who is student θ, target θ⁻ and teacher: adapters on one base, or three networks."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from lcm_arith.condition import Condition, Model
from lcm_arith.lcd.ema import Average
from lcm_arith.network import network
from lcm_arith.training.adapter import (
    ACCEL,
    TARGET,
    TRAINED,
    adapted,
    add_adapter,
    add_average,
    add_frozen,
    parameters_of,
    set_adapters,
)
from lcm_arith.training.numbers import Numbers
from lcm_arith.training.plan import Training
from lcm_arith.vector import TaskVector

OMEGA_WIDTH: Final = 256  # of the embedding of ω, as LCM's own models have it


@dataclass(frozen=True, eq=False)
class Roles:
    """The networks of Algorithm 1.

    Args:
        trained: Module whose trainable parameters are θ.
        student, target, teacher: As the loss calls them.
        written: The network that a model is written of; None where a vector is.
        average: Keeps θ⁻ ← μθ⁻ + (1 − μ)θ; None where the target is the student itself.
        told_omega: Whether student and target are told ω.
    """

    trained: nn.Module
    student: Model
    target: Model
    teacher: Model
    average: Average | None = None
    written: Any = None
    told_omega: bool = False


def with_adapters(unet: Any, names: Sequence[str], numbers: Numbers) -> Model:
    """The network with these adapters on; with none it is the frozen base. It is not told ω."""
    model = in_numbers(adapted(unet, names), numbers, unet.device)

    def untold(z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return model(z, t, {k: values for k, values in condition.items() if k != "omega"})

    return untold


def in_numbers(unet: Any, numbers: Numbers, device: torch.device) -> Model:
    """A UNet, or what is called like one, that computes in ``numbers``."""
    run = network(unet)

    def model(z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        if numbers.products is not None:
            z, condition = z.to(numbers.weights), _narrowed(condition, numbers.weights)
        with numbers.autocast(device):
            return run(z, t, condition)

    return model


def _narrowed(condition: Condition, dtype: torch.dtype) -> Condition:
    """Embeddings in the weights' format; sizes and ω stay exact."""
    exact = ("time_ids", "omega")
    return {k: values if k in exact else values.to(dtype) for k, values in condition.items()}


def on_one_base(
    unet: Any,
    plan: Training,
    numbers: Numbers,
    *,
    targets: Sequence[str],
    seed: int,
    device: torch.device | None = None,
    decay: float = 0.0,
    start: TaskVector | None = None,
    accel: TaskVector | None = None,
) -> Roles:
    """A LoRA student on the base that is its teacher.

    Args:
        unet: The base's, resident once.
        plan: Rank and alpha of the LoRA.
        numbers: The base's format is set to them.
        targets: The layers that get one.
        seed: Of the LoRA's start.
        device: Where the base is put; None is where it is.
        decay: μ of a target that averages the LoRA; 0 is the student itself, without gradients.
        start: What the LoRA is in the beginning.
        accel: Stays in place under student and target, never under the teacher.
    """
    unet.to(numbers.weights)
    unet.to(device or unet.device)
    add_adapter(unet, rank=plan.rank, alpha=plan.alpha, targets=targets, seed=seed, start=start)
    below: tuple[str, ...] = ()
    if accel is not None:
        add_frozen(unet, accel, weight=1.0)
        below = (ACCEL,)
    average, target = None, TRAINED
    if decay:
        add_average(unet, rank=plan.rank, alpha=plan.alpha, targets=targets)
        own, its = (parameters_of(unet, name) for name in (TARGET, TRAINED))
        average, target = Average(own, its, decay), TARGET
    set_adapters(unet, (*below, TRAINED))
    student, averaged, teacher = (
        with_adapters(unet, names, numbers) for names in ((*below, TRAINED), (*below, target), ())
    )
    return Roles(unet, student, averaged, teacher, average)


def three_networks(
    unet: Any, numbers: Numbers, *, decay: float, device: torch.device | None = None
) -> Roles:
    """Full-weight distillation: the student is a copy that is told ω, and the target its average.

    The embedding of ω begins at zero, so that student and teacher agree at first.

    Args:
        unet: The base's, which becomes the teacher in ``numbers``.
        numbers: Of the teacher's weights and everybody's products; θ is float32.
        decay: μ.
        device: Where all are put; None is where the base is.
    """
    device = device or unet.device
    own = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    # with its "_use_default_values" diffusers would overlook a width that the file did not name
    student = type(unet).from_config({**own, "time_cond_proj_dim": OMEGA_WIDTH})
    missing, alien = student.load_state_dict(unet.state_dict(), strict=False)
    assert missing == ["time_embedding.cond_proj.weight"]
    assert not alien
    nn.init.zeros_(student.time_embedding.cond_proj.weight)
    student.to(device, torch.float32).requires_grad_(True)
    if unet.is_gradient_checkpointing:
        student.enable_gradient_checkpointing()
    target = copy.deepcopy(student).requires_grad_(False).eval()
    unet.to(device, numbers.weights).requires_grad_(False).eval()
    if unet._compiled_call_impl is not None:
        student.compile()
        target.compile()
    average = Average.of_modules(target, student, decay)
    wide = Numbers(torch.float32, numbers.products, numbers.scaled)
    pairs = ((student, wide), (target, wide), (unet, numbers))
    told, averaged, teacher = (in_numbers(each, own, unet.device) for each, own in pairs)
    return Roles(student, told, averaged, teacher, average=average, written=target, told_omega=True)
