"""How many UNet rows a CUDA device takes at once."""

from __future__ import annotations

import time
from typing import Any, Final

import torch

from lcm_arith.condition import Condition
from lcm_arith.evaluation.drawing.trajectories import synchronise, unet_pass
from lcm_arith.sampling import whole

POINTS: Final = (4, 16, 64)
SLACK: Final = 1.05  # a smaller batch that is almost as fast leaves memory to the VAE


@torch.no_grad()
def calibrated(pipeline: Any, told: Condition, *, fast: bool) -> int:
    """The smallest batch that is as fast a row as any, within 5 %; 1 if no point fits.

    Args:
        pipeline: On its device.
        told: A condition of one row.
        fast: As in ``lcm_arith.sampling.sample``.
    """
    seconds: dict[int, float] = {}
    for rows in POINTS:
        try:
            seconds[rows] = _seconds(pipeline, told, rows, fast=fast) / rows
        except torch.OutOfMemoryError:
            torch.cuda.empty_cache()
            break
    most = SLACK * min(seconds.values(), default=0.0)
    return next((rows for rows, each in seconds.items() if each <= most), 1)


def _seconds(pipeline: Any, told: Condition, rows: int, *, fast: bool) -> float:
    """Wall time of a batch; the one before it warms up."""
    unet = pipeline.unet
    size = unet.config.sample_size
    shape = (rows, unet.config.in_channels, size, size)
    z = torch.zeros(shape, device=unet.device, dtype=unet.dtype)
    t = torch.full((rows,), 999.0, device=unet.device)
    condition = {
        name: values.expand(rows, *values.shape[1:])
        for name, values in whole(pipeline, told).items()
    }
    for _ in range(2):
        synchronise(unet.device)
        started = time.perf_counter()
        unet_pass(pipeline, z, t, condition, fast=fast)
        synchronise(unet.device)
    return time.perf_counter() - started
