"""Rounding to the number format of a file: what of its error can be avoided, and what is left."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor

_SAMPLE: Final = 64
# float16 loses digits below 2^-14: of factors whose largest number is below this, of many numbers.
_LEAST: Final = 2.0**-10
_MOST: Final = torch.finfo(torch.float16).max


def balanced(down: Tensor, up: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Factors of the same product that float16 can hold: a power of two moved between them.

    They are returned as they are where they fit, and in other number formats, which have a wider
    range. Both get about the same largest number.
    """
    if dtype != torch.float16:
        return down, up
    extremes = [torch.aminmax(factor) for factor in (down, up)]
    largest = [max(-float(low), float(high)) for low, high in extremes]
    least, most = min(largest), max(largest)
    if _LEAST <= least <= most <= _MOST or not 0 < least <= most < math.inf:
        return down, up
    move = round(math.log2(largest[0] / largest[1]) / 2)
    return down * 2.0**-move, up * 2.0**move


def lost(
    exact: Mapping[str, Tensor],
    rounded: Mapping[str, Tensor],
    names: tuple[str, str, str | None] | tuple[str],
) -> tuple[float, float]:
    """‖rounded − exact‖² and ‖exact‖² of one module's update.

    Of factors both are of up to ``_SAMPLE`` rows and columns at even distances, times how many such
    there are: exact in small modules, and as good as nothing beside the writing in large ones.

    Args:
        exact: What is to be written, by names in the file.
        rounded: The same in the file's number format.
        names: Of down and up, and of alpha where there is one; or of a list of numbers.
    """
    if len(names) == 1:
        before, after = exact[names[0]].double(), rounded[names[0]].double()
        return float((after - before).square().sum()), float(before.square().sum())
    down, up, alpha = names
    scale = 1.0 if alpha is None else float(exact[alpha]) / len(exact[down])
    out, width = len(exact[up]), exact[down][0].numel()
    row, column = (-(-n // _SAMPLE) for n in (out, width))
    before, after = (
        of[up].flatten(1)[::row].float() @ of[down].flatten(1)[:, ::column].float() * scale
        for of in (exact, rounded)
    )  # [rows, columns]
    share = before.numel() / (out * width)
    error, whole = (float(x.square().sum()) / share for x in (after - before, before))
    return error, whole
