"""Grids whose best cell is known, for searches: a landscape over λ1 × λ2 × steps, and noise.

The best cell is λ1 0.8, λ2 1.0, 4 steps. Noise is that of ``simulated.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from simulated import PROMPTS, SEEDS, pictures

from lcm_arith.evaluation.statistics.search import Instance, Problem, blocks

L1: Final = tuple(n / 5 for n in range(7))
L2: Final = tuple(n / 5 for n in range(2, 8))
LOSS: Final = {1: 0.6, 2: 0.2, 4: 0.0}
"""What fewer steps cost, in standard deviations of a picture."""
METHODS: Final = {"linear": 0.0, "ties": 0.3, "orthogonal": 0.15}


@dataclass(frozen=True)
class Landscape:
    """True means of cells, in standard deviations of a picture; 0 is the best.

    Args:
        name: What it is like.
        loss: Of a cell that is so far from the best λ1 and λ2, in half widths of the grid, and has
            so many steps.
        methods: Names of a third axis that has no order.
        heavy: Noise with heavy tails.
        tastes: How far each prompt's own best λ1 and λ2 are from the common ones, likewise.
    """

    name: str
    loss: Callable[[float, float, int], float]
    methods: tuple[str, ...] = ("linear",)
    heavy: bool = False
    tastes: float = 0.0

    @property
    def points(self) -> list[tuple[Any, ...]]:
        """λ1, λ2, steps, method of each cell."""
        return [
            (a, b, steps, method)
            for method in self.methods for a in L1 for b in L2 for steps in LOSS
        ]  # fmt: skip

    @property
    def truth(self) -> np.ndarray:
        """``[cells]``."""
        return np.array(
            [
                -self.loss((a - 0.8) / 0.6, (b - 1) / 0.5, steps) - METHODS[method]
                for a, b, steps, method in self.points
            ]
        )

    def values(self, seed: int) -> np.ndarray:
        """A measured grid, ``[cells, prompts, seeds]``; of other noise for each seed."""
        noise = pictures(seed, len(self.points), heavy=self.heavy)
        places = np.array([((a - 0.8) / 0.6, (b - 1) / 0.5) for a, b, *_ in self.points])
        slopes = np.random.default_rng((seed, 1)).normal(size=(2, PROMPTS)) * self.tastes
        return np.asarray(noise + self.truth[:, None, None] + (places @ slopes)[:, :, None])


def _peak(x: float, y: float, steps: int) -> float:
    return x**2 + y**2 + LOSS[steps]


def _ridge(x: float, y: float, steps: int) -> float:
    return 2 * (x + y) ** 2 + (x - y) ** 2 / 4 + LOSS[steps]


SMOOTH: Final = Landscape("one peak", _peak)
HEAVY: Final = Landscape("one peak, heavy tails", _peak, heavy=True)
TASTES: Final = Landscape("one peak, other weights for each prompt", _peak, tastes=1.0)
CHOICE: Final = Landscape("one peak, three methods", _peak, methods=tuple(METHODS))
RIDGE: Final = Landscape("a ridge: λ1 + λ2 matters", _ridge)
FLAT: Final = Landscape("no peak", lambda x, y, steps: 0.0)


def problem(
    landscape: Landscape, values: np.ndarray, asked: list[tuple[int, Instance]] | None = None
) -> Problem:
    """A search over measured values; ``asked`` is told which cells and instances it looks at."""

    def measure(cell: int, block: tuple[Instance, ...]) -> np.ndarray:
        if asked is not None:
            asked.extend((cell, instance) for instance in block)
        return np.array([values[cell][instance] for instance in block])

    nfe = [steps for _, _, steps, _ in landscape.points]
    return Problem(landscape.points, blocks(PROMPTS, SEEDS), nfe, measure, "high")


def rows(landscape: Landscape) -> int:
    """UNet rows of the whole grid."""
    return PROMPTS * SEEDS * sum(int(steps) for _, _, steps, _ in landscape.points)


def random_search(
    landscape: Landscape, values: np.ndarray, budget: int, seed: int
) -> tuple[tuple[int, ...], int]:
    """As many whole cells as the budget allows, drawn at random, and the UNet rows they took."""
    tried, spent = [], 0
    for cell in np.random.default_rng((seed, 2)).permutation(len(values)):
        cost = landscape.points[cell][2] * PROMPTS * SEEDS
        if spent + cost <= budget:
            spent += cost
            tried.append(int(cell))
    return tuple(tried), spent
