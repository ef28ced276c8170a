"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lcm_arith.cli import completion

if TYPE_CHECKING:
    from lcm_arith.budgets import Budget


class DtypeName(StrEnum):
    """Number formats of a written file."""

    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class FormatName(StrEnum):
    """Dialects that can be written; the table behind them is lcm_arith.formats.writers.WRITERS."""

    diffusers = "diffusers"
    peft = "peft"
    kohya = "kohya"
    kohya_sgm = "kohya-sgm"
    comfy = "comfy"


class SamplerName(StrEnum):
    """Samplers; the table behind them is lcm_arith.sampling.SAMPLERS."""

    lcm = "lcm"
    dpmpp = "dpm++"
    ddim = "ddim"
    euler = "euler"
    tcd = "tcd"


class PartName(StrEnum):
    """Parts of the embedded captions."""

    a = "A"
    b = "B"
    all = "all"


Vector = Annotated[
    str,
    typer.Argument(
        help="Shipped or registered name, or a file.", autocompletion=completion.vectors
    ),
]
Style = Annotated[
    str | None,
    typer.Argument(
        help="Style vector: name, file, or none.",
        show_default="fluent-emoji",
        autocompletion=completion.vectors,
    ),
]
Accel = Annotated[
    str | None,
    typer.Argument(
        help="Acceleration vector: name, file, or none.",
        show_default="lcm",
        autocompletion=completion.vectors,
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace what was written before.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object for machines.")]
AllowPickle = Annotated[
    bool,
    typer.Option(
        "--allow-pickle",
        help="Read a pickle (.bin, .pt, .pth, .ckpt) in a process of its own, under limits.",
    ),
]
Dtype = Annotated[DtypeName, typer.Option(help="Number format of the written file.")]
Format = Annotated[FormatName, typer.Option("--format", help="Whose names the keys get.")]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Folder of pairs x.png + x.txt; without it embedded pictures."
    ),
]
Base = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR", help="Diffusers folder of the base model.", show_default="the embedded one"
    ),
]
DoraBase = Annotated[
    Path | None,
    typer.Option(
        "--base", metavar="MODEL", help="What a DoRA was made for: diffusers folder or file."
    ),
]
Rank = Annotated[int | None, typer.Option(help="Rank of the adapter.", show_default="the family's")]
Steps = Annotated[
    int | None, typer.Option(help="Training steps.", show_default="the family's", metavar="STEPS")
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--learning-rate", metavar="RATE", help="Peak learning rate.", show_default="the family's"
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        "--from",
        metavar="NAME",
        help="Go on from this vector: name or file.",
        autocompletion=completion.vectors,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of everything random.")]


Device = Annotated[
    str, typer.Option(metavar="cpu|cuda", help="Where the products of a re-projection are done.")
]
KeepRank = Annotated[
    int | None,
    typer.Option("--rank", help="Re-project each module to at most this rank; else it is exact."),
]
KeepEnergy = Annotated[
    float | None,
    typer.Option("--energy", metavar="SHARE", help="Keep this share of Σ σ² over all modules."),
]
KeepError = Annotated[
    float | None,
    typer.Option("--max-error", metavar="SHARE", help="Lose at most this share of the norm."),
]
KeepSize = Annotated[
    float | None,
    typer.Option("--size", metavar="MiB", help="Keep what fits into so many MiB."),
]


def budget(dtype: str, **asked: float | None) -> Budget | None:
    """The one budget that was asked for, or None.

    Raises:
        UsageError: If there are two.
    """
    from lcm_arith.budgets import Budget
    from lcm_arith.errors import UsageError
    from lcm_arith.formats.container import DTYPES

    given = {kind: value for kind, value in asked.items() if value is not None}
    if len(given) > 1:
        names = " and ".join(f"--{kind.replace('_', '-')}" for kind in given)
        raise UsageError(f"{names}: a re-projection has one budget", hint="leave out all but one")
    for kind, value in given.items():
        return Budget(kind, value, DTYPES[dtype].itemsize)
    return None


def check_base(base: Path | None, dora: Iterable[bool]) -> None:
    """Raises where a base was given that nothing depends on.

    Args:
        base: As typed.
        dora: Of each adapter, whether it is a DoRA; asked only where there is a base.

    Raises:
        UsageError: If there is a base and no DoRA.
    """
    from lcm_arith.errors import UsageError

    if base is not None and not any(dora):
        raise UsageError(
            f"--base {base}: no adapter here is a DoRA, only those depend on a base",
            hint="leave it out",
        )


def pair(style: str | None, accel: str | None) -> tuple[str, str]:
    """The two vectors, the embedded default pair where not given."""
    from lcm_arith.embedded import files

    stored = files.defaults()
    return (
        str(stored["style"]) if style is None else style,
        str(stored["accel"]) if accel is None else accel,
    )


def writable_folder(folder: Path) -> None:
    """Raises where a folder of results could not be made; call it before long work."""
    from lcm_arith.errors import NotFoundError

    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise NotFoundError(f"{there}: is a file, not a folder", hint="--out takes a folder")
