"""What the user asked of a training, beside the lesson itself. Imports nothing heavy."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lcm_arith.data.options import DataOptions
from lcm_arith.errors import UsageError
from lcm_arith.training.plan import Plan

if TYPE_CHECKING:
    from lcm_arith.data.drawings import Captioned

CHECKPOINT: Final = "checkpoint.pt"
CHECKPOINTING: Final = ("auto", "on", "off")
LARGE: Final = 1_000_000_000  # parameters of a UNet whose activations do not fit beside it
P = TypeVar("P", bound=Plan)


def main_process() -> bool:
    """Whether this is the process that writes and tells, of those that torchrun started."""
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Watching:
    """What is looked at while training.

    Args:
        every: Steps between two looks; None is four looks, 0 none.
        prompts: Of the sheets; none are the first captions of the data.
        steps: Sampling steps, a column of the sheets each; None is few where the model is
            accelerated, else those of its teacher.
        save_every: Steps between two vectors that are kept in the run's folder; 0 keeps none.
    """

    every: int | None = None
    prompts: tuple[str, ...] = ()
    steps: tuple[int, ...] | None = None
    save_every: int = 0

    def __post_init__(self) -> None:
        for name in ("every", "save_every"):
            if (getattr(self, name) or 0) < 0:
                raise UsageError(f"{name} {getattr(self, name)}: 0 or more steps")
        if self.steps is not None and (not self.steps or min(self.steps) < 1):
            raise UsageError("sampling steps of the sheets: at least 1 each")
        if self.every == 0 and (self.prompts or self.steps):
            raise UsageError("prompts or steps of sheets, of which there are none with every 0")


@dataclass(frozen=True)
class Machine:
    """Where and how it is computed.

    Args:
        device: "auto", or torch's name of one.
        precision: A name of :data:`lcm_arith.training.numbers.PRECISIONS`.
        checkpointing: Whether activations are computed twice instead of kept: "on", "off", or
            "auto", which is on for a UNet of over a billion parameters on a GPU.
        compiled: Whether torch.compile works on the UNet; on a GPU alone.
        report_to: accelerate's trackers that are told.
    """

    device: str = "auto"
    precision: str = "auto"
    checkpointing: str = "auto"
    compiled: bool = False
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.checkpointing not in CHECKPOINTING:
            raise UsageError(
                f"gradient checkpointing {self.checkpointing!r}: one of {', '.join(CHECKPOINTING)}"
            )


@dataclass(frozen=True, kw_only=True)
class Request:
    """A training from end to end.

    Args:
        out: File to write, or folder of the model in mode full.
        run: Folder for metrics, sheets and the checkpoint.
        base: As :func:`lcm_arith.bases.load_base` takes it; None is the embedded model.
        config: For a base that is a single file.
        data: As :func:`lcm_arith.data.prepare.prepare` takes it; None is the embedded pictures.
        options: How data is read.
        cache: Folder of what was encoded; None is in the run's folder, and in memory for the
            embedded pictures.
        plan: What replaces the family's defaults, by name of :class:`lcm_arith.training.plan.Plan`.
        seed: Of everything random.
        dtype: Of the written file, torch's name.
        force: Replace ``out``.
        start: Name or file of a vector to go on from; None begins with ΔW = 0.
        resume: Whether a checkpoint in the run's folder is gone on with, or begun anew.
        checkpoint_every: Steps between two checkpoints, beside one every four minutes.
        machine: Device and number formats.
        watching: Sheets and errors.
    """

    out: Path
    run: Path
    base: str | Path | None = None
    config: Path | None = None
    data: str | Path | Captioned | None = None
    options: DataOptions = field(default_factory=DataOptions)
    cache: Path | None = None
    plan: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "float32"
    force: bool = False
    start: str | None = None
    resume: bool = True
    checkpoint_every: int | None = None
    machine: Machine = field(default_factory=Machine)
    watching: Watching = field(default_factory=Watching)

    def __post_init__(self) -> None:
        if self.checkpoint_every is not None and self.checkpoint_every < 1:
            raise UsageError(f"checkpoint every {self.checkpoint_every} steps: at least 1")

    def planned(self, default: P) -> P:
        """The family's defaults with the user's values in their place."""
        return replace(default, **{k: v for k, v in self.plan.items() if v is not None})

    @property
    def kept(self) -> Path | None:
        """Where encoded data is kept; None is in memory."""
        if self.cache is not None or self.data is None:
            return self.cache
        return self.run / "cache"

    def settings(self) -> dict[str, str | int | float]:
        """What trackers are told of the run."""
        return {
            "base": str(self.base or "embedded"),
            "seed": self.seed,
            **{name: v for name, v in self.plan.items() if isinstance(v, str | int | float)},
        }

    def looks(self, steps: int) -> int:
        """Steps between two looks; 0 is never."""
        return max(1, steps // 4) if self.watching.every is None else self.watching.every
