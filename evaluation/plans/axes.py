"""Axes of a grid beside λ1, λ2 and steps: which values, and what of a cell each sets.

Values are separated by commas. Where a list holds a semicolon, semicolons separate instead, and
commas belong to the values; one at the end ends the last value. ``none`` is to do without.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

from lcm_arith.combination import NONE
from lcm_arith.errors import NotFoundError, UsageError
from lcm_arith.evaluation.plans.lists import parse_counts, parse_decimals, parse_weights
from lcm_arith.evaluation.plans.rows import (
    ARROW,
    ONE,
    ZERO,
    Context,
    Row,
    Schedule,
    mean,
    style_terms,
)
from lcm_arith.methods import METHODS
from lcm_arith.modules import EMBEDDED
from lcm_arith.sampling import SAMPLERS
from lcm_arith.vector import TaskVector

_MOST_CELLS: Final = 100_000
_LISTS: Final = ("l1", "l2", "steps", "prompts", "seeds")
_NOTHING: Final = object()


@dataclass(frozen=True)
class Axis:
    """A row of the axes table.

    Args:
        name: As typed; also the field that it sets.
        about: What its values are, for people.
        read: (one item of the list, where it stands) → the values that it stands for.
        context: Whether the field is of :class:`Context`, so that margins and controls follow it.
        without: What ``none`` stands for, if it may be given.
    """

    name: str
    about: str
    read: Callable[[str, str], Iterable[Any]]
    context: bool = False
    without: Any = _NOTHING


def _guidance(text: str, what: str) -> list[float]:
    values = [float(value) for value in parse_decimals(text, what)]
    if min(values) < 0:
        raise UsageError(f"{what}: guidance {min(values):g} is below 0", hint="1 is no guidance")
    return values


def _one_of(known: Iterable[str], kind: str) -> Callable[[str, str], list[str]]:
    def read(text: str, what: str) -> list[str]:
        if text not in known:
            raise UsageError(f"{what}: no {kind} {text!r}", hint=_did_you_mean(text, known))
        return [text]

    return read


def _style(text: str, what: str) -> list[str]:
    style_terms(text)
    return [text]


def _base(text: str, what: str) -> list[str]:
    if text in (EMBEDDED, "embedded"):
        return [EMBEDDED]
    if "/" not in text and not Path(text).exists():
        raise NotFoundError(
            f"{what}: no model {text!r}",
            hint=f"{EMBEDDED}, a diffusers folder, a checkpoint, or owner/name of a hub",
        )
    return [text]


def _edit(text: str, what: str) -> list[str]:
    find, arrow, _ = text.partition(ARROW)
    if not (find and arrow):
        raise UsageError(f"{what}: {text!r} is no FIND{ARROW}REPLACE", hint="such as 'red=>blue'")
    return _words(text, what)


def _words(text: str, what: str) -> list[str]:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what}: {text!r} is no text in UTF-8") from error
    return [text]


def _as_it_is(text: str, what: str) -> list[str]:
    return [text]


AXES: Final = {
    axis.name: axis
    for axis in (
        Axis("guidance", "guidance scales, 1 + ω", _guidance),
        Axis("sampler", "samplers", _one_of(SAMPLERS, "sampler")),
        Axis("method", "ways to combine the vectors", _one_of(METHODS, "method")),
        Axis("rank", "ranks of each module after re-projection", parse_counts, without=None),
        Axis("te", "factors of both λ in the text encoders", parse_decimals, without=None),
        Axis("style", "style vectors, several joined as a:1+b:0.5", _style, context=True),
        Axis("accel", "acceleration vectors", _as_it_is),
        Axis("base", "base models", _base, context=True),
        Axis("negative", "negative prompts", _words, context=True, without=""),
        Axis("edit", "FIND=>REPLACE, done to every prompt", _edit, context=True, without=""),
    )
}


def parse_axes(texts: Iterable[str]) -> dict[str, tuple[Any, ...]]:
    """Axis → its values, of options ``NAME=V1,V2``.

    Raises:
        UsageError: If an axis is unknown, given twice, or a value none of its.
        NotFoundError: If a base model is not there.
    """
    found: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        name, equals, listed = text.partition("=")
        name = name.strip()
        if not equals:
            raise UsageError(f"--axis {text!r}: not NAME=V1,V2", hint="such as sampler=lcm,euler")
        if name in _LISTS:
            raise UsageError(f"--axis {name}: has an option of its own", hint=f"--{name} {listed}")
        if name not in AXES:
            raise UsageError(f"--axis: no axis {name!r}", hint=_did_you_mean(name, AXES))
        if name in found:
            raise UsageError(f"--axis {name}: is given twice", hint="put all its values in one")
        found[name] = _values(AXES[name], listed)
    return found


def _values(axis: Axis, listed: str) -> tuple[Any, ...]:
    what = f"--axis {axis.name}"
    values: list[Any] = []
    for item in map(str.strip, listed.removesuffix(";").split(";" if ";" in listed else ",")):
        if not item:
            hint = "none is to do without" if axis.without is not _NOTHING else "leave it out"
            raise UsageError(f"{what}={listed}: a value is empty", hint=hint)
        plain = item != NONE or axis.without is _NOTHING
        values += axis.read(item, what) if plain else [axis.without]
    return tuple(dict.fromkeys(values))


def _did_you_mean(text: str, known: Iterable[str]) -> str:
    names = list(known)
    close = difflib.get_close_matches(text, names, n=1)
    return f"did you mean {close[0]}?" if close else f"one of {', '.join(names)}"


def make_cells(
    *,
    style: str | None,
    accel: str | None,
    defaults: tuple[str, str],
    l1: str,
    l2: str,
    steps: str,
    axes: Sequence[str] = (),
    prompts: Sequence[str] = (),
) -> tuple[Row, ...]:
    """Every cell of λ1 × λ2 × steps × axes, those of one context together.

    What is idle makes no cells of its own: λ1 without a style vector, λ2 without acceleration, a
    negative prompt without guidance, guidance below 1 (it is 1), te of 1.
    λ per step makes cells of as many steps.

    Args:
        style: Style vector; None where not given.
        accel: Acceleration vector, likewise.
        defaults: The two, where neither they nor an axis say.
        l1: List as typed; an item may be λ per step.
        l2: Likewise.
        steps: List as typed.
        axes: ``NAME=V1,V2`` as typed.
        prompts: What edits are to change.

    Raises:
        UsageError: If a list or axis cannot be read, asks for nothing or for too much.
        NotFoundError: If a base model is not there.
    """
    given = parse_axes(axes)
    for name, one, usual in zip(("style", "accel"), (style, accel), defaults, strict=True):
        if one is not None and name in given:
            raise UsageError(f"--axis {name}: {one} is given, too", hint="name it in the axis")
        given.setdefault(name, (usual if one is None else one,))
    given = dict(sorted(given.items(), key=lambda pair: not AXES[pair[0]].context))
    first, second = parse_weights(l1, "--l1"), parse_weights(l2, "--l2")
    counts = parse_counts(steps, "--steps")
    _check_schedules(first, counts, "--l1")
    _check_schedules(second, counts, "--l2")
    sizes = [len(values) for values in (*given.values(), first, second, counts)]
    if math.prod(sizes) > _MOST_CELLS:
        raise UsageError(f"a grid of {math.prod(sizes)} cells is more than {_MOST_CELLS}")
    cells = [
        _cell(dict(zip(given, values, strict=True)), a, b, n)
        for values in product(*given.values())
        for a, b, n in product(first, second, counts)
        if len(a) in (1, n) and len(b) in (1, n)
    ]
    _check_used(given, cells, prompts)
    distinct: dict[Any, Row] = {}
    for cell in cells:
        distinct.setdefault(cell.pixels_key, cell)
    return tuple(distinct.values())


def _cell(values: dict[str, Any], l1: Schedule, l2: Schedule, steps: int) -> Row:
    of_row = {name: value for name, value in values.items() if not AXES[name].context}
    of_context = {name: value for name, value in values.items() if AXES[name].context}
    context = Context(**of_context)
    guidance = max(of_row.pop("guidance", 1.0), 1.0)
    if guidance == 1:
        context = replace(context, negative="")
    if of_row.get("te") == ONE:
        of_row["te"] = None
    l1 = l1 if context.style != NONE else (ZERO,)
    l2 = l2 if of_row["accel"] != NONE else (ZERO,)
    row = Row(
        "cell", mean(l1), mean(l2), "lcm", steps, guidance, context,
        l1_schedule=_changing(l1), l2_schedule=_changing(l2),
    )  # fmt: skip
    return replace(row, **of_row)


def _changing(schedule: Schedule) -> Schedule:
    return schedule if len(set(schedule)) > 1 else ()


def _check_schedules(weights: Sequence[Schedule], counts: Sequence[int], what: str) -> None:
    for schedule in weights:
        if len(schedule) > 1 and len(schedule) not in counts:
            raise UsageError(
                f"{what} {'/'.join(map(str, schedule))}: λ of {len(schedule)} steps, and --steps "
                f"has {', '.join(map(str, counts))}",
                hint=f"add {len(schedule)} to --steps",
            )


def _check_used(
    given: dict[str, tuple[Any, ...]], cells: Sequence[Row], prompts: Sequence[str]
) -> None:
    """Raises where two λ per step never meet, or a negative prompt or an edit cannot be meant."""
    if not cells:
        raise UsageError(
            "no cell: λ1 and λ2 are given per step, for different numbers of steps",
            hint="give one of them as a single λ, or both for as many steps",
        )
    for negative in given.get("negative", ()):
        if negative and all(cell.context.negative != negative for cell in cells):
            raise UsageError(
                f"--axis negative: no cell has guidance above 1, {negative!r} would change nothing",
                hint="add --axis guidance=1.5",
            )
    for edit in filter(None, given.get("edit", ())):
        _check_edit(edit, prompts)


def _check_edit(edit: str, prompts: Sequence[str]) -> None:
    """Raises where an edit changes nothing, empties a prompt, or makes one of several."""
    edited = [Context(edit=edit).text(prompt) for prompt in prompts]
    if edited == list(prompts):
        find = edit.partition(ARROW)[0]
        raise UsageError(f"--axis edit={edit}: no prompt holds {find!r}")
    if any(not text.strip() for text in edited):
        raise UsageError(f"--axis edit={edit}: leaves nothing of a prompt")
    first: dict[str, str] = {}
    for prompt, text in zip(prompts, edited, strict=True):
        if first.setdefault(text, prompt) != prompt:
            raise UsageError(
                f"--axis edit={edit}: makes {first[text]!r} and {prompt!r} one prompt, {text!r}, "
                "whose pictures would count twice",
                hint="leave one of them out (--prompts FILE), or replace by another word",
            )


def check_text_encoders(cells: Iterable[Row], vector: Callable[[str], TaskVector]) -> None:
    """Raises where cells differ in ``te``, and no vector changes a text encoder.

    Args:
        cells: Of a grid.
        vector: Loads one by name.

    Raises:
        UsageError: If so.
    """
    told = [cell for cell in cells if cell.te is not None]
    names = {term.name for cell in told for term in style_terms(cell.context.style)}
    names |= {cell.accel for cell in told} - {NONE}
    modules = (module for name in sorted(names) for module in vector(name))
    if told and all(module.startswith("unet.") for module in modules):
        raise UsageError(
            f"--axis te: none of {', '.join(sorted(names))} changes a text encoder",
            hint="a style vector of finetune --text-encoder does",
        )
