"""Grids that are broken on purpose: killed, truncated, cut into shards, robbed of actors.

Each is compared with a grid that nothing ended: every picture, and both tables without their
columns of time. ``tools/torture.py`` runs them; the tests do the same with fewer points.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import torch
from faults import Tally, timed
from grids import ActorKiller, draw, pictures, tables, tiny_files, tiny_grid

from lcm_arith.evaluation.drawing import trajectories
from lcm_arith.evaluation.drawing.engine import Engine, units
from lcm_arith.evaluation.drawing.executors.choose import choose
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.shards import WHOLE, Shard
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Record, Store
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.running import Drawn

_FORK: Final = multiprocessing.get_context("fork")
_WEIGHTS: Final = ",".join(f"{number / 8:g}" for number in range(1, 13))
_POLL: Final = 0.002  # seconds


@dataclass(frozen=True, eq=False)
class Whole:
    """A grid that nothing ended, and what others are compared with.

    Args:
        grid: The plan.
        folder: Where there is room.
        drawn: Its pictures.
        loading, chunk: Seconds until the first chunk is begun, and of a chunk.
    """

    grid: Grid
    folder: Path
    drawn: Drawn
    loading: float
    chunk: float

    @classmethod
    def make(cls, folder: Path) -> Whole:
        """Twelve λ, steps 1 and 2, two seeds: 14 units of one chunk each, seconds to draw."""
        torch.set_num_threads(1)
        grid = tiny_grid(tiny_files(folder / "files"), _WEIGHTS)
        start = time.perf_counter()
        drawn = draw(grid, folder / "whole")
        loading = time.perf_counter() - start - drawn.counters.wall_s
        return cls(grid, folder, drawn, loading, drawn.counters.wall_s / len(drawn.store.records))

    def compare(self, place: Path, tally: Tally, what: str) -> None:
        """Counts as losses what a finished folder has otherwise, and what it has not."""
        with tally.promised(what):
            again = draw(self.grid, place)
            tally.check(again.counters.pictures == 0, f"{what}: pictures were missing")
            tally.check(pictures(place) == self._pictures, f"{what}: other pictures")
            tally.check(tables(self.grid, again) == self._tables, f"{what}: other tables")

    @property
    def _pictures(self) -> dict[str, bytes]:
        return pictures(self.drawn.store.folder)

    @property
    def _tables(self) -> tuple[bytes, bytes]:
        return tables(self.grid, self.drawn)

    def account(self, ran: list[Ran], tally: Tally, *, redone: int = 0) -> dict[str, int]:
        """Counts as losses work that was done twice without need.

        Args:
            ran: All processes that drew some grids.
            tally: Gets the losses.
            redone: UNet rows of chunks that were there, and were damaged.

        Returns:
            Figures.
        """
        rows = _held(self.drawn.store.folder)
        for each in ran:
            tally.check(rows.keys() >= set(each.begun), f"begins other chunks: {each}")
            at_most = rows.get(each.begun[-1], 0) if each.within else 0
            tally.check(0 <= each.lost <= at_most, f"{each.lost} UNet rows drawn in vain: {each}")
            tally.check(not each.again, f"chunks that were there are begun again: {each}")
        executed, lost = sum(each.executed for each in ran), sum(each.lost for each in ran)
        least = executed - lost - redone
        grids, rest = divmod(least, self.drawn.counters.unet_rows)
        tally.check(not rest, f"{least} UNet rows are no whole number of grids")
        return {
            "grids": grids, "kills": sum(each.killed for each in ran),
            "within a chunk": sum(each.within for each in ran),
            "UNet rows of the grids": least, "executed": executed, "in flight": lost,
        }  # fmt: skip


def _held(place: Path) -> dict[str, int]:
    """Whole chunks of a folder by the name of their first picture → UNet rows that they took."""
    store = Store(place, keys_of(Sources()))
    return {
        next(iter(record.pictures)): round(sum(each.nfe_run for each in record.pictures.values()))
        for name, record in store.records.items()
        if store.whole(name)
    }


@dataclass(frozen=True)
class Moment:
    """When to kill: some seconds after so many chunks were begun, at latest as the next begins."""

    chunks: int
    seconds: float


@dataclass(frozen=True)
class Ran:
    """What a process did.

    Args:
        killed: Whether it was, before it had ended.
        within: Whether that was while a chunk was drawn or committed.
        begun: Chunks by the name of their first picture.
        again: Those of them that were in the folder, or that it begins twice.
        executed: UNet rows that went through the network.
        lost: Those of them that are not in the folder.
    """

    killed: bool
    within: bool
    begun: list[str]
    again: set[str]
    executed: int
    lost: int


def run(whole: Whole, place: Path, moment: Moment | None = None, shard: Shard = WHOLE) -> Ran:
    """Draws a grid in a process of its own, which is killed at a moment.

    Raises:
        AssertionError: If it failed by itself.
    """
    log, before = place.with_name(f"{place.name}.log"), _held(place)
    log.write_text("")
    process = _FORK.Process(target=_logged, args=(whole.grid, place, log, shard))
    process.start()
    if moment:
        _wait(process, log, moment)
        process.kill()
    process.join()
    killed = process.exitcode == -signal.SIGKILL
    assert killed or process.exitcode == 0, f"a drawing process ended with {process.exitcode}"
    begun, executed = _read(log)
    again = {key for key in begun if key in before or begun.count(key) > 1}
    after = _held(place)
    lost = executed - (sum(after.values()) - sum(before.values()))
    within = killed and bool(begun) and begun[-1] not in after
    return Ran(killed, within, begun, again, executed, lost)


def _wait(process: Any, log: Path, moment: Moment) -> None:
    latest = float("inf")
    while process.is_alive() and time.monotonic() < latest:
        begun = len(_read(log)[0])
        if begun > moment.chunks:
            return
        if begun == moment.chunks:
            latest = min(latest, time.monotonic() + moment.seconds)
        time.sleep(_POLL)


def _read(log: Path) -> tuple[list[str], int]:
    """Chunks that were begun, and UNet rows that were evaluated."""
    words = [line.split() for line in log.read_text().splitlines()]
    begun = [key for what, key in words if what == "chunk"]
    return begun, sum(int(rows) for what, rows in words if what == "rows")


def _logged(grid: Grid, place: Path, log: Path, shard: Shard) -> None:
    """Draws, and writes down each chunk that is begun and the rows of each pass of the UNet."""
    told = os.open(log, os.O_WRONLY | os.O_APPEND)
    make, unet_pass = Engine.make, trajectories.unet_pass

    def chunk(self: Engine, *args: Any) -> Record:
        row, item = args[0][0]
        os.write(told, f"chunk {self.store.key(row, item)}\n".encode())
        return make(self, *args)

    def passed(pipeline: Any, z: torch.Tensor, *args: Any, **options: Any) -> torch.Tensor:
        out = unet_pass(pipeline, z, *args, **options)
        os.write(told, f"rows {len(z)}\n".encode())
        return out

    with patch.object(Engine, "make", chunk), patch.object(trajectories, "unet_pass", passed):
        draw(grid, place, shard=shard)


@timed
def killed_at_random(whole: Whole, kills: int, *, seed: int, truncated: bool = False) -> Tally:
    """A grid is killed, begun again, killed …, and in the end finished.

    Where kills are left when it is done, another is begun. No run may lose more than the chunk that
    it was at.

    Args:
        whole: What it has to equal.
        kills: How many.
        seed: Of the moments.
        truncated: Also cut a stored file short after each kill; its chunk is drawn once more.
    """
    tally, chosen = Tally(), random.Random(seed)
    ran: list[Ran] = []
    redone = grids = 0
    while sum(each.killed for each in ran) < kills:
        grids += 1
        place = whole.folder / f"killed-{seed}-{grids}"
        place.mkdir()
        ended = False
        while not ended:
            more = sum(each.killed for each in ran) < kills
            ran.append(run(whole, place, _moment(chosen, whole) if more else None))
            ended = not ran[-1].killed
            if truncated and not ended:
                redone += _truncate(place, chosen)
        whole.compare(place, tally, f"grid {grids} of seed {seed}")
    tally.figures = whole.account(ran, tally, redone=redone)
    tally.figures |= {"of truncated chunks": redone} if truncated else {}
    tally.points = kills
    return tally


def _moment(chosen: random.Random, whole: Whole) -> Moment:
    """Somewhere in the next three chunks, or while all is loaded."""
    chunks = chosen.randrange(4)
    return Moment(chunks, chosen.uniform(0, whole.chunk if chunks else whole.loading))


def _truncate(place: Path, chosen: random.Random) -> int:
    """Cuts a stored picture or record short; the UNet rows of whole chunks that this costs."""
    kind = chosen.choice(("images/*.png", "chunks/*.json"))
    files = sorted(place.glob(kind))
    if not files:
        return 0
    before, path = _held(place), chosen.choice(files)
    os.truncate(path, chosen.randrange(path.stat().st_size))
    return sum(before.values()) - sum(_held(place).values())


@timed
def sharded(whole: Whole, *, seed: int, apart: bool) -> Tally:
    """Three shards in every order; one is killed and begun again.

    Args:
        whole: What they have to equal together.
        seed: Of who is killed when.
        apart: Whether each draws into a folder of its own; they are copied together afterwards.
    """
    tally, chosen, ran = Tally(), random.Random(seed), list[Ran]()
    keys = whole.drawn.store.keys
    for order in itertools.permutations((1, 2, 3)):
        name = f"shards-{seed}-{''.join(map(str, order))}"
        places = {number: whole.folder / f"{name}-{number if apart else 0}" for number in order}
        falls = {n: len(units(Shard(n, 3).rows(whole.grid.rows, keys))) for n in order}
        victim = chosen.choice([n for n in order if falls[n]])
        for number in order:
            shard = Shard(number, 3)
            if number == victim:
                chunk = chosen.randrange(1, max(2, falls[victim]))  # one a unit; not the last
                moment = Moment(chunk, chosen.uniform(0, whole.chunk))
                ran.append(run(whole, places[number], moment, shard))
            ran.append(run(whole, places[number], shard=shard))
        place = places[1]
        if apart:
            place = whole.folder / name
            for number in chosen.sample(order, 3):
                if places[number].exists():  # a shard that nothing falls to leaves no folder
                    shutil.copytree(places[number], place, dirs_exist_ok=True)
        whole.compare(place, tally, f"order {order}")
        tally.points += 1
    tally.figures = whole.account(ran, tally)
    kills = tally.figures["kills"]
    tally.check(kills == tally.points, f"{kills} of {tally.points} were killed")
    return tally


@timed
def robbed_of_actors(whole: Whole, times: int) -> Tally:
    """Ray with two actors, of which one is killed while it draws: early, later, late.

    Where Ray is not installed, the figures say so, and there are no points.
    """
    tally = Tally()
    if find_spec("ray") is None:
        tally.figures = {"skipped:": "Ray is not installed"}
        return tally
    for number in range(times):
        place = whole.folder / f"ray-{number}"
        killer = ActorKiller(os.environ.__setitem__, str(place))
        after = 1 + number * 5  # of 14 chunks
        with tally.promised(f"actor killed after {after} chunks"):
            drawn = draw(
                whole.grid, place, executor=choose("ray", workers=2), on_stage=_later(killer, after)
            )
            tally.check(not drawn.failed, f"given up: {set(drawn.failed.values())}")
        tally.check(len(killer.killed) == 1, "no actor was killed")
        whole.compare(place, tally, f"actor killed after {after} chunks")
        tally.points += len(killer.killed)
    return tally


def _later(killer: ActorKiller, after: int) -> Callable[..., None]:
    told = itertools.count(1)

    def on_stage(*_: object) -> None:
        if next(told) >= after:
            killer()

    return on_stage
