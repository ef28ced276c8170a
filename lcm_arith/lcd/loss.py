"""The distance d between two consistency predictions."""

from __future__ import annotations

from typing import Final

from torch import Tensor

HUBER_C: Final = 1e-3


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """Mean of √(d² + c²) − c over all elements; computed in the inputs' precision."""
    return ((prediction - target).square() + c**2).sqrt().sub(c).mean()
