"""Does it distil? Eight Gaussians on a circle, whose exact guided teacher is known.

A prompt names four of the eight. The base is a network that was fitted to the exact noise of this
mixture; a LoRA on it is distilled by ``lcm_arith.lcd`` and sampled as LCMScheduler does. Energy
distance to 50 guided DDIM steps, for the teacher and the student at 4 steps, from three seeds.

    python benchmarks/lcd_mixture.py

About four CPU minutes on one core. Writes ``benchmarks/results/lcd_mixture.md``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from _page import Section, page
from torch import Tensor, nn

from lcm_arith.condition import Condition, joined
from lcm_arith.lcd.boundary import consistency
from lcm_arith.lcd.guidance import guided
from lcm_arith.lcd.schedule import BETAS, Grid, Schedule
from lcm_arith.lcd.solver import PREDICTIONS
from lcm_arith.lcd.step import Batch, consistency_loss
from lcm_arith.training.loop import Run, fit, step_generator
from lcm_arith.training.plan import Plan

RESULTS: Final = Path(__file__).resolve().parent / "results"
SCHEDULE: Final = Schedule.from_betas(BETAS["scaled_linear"](0.00085, 0.012, 1000))
GRID: Final = Grid.of(1000, 50, 3)
CENTRES: Final = torch.tensor(
    [(math.cos(k * math.pi / 4), math.sin(k * math.pi / 4)) for k in range(8)]
)  # [8, 2], in units of the latents' deviation
SPREAD, OMEGA, RANK = 0.1, 1.0, 16
WORDS: Final = torch.tensor([[1, 0] * 4, [0, 1] * 4, [1, 1] * 4], dtype=torch.float32)  # last: ∅
EPSILON: Final = PREDICTIONS["epsilon"]
SHOWN, GOAL = 2000, 0.5
BASE: Final = Plan(steps=3000, batch=512, learning_rate=2e-3, ema=0.99)
STUDENT: Final = Plan(steps=2000, batch=256, learning_rate=2e-3, ema=0.99)


def exact_noise(z: Tensor, t: Tensor, words: Tensor) -> Tensor:
    """ε of the mixture of the centres that ``words`` ``[B, 8]`` names, at ``z`` ``[B, 2]``."""
    at = SCHEDULE.at(t, z)
    away = z[:, None] - at.alpha_t[:, None] * CENTRES  # [B, 8, 2]
    variance = (at.alpha_t * SPREAD).square() + at.sigma_t.square()  # [B, 1]
    share = (words.log() - away.square().sum(-1) / (2 * variance)).softmax(-1)  # [B, 8]
    return at.sigma_t * (share[..., None] * away).sum(1) / variance


class Base(nn.Module):
    """A network of three hidden layers that is told z, waves of t, and the words."""

    def __init__(self) -> None:
        super().__init__()
        widths = (2 + 32 + 8, 256, 256, 256, 2)
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.low = nn.ModuleList(nn.Linear(i, RANK, bias=False) for i in widths[:-1])
        self.high = nn.ModuleList(nn.Linear(RANK, o, bias=False) for o in widths[1:])
        for layer in self.high:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]

    def forward(self, z: Tensor, t: Tensor, words: Tensor, *, adapted: bool) -> Tensor:
        """ε, with or without the LoRA."""
        angles = t[:, None] / 1000 * 2.0 ** torch.arange(16) * math.pi / 2  # [B, 16]
        x = torch.cat([z, angles.sin(), angles.cos(), words], 1)
        for layer, low, high in zip(self.layers, self.low, self.high, strict=True):
            x, before = layer(x), x
            x = x + high(low(before)) if adapted else x
            x = nn.functional.silu(x) if layer is not self.layers[-1] else x
        return x


def call(base: Base, adapted: bool, z: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """The network as ``lcm_arith.lcd`` calls one."""
    out: Tensor = base(z, t, condition["embeds"], adapted=adapted)
    return out


def drawn(seed: int, number: int, size: int) -> tuple[torch.Generator, Tensor, Tensor]:
    """Random numbers, z_0 and the words it was drawn for."""
    generator = step_generator(seed, number)
    words = WORDS[torch.randint(2, (size,), generator=generator)]
    which = torch.multinomial(words, 1, generator=generator)[:, 0]
    return generator, CENTRES[which] + SPREAD * torch.randn(size, 2, generator=generator), words


def fitted(seed: int) -> Base:
    """A base that answers as the exact one, for prompts and ∅."""
    torch.manual_seed(seed)
    base = Base()
    for layer in (*base.low, *base.high):
        layer.requires_grad_(False)

    def loss(number: int) -> Tensor:
        generator, z0, words = drawn(seed, number, BASE.batch)
        words = torch.where(torch.rand(BASE.batch, 1, generator=generator) < 0.3, WORDS[2], words)
        t = torch.randint(1000, (BASE.batch,), generator=generator)
        z = SCHEDULE.add_noise(z0, torch.randn(z0.shape, generator=generator), t)
        error: Tensor = base(z, t, words, adapted=False) - exact_noise(z, t, words)
        return error.square().mean()

    fit(base, loss, BASE, lambda _: None, run=Run())
    return base


def distilled(base: Base, seed: int) -> None:
    """Trains the LoRA of ``base``."""
    for layer in base.layers:
        layer.requires_grad_(False)
    for layer in (*base.low, *base.high):
        layer.requires_grad_(True)
    student, teacher = (partial(call, base, on) for on in (True, False))

    def loss(number: int) -> Tensor:
        generator, z0, words = drawn(seed + 100, number, STUDENT.batch)
        noise = torch.randn(z0.shape, generator=generator)
        index = torch.randint(len(GRID), (STUDENT.batch,), generator=generator)
        empty = {"embeds": WORDS[2].expand_as(words)}
        batch = Batch(z0, noise, index, {"embeds": words}, empty)
        return consistency_loss(
            student, teacher, batch, schedule=SCHEDULE, grid=GRID, omega=OMEGA, target=student
        )

    fit(base, loss, STUDENT, lambda _: None, run=Run())


@torch.no_grad()
def ddim(network: Callable[..., Tensor], steps: int, z: Tensor, words: Tensor) -> Tensor:
    """Guided DDIM in ``steps`` steps from pure noise."""
    times = [1000 - 1 - round(k * 1000 / steps) for k in range(steps)]
    both = joined({"embeds": words}, {"embeds": WORDS[2].expand_as(words)})
    for t, s in zip(times, [*times[1:], 0], strict=True):
        start, end = (SCHEDULE.at(torch.full((len(z),), x), z) for x in (t, s))
        out, empty = network(z.repeat(2, 1), start.t.repeat(2), both).chunk(2)
        out = guided(out, empty, OMEGA)
        z = end.alpha_t * EPSILON.x0(out, z, start) + end.sigma_t * out
    return z


@torch.no_grad()
def lcm(network: Callable[..., Tensor], steps: int, z: Tensor, words: Tensor) -> Tensor:
    """Algorithm 3 of arXiv:2310.04378: to z_0 at once, noised again, ``steps`` times."""
    times = GRID.start.flip(0)[:: len(GRID) // steps][:steps]
    generator = torch.Generator().manual_seed(7)
    for place, t in enumerate(times):
        at = SCHEDULE.at(t.expand(len(z)), z)
        z0 = consistency(EPSILON.x0(network(z, at.t, {"embeds": words}), z, at), z, at.t)
        if place == steps - 1:
            return z0
        noise = torch.randn(z.shape, generator=generator)
        z = SCHEDULE.add_noise(z0, noise, times[place + 1].expand(len(z)))
    return z


def energy_distance(one: Tensor, other: Tensor) -> float:
    """2 E|X − Y| − E|X − X'| − E|Y − Y'|, unbiased (Székely and Rizzo 2013)."""

    def within(x: Tensor) -> Tensor:
        return torch.cdist(x, x).sum() / (len(x) * (len(x) - 1))

    return float(2 * torch.cdist(one, other).mean() - within(one) - within(other))


def row(seed: int, section: Section) -> tuple[str, ...]:
    """The figures of one seed."""
    base = fitted(seed)
    distilled(base, seed)
    words = WORDS[torch.arange(SHOWN) % 2]
    generator = torch.Generator().manual_seed(1000 + seed)
    z, other = torch.randn(2, SHOWN, 2, generator=generator)
    student, teacher = (partial(call, base, on) for on in (True, False))
    wanted = ddim(teacher, 50, other, words)
    found = {
        "teacher, 50 steps again": ddim(teacher, 50, z, words),
        "teacher, 4 steps": ddim(teacher, 4, z, words),
        "student, 4 steps": lcm(student, 4, z, words),
        "student, 1 step": lcm(student, 1, z, words),
    }
    far: dict[str, float] = {}
    for name, points in found.items():
        halves = [energy_distance(points[k::2], wanted[k::2]) for k in (0, 1)]  # of each prompt
        far[name] = sum(halves) / 2
    share = far["student, 4 steps"] / far["teacher, 4 steps"]
    figures: list[Any] = [f"{value:.4f}" for value in far.values()]
    return (str(seed), *figures, section.held(share, GOAL, f"seed {seed}"))


def main() -> None:
    torch.set_num_threads(1)
    begun = time.process_time()
    section = Section(
        "Four steps",
        f"Energy distance to 50 guided DDIM steps (ω = {OMEGA:g}) of the base, mean of two "
        f"prompts, {SHOWN // 2} points each. LoRA of rank {RANK} on all layers, {STUDENT.steps} "
        f"steps of {STUDENT.batch}. Goal: the student's share of the 4-step teacher's distance is "
        f"at most {GOAL:g}.",
        (
            "seed", "teacher, 50 steps again", "teacher, 4 steps", "student, 4 steps",
            "student, 1 step", "share",
        ),
    )  # fmt: skip
    section.rows.extend(row(seed, section) for seed in (1, 2, 3))
    made = page(
        "Eight Gaussians, four steps", "lcd_mixture.py", [section], time.process_time() - begun
    )
    (RESULTS / "lcd_mixture.md").write_text(made, encoding="utf-8")
    print(made)


if __name__ == "__main__":
    main()
