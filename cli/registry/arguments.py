"""Arguments and options that several verbs share, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from lcm_arith.cli import completion

Known = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="Registered or shipped name, or sha256: and 8 digits or more.",
        autocompletion=completion.known,
    ),
]
Own = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Registered name.", autocompletion=completion.own),
]
Kind = Annotated[
    str | None,
    typer.Option(help="acceleration, style, combined or task.", autocompletion=completion.kinds),
]
Trigger = Annotated[
    list[str] | None,
    typer.Option("--trigger", metavar="WORDS", help="What the prompt needs; repeatable."),
]
Licence = Annotated[
    str | None, typer.Option("--licence", "--license", help="Its name, such as apache-2.0, or URL.")
]
Weight = Annotated[str | None, typer.Option(metavar="λ", help="Recommended weight.")]
Sampler = Annotated[str | None, typer.Option(help="Recommended sampler.")]
Steps = Annotated[
    int | None, typer.Option(min=1, metavar="STEPS", help="Recommended sampling steps.")
]
Guidance = Annotated[
    str | None, typer.Option(metavar="S", help="Recommended guidance, diffusers' scale.")
]

_NUMBERS: Final = ("weight", "guidance")
_MOST: Final = {"description": 10_000}  # characters; of others
_MOST_OTHERS: Final = 500


def settings(**given: Any) -> dict[str, Any]:
    """What the options say, as a record's settings: texts, and numbers as decimal strings.

    Raises:
        UsageError: If a text is empty or too long, or a number is none.
    """
    from lcm_arith.errors import UsageError

    said: dict[str, Any] = {}
    for field, value in given.items():
        if value is None or value == []:
            continue
        for text in value if isinstance(value, list) else [str(value)]:
            if not text.strip() or len(text) > _MOST.get(field, _MOST_OTHERS):
                raise UsageError(
                    f"--{field}: is empty or too long", hint="take it back with set --unset"
                )
        if field in _NUMBERS:
            value = _decimal(value, field)
        said[field] = list(value) if isinstance(value, list) else str(value)
    return said


def _decimal(text: str, field: str) -> str:
    """A number as a decimal string, exact."""
    from decimal import Decimal, InvalidOperation

    from lcm_arith.errors import UsageError

    try:
        number = Decimal(text.strip())
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite() or abs(number.adjusted()) > 6:
        raise UsageError(f"--{field} {text}: is no number", hint="write it as 0.8, 1 or 7.5")
    return format(number, "f")


def family_text(families: Sequence[str]) -> str:
    """The families that fit best; several where shapes tie."""
    return " or ".join(families) + (" (they tie)" if len(families) > 1 else "")
