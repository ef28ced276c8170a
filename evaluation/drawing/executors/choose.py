"""The executor that is asked for by name."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Final

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.drawing.executors.local import local
from lcm_arith.evaluation.drawing.executors.tasks import Executor

EXECUTORS: Final = ("local", "ray")


def choose(name: str, *, workers: int | None = None, address: str | None = None) -> Executor:
    """An executor.

    Args:
        name: One of ``EXECUTORS``.
        workers: As of ``OnRay``.
        address: Likewise.

    Raises:
        UsageError: If the name is none of them, Ray is not installed, or something is asked of
            ``local`` that only a cluster has.
    """
    if name not in EXECUTORS:
        raise UsageError(f"executor {name!r}: one of {', '.join(EXECUTORS)}")
    if name == "local":
        if (workers, address) != (None, None):
            raise UsageError(
                "--workers and --ray-address belong to --executor ray",
                hint="add --executor ray; or --shard i/N, which needs no cluster",
            )
        return local
    if find_spec("ray") is None:
        raise UsageError(
            "--executor ray: Ray is not installed",
            hint='pip install "lcm-arith[ray]"; or --shard i/N, which needs nothing',
        )
    from lcm_arith.evaluation.drawing.executors.on_ray import OnRay

    return OnRay(workers, address)
