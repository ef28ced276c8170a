"""Eq. 3 with checks: τ' = λ1·τ_style + λ2·τ_LCM."""

from __future__ import annotations

from typing import Final

from lcm_arith.adapters import load
from lcm_arith.families import check_same_family
from lcm_arith.projection import reproject
from lcm_arith.vector import TaskVector

NONE: Final = "none"
"""The name that stands for no vector at all."""


def combine(style: str, accel: str, *, l1: float, l2: float, rank: int | None = None) -> TaskVector:
    """λ1·τ_style + λ2·τ_LCM, exact, or re-projected to ``rank``.

    Args:
        style: Shipped name or path of the style vector, or ``"none"``.
        accel: The same of the acceleration vector.
        l1: Weight λ1 of the style vector.
        l2: Weight λ2 of the acceleration vector.
        rank: Re-project each module to at most this rank; None keeps the sum exact.

    Raises:
        NotFoundError, InvalidContentError: As :func:`lcm_arith.adapters.load`.
        IncompatibleError: If the two were made for different base models.
        UsageError: If a weight is not finite or ``rank`` is below 1.
    """
    weights = ((style, l1), (accel, l2))
    vectors = {name: load(name) for name, _ in weights if name != NONE}
    check_same_family(vectors)
    tau = sum((weight * vectors[name] for name, weight in weights if name in vectors), TaskVector())
    return tau if rank is None else reproject(tau, rank)
