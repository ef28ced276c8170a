"""What is looked at while training: errors by timestep, sheets of pictures, vectors on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lcm_arith.condition import Condition, Model, moved, rows
from lcm_arith.data.work import a_pass, parts
from lcm_arith.sampling import decode, denoise
from lcm_arith.training.log import BucketError, Log
from lcm_arith.training.loop import Look
from lcm_arith.training.request import Request
from lcm_arith.training.sheets import write_sheet

SHOWN = 4  # prompts of a sheet where none were given
SEED = 0


@dataclass(frozen=True)
class Column:
    """How the pictures of a column are made."""

    sampler: str
    steps: int
    guidance: float

    @property
    def words(self) -> str:
        """What stands above it."""
        guided = f" s={self.guidance:g}" if self.guidance > 1 else ""
        return f"{self.sampler} {self.steps}{guided}"


@dataclass(frozen=True, eq=False)
class Sheets:
    """Pictures of fixed prompts and seeds, to see a style or a speed come.

    Args:
        folder: Where they are written.
        pipeline: The base's, with its VAE.
        model: The UNet as it is trained, in its number formats.
        columns: Ways of sampling.
        prompts: A row each.
        told: Makes the conditions of the prompts, and ∅ for as many.
        grid_points: K of the distillation.
    """

    folder: Path
    pipeline: Any
    model: Model
    columns: tuple[Column, ...]
    prompts: tuple[str, ...]
    told: Callable[[], tuple[Condition, Condition]]
    grid_points: int | None = None

    @torch.no_grad()
    def write(self, number: int) -> Path:
        """The sheet after ``number`` steps; the VAE is on the device only meanwhile."""
        device = self.pipeline.unet.device
        cond, uncond = (moved(each, device) for each in self.told())
        self.pipeline.vae.to(device)
        try:
            made = [self._column(column, cond, uncond) for column in self.columns]
        finally:
            self.pipeline.vae.to("cpu")
        path = self.folder / f"step-{number:06d}.png"
        words = [column.words for column in self.columns]
        write_sheet(path, np.stack(made, axis=1), words, self.prompts)
        return path

    def _column(self, column: Column, cond: Condition, uncond: Condition) -> np.ndarray:
        """All prompts sampled in one way, as many at once as the VAE takes."""
        side = self.pipeline.unet.config.sample_size * self.pipeline.vae_scale_factor
        made = []
        for part in parts(range(len(self.prompts)), a_pass(side, side)):
            index = torch.tensor(part, device=next(iter(cond.values())).device)
            z = denoise(
                self.pipeline, rows(cond, index), rows(uncond, index[:1]),
                [SEED + at for at in part], sampler=column.sampler, steps=column.steps,
                guidance=column.guidance, model=self.model, grid_points=self.grid_points,
            )  # fmt: skip
            made.append(decode(self.pipeline, z))
        return np.concatenate(made)


def looks(
    request: Request,
    steps: int,
    log: Log,
    errors: Callable[[], list[BucketError]],
    sheets: Sheets | None,
    write_vector: Callable[[Path], None] | None,
) -> list[Look]:
    """What is done every so many steps, and at the end of the training.

    Args:
        request: How often.
        steps: Of the whole training.
        log: Told the errors.
        errors: On a fixed batch.
        sheets: None shows none.
        write_vector: Writes what there is; None where it is no vector.
    """

    def look(number: int) -> None:
        log.errors(number, errors())
        if sheets is not None and log.processes.main:
            sheets.write(number)
        log.rested()

    def keep(number: int) -> None:
        if write_vector is not None and log.processes.main:
            write_vector(request.run / f"step-{number:06d}.safetensors")
        log.rested()

    every = request.looks(steps)
    found = [Look(every, look)] if every else []
    if request.watching.save_every:
        found.append(Look(request.watching.save_every, keep))
    return found
