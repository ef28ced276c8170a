"""Task arithmetic for diffusion adapters: style vectors plus acceleration vectors.

::

    from lcm_arith import load, reproject, save

    tau = 0.8 * load("fluent-emoji") + 1.0 * load("lcm")   # eq. 3 of arXiv:2311.05556
    save(reproject(tau, rank=32), "x.safetensors")

Public names are imported on first use, so that ``lcm-arith --help`` does not pay for torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lcm_arith.adapters import load
    from lcm_arith.delta import LowRankDelta
    from lcm_arith.errors import LcmArithError
    from lcm_arith.fuse import LiveWeights
    from lcm_arith.projection import reproject
    from lcm_arith.saving import save
    from lcm_arith.vector import TaskVector

__all__ = [
    "LcmArithError",
    "LiveWeights",
    "LowRankDelta",
    "TaskVector",
    "load",
    "reproject",
    "save",
]
_HOME = {
    "LcmArithError": "errors",
    "LiveWeights": "fuse",
    "LowRankDelta": "delta",
    "TaskVector": "vector",
    "load": "adapters",
    "reproject": "projection",
    "save": "saving",
}


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
