"""What every training stands on: a base, its data, and where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcm_arith import durable
from lcm_arith.bases import Base, load_base
from lcm_arith.condition import Condition, time_ids
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.drawings import Captioned, embedded_pictures
from lcm_arith.data.prepare import prepare
from lcm_arith.data.sources import VARIANTS, survey
from lcm_arith.embedded.pictures import base_sets
from lcm_arith.errors import IncompatibleError, UsageError
from lcm_arith.families import Family, family
from lcm_arith.targets import resolve
from lcm_arith.training.adapter import misfits
from lcm_arith.training.numbers import Numbers, numbers
from lcm_arith.training.plan import Training
from lcm_arith.training.processes import Processes, find_processes, found_device
from lcm_arith.training.request import LARGE, Machine, Request
from lcm_arith.training.watch import SHOWN
from lcm_arith.vector import TaskVector

OnStage = Callable[[str, int, int, str], None]
"""Told about progress: (stage, done, total, note)."""


@dataclass(eq=False)
class Ground:
    """What every training stands on."""

    request: Request
    base: Base
    row: Family
    data: TrainingSet
    processes: Processes
    numbers: Numbers
    on_stage: OnStage
    prompts: tuple[str, ...]
    cond: Condition
    uncond: Condition
    networks: dict[str, Any]
    start: TaskVector | None = None

    @property
    def device(self) -> torch.device:
        """Of this process."""
        return self.processes.device

    def known(self) -> dict[str, Any]:
        """What both lessons need to know."""
        return {
            "schedule": self.base.schedule,
            "prediction": self.base.prediction,
            "seed": self.request.seed,
            "device": self.device,
        }

    def targets(self, plan: Training) -> tuple[str, ...]:
        """The UNet's layers that the plan names."""
        shapes = {
            name: tuple(module.weight.shape)
            for name, module in self.base.unet.named_modules()
            if isinstance(getattr(module, "weight", None), torch.Tensor)
        }
        return resolve(plan.targets, shapes)


@contextmanager
def standing(
    request: Request,
    sets: tuple[str, ...],
    on_stage: OnStage,
    *,
    keep_text: bool = False,
    vectors: Sequence[TaskVector | None] = (),
) -> Iterator[Ground]:
    """Base and data, checked from the cheapest to the dearest.

    Args:
        request: What the user asked for.
        sets: Embedded picture sets, where ``request.data`` is None.
        on_stage: Told about progress.
        keep_text: Whether the text encoders are needed beyond the data.
        vectors: Those that the UNet will carry.
    """
    machine = request.machine
    _check_compiled(machine, found_device(machine.device))
    found = survey(_source(request, sets), request.options)
    processes = find_processes(machine.device, machine.report_to, request.run, {})
    try:
        formats = numbers(machine.precision, processes.device)
        base = load_base(request.base, config=request.config)
        _check_fit(base, vectors)
        durable.make_folder(request.run)
        base.pipeline.to(processes.device)
        with processes.main_first():
            data = prepare(base, found, request.options, cache=request.kept, on_stage=on_stage)
        prompts = request.watching.prompts
        if prompts:
            options = request.options
            cond = base.encode(prompts, clip_skip=options.clip_skip, max_tokens=options.max_tokens)
            if base.kind == "sdxl":
                side = (base.size, base.size)
                cond = {**cond, "time_ids": time_ids(side, (0, 0), side).expand(len(prompts), -1)}
        else:
            drawn = data.batch(0, SHOWN, request.seed)
            prompts, cond = drawn.captions, drawn.cond
        base.vae.to("cpu")
        if not keep_text:
            base.pipeline.text_encoder = None
            if base.kind == "sdxl":
                base.pipeline.text_encoder_2 = None
        _save_memory(base.unet, machine, processes.device)
        yield Ground(
            request, base, family(base.family), data, processes, formats, on_stage,
            tuple(prompts), cond, data.uncond(cond), {"unet": base.unet},
        )  # fmt: skip
    finally:
        processes.end()


def cache_only(request: Request, on_stage: OnStage) -> dict[str, Any]:
    """Encodes the data and stops; returns what there is, JSON-ready.

    Raises:
        UsageError: If there is no folder to keep it in.
        LcmArithError: As data and base say.
    """
    if request.kept is None:
        raise UsageError(
            "--cache-only: the embedded pictures are kept nowhere", hint="give --cache"
        )
    found = survey(_source(request, base_sets()), request.options)
    base = load_base(request.base, config=request.config)
    base.pipeline.to(found_device(request.machine.device))
    data = prepare(base, found, request.options, cache=request.kept, on_stage=on_stage)
    return {
        "path": str(request.kept),
        "captions": len(data.embeds),
        "skipped_pictures": list(data.skipped),
        **data.origin,
    }


def _source(request: Request, sets: tuple[str, ...]) -> str | Path | Captioned:
    return embedded_pictures(sets, "A", VARIANTS) if request.data is None else request.data


def _save_memory(unet: Any, machine: Machine, device: torch.device) -> None:
    """Gradient checkpointing and compilation."""
    large = sum(p.numel() for p in unet.parameters()) > LARGE
    on = machine.checkpointing == "on" or (large and device.type == "cuda")
    if on and machine.checkpointing != "off":
        unet.enable_gradient_checkpointing()
    if machine.compiled:
        unet.compile()


def _check_compiled(machine: Machine, device: torch.device) -> None:
    if machine.compiled and device.type != "cuda":
        raise UsageError(
            f"--compile on {device.type}: only a GPU gains by it",
            hint="on a CPU, compiled gradients under bfloat16 are wrong; leave it out",
        )


def _check_fit(base: Base, vectors: Sequence[TaskVector | None]) -> None:
    for tau in vectors:
        own = [] if tau is None else [m for m in tau if m.startswith("unet.")]
        if tau is not None and (wrong := misfits(base.unet, tau, own)):
            raise IncompatibleError(
                f"{len(wrong)} of the vector's {len(own)} modules do not fit the base model, "
                f"{wrong[0]} for one",
                hint="give a vector that was made for this family",
            )
