"""Lists on the command line: ``0.4,0.8`` or ``0:1.2:0.2``, exact in decimal.

A comma always separates values; a slash joins the λ of one value's steps, ``1.2/1.0/0.6``.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

from lcm_arith.errors import UsageError

_MOST: Final = 1000
_LISTS: Final = "write 0.4,0.8 or 0:1.2:0.2"
_NUMBER: Final = re.compile(r"[-+]?(?=\.?[0-9])[0-9]{0,6}(?:\.[0-9]{0,6})?")


def parse_decimals(text: str, what: str) -> tuple[Decimal, ...]:
    """The values of a list, in order and without repeats; ``start:stop:step`` includes its end.

    Args:
        text: As typed.
        what: The option's name, for errors.

    Raises:
        UsageError: If it is empty, no number, not finite, or a range that leads nowhere.
    """
    values: list[Decimal] = []
    for item in text.split(","):
        fields = [_decimal(field, text, what) for field in item.split(":")]
        if len(fields) not in (1, 3):
            raise UsageError(
                f"{what} {text!r}: {item!r} is neither a number nor start:stop:step",
                hint=_LISTS,
            )
        values += fields if len(fields) == 1 else _range(*fields, text=text, what=what)
    plain = dict.fromkeys(value + 0 if value else Decimal(0) for value in values)
    return tuple(Decimal(_plain(value)) for value in plain)


def parse_schedule(text: str, what: str) -> tuple[Decimal, ...]:
    """λ per step, ``1.2/1.0/0.6``; a single one where it is the same in all steps.

    Raises:
        UsageError: If a part is no number.
    """
    hint = "one λ for all steps, 0.8, or one a step with slashes, 1.2/1.0/0.6"
    return tuple(Decimal(_plain(_decimal(part, text, what, hint))) for part in text.split("/"))


def parse_weights(text: str, what: str) -> tuple[tuple[Decimal, ...], ...]:
    """The values of a list in which any may be a schedule, ``0.8,1.2/1.0/0.6,0:1:0.2``.

    Raises:
        UsageError: As :func:`parse_decimals`.
    """
    values: list[tuple[Decimal, ...]] = []
    for item in text.split(","):
        if "/" in item:
            values.append(parse_schedule(item, what))
        else:
            values += [(value,) for value in parse_decimals(item, what)]
    return tuple(dict.fromkeys(values))


def parse_counts(text: str, what: str) -> tuple[int, ...]:
    """The same for whole numbers of at least 1.

    Raises:
        UsageError: As :func:`parse_decimals`, or if a value is no whole number above 0.
    """
    values = parse_decimals(text, what)
    for value in values:
        if value != value.to_integral_value() or value < 1:
            raise UsageError(f"{what} {text!r}: {value} is not a whole number of at least 1")
    return tuple(int(value) for value in values)


def _decimal(field: str, text: str, what: str, hint: str = _LISTS) -> Decimal:
    if not _NUMBER.fullmatch(field.strip()):
        raise UsageError(
            f"{what} {text!r}: {field!r} is not a number of at most 6 digits and 6 decimals",
            hint=hint,
        )
    return Decimal(field.strip())


def _range(start: Decimal, stop: Decimal, step: Decimal, *, text: str, what: str) -> list[Decimal]:
    if step == 0 or (stop - start) / step < 0:
        raise UsageError(
            f"{what} {text!r}: steps of {step} do not lead from {start} to {stop}",
            hint="start:stop:step, such as 0:1.2:0.2",
        )
    count = int((stop - start) / step) + 1
    if count > _MOST:
        raise UsageError(f"{what} {text!r}: {count} values are more than {_MOST}")
    return [start + index * step for index in range(count)]


def _plain(value: Decimal) -> str:
    """``0.40`` and ``4E-1`` as ``0.4``: one spelling a value, so that equal cells are one cell."""
    return format(value.normalize(), "f")


def parse_one(text: str, what: str) -> Decimal:
    """One finite decimal number.

    Raises:
        UsageError: If it is none.
    """
    return Decimal(_plain(_decimal(text, text, what)))
