"""One training from its first step or its checkpoint to its end, watched."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from lcm_arith.condition import Condition
from lcm_arith.saving import provenance
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.ground import Ground
from lcm_arith.training.lesson import Lesson
from lcm_arith.training.log import Log
from lcm_arith.training.loop import Outcome, Run, Step, fit
from lcm_arith.training.plan import Plan
from lcm_arith.training.request import CHECKPOINT
from lcm_arith.training.watch import Column, Sheets, looks


def train(
    ground: Ground,
    plan: Plan,
    lesson: Lesson,
    about: dict[str, Any],
    columns: tuple[Column, ...],
    told: Condition,
    write: Callable[[Path, dict[str, Any]], str] | None,
) -> tuple[Outcome, dict[str, Any]]:
    """The training itself; also what is known of it in the end."""
    request, base, processes = ground.request, ground.base, ground.processes
    about = {
        **about,
        "base": base.digest,
        "family": base.family,
        "prediction": base.prediction,
        "data": ground.data.origin,
        "seed": request.seed,
        "plan": asdict(plan),
        **({"start": provenance(ground.start)} if ground.start is not None else {}),
    }
    checkpoint = Checkpoint(request.run / CHECKPOINT, about, every=request.checkpoint_every)
    if not request.resume and processes.main:
        checkpoint.path.unlink(missing_ok=True)
    processes.wait()
    log = Log(request.run, plan.batch * plan.accumulation * processes.count, processes)
    sheets = Sheets(
        request.run, base.pipeline, lesson.shown, columns, ground.prompts,
        partial(ground.conditions, told), about.get("grid_points"),
    )  # fmt: skip

    def keep(path: Path) -> None:
        if write is not None:
            write(path, about)

    recent: deque[float] = deque(maxlen=50)

    def on_step(step: Step) -> None:
        log.step(step)
        recent.extend([] if step.skipped else [step.loss])
        mean = f"loss {sum(recent) / len(recent):.4f}" if recent else "no finite step"
        ground.on_stage("train", step.number, plan.steps, mean)

    if not checkpoint.path.exists() and request.looks(plan.steps):
        log.errors(0, lesson.errors())
    with _stoppable() as stop:
        outcome = fit(
            lesson.model,
            lesson.loss,
            plan,
            on_step,
            run=Run(
                processes,
                ground.numbers,
                checkpoint,
                lesson.averages,
                looks(request, plan.steps, log, lesson.errors, sheets, keep if write else None),
                stop,
            ),
        )
    return outcome, {**about, "skipped_steps": outcome.skipped}


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; a second one ends at once."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone hears signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
