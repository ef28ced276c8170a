"""The target network θ⁻: a running average of θ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lcm_arith.errors import UsageError


@dataclass(frozen=True, eq=False)
class Average:
    """θ⁻ ← μ θ⁻ + (1 − μ) θ, in place.

    Args:
        target: θ⁻, averaged.
        source: θ, in the order of ``target``.
        decay: μ, 0 ≤ μ < 1; at 0 the target is the student of the step before.
        copied: Pairs (of the target, of the source) that are copied instead: buffers.

    Raises:
        UsageError: If μ is out of range.
        ValueError: If the lists differ in length or in a shape.
    """

    target: Sequence[Tensor]
    source: Sequence[Tensor]
    decay: float
    copied: Sequence[tuple[Tensor, Tensor]] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1:
            raise UsageError(f"ema decay {self.decay}: a number from 0 to below 1")
        pairs = [*zip(self.target, self.source, strict=True), *self.copied]
        wrong = [f"{list(a.shape)}, {list(b.shape)}" for a, b in pairs if a.shape != b.shape]
        if wrong:
            raise ValueError(f"tensors of target and student differ: {'; '.join(wrong)}")

    @classmethod
    def of_modules(cls, target: nn.Module, source: nn.Module, decay: float) -> Average:
        """Parameters are averaged, buffers copied; the modules are of one architecture."""
        own, its = (dict(module.named_buffers()) for module in (target, source))
        copied = [(own[name], its[name]) for name in own.keys() | its.keys()]
        return cls(list(target.parameters()), list(source.parameters()), decay, copied)

    @torch.no_grad()
    def begin(self) -> None:
        """θ⁻ ← θ."""
        self._move(1.0)

    @torch.no_grad()
    def update(self) -> None:
        """One step of the average."""
        self._move(1 - self.decay)

    def _move(self, share: float) -> None:
        for own, its in zip(self.target, self.source, strict=True):
            own.lerp_(its.to(own), share)
        for own, its in self.copied:
            own.copy_(its)
