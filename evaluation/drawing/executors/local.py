"""Draws in this process, one task after another."""

from __future__ import annotations

from collections.abc import Sequence

from lcm_arith.errors import LcmArithError
from lcm_arith.evaluation.drawing.engine import Engine, OnRows
from lcm_arith.evaluation.drawing.executors.tasks import Outcome, Queue, Task, tasks_of, told
from lcm_arith.evaluation.plans.rows import Item, Row


def local(engine: Engine, rows: Sequence[Row], items: Sequence[Item], on_rows: OnRows) -> Outcome:
    """Makes what is missing with the engine itself; an ``Executor``.

    Whatever ends it, a chunk that was begun is absent from the store, and the base's weights are
    pristine again.
    """
    queue = Queue(tasks_of(rows, engine.store.keys), items, on_rows)
    try:
        while task := queue.take(engine.loaded):
            _draw(engine, queue, task)
    finally:
        engine.restore()
    return Outcome(engine.counters, queue.given_up())


def _draw(engine: Engine, queue: Queue, task: Task) -> None:
    rendering, done = engine.rendering(task.rows, queue.items), 0
    while True:
        try:
            made = next(rendering, None)
        except LcmArithError:
            raise
        except Exception as error:
            engine.restore()
            return queue.failed(task, told(error))
        if made is None:
            return None
        done += made
        queue.went_on(task, done)
