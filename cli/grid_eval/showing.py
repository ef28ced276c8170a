"""What a grid answers, on the terminal or as JSON."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from lcm_arith.cli.output import print_grid, print_json, stderr, stdout
from lcm_arith.text import clean_lines

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from pathlib import Path

    from lcm_arith.evaluation.running import Drawn
    from lcm_arith.evaluation.session import Concluded


_SHOWN: Final = ("report.html", "sheet.png")
"""Files that are named beside the table; the others are beside them."""


def say(notes: Iterable[str]) -> None:
    """Prints notes."""
    for note in notes:
        stderr.print(clean_lines(f"Note: {note}"), soft_wrap=True)


def show(concluded: Concluded, *, as_json: bool, said: Collection[str] = ()) -> None:
    """Prints all of it but notes that were said, and raises if some cells could not be drawn."""
    from dataclasses import asdict

    from lcm_arith.evaluation import answers
    from lcm_arith.evaluation.findings import whole_table
    from lcm_arith.evaluation.report import ceilings_line, notes

    result = concluded.result
    say(note for note in notes(result) if note not in said)
    if as_json:
        print_json(
            {
                "paths": [str(path) for path in concluded.paths],
                "rows": answers.records(whole_table(concluded.answers)),
                "ceilings": ceilings_line(result),
                "searched": concluded.searched and asdict(concluded.searched),
                **answers.all_json(concluded.answers),
            }
        )
    else:
        found = [answer.found for answer in concluded.answers]
        asked = [f.metric for f in found] + [f.margin.metric for f in found if f.margin]
        print_grid(result, dict.fromkeys(asked))
        for line in (ceilings_line(result), *concluded.lines):
            stdout.print(line, soft_wrap=True)
        shown = [p for p in concluded.paths if p.name in _SHOWN or p == concluded.paths[0]]
        for path in shown:
            stdout.print(clean_lines(f"wrote {path}"), soft_wrap=True)
        stdout.print(f"and {len(concluded.paths) - len(shown)} more files there", soft_wrap=True)
    concluded.raise_if_failed()


def show_drawn(drawn: Drawn, folder: Path, shard: str, *, as_json: bool) -> None:
    """Prints what a shard drew, and raises if some of it could not be drawn."""
    from lcm_arith.errors import DivergedError

    made, failed = drawn.counters.pictures, list(drawn.failed.values())
    if as_json:
        told = {"shard": shard, "rows": len(drawn.rows), "pictures": made, "failed": len(failed)}
        print_json({**told, "path": str(folder)})
    else:
        none = "" if drawn.rows else "; all of the grid's weights fall to other shards"
        stdout.print(f"shard {shard}: {len(drawn.rows)} rows, {made} pictures made now{none}")
        stdout.print(
            "When all shards lie in one folder (cp -r puts them together): "
            f"lcm-arith grid-eval report {folder}",
            soft_wrap=True,
        )
    if failed:
        raise DivergedError(f"{len(failed)} rows could not be drawn: {failed[0]}")
