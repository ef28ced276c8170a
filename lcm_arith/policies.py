"""λ policies: what the weights that a user gives are multiplied by before the sum.

``raw`` takes λ as it is (arXiv:2311.05556). Many vectors at 0.8 each over-expose a picture, and two
trainings at the same λ can differ in length by ten; the other two are for that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lcm_arith.analysis import inner
from lcm_arith.errors import UsageError
from lcm_arith.modules import GAIN
from lcm_arith.pool import one_thread
from lcm_arith.vector import TaskVector

Policy = Callable[[Sequence[float], Sequence[TaskVector]], list[float]]


def raw(weights: Sequence[float], _: Sequence[TaskVector]) -> list[float]:
    """λᵢ."""
    return [1.0 for _ in weights]


def energy(weights: Sequence[float], _: Sequence[TaskVector]) -> list[float]:
    """λᵢ / √Σλ²: independent vectors of one length add up to that length."""
    length = math.sqrt(sum(weight**2 for weight in weights))
    if not length:
        raise UsageError("energy: every weight is 0")
    return [1 / length for _ in weights]


def norm(_: Sequence[float], vectors: Sequence[TaskVector]) -> list[float]:
    """λᵢ ‖τ_T‖ / ‖τᵢ‖: at equal λ every vector has the length of the last one."""
    if any(target.endswith(GAIN) for tau in vectors for target in tau):
        raise UsageError("norm: a DoRA has no length without its base", hint="use raw or energy")
    with one_thread():
        lengths = [math.sqrt(sum(inner(tau[m], tau[m]) for m in tau)) for tau in vectors]
    if not all(lengths):
        raise UsageError("norm: a vector is zero, it has no direction")
    return [lengths[-1] / length for length in lengths]


POLICIES: Final[Mapping[str, Policy]] = {"raw": raw, "energy": energy, "norm": norm}


def policy(name: str) -> Policy:
    """The row of that name.

    Raises:
        UsageError: If there is none.
    """
    if name not in POLICIES:
        raise UsageError(f"{name}: no such policy", hint=f"one of {', '.join(POLICIES)}")
    return POLICIES[name]
