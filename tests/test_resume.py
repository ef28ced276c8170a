"""A distillation that is killed, wherever that is, goes on to the bits of one that was not."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tracer import traced

from lcm_arith.cli.main import main
from lcm_arith.embedded import pictures
from lcm_arith.make_vectors import make_acceleration
from lcm_arith.training.log import Log
from lcm_arith.training.loop import Step
from lcm_arith.training.request import Machine, Request, Watching

STEPS = 4
PLAN = {
    "rank": 1, "targets": "attn", "steps": STEPS, "batch": 2, "accumulation": 1, "ema": 0.9,
}  # fmt: skip
TIMED = ("pictures_per_second", "peak_memory_mib")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with captions."""
    folder = tmp_path_factory.mktemp("pictures")
    for index, concept in enumerate(pictures.concepts("A")[:3]):
        Image.fromarray(pictures.variants("noto", concept, 1)[0]).save(folder / f"{index}.png")
        (folder / f"{index}.txt").write_text(concept.caption)
    return folder


def cache_of(data: Path) -> Path:
    """One for all trainings."""
    return data.with_name(f"{data.name}-cache")


def quiet(*_: object) -> None:
    """No progress."""


def distilling(place: Path, base: Path, data: Path) -> Callable[[], str]:
    """What a process of its own does: a checkpoint each step, no sheets."""
    (place / "out").mkdir(parents=True, exist_ok=True)
    request = Request(
        out=place / "out" / "x.safetensors",
        run=place / "run",
        base=base,
        data=data,
        cache=cache_of(data),
        plan=PLAN,
        checkpoint_every=1,
        machine=Machine("cpu", "fp32"),
        watching=Watching(every=0),
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


def result(place: Path) -> tuple[bytes, list[list[str]]]:
    return (place / "out" / "x.safetensors").read_bytes(), lines(place / "run" / "metrics.csv")


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
        known = ("checkpoint.pt", "metrics.csv", "errors.csv", "x.safetensors")
        found.append(f"{run.calls[-1].name} {next((k for k in known if k in name), name)}")
    return found


def test_a_killed_distillation_goes_on_to_the_bits_of_a_whole_one(
    tmp_path: Path, tiny_sd15: Path, data: Path, whole: Any
) -> None:
    action = distilling(tmp_path, tiny_sd15, data)
    # Calls are counted in each process anew: the lock one, metrics five, a checkpoint about twenty,
    # and one more where a part of it was left.
    points = (27, 3, 6, 7, 12, 40, 28, 26, 29, 33)
    killed = killed_at(action, tmp_path, points)
    assert killed == [
        "rename checkpoint.pt", "rename metrics.csv", "unlink checkpoint.pt",
        "openat checkpoint.pt", "write checkpoint.pt", "write checkpoint.pt",
        "openat metrics.csv", "rename checkpoint.pt", "write metrics.csv", "write x.safetensors",
    ]  # fmt: skip
    traced(action, tmp_path / "run", tmp_path / "out")
    assert result(tmp_path) == whole
    assert not list((tmp_path / "run").glob(".checkpoint*"))


def test_ctrl_c_saves_and_exits_with_130_and_the_same_command_goes_on(
    tmp_path: Path, tiny_sd15: Path, data: Path, whole: Any
) -> None:
    (tmp_path / "out").mkdir()
    command = [
        "distill", "--base", f"{tiny_sd15}", "--data", f"{data}", "--cache", f"{cache_of(data)}",
        "-o", f"{tmp_path / 'out' / 'x.safetensors'}", "--run", f"{tmp_path / 'run'}",
        *(f"--{name}={value}" for name, value in PLAN.items()), "--omega=3", "--target-decay=0.5",
        "--device=cpu", "--precision=fp32", "--validate-every=0",
    ]  # fmt: skip

    def pressed() -> None:
        own = Log.step

        def spy(self: Log, step: Step) -> None:
            own(self, step)
            if step.number == 2:
                os.kill(os.getpid(), signal.SIGINT)

        Log.step = spy  # type: ignore[method-assign]  # in a process of its own

    assert exit_code(command, pressed) == 130
    assert len(lines(tmp_path / "run" / "metrics.csv")) == 1 + 2
    assert not list((tmp_path / "out").iterdir())
    assert exit_code(command, lambda: None) == 0
    assert result(tmp_path) == whole


def exit_code(command: Sequence[str], before: Callable[[], None]) -> int:
    """Of the command in a process of its own."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            torch.set_num_threads(1)
            before()
            sys.argv = ["lcm-arith", *command]
            main()
            code = 0
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("kind", ["tiny_sd2v", "tiny_zsnr", "tiny_sdxl"])
def test_other_kinds_of_base_go_on_to_the_same_bits(
    tmp_path: Path,
    data: Path,
    kind: str,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base: Path = request.getfixturevalue(kind)
    whole = distilling(tmp_path / "whole", base, data)()
    action, own = distilling(tmp_path / "cut", base, data), Log.step

    def cut(self: Log, step: Step) -> None:
        own(self, step)
        if step.number == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Log, "step", cut)
    with pytest.raises(KeyboardInterrupt):
        action()
    monkeypatch.setattr(Log, "step", own)
    assert action() == whole
    assert result(tmp_path / "cut") == result(tmp_path / "whole")


def test_a_line_that_was_cut_is_written_anew(tmp_path: Path) -> None:
    for numbers, torn in ((range(1, 4), "4,0.25,1"), (range(4, 6), "")):
        log = Log(tmp_path, 2)
        for number in numbers:
            log.step(Step(number, 1 / number, 1.0, 0.1, False))
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write(torn)
    assert [row[:2] for row in lines(tmp_path / "metrics.csv")[1:]] == [
        ["1", "1"], ["2", "0.5"], ["3", "0.333333"], ["4", "0.25"], ["5", "0.2"],
    ]  # fmt: skip
    (tmp_path / "metrics.csv").write_text("step\n1,")
    Log(tmp_path, 2).step(Step(2, 0.5, 1.0, 0.1, False))
    assert [row[0] for row in lines(tmp_path / "metrics.csv")] == ["step", "2"]
