"""What the stages share: options, pictures as tensors, and a training that shows its progress."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from lcm_arith.embedded import files, pictures
from lcm_arith.registry import shipped
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.loop import Outcome, Run, Step, fit
from lcm_arith.training.plan import Plan

VARIANTS: Final = 24  # pictures of each drawing that a model is trained on
SHEETS_FROM: Final = 100  # steps; a shorter training is a trial, whose sheets show nothing
_SMOOTH: Final = 50  # steps that a shown loss is averaged over


class BuildError(RuntimeError):
    """A stage cannot go on; the message says which inputs are wrong and how."""


@dataclass(frozen=True)
class Options:
    """What the command line decides for every stage.

    Args:
        work: Folder of checkpoints, logs and sheets, outside the repository.
        packages: Folder of downloaded npm packages.
        data: Folder of the user's own pictures, STYLE/x.png + x.txt; None takes the emoji.
        device: torch's name.
        shorter: Every training takes its steps divided by this, for trials.
        seconds: Between two checkpoints.
        only: Names of vectors that ``styles`` trains; empty for all.
        prompts: At most so many captions a part, in the report and of part A in ``guidance``.
        seeds: Of each caption in the report.
    """

    work: Path
    packages: Path
    data: Path | None = None
    device: str = "cpu"
    shorter: int = 1
    seconds: float = 240.0
    only: tuple[str, ...] = ()
    prompts: int = 200
    seeds: int = 4

    def shortened(self, plan: Plan) -> Plan:
        """The plan with its steps divided, for trials."""
        return replace(plan, steps=max(1, plan.steps // self.shorter))


def say(line: str) -> None:
    """Progress, for a person."""
    print(line, file=sys.stderr, flush=True)


def drawn(sets: Sequence[str], count: int, *, seed: int = 0, part: str = "all") -> np.ndarray:
    """``count`` variants of every concept of a part, set by set; uint8 ``[n, 64, 64, 3]``."""
    return np.concatenate(
        [pictures.variants(name, c, count, seed) for name in sets for c in pictures.concepts(part)]
    )


def levels(pixels: np.ndarray | Tensor, device: str | torch.device = "cpu") -> Tensor:
    """uint8 ``[n, H, W, 3]`` as float32 ``[n, 3, H, W]`` in [-1, 1]."""
    tensor = torch.as_tensor(pixels).to(device)
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_pixels(levels: Tensor) -> np.ndarray:
    """The way back: float ``[n, 3, H, W]`` to uint8 ``[n, H, W, 3]``."""
    scaled = ((levels.float() + 1.0) * 127.5).round().clamp(0, 255)
    return scaled.byte().permute(0, 2, 3, 1).cpu().numpy()


def digest(*folders: Path) -> str:
    """Of the files that a stage is trained on, so that its checkpoint fits no others."""
    paths = sorted(p for folder in folders for p in folder.rglob("*") if p.is_file())
    listed = [f"{p.relative_to(files.ROOT)} {files.sha256(p)}" for p in paths]
    return hashlib.sha256("\n".join(listed).encode()).hexdigest()[:16]


def train(
    stage: str,
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    plan: Plan,
    options: Options,
    about: dict[str, Any],
    on_quarter: Callable[[int], None] | None = None,
) -> Outcome:
    """Trains ``model`` with a bar, a checkpoint and a log; ``on_quarter`` may draw a sheet."""
    checkpoint = checkpoint_of(stage, options, about)
    if checkpoint.path.exists():
        say(f"{stage}: goes on from {checkpoint.path}")
    with Bar(stage, plan.steps) as bar:

        def on_step(step: Step) -> None:
            bar(step.number, step.loss)
            if on_quarter and plan.steps >= SHEETS_FROM and step.number % (plan.steps // 4) == 0:
                on_quarter(step.number)

        outcome = fit(model, loss_of, plan, on_step, run=Run(checkpoint=checkpoint))
    outcome.write_csv(options.work / f"{stage}.csv")
    return outcome


def checkpoint_of(stage: str, options: Options, about: dict[str, Any]) -> Checkpoint:
    """The checkpoint of a stage in the work folder."""
    options.work.mkdir(parents=True, exist_ok=True)
    return Checkpoint(options.work / f"{stage}.pt", about, options.seconds)


class Bar:
    """A progress bar with ETA and a smoothed loss; now and then a line where no terminal is."""

    def __init__(self, stage: str, steps: int) -> None:
        console = Console(stderr=True)
        self._plain = not console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
        )
        self._bar = Progress(
            *columns, console=console, disable=self._plain, speed_estimate_period=120
        )
        self._task = self._bar.add_task(stage, total=steps)
        self._stage, self._steps = stage, steps
        self._recent: list[float] = []

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, step: int, loss: float) -> None:
        """Shows a step."""
        self._recent = [*self._recent[1 - _SMOOTH :], loss]
        note = f"{self._stage}  loss {sum(self._recent) / len(self._recent):.4f}"
        self._bar.update(self._task, completed=step, description=note)
        if self._plain and (step % max(1, self._steps // 40) == 0):
            say(f"{note}  step {step}/{self._steps}")


def build_manifest(options: Options) -> None:
    """``records.json`` of the vectors and ``manifest.json``, for the files as they are now."""
    if files.vector_names():
        shipped.write()
    listed = files.write_manifest()
    size = sum((files.ROOT / name).stat().st_size for name in listed)
    say(f"manifest.json: {len(listed)} files, {size / 1e6:.1f} MB")
