"""Fingerprints: adapters that do the same, in whatever file, number format or factorisation.

Of every module, q = diag(Yᵀ ΔW X) / √(out · in) for eight probes X, Y of ±1 that the module's name
determines: the expected square of each entry is ‖ΔW‖² / (out · in). A probe is made of SHAKE-256's
output, so that it is the same on every machine and in every version.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

    from lcm_arith.delta import LowRankDelta

PROBES: Final = 8
SAME: Final = 1e-5
"""Relative distance up to which two adapters do the same, however they are factored."""
ROUNDED: Final = 5e-3
"""The same at a lower precision: fp16 is 3e-4 away, bf16 2.4e-3, λ = 0.99 is 1e-2."""

Fingerprint = Mapping[str, str]
"""Target module → eight float32 numbers, little-endian, in base64."""


def probed(target: str, delta: LowRankDelta) -> str:
    """A module's part of the fingerprint.

    Args:
        target: Its canonical name.
        delta: Its update.
    """
    up, down = delta.up.flatten(1).double(), delta.down.flatten(1).double()
    out, into = len(up), down.shape[1]
    x = _signs(f"{target} in", into)  # [in, 8]
    y = _signs(f"{target} out", out)  # [out, 8]
    q = ((y.T @ up) * (down @ x).T).sum(1) * (delta.scale / math.sqrt(out * into))
    return base64.b64encode(struct.pack(f"<{PROBES}f", *q.tolist())).decode()


def _signs(seed: str, length: int) -> Tensor:
    """±1, ``[length, 8]``: one bit of a byte for each probe."""
    import torch

    bits = torch.frombuffer(
        bytearray(hashlib.shake_256(seed.encode()).digest(length)), dtype=torch.uint8
    )
    return torch.stack([(bits >> probe) & 1 for probe in range(PROBES)], 1).double() * 2 - 1


@dataclass(frozen=True)
class Distance:
    """How far two vectors are apart.

    Args:
        relative: ‖q − q'‖ / max(‖q‖, ‖q'‖) over the modules of both; a module that one lacks is 0.
        cosine: Of q and q', −1..1; independent vectors have about ±1 / √(8 · modules).
        shared: Modules that both update.
        own: Modules that one alone updates, of the first and of the second.
    """

    relative: float
    cosine: float
    shared: int
    own: tuple[int, int]

    @property
    def verdict(self) -> str:
        """``same``, ``same, rounded``, or ``different``."""
        if self.relative <= SAME:
            return "same"
        return "same, rounded" if self.relative <= ROUNDED else "different"


def distance(one: Fingerprint, other: Fingerprint) -> Distance:
    """How far two fingerprints are apart."""
    zero = (0.0,) * PROBES
    gap = mine = theirs = product = 0.0
    for target in one.keys() | other.keys():
        a = _numbers(one[target]) if target in one else zero
        b = _numbers(other[target]) if target in other else zero
        gap += sum((x - y) ** 2 for x, y in zip(a, b, strict=True))
        product += sum(x * y for x, y in zip(a, b, strict=True))
        mine += sum(x * x for x in a)
        theirs += sum(y * y for y in b)
    longest = math.sqrt(max(mine, theirs))
    both = len(one.keys() & other.keys())
    return Distance(
        relative=math.sqrt(gap) / longest if longest else 0.0,
        cosine=product / math.sqrt(mine * theirs) if mine and theirs else 0.0,
        shared=both,
        own=(len(one) - both, len(other) - both),
    )


def _numbers(text: str) -> tuple[float, ...]:
    return struct.unpack(f"<{PROBES}f", base64.b64decode(text))
