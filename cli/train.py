"""What ``distill`` and ``finetune`` do with their options: train, register, print; or only plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lcm_arith.cli import naming
from lcm_arith.cli.choices import Precision, Switch
from lcm_arith.cli.output import Stages, print_made, progress
from lcm_arith.cli.training import Shared

if TYPE_CHECKING:
    from lcm_arith.training.request import Request

_SWITCHED: Final = {Switch.auto: None, Switch.on: True, Switch.off: False}


def make(
    shared: Shared,
    command: str,
    default: str,
    sets: Callable[[], tuple[str, ...]],
    train: Callable[[Request, Stages], dict[str, Any]],
) -> None:
    """Trains, registers and prints; of several processes only the main one does the latter.

    Args:
        shared: The options.
        command: Its name, for the record in the registry.
        default: File or folder where neither ``-o`` nor ``--name`` is given.
        sets: Embedded pictures that it learns from without ``--data``.
        train: What the library does.
    """
    from lcm_arith.training.ground import cache_only
    from lcm_arith.training.request import main_process

    _check_instead(shared)
    plain = shared.out or Path(shared.name or default)
    folder = shared.run or plain.with_name(f"{plain.stem}-run")
    if shared.cache_only:
        if not main_process():
            return
        with progress() as bar:
            told = cache_only(shared.request(plain, folder), sets(), Stages(bar))
        print_cached(told, as_json=shared.as_json)
        return
    with naming.output(shared.out, shared.name, default) as to:
        request = shared.request(to.path, folder)
        with progress(shown=main_process()) as bar:
            made = train(request, Stages(bar))
        if not main_process():
            return
        made = to.put(made, command)
    print_made(made, as_json=shared.as_json)


def _check_instead(shared: Shared) -> None:
    from lcm_arith.errors import UsageError

    if shared.family is not None:
        raise UsageError("--family: only --plan takes it", hint="a base tells its family itself")


def print_cached(told: dict[str, Any], *, as_json: bool) -> None:
    """What ``--cache-only`` did."""
    from lcm_arith.cli.output import data_notes, print_json, stderr, stdout

    if as_json:
        print_json(told)
        return
    stdout.print(f"{told['pictures']} pictures and {told['captions']} captions are in the cache")
    stdout.print(f"wrote {told['path']}; train from it with --cache", soft_wrap=True)
    for note in data_notes(told):
        stderr.print(f"Note: {note}", soft_wrap=True)


def print_planned(shared: Shared, mode: str, **config: Any) -> None:
    """Prints what a training will take; nothing is loaded.

    Args:
        shared: The options.
        mode: A name of ``lcm_arith.planning.MODES``.
        **config: More values to show.

    Raises:
        UsageError: If both a family and a base were given, or a value cannot be.
    """
    from lcm_arith.architectures import of_folder
    from lcm_arith.cli.plan_table import print_plan
    from lcm_arith.errors import NotFoundError, UsageError
    from lcm_arith.modules import EMBEDDED
    from lcm_arith.planning import plan

    model, family, resolution = None, shared.family, shared.resolution
    if shared.cache_only:
        raise UsageError("--plan and --cache-only exclude each other")
    if shared.base is not None:
        if family is not None:
            raise UsageError("--family and --base: a base tells its family itself")
        folder = Path(shared.base)
        if not folder.is_dir():
            raise NotFoundError(
                f"{folder}: no folder of a base model", hint="--plan takes that or --family"
            )
        model, resolution = of_folder(folder), resolution or _side(folder)
        family = "sdxl" if (folder / "text_encoder_2").is_dir() else "sd"
    values = shared.planned()
    alpha, targets = values.pop("alpha", None), values.pop("targets", None)
    shown = {"alpha": alpha, **config}
    work = {name: config[name] for name in ("solver", "anchor", "target_decay") if config.get(name)}
    print_plan(
        plan(
            family or EMBEDDED,
            mode=mode,
            targets=targets,
            resolution=resolution,
            precision="bf16" if shared.precision is Precision.auto else shared.precision.value,
            optimizer=values.pop("optimizer", "adamw"),
            gradient_checkpointing=_SWITCHED[shared.gradient_checkpointing],
            model=model,
            config={name: value for name, value in shown.items() if value is not None},
            **work,
            **values,
        ),
        as_json=shared.as_json,
    )


def _side(folder: Path) -> int:
    """Side of the pictures that a base was made for, px; of its configurations."""
    unet, vae = (
        json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        for part in ("unet", "vae")
    )
    side: int = unet["sample_size"] << (len(vae["block_out_channels"]) - 1)
    return side
