"""What a lesson needs, of random numbers: data, loud adapters, and who is called with what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from tiny import WIDTH, WIDTH_2
from torch import Tensor

from lcm_arith.condition import Condition, Model
from lcm_arith.data.drawing import Drawn, TrainingSet
from lcm_arith.training.adapter import parameters_of
from lcm_arith.training.loop import step_generator
from lcm_arith.training.roles import Roles


class Noise(TrainingSet):
    """In a training set's place: random latents and conditions of a tiny pipeline's kind."""

    def __init__(self, kind: str = "sd15") -> None:
        vars(self)["kind"] = kind

    def batch(self, index: int, size: int, seed: int) -> Drawn:
        generator = step_generator(seed + 99, index)
        z0 = torch.randn(size, 4, 8, 8, generator=generator)
        return Drawn(z0, condition(self.kind, size, generator), ("x",) * size)

    def uncond(self, like: Condition) -> Condition:
        own = {name: torch.zeros_like(values) for name, values in like.items()}
        return {**own, **{k: like[k] for k in like.keys() & {"time_ids"}}}


def condition(kind: str, size: int, generator: torch.Generator) -> dict[str, Tensor]:
    """A random one."""
    if kind != "sdxl":
        return {"embeds": torch.randn(size, 5, WIDTH, generator=generator)}
    return {
        "embeds": torch.randn(size, 5, WIDTH + WIDTH_2, generator=generator),
        "pooled": torch.randn(size, WIDTH_2, generator=generator),
        "time_ids": torch.tensor([[1365.0, 2048.0, 0.0, 0.0, 512.0, 768.0]]).expand(size, -1),
    }


@torch.no_grad()
def shake(unet: Any, *names: str) -> None:
    """Makes the factors of adapters random and loud."""
    generator = torch.Generator().manual_seed(7)
    for name in names:
        for factor in parameters_of(unet, name):
            factor.copy_(0.2 * torch.randn(factor.shape, generator=generator))


def spied(roles: Roles, heard: list[tuple[str, int, Tensor]]) -> Roles:
    """The same networks; notes (role, rows, z) of each call."""

    def spy(role: str) -> Model:
        model: Model = getattr(roles, role)

        def call(z: Tensor, t: Tensor, told: Condition) -> Tensor:
            heard.append((role, len(z), z.detach()))
            return model(z, t, told)

        return call

    return replace(roles, student=spy("student"), target=spy("target"), teacher=spy("teacher"))


def dtypes(tensors: Sequence[Tensor]) -> set[torch.dtype]:
    """Which occur."""
    return {each.dtype for each in tensors}
