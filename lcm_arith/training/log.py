"""What a run leaves in its folder while it trains: ``metrics.csv`` and ``errors.csv``."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch

from lcm_arith import durable
from lcm_arith.training.loop import Step
from lcm_arith.training.processes import ALONE, Processes

METRICS: Final = "metrics.csv"
ERRORS: Final = "errors.csv"
_HEADS: Final = {
    METRICS: "step,loss,grad_norm,learning_rate,skipped,pictures_per_second,peak_memory_mib",
    ERRORS: "step,t_from,t_to,error",
}


@dataclass(frozen=True)
class BucketError:
    """The loss on a fixed batch of the timesteps ``t_from`` to ``t_to``."""

    t_from: int
    t_to: int
    error: float


@dataclass(eq=False)
class Log:
    """Writes a line a step; a resumed run goes on after the lines that it has.

    Args:
        folder: Of the run; it exists.
        pictures: Of a step, over all processes.
        processes: Only the main one writes; trackers are told as well.
    """

    folder: Path
    pictures: int
    processes: Processes = ALONE
    _begun: set[str] = field(default_factory=set)
    _at: float = field(default_factory=time.perf_counter)

    def step(self, step: Step) -> None:
        """One line of ``metrics.csv``."""
        now = time.perf_counter()
        rate, self._at = self.pictures / (now - self._at), now
        peak = _peak_memory(self.processes.device)
        values = (step.loss, step.grad_norm, step.learning_rate, int(step.skipped), rate, peak)
        cells = [f"{value:.6g}" for value in values]
        self._write(METRICS, step.number, [",".join((str(step.number), *cells))])
        names = _HEADS[METRICS].split(",")[1:]
        self.processes.tell(dict(zip(names, values, strict=True)), step.number)

    def errors(self, number: int, found: Sequence[BucketError]) -> None:
        """A line of ``errors.csv`` for each bucket of timesteps."""
        lines = [f"{number},{each.t_from},{each.t_to},{each.error:.6g}" for each in found]
        self._write(ERRORS, number, lines)
        told = {f"error/{each.t_from}-{each.t_to}": each.error for each in found}
        self.processes.tell(told, number)

    def rested(self) -> None:
        """Time that was not training is not counted."""
        self._at = time.perf_counter()

    def _write(self, name: str, number: int, lines: Sequence[str]) -> None:
        if not self.processes.main:
            return
        path = self.folder / name
        if name not in self._begun:
            self._begun.add(name)
            text = path.read_text(encoding="utf-8") if path.exists() else ""
            kept = text.split("\n")[1:-1]  # the last is empty, or was cut
            earlier = [line for line in kept if int(line.split(",", 1)[0]) < number]
            whole = "".join(f"{line}\n" for line in (_HEADS[name], *earlier))
            durable.write(path, whole.encode())
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)


def _peak_memory(device: torch.device) -> float:
    """MiB: of the GPU's allocator, or of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
