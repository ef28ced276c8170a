"""How long, how fast and by which rule something is trained."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from lcm_arith.errors import UsageError

RATES: Final[dict[str, Callable[[float], float]]] = {
    "hold": lambda done: min(1.0, 2 * (1 - done)),
    "constant": lambda done: 1.0,
    "linear": lambda done: 1 - done,
    "cosine": lambda done: (1 + math.cos(math.pi * done)) / 2,
}
"""Share of the steps that are done → factor of the learning rate; hold falls over the last half."""

OPTIMIZERS: Final = ("adamw", "adamw8bit")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and how fast something is trained.

    Args:
        steps: Optimizer steps.
        batch: Pictures of one forward pass.
        accumulation: Batches a step; their gradients are averaged.
        learning_rate: Peak of AdamW's.
        rate: Name of its course after the warm-up, see :data:`RATES`.
        warmup: Share of the steps over which it rises.
        weight_decay: AdamW's.
        optimizer: A name of :data:`OPTIMIZERS`.
        max_grad_norm: Gradients are clipped to it.
        max_nonfinite: So many steps in a row that are not finite end the training.
        ema: Decay of the running average of the parameters that is kept in the end; 0 keeps the
            last parameters.

    Raises:
        UsageError: If a value is impossible.
    """

    steps: int
    batch: int
    learning_rate: float
    accumulation: int = 1
    rate: str = "hold"
    warmup: float = 0.05
    weight_decay: float = 0.0
    optimizer: str = "adamw"
    max_grad_norm: float = 1.0
    max_nonfinite: int = 5
    ema: float = 0.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulation", "max_nonfinite"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: at least 1")
        for name in ("learning_rate", "max_grad_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UsageError(
                    f"{name.replace('_', ' ')} {getattr(self, name):g}: a number above 0"
                )
        for name in ("ema", "warmup"):
            if not 0 <= getattr(self, name) < 1:
                raise UsageError(f"{name} {getattr(self, name)}: at least 0 and below 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise UsageError(f"weight decay {self.weight_decay:g}: a number of 0 or more")
        for name, known in (("rate", tuple(RATES)), ("optimizer", OPTIMIZERS)):
            if getattr(self, name) not in known:
                raise UsageError(f"{name} {getattr(self, name)!r}: one of {', '.join(known)}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        warm = max(1, int(self.steps * self.warmup))
        return self.learning_rate * min((step + 1) / warm, RATES[self.rate](step / self.steps))


@dataclass(frozen=True, kw_only=True)
class Training(Plan):
    """What one kind of training a vector uses where the user does not say.

    Args:
        rank: Rank of the adapter.
        alpha: ΔW = alpha / rank · BA while training; None is the rank. The file says it.
        targets: Layers that it adapts, as :func:`lcm_arith.targets.resolve` takes them.

    Raises:
        UsageError: If the rank is below 1 or alpha not above 0, or as :class:`Plan`.
    """

    rank: int
    alpha: float | None = None
    targets: str = "lcm"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank < 1:
            raise UsageError(f"rank {self.rank}: at least 1")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UsageError(f"alpha {self.alpha:g}: a number above 0")

    @property
    def scale(self) -> float:
        """Alpha over rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
