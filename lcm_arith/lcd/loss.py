"""The distance d between two consistency predictions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

HUBER_C: Final = 1e-3


def pseudo_huber(prediction: Tensor, target: Tensor, c: float = HUBER_C) -> Tensor:
    """Mean of √(d² + c²) − c over all elements, float32 or wider."""
    return (_difference(prediction, target).square() + c**2).sqrt().sub(c).mean()


def squared(prediction: Tensor, target: Tensor) -> Tensor:
    """Mean of d² over all elements, float32 or wider."""
    return _difference(prediction, target).square().mean()


def _difference(prediction: Tensor, target: Tensor) -> Tensor:
    wide = torch.promote_types(prediction.dtype, torch.float32)
    return prediction.to(wide) - target.to(wide)


LOSSES: Final[dict[str, Callable[[Tensor, Tensor], Tensor]]] = {
    "huber": pseudo_huber,
    "l2": squared,
}
"""Name → d(prediction, target), a scalar."""
