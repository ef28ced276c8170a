"""DoRA: an update that turns and stretches the rows of a weight (arXiv:2402.09353).

W' = m ∘ (W + BA) / ‖W + BA‖, row by row. With D = m / ‖W + BA‖ that is W + g ∘ W + (D ∘ B) A,
where the gain g = D − 1 has one number a row. In this form weighted sums are exact: gains add up,
and so do the factors. A DoRA module is two targets here: ``MODULE`` with D ∘ B and A, and
``MODULE.gain``.

A sum Σλ(W'ᵢ − W) is a DoRA again: with S = 1 + g and U A its factors' sum, the file holds B = U / S
and m = sign(S) · ‖S ∘ W + U A‖.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta, column
from lcm_arith.errors import InvalidContentError
from lcm_arith.modules import GAIN, MAGNITUDE, is_vector
from lcm_arith.vector import Base, Deltas, Source, TaskVector

_NO_ROW = 1e-6  # of 1 + g: below, a row of the sum is as good as gone, and U / S means nothing


def decomposed(
    delta: LowRankDelta, magnitude: Tensor, weight: Tensor
) -> tuple[LowRankDelta, LowRankDelta]:
    """(D ∘ B A, the gain D − 1) of one module, in float64 before the last rounding.

    Args:
        delta: B and A of the file with their scale.
        magnitude: m, ``[out]``.
        weight: W of the base, ``[out, in(, kh, kw)]``.

    Raises:
        InvalidContentError: If a row of W + BA is zero.
    """
    whole = weight.double() + delta.dense(torch.float64).reshape(weight.shape)
    norms = whole.flatten(1).norm(dim=1)
    if not norms.all():
        raise InvalidContentError("DoRA: a row of W + BA is zero, it has no direction")
    scale = magnitude.double() / norms
    rows = scale.reshape(-1, *(1,) * (delta.up.ndim - 1))
    turned = LowRankDelta(delta.down, (delta.up.double() * rows).float(), delta.scale)
    return turned, column((scale - 1).float())


def as_dora(tau: TaskVector) -> TaskVector:
    """What a DoRA file holds of a vector with gains: ``MODULE`` as U / S, A; ``MODULE.magnitude``.

    Modules without a gain get the magnitude that leaves them as they are, since a file is DoRA as a
    whole. Vectors without any gain pass.

    Raises:
        InvalidContentError: If a row's factor 1 + g vanishes, or a bias or norm is there.
        IncompatibleError: If two terms come from two base models.
    """
    base = tau.base
    if base is None:
        return tau
    lazy = Magnitudes(tau, base)
    outlines = {
        target: column(torch.empty(tau.shape_of(target.removesuffix(MAGNITUDE))[0], device="meta"))
        if target.endswith(MAGNITUDE)
        else tau.outline(target)
        for target in lazy
    }
    return TaskVector(((1.0, Source(lazy, {"of": tau}, outlines=outlines)),))


@dataclass(frozen=True, eq=False)
class Magnitudes(Deltas):
    """Targets of a DoRA file, each computed when it is asked for."""

    tau: TaskVector
    base: Base

    def __getitem__(self, target: str) -> LowRankDelta:
        if is_vector(target) and not target.endswith(MAGNITUDE):
            return self.tau[target]
        module = target.removesuffix(MAGNITUDE)
        delta, stretch = self.tau[module], self._stretch(module)
        if target == module:
            rows = stretch.reshape(-1, *(1,) * (delta.up.ndim - 1))
            return LowRankDelta(delta.down, (delta.up.double() / rows).float(), delta.scale)
        weight = self.base.weight(module).double()
        whole = weight * stretch.reshape(-1, *(1,) * (weight.ndim - 1))
        whole = whole + delta.dense(torch.float64).reshape(weight.shape)
        return column((stretch.sign() * whole.flatten(1).norm(dim=1)).float())

    def _stretch(self, module: str) -> Tensor:
        """S = 1 + g, ``[out]``, float64."""
        gain = module + GAIN
        if gain not in self.tau:
            return torch.ones(self.tau.shape_of(module)[0], dtype=torch.float64)
        stretch = 1 + self.tau[gain].dense(torch.float64).flatten()
        if float(stretch.abs().min()) < _NO_ROW:
            raise InvalidContentError(
                f"{module}: the sum takes a whole row of the weight away, which no DoRA can hold",
                hint="use smaller weights, or fuse it into the model instead",
            )
        return stretch

    @cached_property
    def names(self) -> Mapping[str, object]:
        """Every layer and its magnitude; biases and norms as they are."""
        layers = {target.removesuffix(GAIN) for target in self.tau}
        magnitudes = {layer + MAGNITUDE for layer in layers if not is_vector(layer)}
        return dict.fromkeys(sorted(layers | magnitudes))
