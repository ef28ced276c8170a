"""Rounding to the number format of a file: what of its error can be avoided, and what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

from lcm_arith.elementwise import generator

_PROBES: Final = 16
# float16 loses digits below 2^-14: of factors whose largest number is below this, of many numbers.
_LEAST: Final = 2.0**-10
_MOST: Final = torch.finfo(torch.float16).max


def balanced(down: Tensor, up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors of the same product that float16 can hold: a power of two moved between them.

    They are returned as they are where they fit, and in other number formats, which have a wider
    range. Both get about the same largest number.
    """
    low, high = sorted(largest := [float(factor.abs().max()) for factor in (down, up)])
    if dtype != torch.float16 or low >= _LEAST <= high <= _MOST or not 0 < low <= high < math.inf:
        return down, up
    move = round(math.log2(largest[0] / largest[1]) / 2)
    return down * 2.0**-move, up * 2.0**move


def lost(
    exact: Mapping[str, Tensor],
    rounded: Mapping[str, Tensor],
    names: tuple[str, str, str | None] | tuple[str],
    module: str,
) -> tuple[float, float]:
    """‖rounded − exact‖² and ‖exact‖² of one module's update.

    Of factors both are means over ``_PROBES`` random inputs, where ‖ΔW x‖² is ‖ΔW‖² on average;
    that costs two thin products.

    Args:
        exact: What is to be written, by names in the file.
        rounded: The same in the file's number format.
        names: Of down and up, and of alpha where there is one; or of a list of numbers.
        module: Seeds the inputs.
    """
    if len(names) == 1:
        before, after = exact[names[0]].double(), rounded[names[0]].double()
        return float((after - before).square().sum()), float(before.square().sum())
    down, up, alpha = names
    scale = 1.0 if alpha is None else float(exact[alpha]) / len(exact[down])
    width = exact[down][0].numel()
    inputs = torch.randn(width, _PROBES, generator=generator(0, module)) * scale
    before, after = (
        of[up].flatten(1).float() @ (of[down].flatten(1).float() @ inputs)
        for of in (exact, rounded)
    )  # [out, _PROBES]
    error, whole = (float(x.double().square().sum()) for x in (after - before, before))
    return error / _PROBES, whole / _PROBES
