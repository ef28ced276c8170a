"""What executors share: tasks, who gets which next, and what becomes of one that fails."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.drawing.engine import Engine, OnRows, units
from lcm_arith.evaluation.drawing.keys import Keys
from lcm_arith.evaluation.plans.rows import Item, Row

TRIES: Final = 3
"""So often is a task tried before it is given up, and the others go on."""


@dataclass(frozen=True, eq=False)
class Task:
    """All rows that are drawn with equal weights: what is handed out.

    Args:
        weights: Their name, as ``Keys.weights`` has it.
        rows: Distinct ones.
    """

    weights: str
    rows: tuple[Row, ...]

    @property
    def base(self) -> str:
        """The base model that has to be loaded for it."""
        return self.rows[0].context.base

    @property
    def passes(self) -> int:
        """UNet rows of one item, if each picture is drawn alone."""
        return sum(row.nfe for row in self.rows)


@dataclass(frozen=True)
class Outcome:
    """What became of the tasks.

    Args:
        counters: Work that was really done, of all workers together.
        failed: Weights of a task that was given up → what it failed of.
    """

    counters: Counters
    failed: Mapping[str, str]


Executor = Callable[[Engine, Sequence[Row], Sequence[Item], OnRows], Outcome]
"""Makes what is missing in the engine's store, as ``Engine.render`` does.

What is raised on purpose (``LcmArithError``: a vector that does not fit, a full disk) ends it at
once, as does what ``OnRows`` raises; any other exception is the failure of one task.
"""


def tasks_of(rows: Sequence[Row], keys: Keys) -> list[Task]:
    """Tasks in the order of :func:`units`; units that two names of one file set apart are one."""
    together: dict[str, list[Row]] = defaultdict(list)
    for unit in units(rows):
        together[keys.weights(unit.rows[0])] += unit.rows
    return [Task(weights, tuple(same)) for weights, same in together.items()]


@dataclass(eq=False)
class Queue:
    """Tasks that wait, and what became of others.

    Args:
        waiting: In the order in which they are handed out.
        items: What each row draws.
        on_rows: Told of progress: each chunk once, however often it is drawn.
    """

    waiting: list[Task]
    items: Sequence[Item]
    on_rows: OnRows
    failures: dict[Task, list[str]] = field(default_factory=lambda: defaultdict(list))
    _told: dict[Task, int] = field(default_factory=lambda: defaultdict(int))

    def take(self, base: str | None = None, held: Collection[str] = ()) -> Task | None:
        """The next task, one of a base that is loaded already first; None if none waits.

        Args:
            base: What is loaded.
            held: Bases whose tasks have to wait.
        """
        free = [n for n, task in enumerate(self.waiting) if task.base not in held]
        same = [n for n in free if self.waiting[n].base == base]
        return self.waiting.pop((same or free)[0]) if free else None

    def went_on(self, task: Task, done: int) -> None:
        """Tells that so many UNet rows of a task are done, since it was begun."""
        new = done - self._told[task]
        if new > 0:
            self._told[task] = done
            self.on_rows(new)

    def failed(self, task: Task, why: str) -> None:
        """The task waits again, behind the others; or is given up, which counts as its end."""
        self.failures[task].append(why)
        if len(self.failures[task]) < TRIES:
            self.waiting.append(task)
        else:
            self.went_on(task, task.passes * len(self.items))

    def given_up(self) -> dict[str, str]:
        """Weights of the tasks that were given up → why."""
        return {
            task.weights: f"failed {TRIES} times: {'; '.join(dict.fromkeys(why))}"
            for task, why in self.failures.items()
            if len(why) >= TRIES
        }


def told(error: BaseException) -> str:
    """An exception in a line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
