"""What a grid consists of: cells, their margins and controls, and the pictures of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from lcm_arith.combination import NONE
from lcm_arith.embedded import pictures
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.evaluation.plans.rows import (
    ONE,
    ZERO,
    Context,
    Item,
    Row,
    keys,
    of_keys,
)
from lcm_arith.families import Family
from lcm_arith.modules import EMBEDDED


@dataclass(frozen=True)
class Setting:
    """A context with the rows that its cells are held against.

    Args:
        context: Base, style, negative prompt, edit.
        target_sets: Picture sets whose drawings count as true: the style's, or every base set
            without a style vector; none for a style whose pictures are not shipped.
        style_set: The set that the probe must name; None leaves ``style_accuracy`` empty.
        base, teacher: The two margins; equal but for the role without a style vector.
        controls: NFE → its candidates.
    """

    context: Context
    target_sets: tuple[str, ...]
    style_set: str | None
    base: Row
    teacher: Row
    controls: dict[int, tuple[Row, ...]]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Margins and candidates."""
        candidates = [row for rows in self.controls.values() for row in rows]
        return (self.base, self.teacher, *candidates)


@dataclass(frozen=True)
class Grid:
    """A whole grid.

    Args:
        settings: One per context.
        prompts: Captions.
        seeds: Seeds per caption.
        cells: Rows of role cell, each of the context of a setting.
    """

    settings: tuple[Setting, ...]
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Row, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row whose pictures are needed, each once."""
        margins = [row for setting in self.settings for row in setting.rows]
        return tuple(dict.fromkeys((*margins, *self.cells)))

    @property
    def items(self) -> tuple[Item, ...]:
        """(prompt, seed) of each picture of a row, prompt by prompt."""
        return tuple((prompt, seed) for prompt in self.prompts for seed in self.seeds)

    @property
    def title(self) -> str:
        """The vectors, for people."""
        styles = dict.fromkeys(setting.context.style for setting in self.settings)
        accels = dict.fromkeys(cell.accel for cell in self.cells)
        return f"{', '.join(styles)} + {', '.join(accels)}"

    @property
    def only(self) -> Setting:
        """The setting of a grid that has but one."""
        (setting,) = self.settings
        return setting

    def of(self, row: Row) -> Setting:
        """The setting of a row."""
        return next(s for s in self.settings if s.context == row.context)

    def unstyled(self, row: Row) -> Row:
        """The row that draws the same without the style vector; the base where there is none."""
        wanted = replace(row, l1=ZERO, l1_schedule=()).pixels_key
        return self._by_pixels.get(wanted, self.of(row).base)

    @cached_property
    def _by_pixels(self) -> dict[Any, Row]:
        return {row.pixels_key: row for row in reversed(self.rows)}

    def of_cells(self, cells: Collection[Row]) -> Grid:
        """The same grid of some of its cells alone, with the controls of their NFE."""
        wanted = frozenset(cells)
        kept = {(row.context, row.nfe) for row in wanted}
        settings = (
            replace(s, controls={n: w for n, w in s.controls.items() if (s.context, n) in kept})
            for s in self.settings
        )
        return replace(
            self,
            settings=tuple(setting for setting in settings if setting.controls),
            cells=tuple(row for row in self.cells if row in wanted),
        )

    def parts(self) -> tuple[Grid, ...]:
        """The grid of each base and style, whose cells are compared with one another."""
        groups = dict.fromkeys(setting.context.group for setting in self.settings)
        return tuple(
            replace(
                self,
                settings=tuple(s for s in self.settings if s.context.group == group),
                cells=tuple(row for row in self.cells if row.context.group == group),
            )
            for group in groups
        )


def control_candidates(
    passes: int, guidance: float, context: Context, accel: str = NONE
) -> tuple[Row, ...]:
    """Style-only ways of spending ``passes`` UNet passes without acceleration.

    LCM sampler and dpm++ unguided at that many steps and, where the number is even, both guided at
    half as many.
    """
    ways = [(passes, 1.0)]
    if passes % 2 == 0 and guidance > 1:
        ways.append((passes // 2, guidance))
    own = ONE if context.style != NONE else ZERO
    return tuple(
        Row("control", own, ZERO, sampler, steps, scale, context, accel)
        for steps, scale in ways
        for sampler in ("lcm", "dpm++")
        if sampler != "lcm" or steps <= MOST_LCM_STEPS
    )


MOST_LCM_STEPS: Final = 50


def make_setting(
    context: Context, cells: Sequence[Row], family: Family, style_set: str | None
) -> Setting:
    """The margins and controls of some cells, all of one context.

    Args:
        context: Theirs.
        cells: At least one.
        family: Of the base model.
        style_set: Shipped picture set that the style vector was trained on, if there is one.
    """
    own, accel = ONE if context.style != NONE else ZERO, cells[0].accel
    steps, guidance = family.teacher_steps, family.guidance
    if context.base != EMBEDDED:
        targets: tuple[str, ...] = ()
    elif context.style == NONE:
        targets = pictures.base_sets()
    else:
        targets = (style_set,) if style_set else ()
    return Setting(
        context, targets, style_set,
        base=Row("base", ZERO, ZERO, "dpm++", steps, guidance, context, accel),
        teacher=Row("teacher", own, ZERO, "dpm++", steps, guidance, context, accel),
        controls={
            passes: control_candidates(passes, guidance, context, accel)
            for passes in sorted({cell.nfe for cell in cells}, reverse=True)
        },
    )  # fmt: skip


def make_grid(
    *,
    cells: Sequence[Row],
    prompts: Sequence[str],
    seeds: int,
    family: Callable[[str], Family],
    style_set: Callable[[str], str | None],
) -> Grid:
    """Cells with their margins and controls.

    Args:
        cells: Of any contexts; equal ones count once.
        prompts: Captions.
        seeds: Seeds 0 to N − 1 of each.
        family: Base → its family.
        style_set: Style → shipped picture set that it was trained on, if there is one.

    Raises:
        UsageError: If a list is empty or a number out of range.
    """
    if not (cells and prompts and seeds >= 1):
        raise UsageError("a grid needs at least one λ1, λ2, step count, prompt and seed")
    for cell in cells:
        if cell.sampler in ("lcm", "tcd") and cell.steps > MOST_LCM_STEPS:
            raise UsageError(
                f"steps {cell.steps}: sampler {cell.sampler} takes at most {MOST_LCM_STEPS}"
            )
    distinct = tuple({cell.pixels_key: cell for cell in reversed(cells)}.values())[::-1]
    contexts = dict.fromkeys(cell.context for cell in distinct)
    settings = tuple(
        make_setting(
            context,
            [cell for cell in distinct if cell.context == context],
            family(context.base),
            style_set(context.style),
        )
        for context in contexts
    )
    return Grid(settings, tuple(prompts), tuple(range(seeds)), distinct)


def plain_cells(
    style: str,
    accel: str,
    l1: Sequence[Decimal],
    l2: Sequence[Decimal],
    steps: Sequence[int],
    base: str = EMBEDDED,
) -> tuple[Row, ...]:
    """λ1 × λ2 × steps; without a style vector λ1 has nothing to weigh and is 0, likewise λ2."""
    weights1 = l1 if style != NONE else (ZERO,)[: len(l1)]
    weights2 = l2 if accel != NONE else (ZERO,)[: len(l2)]
    context = Context(base, style)
    return tuple(
        Row("cell", a, b, "lcm", n, 1.0, context, accel)
        for a in weights1
        for b in weights2
        for n in steps
    )


def as_json(grid: Grid) -> dict[str, Any]:
    """A grid as plain values, from which :func:`from_json` makes it again."""
    return {
        "settings": [
            {
                "target_sets": list(s.target_sets),
                "style_set": s.style_set,
                "base": keys(s.base),
                "teacher": keys(s.teacher),
                "controls": [[n, [keys(row) for row in rows]] for n, rows in s.controls.items()],
            }
            for s in grid.settings
        ],
        "prompts": list(grid.prompts),
        "seeds": list(grid.seeds),
        "cells": [keys(row) for row in grid.cells],
    }


def from_json(told: dict[str, Any]) -> Grid:
    """The grid that :func:`as_json` told of.

    Raises:
        ValueError, TypeError, LookupError, ArithmeticError: If it is no whole grid.
    """
    settings = []
    for s in told["settings"]:
        base = of_keys(s["base"])
        controls = {n: tuple(map(of_keys, rows)) for n, rows in s["controls"]}
        settings.append(
            Setting(
                base.context, tuple(s["target_sets"]), s["style_set"],
                base, of_keys(s["teacher"]), controls,
            )
        )  # fmt: skip
    grid = Grid(
        tuple(settings), tuple(told["prompts"]), tuple(told["seeds"]),
        tuple(map(of_keys, told["cells"])),
    )  # fmt: skip
    _check_whole(grid)
    return grid


def _check_whole(grid: Grid) -> None:
    """Raises where a grid lacks what its cells are held against."""
    if not (grid.cells and grid.prompts and grid.seeds):
        raise ValueError("no cells, prompts or seeds")
    if not all(isinstance(prompt, str) for prompt in grid.prompts):
        raise ValueError("a prompt is no text")
    "\n".join(grid.prompts).encode()
    if not all(type(seed) is int and seed >= 0 for seed in grid.seeds):
        raise ValueError("a seed is no whole number")
    for setting in grid.settings:
        sets = (*setting.target_sets, *((setting.style_set,) if setting.style_set else ()))
        unknown = [name for name in sets if name not in pictures.sets()]
        if unknown:
            raise ValueError(f"no such picture sets: {unknown}")
        if any(row.context != setting.context for row in setting.rows):
            raise ValueError("margins and controls of several contexts")
        if any(
            not rows or {row.nfe for row in rows} != {n} for n, rows in setting.controls.items()
        ):
            raise ValueError("controls of other NFE")
    controlled = {(s.context, passes) for s in grid.settings for passes in s.controls}
    alone = [cell for cell in grid.cells if (cell.context, cell.nfe) not in controlled]
    if alone:
        raise ValueError(f"no margins and controls for {keys(alone[0])}")


def choose_prompts(which: str, part: str) -> tuple[str, ...]:
    """Prompts of ``--prompts``: the first N captions of a part in hash order, or a file's lines.

    Where fewer than N are shipped, all of them.

    Raises:
        UsageError: If N is below 1, or a file holds no prompt or an unknown part is named.
        NotFoundError: If ``which`` is neither a number nor a file.
    """
    if part not in ("A", "B", "all"):
        raise UsageError(f"part {part!r}: A, B or all")
    if re.fullmatch(r"[-+]?[0-9]+", which):
        count = int(which)
        if count < 1:
            raise UsageError(f"prompts {count}: at least 1")
        ordered = pictures.hash_order(pictures.concepts(part))
        return tuple(concept.caption for concept in ordered[:count])
    path = Path(which)
    if not path.is_file():
        raise NotFoundError(f"{which}: neither a number nor a file of prompts, one a line")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidContentError(f"{which}: not a text in UTF-8 ({error})") from error
    lines = [line.strip() for line in text.splitlines()]
    prompts = tuple(dict.fromkeys(line for line in lines if line))
    if not prompts:
        raise UsageError(f"{which}: holds no prompt", hint="one prompt a line")
    if part != "all":
        known = pictures.by_caption()
        others = [p for p in prompts if p not in known or known[p].part != part]
        if others:
            raise UsageError(
                f"{which}: {len(others)} prompts are no captions of part {part}, "
                f"{others[0]!r} for one",
                hint="leave --part out to take the file as it is",
            )
    return prompts


def digest(text: str) -> str:
    """sha256 of a text, hex."""
    return hashlib.sha256(text.encode()).hexdigest()
