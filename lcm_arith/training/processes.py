"""Several processes that train one model: who is who, and the mean of what they found."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.errors import UsageError


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Args:
        device: Of this process.
        accelerator: accelerate's, where there are several processes or somebody is told; else None.
    """

    device: torch.device
    accelerator: Any = None

    @property
    def count(self) -> int:
        """How many there are."""
        return int(self.accelerator.num_processes) if self.accelerator else 1

    @property
    def process_rank(self) -> int:
        """Which of them this is, from 0."""
        return int(self.accelerator.process_index) if self.accelerator else 0

    @property
    def main(self) -> bool:
        """Whether this is the one that writes."""
        return self.process_rank == 0

    def mean(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Each tensor's mean over the processes."""
        if self.count == 1:
            return list(tensors)
        flat = torch.cat([t.reshape(-1) for t in tensors])
        flat = self.accelerator.reduce(flat, "mean")
        parts = flat.split([t.numel() for t in tensors])
        return [part.reshape(t.shape) for part, t in zip(parts, tensors, strict=True)]

    def any(self, told: bool) -> bool:
        """Whether one of them was told so: what all must do together, all know."""
        if self.count == 1:
            return told
        (share,) = self.mean([torch.tensor(float(told), device=self.device)])
        return bool(share > 0)

    def wait(self) -> None:
        """Until all have come here."""
        if self.count > 1:
            self.accelerator.wait_for_everyone()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process goes through it before the others do."""
        if not self.main:
            self.wait()
        yield
        if self.main:
            self.wait()

    def tell(self, values: Mapping[str, float], step: int) -> None:
        """Passes values of a step on to the trackers."""
        if self.accelerator:
            self.accelerator.log(dict(values), step=step)

    def end(self) -> None:
        """Closes the trackers."""
        if self.accelerator:
            self.accelerator.end_training()


_PATIENCE: Final = timedelta(days=7)  # the others wait while the main process encodes the data
ALONE = Processes(torch.device("cpu"))


def find_processes(
    device: str, report_to: Sequence[str], folder: Path, settings: Mapping[str, Any]
) -> Processes:
    """The processes that ``accelerate launch`` or ``torchrun`` started, or this one alone.

    Args:
        device: "auto" takes the GPU of this process where there is one; else torch's name of one.
        report_to: Names of accelerate's trackers.
        folder: Where trackers write files.
        settings: What the trackers are told about the run.

    Raises:
        UsageError: If there is no such device, or a tracker is unknown or not installed.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    found = found_device(device)
    if not several and not report_to:
        return Processes(found)
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    patient = InitProcessGroupKwargs(timeout=_PATIENCE)
    accelerator = Accelerator(
        cpu=found.type == "cpu",
        log_with=_trackers(report_to),
        project_dir=folder,
        kwargs_handlers=[patient],
    )
    if report_to:
        accelerator.init_trackers("lcm-arith", config=dict(settings))
    return Processes(accelerator.device if several else found, accelerator)


def found_device(name: str) -> torch.device:
    """The device of a name; "auto" is the GPU where there is one.

    Raises:
        UsageError: If there is no such device.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UsageError(
            f"device {name}: {str(error).splitlines()[0]}", hint="cpu always works"
        ) from error
    return device


def _trackers(names: Sequence[str]) -> list[str]:
    """The trackers' names, which are known and installed."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    installed = {str(name) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UsageError(f"tracker {name!r} is unknown", hint=f"one of {known}")
        if name not in installed:
            raise UsageError(f"tracker {name} is not installed", hint=f"pip install {name}")
    return list(names)
