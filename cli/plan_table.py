"""Printing what a training will take."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from lcm_arith.cli.output import print_json, stdout

if TYPE_CHECKING:
    from lcm_arith.planning import Planned

_MEMORY: Final = {
    "base": "base, frozen",
    "trained": "what is trained",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "average": "average",
    "total": "in all, without activations",
}
_CACHING: Final = {"text_encoders": "text encoders", "vae": "VAE, float32", "total": "in all"}
_FLOPS: Final = {
    "base_forward": "base, forward",
    "student_forward": "student, forward",
    "student_backward": "student, backward",
    "picture": "a picture's share of a step",
    "picture_checkpointed": "with gradient checkpointing",
}
_OPERATIONS: Final = (
    (1e18, "EFLOP"),
    (1e15, "PFLOP"),
    (1e12, "TFLOP"),
    (1e9, "GFLOP"),
    (1e6, "MFLOP"),
)
_SIZES: Final = ((2**30, "GiB"), (2**20, "MiB"))

Row = tuple[str, str]


def print_plan(planned: Planned, *, as_json: bool) -> None:
    """A plan as a table, or as one JSON object."""
    if as_json:
        print_json(planned.as_dict())
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    sections = {
        "Parameters": _parameters(planned),
        "Memory while training": _memory(planned),
        "Weights while pictures and prompts are encoded": (
            (_CACHING[part], _scaled(size, _SIZES)) for part, size in planned.caching.items()
        ),
        "Work": _work(planned),
        "Values": ((name, _value(value)) for name, value in planned.config.items()),
    }
    for index, (title, rows) in enumerate(sections.items()):
        if index:
            table.add_row()
        table.add_row(title)
        for what, number in rows:
            table.add_row(f"  {what}", number)
    stdout.print(f"{planned.family}, mode {planned.mode}; nothing was loaded")
    stdout.print()
    stdout.print(table)


def _parameters(planned: Planned) -> Iterator[Row]:
    share = planned.trainable_parameters / planned.unet_parameters
    adapter = f": {planned.target_modules} modules of rank {planned.rank}, {share:.2%} of the UNet"
    yield f"trained{adapter if planned.rank else ': all'}", f"{planned.trainable_parameters:,}"
    yield "UNet", f"{planned.unet_parameters:,}"
    yield "text encoders", f"{planned.text_encoder_parameters:,}"
    yield "VAE", f"{planned.vae_parameters:,}"
    yield "base in all", f"{planned.total_parameters:,}"


def _memory(planned: Planned) -> Iterator[Row]:
    for part, size in planned.memory.items():
        yield _MEMORY[part], _scaled(size, _SIZES)


def _work(planned: Planned) -> Iterator[Row]:
    for part, flops in planned.flops.items():
        yield _FLOPS[part], _scaled(flops, _OPERATIONS)
    values = planned.config
    pictures, steps = values["batch"] * values["accumulation"], values["steps"]
    yield f"a step of {pictures} pictures", _scaled(planned.flops_per_step, _OPERATIONS)
    yield f"all {steps:,} steps", _scaled(planned.flops_per_step * steps, _OPERATIONS)


def _scaled(number: float, units: tuple[tuple[float, str], ...]) -> str:
    scale, unit = next((u for u in units if number >= u[0]), units[-1])
    return f"{number / scale:,.2f} {unit}"


def _value(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
