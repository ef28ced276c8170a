"""Draws on a Ray cluster: one actor a GPU, or one a slot of a CPU with one thread.

All nodes need lcm-arith, and to see the grid's folder, the base models and the vectors under the
paths that they have here. The tasks wait here, and an actor gets the next when it is free: the
longest of those whose base model it has loaded. An actor that dies gives its task back, and another
is made in its place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from lcm_arith.errors import IncompatibleError, LcmArithError, NetworkError, UsageError
from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.drawing.engine import Engine, OnRows
from lcm_arith.evaluation.drawing.executors.tasks import Outcome, Queue, Task, tasks_of, told
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.plans.rows import Item, Row


@dataclass(frozen=True)
class OnRay:
    """Draws on a cluster; an ``Executor``.

    Args:
        workers: Actors at most; None is one for each GPU, or each slot of a CPU.
        address: Of a running cluster, or ``auto``; None starts one on this machine, and ends it.

    Raises:
        UsageError: If the cluster has no GPU for a grid on CUDA, or fewer slots than workers.
        NetworkError: If there is no cluster at the address.
        IncompatibleError: If no actor can start, or a node has other files or versions than this.
    """

    workers: int | None = None
    address: str | None = None

    def __call__(
        self, engine: Engine, rows: Sequence[Row], items: Sequence[Item], on_rows: OnRows
    ) -> Outcome:
        """Makes what is missing; without that, no cluster is asked."""
        queue = Queue(_longest_first(tasks_of(rows, engine.store.keys)), items, on_rows)
        for task in [task for task in queue.waiting if _is_drawn(engine.store, task, items)]:
            queue.waiting.remove(task)
            queue.went_on(task, task.passes * len(items))
        if queue.waiting:
            with _cluster(self.address, self.workers) as ray:
                cuda = engine.sources.device.startswith("cuda")
                count = min(_slots(ray, self.workers, cuda=cuda), len(queue.waiting))
                crew = _Crew(ray, _Place.of(engine), queue, engine)
                engine.counters = engine.counters.plus(crew.work(count))
            engine.store.refresh()
        return Outcome(engine.counters, queue.given_up())


def _longest_first(tasks: list[Task]) -> list[Task]:
    return sorted(tasks, key=lambda task: -task.passes)


def _is_drawn(store: Store, task: Task, items: Sequence[Item]) -> bool:
    return all(store.has(row, item) for row in task.rows for item in items)


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[Any]:
    """Ray, connected; left as it was found."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # else it reports to its makers
    import ray

    if ray.is_initialized():
        yield ray
        return
    own = {"num_cpus": max(workers or 0, os.cpu_count() or 1), "include_dashboard": False}
    try:
        ray.init(
            address or "local", log_to_driver=False, logging_level="ERROR",
            **({} if address else own),
        )  # fmt: skip
    except (ConnectionError, ValueError) as error:
        raise NetworkError(
            f"--ray-address {address}: no cluster answers there ({told(error)})",
            hint="start one with: ray start --head; or leave --ray-address out",
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


def _slots(ray: Any, workers: int | None, *, cuda: bool) -> int:
    kind = "GPU" if cuda else "CPU"
    there = int(ray.cluster_resources().get(kind, 0))
    if there < (workers or 1):
        raise UsageError(
            f"--workers {workers or 1}: the cluster has {there} slots of kind {kind}",
            hint="fewer workers, or --device cpu" if cuda else "fewer workers",
        )
    return workers or there


@dataclass(frozen=True)
class _Place:
    """What an actor makes its engine of."""

    folder: Path
    working: Path
    dtype: str
    device: str
    fast: bool

    @classmethod
    def of(cls, engine: Engine) -> _Place:
        sources, keys = engine.sources, engine.store.keys
        device = sources.device.split(":")[0]  # an actor sees its own GPU alone
        return cls(engine.store.folder.resolve(), Path.cwd(), sources.dtype, device, keys.fast)

    def engine(self) -> Engine:
        with suppress(OSError):  # then only relative names are not found
            os.chdir(self.working)
        sources = Sources(self.dtype, self.device)
        return Engine(Store(self.folder, keys_of(sources, fast=self.fast)), sources)


@dataclass(frozen=True)
class _Batch:
    """What an actor measured: UNet rows of a task's base at once."""

    rows: int


@dataclass(frozen=True)
class _End:
    """The last that an actor says of a task.

    Args:
        counters: Work that it was.
        batch: What is left of the UNet rows at once, where some of them found no memory.
        failure: Why the task failed.
        stop: What ends everything.
    """

    counters: Counters
    batch: int | None = None
    failure: str = ""
    stop: LcmArithError | None = None


@dataclass(eq=False)
class Drawer:
    """What an actor is: an engine, made once."""

    place: _Place
    _engine: Engine | None = None

    def ready(self) -> None:
        """Answers when the actor can be asked."""
        if self.place.device == "cpu":
            torch.set_num_threads(1)

    def draw(
        self, task: Task, items: Sequence[Item], key: str, batch: int | None
    ) -> Iterator[int | _Batch | _End]:
        """Draws a task, and gives the UNet rows of each chunk, then how it ended.

        Args:
            task: Of the driver.
            items: What its rows draw.
            key: Name that the driver gives its first picture: of the same files, by the same code.
            batch: UNet rows at once; None lets the actor find out, which it says first.
        """
        try:
            engine = self._engine = self._engine or self.place.engine()
            engine.counters = Counters()
            if engine.store.key(task.rows[0], items[0]) != key:
                raise IncompatibleError(
                    f"{os.uname().nodename}: a worker has other files or versions of libraries "
                    f"than the driver ({task.rows[0].context.base}, for one)",
                    hint="every node needs the same versions, and the same files at the same paths",
                )
            engine.store.refresh()
            if batch is None:
                yield _Batch(engine.batch(task.base))
            else:
                engine.batches[task.base] = batch
            yield from engine.rendering(task.rows, items)
        except LcmArithError as error:
            yield self._end(task, stop=error)
        except Exception as error:
            if self._engine:
                self._engine.restore()
            yield self._end(task, failure=told(error))
        else:
            yield self._end(task)

    def _end(self, task: Task, failure: str = "", stop: LcmArithError | None = None) -> _End:
        if self._engine is None:
            return _End(Counters(), None, failure, stop)
        return _End(self._engine.counters, self._engine.batches.get(task.base), failure, stop)


@dataclass(frozen=True)
class _Job:
    """A task that an actor works on, and how many UNet rows of it are done."""

    actor: Any
    task: Task
    done: int = 0


@dataclass(eq=False)
class _Crew:
    """The actors, and what each of them does.

    Args:
        ray: The library.
        place: Of what they make their engines.
        queue: Of the tasks.
        engine: The driver's, whose names theirs have to equal. Where CUDA has to be measured for
            UNet rows at once, one actor does it, and tasks of that base wait: equal pictures come
            of equal batches.
    """

    ray: Any
    place: _Place
    queue: Queue
    engine: Engine
    counters: Counters = field(default_factory=Counters)
    _starting: dict[Any, Any] = field(default_factory=dict)
    _free: list[tuple[Any, str | None]] = field(default_factory=list)
    _busy: dict[Any, _Job] = field(default_factory=dict)
    _lost: str = ""

    def work(self, count: int) -> Counters:
        """Empties the queue with so many actors; the work that it was, of lost actors excepted."""
        try:
            for _ in range(count):
                self._hire()
            while self.queue.waiting or self._busy:
                self._hand_out()
                self._wait()
        finally:
            busy = [job.actor for job in self._busy.values()]
            for actor in (*self._starting.values(), *(each for each, _ in self._free), *busy):
                self.ray.kill(actor)
        return self.counters

    def _hire(self) -> None:
        gpus = int(self.place.device == "cuda")
        made = self.ray.remote(Drawer).options(num_cpus=1 - gpus, num_gpus=gpus)
        actor = made.remote(self.place)
        self._starting[actor.ready.remote()] = actor

    def _hand_out(self) -> None:
        while self._free and (task := self.queue.take(self._free[-1][1], self._measuring())):
            actor, _ = self._free.pop()
            key = self.engine.store.key(task.rows[0], self.queue.items[0])
            batch = self.engine.batches.get(task.base)
            answers = actor.draw.remote(task, self.queue.items, key, batch)
            self._busy[answers] = _Job(actor, task)

    def _measuring(self) -> set[str]:
        """Bases of which an actor measures the batch."""
        if self.place.device == "cpu":
            return set()  # there it is fixed
        return {job.task.base for job in self._busy.values()} - self.engine.batches.keys()

    def _wait(self) -> None:
        asked = [*self._starting, *self._busy]
        if not asked:
            raise IncompatibleError(
                f"no worker could start: {self._lost}",
                hint="every node of the cluster needs lcm-arith, and memory for a base model",
            )
        for answer in self.ray.wait(asked, num_returns=1)[0]:
            if answer in self._starting:
                self._started(answer)
            else:
                self._heard(answer)

    def _started(self, answer: Any) -> None:
        actor = self._starting.pop(answer)
        try:
            self.ray.get(answer)
        except self.ray.exceptions.RayError as error:
            self._lost = told(error)
        else:
            self._free.append((actor, None))

    def _heard(self, answers: Any) -> None:
        """Takes the next that an actor says of its task."""
        job = self._busy.pop(answers)
        try:
            said = self.ray.get(next(answers))
        except self.ray.exceptions.RayError as error:
            self.queue.failed(job.task, f"its worker was lost: {told(error)}")
            self._hire()
            return
        if isinstance(said, int):
            self._busy[answers] = replace(job, done=job.done + said)
            self.queue.went_on(job.task, job.done + said)
            return
        if isinstance(said, _Batch):
            self._settle(job.task.base, said.rows)
            self._busy[answers] = job
            return
        if said.batch is not None:
            self._settle(job.task.base, said.batch)
        self.counters = self.counters.plus(said.counters)
        self._free.append((job.actor, job.task.base))
        if said.stop:
            raise said.stop
        if said.failure:
            self.queue.failed(job.task, said.failure)

    def _settle(self, base: str, rows: int) -> None:
        known = self.engine.batches.get(base)
        if known is None or rows < known:
            self.engine.settle(base, rows)
