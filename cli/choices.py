"""Choices of the options that ``distill`` and ``finetune`` share, and how an option is declared."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import typer


class Crop(StrEnum):
    """Where a picture is cut; lcm_arith.data.options.CROPS."""

    middle = "center"
    random = "random"


class Missing(StrEnum):
    """What is done about missing captions; lcm_arith.data.options.MISSING."""

    error = "error"
    empty = "empty"
    skip = "skip"


class Rate(StrEnum):
    """Courses of the learning rate; lcm_arith.training.plan.RATES."""

    hold = "hold"
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Optimizer(StrEnum):
    """Optimizers; lcm_arith.training.plan.OPTIMIZERS."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"


class Precision(StrEnum):
    """Number formats; lcm_arith.training.numbers.PRECISIONS."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Switch(StrEnum):
    """lcm_arith.training.request.CHECKPOINTING."""

    auto = "auto"
    on = "on"
    off = "off"


class Resume(StrEnum):
    """Whether a run goes on."""

    auto = "auto"
    never = "never"


def option(panel: str, help: str, *names: str, **more: Any) -> Any:
    """An option in a panel of ``--help``."""
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def number(panel: str, help: str, metavar: str, *names: str) -> Any:
    """One that the family has a value for."""
    return option(panel, help, *names, metavar=metavar, show_default="the family's")
