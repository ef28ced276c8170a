"""What acceleration vectors say in their files of how they are sampled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from lcm_arith.adapters import facts
from lcm_arith.errors import InvalidContentError
from lcm_arith.vector import TaskVector

FAST: Final = ("acceleration", "combined")
"""Kinds of vectors with which few steps do."""
_SAID: Final = {"sampler": str, "grid_points": int, "omega": str}


def header(name: str, tau: TaskVector) -> dict[str, Any]:
    """``sampler``, ``grid_points`` (K of the distillation) and ``omega``, where a file has them.

    Args:
        name: For errors.
        tau: As it was loaded.

    Raises:
        InvalidContentError: If one is none of what this package writes.
    """
    said = facts(tau)
    found = {key: said[key] for key in _SAID if key in said}
    wrong = [key for key, value in found.items() if type(value) is not _SAID[key]]
    if not wrong and found.get("grid_points", 1) < 1:
        wrong = ["grid_points"]
    if wrong:
        raise InvalidContentError(f"{name}: its header says {wrong[0]} {found[wrong[0]]!r:.60}")
    return found


def kept(tau: TaskVector) -> dict[str, Any]:
    """The same of a sum: what all accelerations in it say, that say it."""
    headers = list(_accelerations(tau))
    values = {key: {each[key] for each in headers if key in each} for key in _SAID}
    return {key: said.pop() for key, said in values.items() if len(said) == 1}


def _accelerations(tau: TaskVector) -> Iterator[dict[str, Any]]:
    for weight, source in tau.terms:
        of = source.origin.get("of")
        one = TaskVector(((1.0, source),))
        if isinstance(of, TaskVector):
            yield from _accelerations(of)
        elif weight > 0 and facts(one).get("kind") in FAST:
            yield header(str(source.origin.get("name", "a vector")), one)
