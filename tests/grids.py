"""A small grid of a tiny pipeline, and what must not depend on how it was drawn."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from support import random_vector
from tiny import pipeline, tiny

from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.measuring import Measuring, OnStage, measured
from lcm_arith.evaluation.plans.plan import Grid, make_grid, plain_cells
from lcm_arith.evaluation.report import csv_bytes
from lcm_arith.evaluation.running import Drawn, draw_grid
from lcm_arith.saving import save

TIMING = ["seconds_per_image"]
ENDS = ("to_q.weight", "to_v.weight", "conv1.weight")


def quiet(*_: object) -> None:
    pass


def tiny_files(folder: Path) -> Path:
    """A pipeline and two loud vectors, as files: ``base``, ``style.safetensors``, ``accel.…``."""
    tiny(folder / "base")
    layers = {
        f"unet.{name.removesuffix('.weight')}": tuple(values.shape)
        for name, values in pipeline("sd15").unet.state_dict().items()
        if name.endswith(ENDS)
    }
    for seed, name in enumerate(("style", "accel")):
        save(3 * random_vector(3, 6.0, 10 * seed, layers), folder / f"{name}.safetensors")
    return folder


def tiny_grid(folder: Path, l1: str = "0.5,1", seeds: int = 2) -> Grid:
    """λ1 × steps 1 and 2, with margins and controls, over the files of :func:`tiny_files`."""
    style, accel = (str(folder / f"{name}.safetensors") for name in ("style", "accel"))
    weights = [Decimal(each) for each in l1.split(",")]
    return make_grid(
        cells=plain_cells(style, accel, weights, [Decimal(1)], (1, 2), str(folder / "base")),
        prompts=("fox", "red cat", "cat"), seeds=seeds,
        family=lambda base: replace(Sources().family(base), teacher_steps=3),
        style_set=lambda _: None,
    )  # fmt: skip


def draw(grid: Grid, folder: Path, *, on_stage: OnStage = quiet, **how: Any) -> Drawn:
    """Draws a grid with sources of its own, as another process would."""
    return draw_grid(grid, Sources(), folder=folder, on_stage=on_stage, **how)


def tables(grid: Grid, drawn: Drawn) -> tuple[bytes, bytes]:
    """Both tables as files, without the columns of time."""
    measuring = Measuring(grid, drawn.store, chosen=("prompt_score",))
    result: Result = measured(measuring, Sources(), drawn.counters, quiet)
    return csv_bytes(result.cells.drop(columns=TIMING)), csv_bytes(result.images)


def pictures(folder: Path) -> dict[str, bytes]:
    """Every picture of a store by its name."""
    return {path.name: path.read_bytes() for path in (folder / "images").glob("[!.]*.png")}


class ActorKiller:
    """Kills actors of a Ray that is started after it was made, when it is told of progress."""

    MARK: Final = "LCM_ARITH_TEST_RAY"

    def __init__(self, setenv: Callable[[str, str], None], mark: str, count: int = 1) -> None:
        setenv(self.MARK, mark)  # all processes of that Ray have it
        self.mark, self.count = f"{self.MARK}={mark}".encode(), count
        self.killed: list[int] = []

    def __call__(self, *_: object) -> None:
        drawing = [pid for pid in self._drawing() if pid not in self.killed]
        if drawing and len(self.killed) < self.count:
            os.kill(drawing[0], signal.SIGKILL)
            self.killed.append(drawing[0])

    def _drawing(self) -> list[int]:
        """Actors of it that draw now."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (folder / "cmdline").read_bytes().startswith(b"ray::Drawer.draw"):
                    mine = self.mark in (folder / "environ").read_bytes().split(b"\0")
                    found += [int(folder.name)] if mine else []
        return sorted(found)
