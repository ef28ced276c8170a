"""A distillation that is killed, wherever that is, goes on to the bits of one that was not."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tracer import traced

from lcm_arith.embedded import pictures
from lcm_arith.make_vectors import make_acceleration
from lcm_arith.training.request import Machine, Request, Watching

STEPS = 8
TIMED = ("pictures_per_second", "peak_memory_mib")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, concept in enumerate(pictures.concepts("A")[:3]):
        Image.fromarray(pictures.variants("noto", concept, 1)[0]).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(concept.caption)
    return folder


def quiet(*_: object) -> None:
    """No progress."""


def distilling(place: Path, base: Path, data: Path) -> Callable[[], str]:
    """What a process of its own does: checkpoints and metrics each step, errors every fourth."""
    (place / "out").mkdir(parents=True, exist_ok=True)
    request = Request(
        out=place / "out" / "x.safetensors",
        run=place / "run",
        base=base,
        data=data,
        cache=data.parent / f"{data.name}-cache",
        plan={"rank": 2, "steps": STEPS, "batch": 2, "accumulation": 1, "ema": 0.9},
        checkpoint_every=1,
        machine=Machine("cpu", "fp32"),
        watching=Watching(every=4, prompts=("x",), steps=(1,)),
    )

    def action() -> str:
        torch.set_num_threads(1)  # threads do not come along into a fork
        made: dict[str, Any] = make_acceleration(
            request, quiet, variant={"omega": 3.0, "target_decay": 0.5}
        )
        return str(made["sha256"])

    return action


def lines(path: Path) -> list[list[str]]:
    """Rows of a table without the columns of time and memory."""
    head, *rows = (line.split(",") for line in path.read_text().splitlines())
    kept = [at for at, name in enumerate(head) if name not in TIMED]
    return [[row[at] for at in kept] for row in (head, *rows)]


def result(place: Path) -> tuple[bytes, list[list[str]], list[list[str]], bytes]:
    run = place / "run"
    return (
        (place / "out" / "x.safetensors").read_bytes(),
        lines(run / "metrics.csv"),
        lines(run / "errors.csv"),
        (run / f"step-{STEPS:06d}.png").read_bytes(),
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_sd15: Path, data: Path) -> Any:
    """The result of one that nothing happened to, in this process: what it imports, forks have."""
    place, threads = tmp_path_factory.mktemp("whole"), torch.get_num_threads()
    try:
        distilling(place, tiny_sd15, data)()
    finally:
        torch.set_num_threads(threads)
    return result(place)


def killed_at(action: Callable[[], str], place: Path, points: Sequence[int]) -> list[str]:
    """Runs it again and again, each killed at another call; what these were about to change."""
    found = []
    for point in points:
        run = traced(action, place / "run", place / "out", kill_at=point)
        assert run.killed, run.told
        name = Path(run.calls[-1].path).name
        file = next((f for f in ("checkpoint.pt", "metrics.csv", "errors.csv") if f in name), name)
        found.append(f"{run.calls[-1].name} {file}")
        print(point, len(run.calls), found[-1])
    return found


def test_a_killed_distillation_goes_on_to_the_bits_of_a_whole_one(
    tmp_path: Path, tiny_sd15: Path, data: Path, whole: Any
) -> None:
    action = distilling(tmp_path, tiny_sd15, data)
    import time

    t = time.process_time(), time.time()
    killed = killed_at(action, tmp_path, range(8, 34, 2))
    traced(action, tmp_path / "run", tmp_path / "out")
    print(os.times(), time.time() - t[1])
    assert result(tmp_path) == whole
    assert not list((tmp_path / "run").glob(".checkpoint*.part"))
