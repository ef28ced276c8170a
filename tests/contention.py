"""Many processes at one store: killed at random, writing at once, reading while it is swept."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from faults import Tally, sound, timed
from stores import Names, adapters, names
from tracer import outcome

from lcm_arith.adapters import load
from lcm_arith.registry import adding, archive, editing, upkeep
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry

_FORK: Final = multiprocessing.get_context("fork")
_SHORTEST: Final = 0.002  # seconds until a kill
_FEWEST: Final = 5  # reads of each reader, however busy the machine


def together(count: int, work: Callable[[int], Any]) -> list[Any]:
    """What ``work`` returned in so many processes that begin at once, in order of their numbers.

    Raises:
        AssertionError: If a process died.
    """
    gate, results = _FORK.Barrier(count), _FORK.SimpleQueue()

    def run(number: int) -> None:
        gate.wait(60)
        results.put((number, outcome(lambda: work(number))))

    processes = [_FORK.Process(target=run, args=(number,)) for number in range(count)]
    for process in processes:
        process.start()
    found = dict(_taken(results, processes) for _ in processes)
    for process in processes:
        process.join()
    return [found[number] for number in range(count)]


def _taken(results: Any, processes: list[Any]) -> Any:
    while results.empty():
        died = [own.exitcode for own in processes if own.exitcode not in (None, 0)]
        assert not died, f"a process died: {died}"
        time.sleep(0.01)
    return results.get()


# F3: a writer that is killed at any moment.


@dataclass(frozen=True)
class Step:
    """One random thing to do, and what it makes of the names; both as the writer tells it."""

    what: str
    name: str
    other: str
    number: int

    def act(self, registry: Registry, paths: list[Path], out: Path) -> None:
        """Does it."""
        if self.what == "add":
            adding.add(registry, paths[self.number % len(paths)], name=self.name)
        elif self.what == "tag":
            editing.tag(registry, self.name, [f"t{self.number}"])
        elif self.what == "note":
            editing.note(registry, self.name, f"note {self.number}")
        elif self.what == "set":
            editing.set_values(registry, self.name, {"weight": str(self.number)})
        elif self.what == "rename":
            editing.rename(registry, self.name, self.other)
        elif self.what == "rm":
            editing.remove(registry, self.name)
        elif self.what == "gc":
            upkeep.gc(registry, older_than=-1)
        elif self.what == "reindex":
            upkeep.reindex(registry)
        else:
            archive.backup(registry, out, force=True)

    def done(self, before: Names) -> Names:
        """The names afterwards; of a new name, the record is left out."""
        after = dict(before)
        state = after.get(self.name)
        if self.what == "add":
            after[self.name] = State()
        elif self.what == "tag" and state:
            tags = tuple(sorted({*state.tags, f"t{self.number}"}))
            after[self.name] = replace(state, tags=tags)
        elif self.what == "note" and state:
            after[self.name] = replace(state, notes=(*state.notes, f"note {self.number}"))
        elif self.what == "set" and state:
            settings = {**state.settings, "weight": str(self.number)}
            after[self.name] = replace(state, settings=settings)
        elif self.what == "rename":
            after[self.other] = after.pop(self.name)
        elif self.what == "rm":
            del after[self.name]
        return after


_EDITS: Final = ("tag", "note", "set", "tag", "note", "set", "rename", "rm", "add", "add")
_UPKEEP: Final = ("gc", "reindex", "backup")


def _step(chosen: random.Random, model: Names, number: int) -> Step:
    """Something that can be done to these names."""
    what = chosen.choice(_UPKEEP) if chosen.random() < 0.1 else chosen.choice(_EDITS)
    if len(model) < 3 or (what == "add" and len(model) < 12):
        return Step("add", f"n{number}", "", number)
    name = chosen.choice(sorted(model))
    return Step("note" if what == "add" else what, name, f"r{number}", number)


def _write(registry: Registry, paths: list[Path], model: Names, seed: int, pipe: int) -> None:
    """Does things until it is killed; tells each before it and, once it is done, after it."""
    chosen, number = random.Random(seed), seed * 1000
    try:
        while True:
            step = _step(chosen, model, number)
            os.write(pipe, json.dumps(vars(step)).encode() + b"\n")
            step.act(registry, paths, registry.root.parent / "killed.tar")
            os.write(pipe, b"done\n")
            model, number = step.done(model), number + 1
    except BaseException as error:
        os.write(pipe, f"failed {type(error).__name__}: {error}".encode())
    finally:
        os._exit(1)


@timed
def killed_at_random(
    folder: Path, url: str, kills: int, seed: int = 0, longest: float = 0.12
) -> Tally:
    """F3: what was acknowledged is there, what was not is there or not, and never in between.

    Args:
        folder: An empty one.
        url: Of an empty index.
        kills: How many.
        seed: Of what is done, and when it is killed.
        longest: Seconds until a kill, at most; on a busy machine, those that three adds take.
    """
    paths = adapters(folder, 8)
    registry = Registry.open(folder / "killed", url)
    tally, model, chosen, acknowledged = Tally(), {}, random.Random(seed), 0
    start = time.perf_counter()
    adding.add(registry, paths[0], name="n0")
    longest = max(longest, 3 * (time.perf_counter() - start))
    model = _plain(names(registry))
    for kill in range(1, kills + 1):
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reader)
            _write(registry, paths, model, seed * 100_000 + kill, writer)
        os.close(writer)
        time.sleep(chosen.uniform(_SHORTEST, longest))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with os.fdopen(reader, "rb") as file:
            *lines, last = file.read().decode().split("\n")
        tally.check(not last.startswith("failed"), f"kill {kill}: the writer {last}")
        steps = [Step(**json.loads(line)) for line in lines if line != "done"]
        finished = lines.count("done")
        for step in steps[:finished]:
            model = step.done(model)
        allowed = [model, *(step.done(model) for step in steps[finished:])]
        acknowledged += finished
        with tally.promised(f"kill {kill}"):
            found = _plain(names(registry))
            tally.check(found in allowed, f"kill {kill} in {steps[-1:]}: {found} not in {allowed}")
            model = found
            if kill % 25 == 0 or kill == kills:
                sound(tally, registry, f"kill {kill}")
        tally.points += 1
    tally.figures = {"acknowledged": acknowledged, "names": len(model)}
    return tally


def _plain(found: Names) -> Names:
    return {name: replace(state, record=None) for name, state in found.items()}


# F6: writers at once.


@timed
def writers(folder: Path, url: str, processes: int, each: int) -> Tally:
    """F6: nothing that a writer said is lost, and nobody waits for long."""
    paths = adapters(folder, 8)
    registry = Registry.open(folder / "written", url)
    for name in ("shared", *sorted({_field(own)[0] for own in range(processes)})):
        adding.add(registry, paths[0], name=name)

    def work(own: int) -> list[tuple[str, float]]:
        mine = Registry.open(registry.root, url)
        taken = []
        for turn in range(each):
            start = time.perf_counter()
            what = _one(mine, paths, own, turn)
            taken.append((what, time.perf_counter() - start))
        return taken

    tally = Tally(points=processes * each)
    told = together(processes, work)
    failed = [own for own in told if "error" in own]
    tally.check(not failed, f"{len(failed)} writers failed: {failed[:2]}")
    waits = sorted(wait for own in told for _, wait in own.get("done", []))
    found = names(Registry.open(registry.root, url))
    turns = [(own, turn) for own in range(processes) for turn in range(each)]
    tags = {f"t{own}-{turn}" for own, turn in turns if turn % 4 == 0}
    notes = {f"n{own}-{turn}" for own, turn in turns if turn % 4 == 1}
    last = {own: f"s{own}-{turn}" for own, turn in turns if turn % 4 == 2}
    kept = {own: found[_field(own)[0]].settings.get(_field(own)[1]) for own in last}
    added = {f"v{own}-{turn}" for own, turn in turns if turn % 4 == 3}
    lost = (
        len(tags - set(found["shared"].tags)) + abs(len(notes) - len(found["shared"].notes))
        + len(notes - set(found["shared"].notes)) + sum(kept[own] != last[own] for own in last)
        + len(added - found.keys())
    )  # fmt: skip
    tally.check(lost == 0, f"{lost} updates of {tally.points} are lost")
    sound(tally, registry, "afterwards")
    if waits:
        p99 = waits[int(0.99 * (len(waits) - 1))]
        tally.check(p99 < 5, f"p99 of the calls is {p99:.2f} s")
        tally.figures = {"p50 s": waits[len(waits) // 2], "p99 s": p99, "longest s": waits[-1]}
    return tally


_FIELDS: Final = ("title", "author", "description", "negative_prompt")


def _field(own: int) -> tuple[str, str]:
    """A name and a field of it that one writer alone sets; others set the others."""
    return f"other{own // len(_FIELDS)}", _FIELDS[own % len(_FIELDS)]


def _one(registry: Registry, paths: list[Path], own: int, turn: int) -> str:
    text = f"{own}-{turn}"
    if turn % 4 == 0:
        editing.tag(registry, "shared", [f"t{text}"])
    elif turn % 4 == 1:
        editing.note(registry, "shared", f"n{text}")
    elif turn % 4 == 2:
        name, field = _field(own)
        editing.set_values(registry, name, {field: f"s{text}"})
    else:
        adding.add(registry, paths[turn % len(paths)], name=f"v{text}")
    return ("tag", "note", "set", "add")[turn % 4]


@timed
def same(folder: Path, url: str, processes: int) -> Tally:
    """F7: the same bytes and the same name at once: one object and one winner."""
    path = adapters(folder, 1)[0]
    root = folder / "same"

    def work(name: str) -> str:
        return adding.add(Registry.open(root, url), path, name=name).name

    tally = Tally(points=2 * processes)
    told = together(processes, lambda _: work("one"))
    won = [own for own in told if "done" in own]
    lost = [own for own in told if own.get("error") == "OutputExistsError"]
    tally.check((len(won), len(lost)) == (1, processes - 1), f"same name: {told}")
    told = together(processes, lambda number: work(f"own{number}"))
    tally.check(all("done" in own for own in told), f"same bytes: {told}")
    registry = Registry.open(root, url)
    tally.check(len(list(registry.objects)) == 1, "more than one object")
    tally.check(len(registry.index.rows()) == processes + 1, "names are missing")
    sound(tally, registry, "afterwards")
    return tally


# F8: readers while it is swept.


@timed
def readers(folder: Path, url: str, processes: int, seconds: float) -> Tally:
    """F8: a vector that keeps its name is found and read whatever is removed meanwhile."""
    paths = adapters(folder, 8)
    registry = Registry.open(folder / "read", url)
    for number in range(4):
        adding.add(registry, paths[number], name=f"kept{number}")

    def read(number: int) -> int:
        mine, count, end = Registry.open(registry.root, url), 0, time.monotonic() + seconds
        while time.monotonic() < end or count < _FEWEST:
            if number == 0:
                _churn(mine, paths, count)
            elif number == 1:
                upkeep.gc(mine, older_than=-1)
            else:
                found = mine.find(f"kept{count % 4}")
                assert len(load(found.path)) == 2
            count += 1
        return count

    tally = Tally()
    told = together(processes + 2, read)
    failed = [own for own in told if "error" in own]
    tally.check(not failed, f"{failed[:3]}")
    counts = [own.get("done", 0) for own in told]
    tally.points = sum(counts[2:])
    tally.figures = {"added and removed": counts[0], "swept": counts[1], "read": tally.points}
    tally.check(min(counts) > 0, f"somebody did nothing: {counts}")
    sound(tally, registry, "afterwards")
    return tally


def _churn(registry: Registry, paths: list[Path], count: int) -> None:
    name = f"passing{count}"
    adding.add(registry, paths[4 + count % 4], name=name)
    editing.rename(registry, name, f"{name}-on")
    editing.remove(registry, f"{name}-on")
