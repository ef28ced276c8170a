"""What the loop needs to train something, and the error that tells how far it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn

from lcm_arith.condition import Model
from lcm_arith.data.drawing import Drawn, TrainingSet
from lcm_arith.lcd.ema import Average
from lcm_arith.training.log import BucketError
from lcm_arith.training.loop import step_generator

BUCKETS: Final = 5  # of timesteps
PROBED: Final = 4  # pictures of each


@dataclass(frozen=True, eq=False)
class Lesson:
    """What is trained, and by which loss.

    Args:
        model: Whose parameters that require gradients are trained.
        loss: Number of a batch → its loss.
        errors: The loss on a fixed batch, by timesteps; the curve that means something.
        shown: The network that sheets are of: what will be written.
        averages: Running ones that the loss needs.
    """

    model: nn.Module
    loss: Callable[[int], Tensor]
    errors: Callable[[], list[BucketError]]
    shown: Model
    averages: tuple[Average, ...] = ()


@torch.no_grad()
def errors_by_timestep(
    data: TrainingSet, times: Tensor, seed: int, loss: Callable[[Drawn, Tensor, Tensor], Tensor]
) -> list[BucketError]:
    """The loss on a few pictures and noises that stay the same, for each range of timesteps.

    Args:
        data: Its first batch is looked at.
        times: Ascending timesteps ``[n]``.
        seed: Of the noise.
        loss: (pictures, an index into ``times`` for each, noise) → scalar.
    """
    found = []
    for places in torch.arange(len(times)).tensor_split(min(BUCKETS, len(times))):
        drawn = data.batch(0, PROBED, seed)
        size, generator = len(drawn.z0), step_generator(seed, -1 - int(places[0]))
        noise = torch.randn(drawn.z0.shape, generator=generator)
        index = places[torch.linspace(0, len(places) - 1, size).round().long()]
        first, last = (int(times[place]) for place in (places[0], places[-1]))
        found.append(BucketError(first, last, float(loss(drawn, index, noise))))
    return found
