"""Verbs on the folder of a grid: ``report``, ``status``, ``replay``, ``export``, ``gc``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.ages import DryRun, OlderThan, seconds
from lcm_arith.cli.grid_eval.showing import show
from lcm_arith.cli.output import Stages, print_json, progress, reading, stdout

if TYPE_CHECKING:
    from lcm_arith.evaluation.session import Session

REPORT_EXAMPLES = """Examples:

  lcm-arith grid-eval report

  lcm-arith grid-eval report runs/noto --csv noto.csv --json
"""
STATUS_EXAMPLES = """Examples:

  lcm-arith grid-eval status runs/noto
"""
REPLAY_EXAMPLES = """Examples:

  lcm-arith grid-eval replay runs/noto
"""
EXPORT_EXAMPLES = """Examples:

  lcm-arith grid-eval export runs/noto --to for-geneval
"""
GC_EXAMPLES = """Examples:

  lcm-arith grid-eval gc runs/noto --dry-run
"""
Folder = Annotated[
    Path, typer.Argument(metavar="[DIR]", help="Folder of the grid.", show_default="grid")
]


def _session(folder: Path, csv: Path | None = None) -> Session:
    with reading():
        from lcm_arith.evaluation.session import reopened

        return reopened(folder, csv=csv)


def report(
    folder: Folder = Path("grid"),
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table, one row a cell.", show_default="DIR/cells.csv"),
    ] = None,
    as_json: options.Json = False,
) -> None:
    """Measure and answer again, from the pictures that are there; nothing is drawn.

    Cells that lack a picture have a line without figures, and say why.
    """
    from dataclasses import replace

    session = _session(folder, csv)
    with progress() as bar:
        concluded = replace(session, on_stage=Stages(bar)).report()
    show(concluded, as_json=as_json)


def status(folder: Folder = Path("grid"), as_json: options.Json = False) -> None:
    """Tell how far a grid is: what is there, what is missing, what failed."""
    from lcm_arith.evaluation.upkeep import status as find
    from lcm_arith.evaluation.upkeep import table

    session = _session(folder)
    found = find(session.manifest, session.store())
    made, all_ = sum(u.made for u in found), sum(u.pictures for u in found)
    rows, failed = sum(u.nfe for u in found), sum(u.failed for u in found)
    if as_json:
        print_json({"pictures": all_, "made": made, "failed": failed, "units": table(found)})
        return
    for unit in found:
        if unit.made < unit.pictures or unit.failed:
            label = unit.rows[0].label.replace("\n", "  ")
            more = f" and {len(unit.rows) - 1} more" if len(unit.rows) > 1 else ""
            bad = f", {unit.failed} not finite" if unit.failed else ""
            stdout.print(f"{unit.made} of {unit.pictures}{bad}: {label}{more}", soft_wrap=True)
    rest = f"; {rows} UNet passes are missing" if rows else ""
    stdout.print(f"{made} of {all_} pictures are there{rest}", soft_wrap=True)
    if failed:
        stdout.print(f"{failed} came out as NaN or infinity", soft_wrap=True)


def replay(folder: Folder = Path("grid"), as_json: options.Json = False) -> None:
    """Draw every picture again and compare; exit code 8 where one is another."""
    from dataclasses import asdict

    from lcm_arith.errors import VerificationError
    from lcm_arith.evaluation.upkeep import replay as draw

    session = _session(folder)
    with progress() as bar:
        stages = Stages(bar)
        found = list(
            draw(
                session.manifest,
                session.store(),
                session.sources,
                lambda done, total: stages("replay", done, total),
            )
        )
    counts = {n: sum(getattr(f, n) for f in found) for n in ("pictures", "unequal", "left_out")}
    pictures, unequal, left_out = counts.values()
    if as_json:
        print_json({**counts, "chunks": [asdict(f) for f in found]})
    else:
        stdout.print(f"{pictures - unequal} of {pictures} pictures are the same, byte by byte")
    if left_out and not as_json:
        stdout.print(
            f"{left_out} were not drawn again: they were made together with pictures of an earlier "
            "question, whose base or vectors are no longer there",
            soft_wrap=True,
        )
    if unequal:
        largest = max(f.largest for f in found)
        raise VerificationError(
            f"{folder}: {unequal} of {pictures} pictures are others when drawn again, by up to "
            f"{largest} of 255",
            hint="on another machine or number of threads the last bits differ; more is a mistake",
        )


def export(
    folder: Folder = Path("grid"),
    to: Annotated[Path, typer.Option(metavar="DIR", help="A new folder.")] = Path("exported"),
    as_json: options.Json = False,
) -> None:
    """Lay the pictures out as GenEval and its like read them, one set a row.

    CELL_ID/00000/metadata.jsonl holds a prompt, samples/ a picture a seed, rows.jsonl what is what.
    """
    from lcm_arith.evaluation.upkeep import export as lay_out

    session = _session(folder)
    count = lay_out(session.manifest.grid, session.store(), to)
    if as_json:
        print_json({"path": str(to), "pictures": count})
        return
    stdout.print(f"wrote {to}: {count} pictures", soft_wrap=True)


def gc(
    folder: Folder = Path("grid"),
    older_than: OlderThan = "24h",
    dry_run: DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Remove pictures that no question of the folder needs; it does not ask.

    A question is a manifest: manifest.json, and manifest-….json of each earlier other one.
    """
    from lcm_arith.evaluation.upkeep import sweep

    session = _session(folder)
    swept = sweep(
        session.manifest, session.store(), older_than=seconds(older_than), dry_run=dry_run
    )
    if as_json:
        paths = [str(path) for path in swept.paths]
        print_json({"dry_run": dry_run, "paths": paths, "bytes": swept.bytes})
        return
    done = "would be removed" if dry_run else "removed"
    stdout.print(f"{len(swept.paths)} files {done}, {swept.bytes / 2**20:.1f} MiB")
