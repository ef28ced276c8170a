"""Executors: what fails is tried again and given up, what ends a run ends it, nothing is lost."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grids import ActorKiller, draw, pictures, tables, tiny_files, tiny_grid

from lcm_arith.errors import IncompatibleError, StorageError, UsageError
from lcm_arith.evaluation.drawing.engine import Engine
from lcm_arith.evaluation.drawing.executors.choose import choose
from lcm_arith.evaluation.drawing.executors.on_ray import Drawer, _Crew, _Place
from lcm_arith.evaluation.drawing.executors.tasks import TRIES, Queue, Task, tasks_of
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import OK, Made, Pair, Record, Store
from lcm_arith.evaluation.measuring import ERROR, Measuring
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Context, Row
from lcm_arith.evaluation.running import Drawn

needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Grid:
    return tiny_grid(tiny_files(tmp_path_factory.mktemp("files")))


@pytest.fixture(scope="module")
def whole(grid: Grid, tmp_path_factory: pytest.TempPathFactory) -> Drawn:
    return draw(grid, tmp_path_factory.mktemp("whole"))


Fail = Callable[[Row, int], None]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fail], list[Row]]:
    """Asks, before each chunk, what is to fail: by its row, and how often that was asked for."""
    asked: list[Row] = []
    make = Engine.make

    def install(fail: Fail) -> list[Row]:
        def spy(self: Engine, pairs: Sequence[Pair]) -> Record:
            row = pairs[0][0]
            asked.append(row)
            fail(row, asked.count(row))
            return make(self, pairs)

        monkeypatch.setattr(Engine, "make", spy)
        return asked

    return install


def test_a_unit_that_fails_three_times_is_given_up_and_the_others_are_drawn(
    grid: Grid, whole: Drawn, tmp_path: Path, failing: Callable[[Fail], list[Row]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    bad = grid.cells[0]
    mine = {row for row in grid.rows if row.mixes == bad.mixes}

    def fail(row: Row, _: int) -> None:
        if row in mine:
            raise RuntimeError("no kernel image\nis available")

    asked, told = failing(fail), []
    drawn = draw(grid, tmp_path, on_stage=lambda *now: told.append(now))
    assert set(drawn.failed) == mine
    assert set(drawn.failed.values()) == {"failed 3 times: RuntimeError: no kernel image"}
    assert sum(row in mine for row in asked) == TRIES
    assert asked[-1] in mine, "it waits behind the others"
    measuring = Measuring(grid, drawn.store, failed=drawn.failed)
    assert {row for row in grid.rows if measuring.status(row) == ERROR} == mine
    assert {measuring.status(row) for row in grid.rows if row not in mine} == {OK}
    done = [now[1] for now in told]
    assert done == sorted(done)
    assert done[-1] == told[-1][2]
    monkeypatch.undo()
    again = draw(grid, tmp_path)
    assert again.failed == {}
    assert pictures(tmp_path) == pictures(whole.store.folder)


def test_a_unit_that_fails_twice_is_drawn_like_any_other(
    grid: Grid, whole: Drawn, tmp_path: Path, failing: Callable[[Fail], list[Row]]
) -> None:
    def fail(_: Row, times: int) -> None:
        if times in (1, 2):  # its first chunk; its second is another time that it is asked for
            raise MemoryError

    failing(fail)
    drawn = draw(grid, tmp_path)
    assert drawn.failed == {}
    assert pictures(tmp_path) == pictures(whole.store.folder)


@pytest.mark.parametrize("error", [StorageError("full"), KeyboardInterrupt])
def test_what_is_raised_on_purpose_ends_the_run_and_the_next_goes_on(
    grid: Grid, whole: Drawn, tmp_path: Path, failing: Callable[[Fail], list[Row]],
    monkeypatch: pytest.MonkeyPatch, error: BaseException | type[BaseException],
) -> None:  # fmt: skip
    def fail(*_: object) -> None:
        if len(asked) == 3:
            raise error

    asked = failing(fail)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        draw(grid, tmp_path)
    assert len(asked) == 3
    monkeypatch.undo()
    assert draw(grid, tmp_path).counters.pictures < whole.counters.pictures
    assert pictures(tmp_path) == pictures(whole.store.folder)


def test_what_progress_raises_is_no_failure_of_a_unit(grid: Grid, tmp_path: Path) -> None:
    def stop(*_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        draw(grid, tmp_path, on_stage=stop)


def test_a_worker_gets_the_next_task_of_the_base_that_it_has_loaded(grid: Grid) -> None:
    tasks = tasks_of(grid.rows, keys_of(Sources()))
    base = tasks[0].base
    others = [Task("other", (replace(grid.cells[0], context=Context()),))]
    queue = Queue([*others, *tasks], grid.items, lambda rows: None)
    assert queue.take(base) is tasks[0]
    assert queue.take(None) is others[0]
    assert queue.take(base, held={base}) is None
    assert [queue.take("nowhere") for _ in tasks] == [*tasks[1:], None]


def test_an_executor_that_cannot_be_had_is_refused_before_anything_is_drawn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "lcm_arith.evaluation.drawing.executors.choose.find_spec", lambda name: None
    )
    with pytest.raises(UsageError, match="not installed") as caught:
        choose("ray")
    assert "lcm-arith[ray]" in caught.value.hint
    with pytest.raises(UsageError, match="local, ray"):
        choose("dask")
    with pytest.raises(UsageError, match="--executor ray"):
        choose("local", workers=2)


def test_errors_come_whole_from_another_process() -> None:
    for error in (StorageError("full", hint="empty it"), IncompatibleError("x", hint="y")):
        found = pickle.loads(pickle.dumps(error))
        assert (type(found), found.message, found.hint) == (type(error), error.message, error.hint)


class Called:
    """A method of an actor: what it would send is an iterator, or has come already."""

    def __init__(self, function: Callable[..., object]) -> None:
        self.remote = function


class OneProcess:
    """As much of Ray as a crew needs, whose actors take turns in this process."""

    exceptions = SimpleNamespace(RayError=InterruptedError)

    def remote(self, made: type[Drawer]) -> OneProcess:
        self.made = made
        return self

    def options(self, **_: object) -> Called:
        return Called(self._hired)

    def _hired(self, place: Any) -> SimpleNamespace:
        actor = self.made(replace(place, device="cpu"))
        return SimpleNamespace(ready=Called(lambda: object()), draw=Called(actor.draw))

    def wait(self, asked: list[object], num_returns: int) -> tuple[list[object], list[object]]:
        return [asked[-1]], asked[:-1]  # the last that was handed out is the first to answer

    def get(self, answer: object) -> object:
        return answer

    def kill(self, actor: object) -> None: ...


def crew_of(engine: Engine, rows: Sequence[Row], grid: Grid, device: str) -> _Crew:
    queue = Queue(tasks_of(rows, engine.store.keys), grid.items, lambda rows: None)
    place = replace(_Place.of(engine), device=device)
    return _Crew(OneProcess(), place, queue, engine)


def test_one_actor_measures_the_batch_of_a_gpu_and_all_draw_by_it(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[int] = []

    def first_batch(self: Engine, base: object) -> int:
        measured.append(5 + len(measured))  # another one each time
        return measured[-1]

    monkeypatch.setattr(Engine, "_first_batch", first_batch)
    sources = Sources()
    engine = Engine(Store(tmp_path, keys_of(sources)), sources)
    crew = crew_of(engine, grid.rows, grid, "cuda")
    counters = crew.work(3)
    engine.store.refresh()
    (name,) = {row.context.base for row in grid.rows}
    assert (measured, engine.batches) == ([5], {name: 5})
    assert {record.batch for record in engine.store.records.values()} == {5}
    assert counters.pictures == sum(len(r.pairs) for r in engine.store.records.values())
    assert not crew.queue.given_up()


def test_a_batch_that_found_no_memory_on_an_actor_is_halved_for_the_others(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_rows = Engine._draw

    def refuse(self: Engine, base: Any, pairs: Sequence[Pair], batch: int) -> list[Made]:
        if batch > 4:
            raise torch.OutOfMemoryError
        return draw_rows(self, base, pairs, batch)

    monkeypatch.setattr(Engine, "_draw", refuse)
    sources = Sources()
    (name,) = {row.context.base for row in grid.rows}
    engine = Engine(Store(tmp_path, keys_of(sources)), sources, {name: 16})
    crew_of(engine, grid.rows, grid, "cpu").work(1)
    assert engine.batches == {name: 4}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """As many as an actor on a CPU has: the last bits of sums depend on that."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@needs_ray
@pytest.mark.usefixtures("one_thread")
def test_ray_with_a_killed_actor_leaves_what_one_process_leaves(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    whole, folder = draw(grid, tmp_path / "whole"), tmp_path / "ray"
    killer = ActorKiller(monkeypatch.setenv, str(folder))
    drawn = draw(grid, folder, executor=choose("ray", workers=2), on_stage=killer)
    assert killer.killed
    assert not ray.is_initialized()
    assert drawn.failed == {}
    assert pictures(folder) == pictures(whole.store.folder)
    assert tables(grid, drawn) == tables(grid, whole)
    assert draw(grid, folder, executor=choose("ray", workers=2)).counters.pictures == 0
