"""Two processes that train one model, over gloo, against one process that accumulates."""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_adapter import lesson_of, one_base, unet_of

from lcm_arith.errors import InterruptedTraining
from lcm_arith.training.adapter import parameters_of
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.distillation import Distillation
from lcm_arith.training.loop import Run, fit
from lcm_arith.training.plan import Training
from lcm_arith.training.processes import Processes, find_processes

HOW = Distillation(omega=7.5, target_decay=0.5)
SECONDS = 100  # a child that hangs is ended; it takes a few


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def together(action: Callable[[Processes], Any], folder: Path, count: int = 2) -> list[Any]:
    """What each of several processes returned, as torchrun would have started them."""
    port, children = free_port(), []
    for rank in range(count):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                import signal

                signal.alarm(SECONDS)
                torch.set_num_threads(1)  # threads do not come along into a fork
                os.environ |= {
                    "WORLD_SIZE": f"{count}", "LOCAL_WORLD_SIZE": f"{count}", "RANK": f"{rank}",
                    "LOCAL_RANK": f"{rank}", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}",
                }  # fmt: skip
                processes = find_processes("cpu", (), folder, {})
                torch.save(action(processes), folder / f"{rank}.out")
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    assert codes == [0] * count
    return [torch.load(folder / f"{rank}.out", weights_only=False) for rank in range(count)]


def trained(
    processes: Processes | None, accumulation: int, folder: Path, stop_at: int | None = None
) -> dict[str, Any]:
    """Factors, losses, and what the checkpoint's folder holds, after a few steps."""
    unet = unet_of()
    roles = one_base(unet, decay=0.5)
    lesson = lesson_of(roles, HOW)
    plan = Training(
        rank=3, steps=3, batch=1, accumulation=accumulation, learning_rate=1e-2, ema=0.9
    )
    about = processes or Processes(torch.device("cpu"))
    # each sees its own clock: a checkpoint is due here and not there
    seconds = 0.0 if about.main else 1e9
    made: list[Any] = []
    run = Run(
        processes=about,
        checkpoint=Checkpoint(folder / "x.pt", seconds=seconds),
        averages=lesson.averages,
        stop=lambda: about.process_rank == 1 and len(made) == stop_at,
    )
    told = ""
    try:
        fit(lesson.model, lesson.loss, plan, made.append, run=run)
    except InterruptedTraining as error:
        told = str(error)
    return {
        "factors": [p.detach() for p in parameters_of(unet)],
        "losses": [step.loss for step in made],
        "norms": [step.grad_norm for step in made],
        "told": told,
    }


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    alone, both = tmp_path / "alone", tmp_path / "both"
    alone.mkdir()
    both.mkdir()
    return alone, both


def test_two_processes_are_one_that_accumulates_two_batches(folders: tuple[Path, Path]) -> None:
    alone, both = folders
    one = trained(None, 2, alone)
    first, second = together(lambda processes: trained(processes, 1, both), both)
    assert all(torch.equal(a, b) for a, b in zip(first["factors"], second["factors"], strict=True))
    for found, want in zip(first["factors"], one["factors"], strict=True):
        torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
    assert first["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert first["norms"] == pytest.approx(one["norms"], rel=1e-4)


def test_a_stop_told_to_one_stops_both_and_both_go_on(folders: tuple[Path, Path]) -> None:
    alone, both = folders
    one = trained(None, 2, alone)
    stopped = together(lambda processes: trained(processes, 1, both, stop_at=2), both)
    assert [each["told"].splitlines()[0] for each in stopped] == ["stopped after step 2 of 3"] * 2
    for each in together(lambda processes: trained(processes, 1, both), both):
        assert len(each["losses"]) == 1
        for found, want in zip(each["factors"], one["factors"], strict=True):
            torch.testing.assert_close(found, want, rtol=0, atol=1e-5)
