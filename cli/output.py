"""Printing: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from lcm_arith.text import clean

if TYPE_CHECKING:
    from pathlib import Path

    from lcm_arith.evaluation.grid import Result
    from lcm_arith.vector import TaskVector

SCHEMA_VERSION: Final = 1
MINUTE: Final = 60.0  # s
_FASTEST: Final = 1e5  # a second; faster is what was there already
GRID_POINTS: Final = 50  # of LCM samplers where nobody says otherwise
NOTABLE: Final = {"float16": 1e-3, "bfloat16": 1e-2}
"""‖file − τ‖ / ‖τ‖ above which a number format has cost more than it usually does (3e-4, 2e-3)."""
_GRID_TABLE: Final = {
    "role": "role", "l1": "λ1", "l2": "λ2", "sampler": "sampler", "steps": "steps",
    "guidance": "cfg", "nfe": "NFE", "prompt_score": "prompt", "retrieval_top1": "retrieval",
    "style_accuracy": "style", "pair_distance": "distance",
}  # fmt: skip
"""Column of the CSV → its head in a terminal of 80 columns; the CSV has all, with intervals."""

_VARYING: Final = {
    "base": "base", "style": "vector", "accel": "accel", "method": "method", "rank": "rank",
    "te": "te", "negative": "negative", "edit": "edit",
}  # fmt: skip
"""The same of columns that are shown where cells differ in them."""

_WIDEST: Final = 160  # columns of a table with axes; a terminal breaks its lines

stdout: Final = Console(highlight=False, markup=False)
stderr: Final = Console(stderr=True, highlight=False, markup=False)


def print_json(values: dict[str, Any]) -> None:
    """One JSON object on stdout, with the schema's version."""
    print(json.dumps({"schema_version": SCHEMA_VERSION, **values}, indent=2))


@contextmanager
def reading() -> Iterator[None]:
    """Says that libraries and files are read, which takes seconds; on a terminal, and no longer."""
    with stderr.status("reading"):
        yield


@contextmanager
def progress(*, shown: bool = True) -> Iterator[Progress]:
    """A progress bar on stderr with counts, elapsed time and ETA."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        Rate(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=stderr, disable=not shown) as bar:
        yield bar


class Rate(ProgressColumn):
    """Steps a second."""

    def render(self, task: Task) -> Text:
        """Empty until it is known."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.3g}/s" if speed and speed < _FASTEST else "")


class Stages:
    """Named stages on one progress bar: ``stages("encode", done, total)``.

    Where nobody watches a bar it prints a line a minute instead.
    """

    def __init__(self, bar: Progress, clock: Callable[[], float] = time.monotonic) -> None:
        self._bar = bar
        self._tasks: dict[str, Any] = {}
        self._clock, self._said = clock, clock()

    def __call__(self, stage: str, done: int, total: int, note: str = "") -> None:
        """Shows ``done`` of ``total`` of a stage, which is added when first named."""
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(
            self._tasks[stage],
            completed=done,
            total=total,
            description=f"{stage} {note}" if note else stage,
        )
        if not self._bar.console.is_terminal and self._clock() - self._said >= MINUTE:
            self._said = self._clock()
            self._say(self._tasks[stage])

    def _say(self, number: Any) -> None:
        task = next(task for task in self._bar.tasks if task.id == number)
        speed, left = task.speed, task.time_remaining
        rate = f", {speed:.3g}/s" if speed else ""
        rest = f", {timedelta(seconds=round(left))} to go" if left else ""
        line = f"{task.description}: {task.completed:g} of {task.total:g}{rate}{rest}"
        self._bar.console.print(line, soft_wrap=True)


def print_made(made: dict[str, Any], *, as_json: bool) -> None:
    """The result of a training command."""
    if as_json:
        print_json(made)
        return
    plan = made["plan"]
    if made["kind"] == "model":
        what = "model: all weights of the UNet, sampled by lcm"
    else:
        what = f"{made['kind']} vector: {made['modules']} modules of rank {plan['rank']}"
    stdout.print(
        f"{what}, {plan['steps']} "
        f"steps of {plan['batch'] * plan['accumulation']} on {made['pictures']} pictures, "
        f"final loss {made['final_loss'] or float('nan'):.4f}",
        soft_wrap=True,
    )
    for told in _notes(made):
        stderr.print(f"Note: {told}", soft_wrap=True)
    loads = "from_pretrained" if made["kind"] == "model" else "load_lora_weights"
    stdout.print(f"diffusers' {loads} gives back every module: proven", soft_wrap=True)
    stdout.print(f"metrics and sheets: {made['run']}", soft_wrap=True)
    _print_place(made)


def _notes(made: dict[str, Any]) -> Iterator[str]:
    if "omega" in made:
        ends = [float(end) for end in made["omega"].split(" to ")]
        scales = " to ".join(f"{1 + end:g}" for end in ends)
        yield f"ω = {made['omega']}, diffusers' guidance scale {scales}"
    if made.get("grid_points", GRID_POINTS) % GRID_POINTS:
        points = made["grid_points"]
        yield (
            f"trained on {points} grid points: sample with original_inference_steps={points}, the "
            f"{GRID_POINTS} of an LCM sampler's own grid lie elsewhere"
        )
    if made["skipped_steps"]:
        yield f"{made['skipped_steps']} steps were not finite and changed nothing"
    yield from data_notes(made)


def data_notes(told: dict[str, Any]) -> Iterator[str]:
    """What of the data was cut or left out."""
    if told["cut_captions"]:
        yield (
            f"{told['cut_captions']} captions are too long; their ends are not read "
            "(--max-tokens reads more)"
        )
    if skipped := told["skipped_pictures"]:
        some = "; ".join(clean(each) for each in skipped[:3])
        yield f"{len(skipped)} pictures could not be used: {some}"


def write_vector(
    tau: TaskVector,
    out: Path,
    *,
    dtype: str,
    force: bool,
    about: dict[str, Any],
    form: str = "diffusers",
) -> dict[str, Any]:
    """Saves a vector; what was written, JSON-ready."""
    from lcm_arith.formats.container import DTYPES
    from lcm_arith.formats.writers import dit_spelling
    from lcm_arith.modules import is_vector
    from lcm_arith.projection import retained_energy
    from lcm_arith.respelling import respelled
    from lcm_arith.saving import fitted, save, save_folder

    tau = fitted(tau, dtype=DTYPES[dtype], about=about, form=form)
    if form == "peft" and not out.suffix:
        made = save_folder(tau, out, dtype=DTYPES[dtype], about=about, force=force)
    else:
        made = save(tau, out, dtype=DTYPES[dtype], about=about, force=force, form=form)
    written = respelled(tau, dit_spelling(form))
    layers = [target for target in written if not is_vector(target)]
    ranks = [written.rank_of(target) for target in layers or written]
    return {
        "path": str(out),
        "sha256": made.sha256,
        "modules": len(ranks),
        "rank_min": min(ranks),
        "rank_max": max(ranks),
        "retained_energy": retained_energy(tau),
        "rounding_error": made.rounding,
        "dtype": dtype,
        "format": form,
        "bytes": sum(path.stat().st_size for path in (out, *out.rglob("*")) if path.is_file()),
    }


def print_vector(made: dict[str, Any]) -> None:
    """What :func:`write_vector` returned, in two lines."""
    low, high, energy = made["rank_min"], made["rank_max"], made["retained_energy"]
    spread = f"{low}" if low == high else f"{low} to {high}"
    kept = "" if energy is None else f"; {energy:.4%} of the energy retained"
    stdout.print(
        f"{made['modules']} modules of rank {spread}{kept}; {made['dtype']}, {made['format']}"
    )
    lost = made["rounding_error"]
    if lost is not None and lost > NOTABLE[made["dtype"]]:
        stdout.print(f"rounding to {made['dtype']} loses {lost:.2g} of the norm; float32 keeps it")
    _print_place(made, f" ({made['bytes'] / 2**20:.1f} MiB)")


def _print_place(made: dict[str, Any], size: str = "") -> None:
    """The file, and its name in the registry, if it has one."""
    stdout.print(f"wrote {made['path']}{size}", soft_wrap=True)
    if "name" in made:
        stdout.print(f"registered as {made['name']}", soft_wrap=True)


def print_grid(result: Result, also: Iterable[str] = ()) -> None:
    """The rows of a grid as a table; of the axes those that it has, and ``also`` these metrics."""
    from rich.table import Table

    lines = result.cells.astype(object).where(result.cells.notna(), "").to_dict(orient="records")
    cells = [line for line in lines if line["role"] == "cell"]
    filled = {name for line in lines for name, value in line.items() if value != ""}
    usual = {name: head for name, head in _GRID_TABLE.items() if name in filled}
    asked = {name: _GRID_TABLE.get(name, name) for name in also}
    heads = (
        usual
        | asked
        | {name: head for name, head in _VARYING.items() if len({line[name] for line in cells}) > 1}
    )
    table = Table(box=None, pad_edge=False)
    for name, head in heads.items():
        number = name not in ("role", "sampler", *_VARYING) or name in ("rank", "te")
        table.add_column(head, justify="right" if number else "left", no_wrap=name in _GRID_TABLE)
    for line in lines:
        line |= {name: line[f"{name}_schedule"] or line[name] for name in ("l1", "l2")}
        table.add_row(*(_cell(line[name]) for name in heads))
    scheduled = any(line["l1_schedule"] or line["l2_schedule"] for line in lines)
    plain = heads.keys() <= _GRID_TABLE.keys() and stdout.is_terminal and not scheduled
    wide = stdout.width if plain else max(stdout.width, _WIDEST)
    Console(file=stdout.file, highlight=False, markup=False, width=wide).print(table)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".rstrip("0").rstrip(".")
    return clean(str(value))
