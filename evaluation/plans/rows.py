"""One way of making pictures: the rows of a grid, and what each of them is made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from lcm_arith.combination import NONE
from lcm_arith.methods import METHODS
from lcm_arith.modules import EMBEDDED
from lcm_arith.sampling import SAMPLERS, nfe
from lcm_arith.weights import Term, parse_term

ONE, ZERO = Decimal(1), Decimal(0)
ARROW: Final = "=>"
_LONGEST: Final = 24  # letters of a negative prompt or an edit in a label

Item = tuple[str, int]
"""(prompt, seed) of a picture."""
Schedule = tuple[Decimal, ...]
"""λ of each step; empty where one λ holds for all."""


def style_terms(style: str) -> tuple[Term, ...]:
    """The vectors of a style: one name, or several as ``a:1+b:0.5``; none of ``"none"``.

    Raises:
        UsageError: If a λ is no number.
    """
    if style == NONE:
        return ()
    parts = [style] if Path(style).exists() else style.split("+")
    return tuple(parse_term(part) for part in parts)


@dataclass(frozen=True)
class Context:
    """What has a base row, a teacher and controls of its own.

    Args:
        base: ``"emoji"`` (the embedded model), or what ``lcm_arith.bases.load_base`` takes.
        style: Name or path of the style vector, several joined as ``a:1+b:0.5``, or ``"none"``.
        negative: Negative prompt, which guidance leads away from.
        edit: ``find=>replace``, done to every prompt; empty changes nothing.
    """

    base: str = EMBEDDED
    style: str = NONE
    negative: str = ""
    edit: str = ""

    def text(self, prompt: str) -> str:
        """A prompt as it is drawn."""
        find, _, put = self.edit.partition(ARROW)
        return prompt.replace(find, put) if find else prompt

    @property
    def group(self) -> tuple[str, str]:
        """Cells are compared with cells of the same base and style only."""
        return (self.base, self.style)


@dataclass(frozen=True)
class Mix:
    """All that changes the weights of a network.

    Args:
        base: As in :class:`Context`.
        style, accel: Vectors, ``"none"`` where their λ is 0.
        l1, l2: λ1 of the style and λ2 of the acceleration vector.
        method: A row of METHODS.
        rank: Re-projects each module to at most this rank; None does not.
        te: Multiplies both λ in the modules of text encoders; None is 1.
    """

    base: str
    style: str
    accel: str
    l1: Decimal
    l2: Decimal
    method: str = "linear"
    rank: int | None = None
    te: Decimal | None = None


@dataclass(frozen=True)
class Row:
    """One way of making pictures; a row of the CSV.

    Args:
        role: base, teacher, control or cell.
        l1: λ1, weight of the style vector; of a schedule its mean.
        l2: λ2, weight of the acceleration vector; of a schedule its mean.
        sampler: A name of ``lcm_arith.sampling.SAMPLERS``.
        steps: Sampling steps.
        guidance: diffusers' guidance scale.
        context: Base, style, negative prompt, edit of the prompt.
        accel: Acceleration vector, or ``"none"``.
        method, rank, te: As in :class:`Mix`.
        l1_schedule, l2_schedule: λ of each step, where it changes.
    """

    role: str
    l1: Decimal
    l2: Decimal
    sampler: str
    steps: int
    guidance: float
    context: Context = Context()
    accel: str = NONE
    method: str = "linear"
    rank: int | None = None
    te: Decimal | None = None
    l1_schedule: Schedule = ()
    l2_schedule: Schedule = ()

    @property
    def pixels_key(self) -> tuple[Any, ...]:
        """All of it that changes pixels; the role does not."""
        return (self.context, self.mixes, self.sampler, self.steps, self.guidance)

    @property
    def cell_id(self) -> str:
        """16 hex digits that name the row, as the CSV has it."""
        return hashlib.sha256(json.dumps(keys(self)).encode()).hexdigest()[:16]

    @property
    def nfe(self) -> int:
        """UNet passes a picture, as if it were drawn alone."""
        return nfe(self.steps, self.guidance)

    @property
    def mixes(self) -> tuple[Mix, ...]:
        """The weights of each step; one for all where they do not change."""
        count = max(len(self.l1_schedule), len(self.l2_schedule), 1)
        first = self.l1_schedule or (self.l1,) * count
        second = self.l2_schedule or (self.l2,) * count
        each = tuple(self._mix(a, b) for a, b in zip(first, second, strict=True))
        return each[:1] if len(set(each)) == 1 else each

    def _mix(self, l1: Decimal, l2: Decimal) -> Mix:
        return Mix(
            base=self.context.base,
            style=self.context.style if l1 else NONE,
            accel=self.accel if l2 else NONE,
            l1=l1 if self.context.style != NONE else ZERO,
            l2=l2 if self.accel != NONE else ZERO,
            method=self.method,
            rank=self.rank,
            te=self.te,
        )

    @property
    def label(self) -> str:
        """What a person reads beside the row's pictures."""
        passes = f"{self.nfe} NFE"
        guided = f" s={self.guidance:g}" if self.nfe > self.steps else ""
        told = "".join(
            f"\n{what} {text if len(text) <= _LONGEST else text[: _LONGEST - 1] + '…'}"
            for what, text in (("negative", self.context.negative), ("edit", self.context.edit))
            if text
        )
        if self.role != "cell":
            return f"{self.role}  {passes}\n{self.sampler} {self.steps}{guided}{told}"
        first = f"λ₁ {shown(self.l1, self.l1_schedule)}  λ₂ {shown(self.l2, self.l2_schedule)}"
        rest = (
            *((self.sampler,) if self.sampler != "lcm" else ()),
            *((guided.strip(),) if guided else ()),
            *((self.method,) if self.method != "linear" else ()),
            *((f"rank {self.rank}",) if self.rank is not None else ()),
            *((f"te {self.te}",) if self.te is not None else ()),
        )
        return f"{first}  {passes}" + ("\n" + "  ".join(rest) if rest else "") + told


def shown(weight: Decimal, schedule: Schedule) -> str:
    """λ as people write it: ``0.8``, or ``1.2/1.0/0.6/0.6``."""
    return "/".join(map(str, schedule)) if schedule else str(weight)


def others(row: Row) -> tuple[str, ...]:
    """What a cell is beside λ and steps, in words; of the axes those that are not as usual."""
    return (
        *((row.sampler,) if row.sampler != "lcm" else ()),
        *((f"guidance={row.guidance:g}",) if row.guidance != 1 else ()),
        *((row.method,) if row.method != "linear" else ()),
        *((f"rank={row.rank}",) if row.rank is not None else ()),
        *((f"te={row.te}",) if row.te is not None else ()),
        *((f"negative={row.context.negative!r}",) if row.context.negative else ()),
        *((f"edit={row.context.edit!r}",) if row.context.edit else ()),
    )


def mean(schedule: Schedule) -> Decimal:
    """The mean of a schedule, at most six decimals."""
    value = sum(schedule, ZERO) / len(schedule)
    return Decimal(format(round(value, 6).normalize(), "f"))


def keys(row: Row) -> dict[str, Any]:
    """A row as the columns of the CSV that name it, JSON-ready."""
    return {
        "role": row.role,
        "style": row.context.style,
        "accel": row.accel,
        "l1": str(row.l1),
        "l2": str(row.l2),
        "sampler": row.sampler,
        "steps": row.steps,
        "guidance": row.guidance,
        "base": row.context.base,
        "method": row.method,
        "rank": row.rank,
        "te": None if row.te is None else str(row.te),
        "l1_schedule": "/".join(map(str, row.l1_schedule)),
        "l2_schedule": "/".join(map(str, row.l2_schedule)),
        "negative": row.context.negative,
        "edit": row.context.edit,
    }


def of_keys(named: dict[str, Any]) -> Row:
    """The row that :func:`keys` told of.

    Raises:
        ValueError, TypeError, LookupError, ArithmeticError: If a value is none that a row can have.
    """
    for name, fits in _FITS.items():
        if not fits(named[name]):
            raise ValueError(f"{name} {named[name]!r}")

    def schedule(text: str) -> Schedule:
        return tuple(map(Decimal, text.split("/"))) if text else ()

    row = Row(
        named["role"],
        Decimal(named["l1"]),
        Decimal(named["l2"]),
        named["sampler"],
        named["steps"],
        named["guidance"],
        Context(named["base"], named["style"], named["negative"], named["edit"]),
        named["accel"],
        named["method"],
        named["rank"],
        None if named["te"] is None else Decimal(named["te"]),
        schedule(named["l1_schedule"]),
        schedule(named["l2_schedule"]),
    )
    if len(row.mixes) not in (1, row.steps):
        raise ValueError(f"{len(row.mixes)} λ for {row.steps} steps")
    return row


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value < _MOST


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < _MOST


def _is_decimal(value: Any) -> bool:
    """Of a size that can be written out."""
    number = Decimal(value) if isinstance(value, str) else Decimal("nan")
    exponent = number.as_tuple().exponent
    return isinstance(exponent, int) and -_DECIMALS <= exponent < 6 and abs(number) < _MOST


def _is_schedule(value: Any) -> bool:
    return value == "" or (_is_text(value) and all(map(_is_decimal, value.split("/"))))


_MOST: Final = 10**6
_DECIMALS: Final = 99
_FITS: Final[dict[str, Callable[[Any], bool]]] = {
    **dict.fromkeys(("base", "style", "accel", "negative", "edit"), _is_text),
    **dict.fromkeys(("l1", "l2"), _is_decimal),
    **dict.fromkeys(("l1_schedule", "l2_schedule"), _is_schedule),
    "role": ("base", "teacher", "control", "cell").__contains__,
    "sampler": SAMPLERS.__contains__,
    "steps": _is_count,
    "guidance": _is_number,
    "method": METHODS.__contains__,
    "rank": lambda value: value is None or _is_count(value),
    "te": lambda value: value is None or _is_decimal(value),
}
"""What each value of a row may be that was read from a file."""
