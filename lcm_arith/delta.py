"""One target module's update ΔW, kept as its factors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from lcm_arith.errors import IncompatibleError, InvalidContentError


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """ΔW = scale · up @ down of one target module.

    Args:
        down: Factor A, ``[rank, in]`` or, of a convolution, ``[rank, in, kh, kw]``.
        up: Factor B, ``[out, rank]`` or, of a convolution, ``[out, rank, 1, 1]``.
        scale: alpha / rank; applied in :meth:`dense` and :meth:`concatenate`, nowhere else.

    Raises:
        InvalidContentError: If the two factors do not share a rank.
    """

    down: Tensor
    up: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if (
            self.down.ndim not in (2, 4)
            or 0 in (*self.down.shape, *self.up.shape)
            or self.up.ndim != self.down.ndim
            or self.up.shape[1] != self.down.shape[0]
            or (self.up.ndim == 4 and tuple(self.up.shape[2:]) != (1, 1))
        ):
            raise InvalidContentError(
                f"down and up do not multiply (shapes {list(self.down.shape)} "
                f"and {list(self.up.shape)})",
                hint="down must be [rank, in(, kh, kw)] and up [out, rank(, 1, 1)]",
            )

    @property
    def rank(self) -> int:
        """Inner dimension."""
        return int(self.down.shape[0])

    @property
    def shape(self) -> torch.Size:
        """Shape of the dense update, ``[out, in(, kh, kw)]``."""
        return torch.Size((self.up.shape[0], *self.down.shape[1:]))

    def with_axes(self, axes: int) -> LowRankDelta:
        """The same numbers as the update of a linear layer (2) or a 1×1 convolution (4).

        An update of a larger kernel stays as it is.
        """
        if axes == self.down.ndim or self.down.shape[2:] not in ((), (1, 1)):
            return self
        ones = (1,) * (axes - 2)
        down, up = self.down.flatten(1), self.up.flatten(1)
        return LowRankDelta(
            down.reshape(*down.shape, *ones), up.reshape(*up.shape, *ones), self.scale
        )

    def outline(self) -> LowRankDelta:
        """The same without its numbers, on the meta device."""
        return self.to("meta")

    def to(self, device: str | torch.device) -> LowRankDelta:
        """The same on a device."""
        return LowRankDelta(self.down.to(device), self.up.to(device), self.scale)

    def __mul__(self, weight: float) -> LowRankDelta:
        return LowRankDelta(self.down, self.up, self.scale * weight)

    __rmul__ = __mul__

    def __neg__(self) -> LowRankDelta:
        return self * -1.0

    def dense(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """ΔW, ``[out, in(, kh, kw)]``, multiplied out in ``dtype``."""
        up = self.up.flatten(1).to(dtype) * self.scale  # [out, rank]
        return (up @ self.down.flatten(1).to(dtype)).reshape(self.shape)  # [out, in(, kh, kw)]


def column(values: Tensor) -> LowRankDelta:
    """A vector ``[n]`` as an update of shape ``[n, 1]`` and rank 1."""
    return LowRankDelta(values.new_ones(1, 1), values[:, None])


def alike(deltas: Sequence[LowRankDelta]) -> list[LowRankDelta]:
    """The same, linear ones as 1×1 convolutions where another is one: files differ in it."""
    axes = max((delta.down.ndim for delta in deltas), default=2)
    return [delta.with_axes(axes) for delta in deltas]


def concatenate(deltas: Sequence[LowRankDelta]) -> LowRankDelta:
    """The exact sum of ``deltas``: factors side by side, float32, scale 1.

    Σ scale_i B_i A_i = [scale_1 B_1 … scale_n B_n] @ [A_1; …; A_n], of rank r_1 + … + r_n.

    Raises:
        IncompatibleError: If the deltas are updates of differently shaped weights.
    """
    if len(deltas) == 1 and deltas[0].scale == 1 and deltas[0].up.dtype == torch.float32:
        return deltas[0]
    deltas = alike(deltas)
    shapes = {tuple(delta.shape) for delta in deltas}
    if len(shapes) != 1:
        raise IncompatibleError(
            f"updates of different shapes cannot be added: {sorted(map(list, shapes))}",
            hint="the adapters were made for different base models",
        )
    (out, *rest), ones = deltas[0].shape, deltas[0].up.shape[2:]
    ranks, device = [delta.rank for delta in deltas], deltas[0].up.device
    up = torch.empty(out, sum(ranks), *ones, device=device)
    down = torch.empty(sum(ranks), *rest, device=device)
    if not up.is_meta:  # where copies would import half of sympy
        for delta, at in zip(deltas, accumulate(ranks, initial=0), strict=False):
            up.narrow(1, at, delta.rank).copy_(delta.up).mul_(delta.scale)
            down.narrow(0, at, delta.rank).copy_(delta.down)
    return LowRankDelta(down, up)
