"""What a grid consists of: rows, and the pictures of each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Final

from lcm_arith.combination import NONE
from lcm_arith.embedded import pictures
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.families import Family
from lcm_arith.sampling import nfe

ONE, ZERO = Decimal(1), Decimal(0)


@dataclass(frozen=True)
class Row:
    """One way of making pictures; a row of the CSV.

    Args:
        role: base, teacher, control or cell.
        l1: λ1, weight of the style vector.
        l2: λ2, weight of the acceleration vector.
        sampler: A name of ``lcm_arith.sampling.SAMPLERS``.
        steps: Sampling steps.
        guidance: diffusers' guidance scale.
    """

    role: str
    l1: Decimal
    l2: Decimal
    sampler: str
    steps: int
    guidance: float

    @property
    def pixels_key(self) -> tuple[Decimal, Decimal, str, int, float]:
        """All of it that changes pixels; the role does not."""
        return (self.l1, self.l2, self.sampler, self.steps, self.guidance)

    @property
    def nfe(self) -> int:
        """UNet passes a picture."""
        return nfe(self.steps, self.guidance)

    @property
    def label(self) -> str:
        """What a person reads beside the row's pictures."""
        passes = f"{self.nfe} NFE"
        if self.role == "cell":
            return f"λ₁ {self.l1}  λ₂ {self.l2}  {passes}"
        how = f"{self.sampler} {self.steps}" + (
            f" s={self.guidance:g}" if self.nfe > self.steps else ""
        )
        return f"{self.role}  {passes}\n{how}"


@dataclass(frozen=True)
class Grid:
    """A whole grid.

    Args:
        style, accel: Shipped names or paths, or ``"none"``.
        target_sets: Picture sets whose drawings count as true: the style's, or every base set
            without a style vector; none for a style whose pictures are not shipped.
        style_set: The set that the probe must name; None leaves ``style_accuracy`` empty.
        prompts: Captions.
        seeds: Seeds per caption.
        cells: Rows of role cell.
        base, teacher: The two margins; equal but for the role without a style vector.
        controls: NFE → its candidates.
    """

    style: str
    accel: str
    target_sets: tuple[str, ...]
    style_set: str | None
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    cells: tuple[Row, ...]
    base: Row
    teacher: Row
    controls: dict[int, tuple[Row, ...]]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Every row whose pictures are needed, each once."""
        candidates = [row for rows in self.controls.values() for row in rows]
        return tuple(dict.fromkeys((self.base, self.teacher, *candidates, *self.cells)))

    @property
    def items(self) -> tuple[tuple[str, int], ...]:
        """(prompt, seed) of each picture of a row, prompt by prompt."""
        return tuple((prompt, seed) for prompt in self.prompts for seed in self.seeds)


def control_candidates(passes: int, guidance: float) -> tuple[Row, ...]:
    """Style-only ways of spending ``passes`` UNet passes without acceleration.

    LCM sampler and dpm++ unguided at that many steps and, where the number is even, both guided at
    half as many.
    """
    ways = [(passes, 1.0)]
    if passes % 2 == 0 and guidance > 1:
        ways.append((passes // 2, guidance))
    return tuple(
        Row("control", ONE, ZERO, sampler, steps, scale)
        for steps, scale in ways
        for sampler in ("lcm", "dpm++")
    )


MOST_LCM_STEPS: Final = 50


def make_grid(
    *,
    style: str,
    accel: str,
    style_set: str | None,
    l1: Sequence[Decimal],
    l2: Sequence[Decimal],
    steps: Sequence[int],
    prompts: Sequence[str],
    seeds: int,
    family: Family,
) -> Grid:
    """The grid of λ1 × λ2 × steps with its margins and controls.

    Without a style vector λ1 has nothing to weigh: one cell per λ2 and steps, with λ1 = 0.

    Raises:
        UsageError: If a list is empty or a number out of range.
    """
    if not (l1 and l2 and steps and prompts and seeds >= 1):
        raise UsageError("a grid needs at least one λ1, λ2, step count, prompt and seed")
    if max(steps) > MOST_LCM_STEPS:
        raise UsageError(f"steps {max(steps)}: the LCM sampler takes at most {MOST_LCM_STEPS}")
    weights1 = l1 if style != NONE else (ZERO,)
    weights2 = l2 if accel != NONE else (ZERO,)
    cells = tuple(
        Row("cell", a, b, "lcm", n, 1.0) for a in weights1 for b in weights2 for n in steps
    )
    base = Row("base", ZERO, ZERO, "dpm++", family.teacher_steps, family.guidance)
    own = ONE if style != NONE else ZERO
    teacher = Row("teacher", own, ZERO, "dpm++", family.teacher_steps, family.guidance)
    controls = {
        passes: tuple(
            Row(c.role, own, ZERO, c.sampler, c.steps, c.guidance)
            for c in control_candidates(passes, family.guidance)
        )
        for passes in sorted({cell.nfe for cell in cells}, reverse=True)
    }
    if style == NONE:
        targets: tuple[str, ...] = pictures.base_sets()
    else:
        targets = (style_set,) if style_set else ()
    return Grid(
        style, accel, targets, style_set, tuple(prompts), tuple(range(seeds)),
        cells, base, teacher, controls,
    )  # fmt: skip


def choose_prompts(which: str, part: str) -> tuple[str, ...]:
    """Prompts of ``--prompts``: the first N captions of a part in hash order, or a file's lines.

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
