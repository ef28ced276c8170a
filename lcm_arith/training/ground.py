"""What every training stands on: a base, its data, and where it is computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lcm_arith import durable
from lcm_arith.bases import Base, load_base
from lcm_arith.condition import Condition, moved, time_ids
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.drawings import Captioned, embedded_pictures
from lcm_arith.data.prepare import prepare
from lcm_arith.data.sources import VARIANTS, survey
from lcm_arith.errors import IncompatibleError, UsageError
from lcm_arith.families import Family, family
from lcm_arith.targets import resolve
from lcm_arith.training.adapter import misfits
from lcm_arith.training.denoising import Read
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
    read: Read | None = None

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

    def conditions(self, told: Condition) -> tuple[Condition, Condition]:
        """Of the sheets' prompts and ∅, by text encoders that are trained where some are.

        Args:
            told: What else the network is told, a row.
        """
        count = len(self.prompts)
        cond, uncond = self.cond, self.uncond
        if self.read is not None:
            here = (moved(cond, self.device), moved(uncond, self.device))
            cond, uncond = (
                self.read(self.prompts, each, torch.full((count,), empty))
                for each, empty in zip(here, (False, True), strict=True)
            )
        more = {
            name: values.expand(count).to(cond["embeds"].device) for name, values in told.items()
        }
        return {**cond, **more}, uncond

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
    processes = find_processes(machine.device, machine.report_to, request.run, request.settings())
    try:
        formats = numbers(machine.precision, processes.device)
        base = load_base(request.base, config=request.config)
        _check_fit(base, vectors)
        durable.make_folder(request.run)
        with _alone(request) if processes.main else nullcontext():
            _move_encoders(base, processes.device, drawing=bool(found.prompts))
            _check_reading(base, request)
            with processes.main_first():
                cache = request.cache if found.cached else request.kept
                data = prepare(base, found, request.options, cache=cache, on_stage=on_stage)
            prompts, cond = _shown(base, data, request)
            base.vae.to("cpu")
            if not keep_text:
                base.pipeline.text_encoder = None
                if base.kind == "sdxl":
                    base.pipeline.text_encoder_2 = None
            _save_memory(base.unet, machine, processes.device)
            yield Ground(
                request, base, family(base.family), data, processes, formats, on_stage,
                prompts, cond, data.uncond(cond), {"unet": base.unet},
            )  # fmt: skip
    finally:
        processes.end()


def _check_reading(base: Base, request: Request) -> None:
    """Raises where captions cannot be read so, before pictures are encoded."""
    options = request.options
    base.uncond(clip_skip=options.clip_skip, max_tokens=options.max_tokens)


def _alone(request: Request) -> AbstractContextManager[None]:
    return durable.held(request.run / ".lock", "another training runs in this folder")


def _shown(base: Base, data: TrainingSet, request: Request) -> tuple[tuple[str, ...], Condition]:
    """Prompts of the sheets and their conditions: the user's, or the first of the data."""
    prompts, options = request.watching.prompts, request.options
    if prompts:
        cond = base.encode(prompts, clip_skip=options.clip_skip, max_tokens=options.max_tokens)
    else:
        prompts = tuple(dict.fromkeys(row.captions[0] for row in data.rows))[:SHOWN]
        cond = data.embeddings(prompts)
    if base.kind == "sdxl":
        side = (base.size, base.size)
        ids = time_ids(side, (0, 0), side).expand(len(prompts), -1)
        cond = {**cond, "time_ids": ids.to(cond["embeds"].device)}
    return prompts, cond


def _move_encoders(base: Base, device: torch.device, *, drawing: bool) -> None:
    """What encodes data is on the device; the UNet only where it draws the data itself."""
    for part in ("vae", "text_encoder", "text_encoder_2", *(("unet",) if drawing else ())):
        component = getattr(base.pipeline, part, None)
        if component is not None:
            component.to(device)


def cache_only(request: Request, sets: tuple[str, ...], on_stage: OnStage) -> dict[str, Any]:
    """Encodes the data and stops; returns what there is, JSON-ready.

    Args:
        request: What the user asked for.
        sets: Embedded picture sets, where ``request.data`` is None.
        on_stage: Told about progress.

    Raises:
        UsageError: If there is no folder to keep it in.
        LcmArithError: As data and base say.
    """
    if request.kept is None:
        raise UsageError(
            "--cache-only: the embedded pictures are kept nowhere", hint="give --cache"
        )
    found = survey(_source(request, sets), request.options)
    base = load_base(request.base, config=request.config)
    device = found_device(request.machine.device)
    _move_encoders(base, device, drawing=bool(found.prompts))
    cache = request.cache if found.cached else request.kept
    data = prepare(base, found, request.options, cache=cache, on_stage=on_stage)
    return {
        "path": str(cache or request.data),
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
