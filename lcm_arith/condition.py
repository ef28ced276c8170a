"""What a network is told beside z and t."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

Condition = Mapping[str, Tensor]
"""Name → values, one row a picture.

``embeds`` ``[B, tokens, width]``, the prompt embeddings c. For SDXL also ``pooled`` ``[B, width]``
and ``time_ids`` ``[B, 6]``: original height and width, crop top and left, target height and width
in px, float32, for bfloat16 would round sizes above 256. For a student that is told ω ``omega``
``[B]``.
"""

Model = Callable[[Tensor, Tensor, Condition], Tensor]
"""(z ``[B, …]``, t ``[B]``, condition of B rows) → the raw output, shaped as z."""


def time_ids(original: tuple[int, int], crop: tuple[int, int], target: tuple[int, int]) -> Tensor:
    """One row of SDXL's ``time_ids``, ``[1, 6]``; each is height or top first, in px."""
    return torch.tensor([[*original, *crop, *target]], dtype=torch.float32)


def joined(*conditions: Condition) -> Condition:
    """The rows of all, one below the other; they hold the same names."""
    return {name: torch.cat([each[name] for each in conditions]) for name in conditions[0]}


def rows(condition: Condition, index: Tensor) -> Condition:
    """Some rows: ``index`` holds their numbers, or says of each row whether it is kept."""
    return {name: values[index] for name, values in condition.items()}


def chosen(mask: Tensor, condition: Condition, other: Condition) -> Condition:
    """Row by row, the first where ``mask`` ``[B]`` holds, else the other."""

    def pick(one: Tensor, two: Tensor) -> Tensor:
        return torch.where(mask.reshape(-1, *[1] * (one.ndim - 1)), one, two)

    return {name: pick(values, other[name]) for name, values in condition.items()}


def moved(condition: Condition, device: Any) -> Condition:
    """All of it on a device."""
    return {name: values.to(device) for name, values in condition.items()}
