"""From pictures to a proven file: what ``finetune`` and ``distill`` do from end to end."""

from __future__ import annotations

import signal
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any, Final

import torch

from lcm_arith import durable
from lcm_arith.adapters import DTYPES, check_output, load, provenance, save
from lcm_arith.bases import Base, load_base
from lcm_arith.condition import Condition
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.prepare import prepare
from lcm_arith.data.sources import survey
from lcm_arith.embedded import pictures
from lcm_arith.errors import IncompatibleError, NotFoundError, UsageError
from lcm_arith.families import Family, family
from lcm_arith.modules import weight_shapes
from lcm_arith.proof import prove_loads
from lcm_arith.targets import resolve
from lcm_arith.training.adapter import TRAINED, adapter_vector, add_adapter
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.denoising import Denoising, denoising
from lcm_arith.training.distillation import Distillation, Lesson, distillation
from lcm_arith.training.log import Log
from lcm_arith.training.loop import Outcome, Run, Step, fit
from lcm_arith.training.numbers import Numbers, numbers
from lcm_arith.training.plan import Plan, Training
from lcm_arith.training.processes import Processes, find_processes
from lcm_arith.training.request import CHECKPOINT, Request
from lcm_arith.training.roles import on_one_base, three_networks, with_adapters
from lcm_arith.training.watch import SHOWN, Column, Sheets, looks
from lcm_arith.training.whole_model import check_model_output, write_model
from lcm_arith.vector import TaskVector


OnStage = Callable[[str, int, int, str], None]
"""Told about progress: (stage, done, total, note)."""

TEXT_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TARGET_DECAY: Final = 0.95  # μ of mode full, arXiv:2310.04378


def make_acceleration(
    request: Request,
    on_stage: OnStage,
    *,
    variant: Mapping[str, Any] | None = None,
    accel: str | None = None,
    freeze_accel: bool = False,
) -> dict[str, Any]:
    """Distils, writes and proves; returns what was done, JSON-ready.

    Args:
        request: Output, base, data and sizes.
        on_stage: Told about progress.
        variant: What replaces the family's defaults, by name of
            :class:`lcm_arith.training.distillation.Distillation`.
        accel: In mode lcf, the vector that accelerates the base.
        freeze_accel: It stays as it is and in place, a style is learnt beside it; else the
            training goes on from it.

    Raises:
        UsageError: If options are impossible together.
        LcmArithError: As the parts say: data, base, training, proof.
    """
    given = {k: v for k, v in (variant or {}).items() if v is not None}
    mode = given.get("mode", "lora")
    _check_mode(mode, request, accel, freeze_accel)
    check = check_model_output if mode == "full" else check_output
    check(request.out, force=request.force)
    with _ground(request, pictures.base_sets(), on_stage) as ground:
        row = ground.row
        defaults = {"omega": row.omega, "grid_points": row.grid_points, "stride": row.stride}
        if mode == "full":
            defaults["target_decay"] = TARGET_DECAY
        how = Distillation(**{**defaults, **given})
        if mode == "full":
            return _make_full(ground, how)
        plan = request.planned(row.acceleration)
        below = load(accel) if accel is not None and freeze_accel else None
        start = accel if accel is not None and not freeze_accel else request.start
        about = {
            "kind": "style" if freeze_accel else "acceleration",
            **_variant(how),
            "sampler": "lcm",
            **({"accel": provenance(below)} if below is not None else {}),
        }
        ground.start = None if start is None else load(start)
        roles = on_one_base(
            ground.base.unet,
            plan,
            ground.numbers,
            targets=ground.targets(plan),
            seed=request.seed,
            decay=how.target_decay,
            start=ground.start,
            accel=below,
        )
        lesson = distillation(roles, ground.data, plan, how, **ground.known())
        columns = tuple(Column("lcm", steps, 1.0) for steps in request.watching.steps)
        return _make(ground, plan, lesson, about, columns)


def _check_mode(mode: str, request: Request, accel: str | None, freeze_accel: bool) -> None:
    if mode == "lcf" and accel is None:
        raise UsageError(
            "mode lcf fine-tunes a model that is accelerated already",
            hint="give its acceleration vector with --accel",
        )
    if mode != "lcf" and (accel is not None or freeze_accel):
        raise UsageError(f"mode {mode}: only lcf has an acceleration vector in place")
    if accel is not None and not freeze_accel and request.start is not None:
        raise UsageError("lcf goes on from the acceleration vector, not from another one, too")
    if mode == "full":
        wrong = [k for k in ("rank", "alpha", "targets") if request.plan.get(k) is not None]
        if request.start is not None:
            wrong.append("start")
        if wrong:
            raise UsageError(f"{', '.join(wrong)}: without effect, mode full trains all weights")


def _variant(how: Distillation) -> dict[str, Any]:
    """What a vector says of how it was distilled; ω as decimals."""
    ends = how.omega if isinstance(how.omega, tuple) else (how.omega,)
    return {**asdict(how), "omega": " to ".join(repr(float(end)) for end in ends)}


def _make_full(ground: Ground, how: Distillation) -> dict[str, Any]:
    request, base = ground.request, ground.base
    plan = Training(rank=1, **asdict(request.planned(ground.row.full)))
    roles = three_networks(base.unet, ground.numbers, decay=how.target_decay)
    target = roles.averaged
    ground.base = replace(base, pipeline=ground.with_unet(target))
    lesson = distillation(roles, ground.data, plan, how, **ground.known())
    ends = how.omega if isinstance(how.omega, tuple) else (how.omega, how.omega)
    strength = sum(ends) / 2
    told = torch.full((1,), strength)
    columns = tuple(Column("lcm", steps, 1.0) for steps in request.watching.steps)
    about = {"kind": "model", **_variant(how), "sampler": "lcm"}
    outcome, about = _trained(ground, plan, lesson, about, columns, {"omega": told}, None)
    sha256 = ""
    if ground.processes.main:
        fresh = load_base(request.base, config=request.config)
        sha256 = write_model(
            fresh, target, request.out, DTYPES[request.dtype], force=request.force
        )
    return _told(ground, about, outcome, sha256, modules=0)


def make_style(
    request: Request,
    style: str,
    on_stage: OnStage,
    *,
    how: Denoising | None = None,
    accel: str | None = None,
    text_encoder: bool = False,
) -> dict[str, Any]:
    """Trains, writes and proves a style vector; returns what was done, JSON-ready.

    Args:
        request: Output, base, data and sizes.
        style: Embedded picture set to learn (part A of it), where ``request.data`` is None.
        on_stage: Told about progress.
        how: Timesteps, weights, captions; None is the defaults.
        accel: Acceleration vector that is in place, and stays as it is, while the style is learnt.
        text_encoder: Adapt the text encoders, too.

    Raises:
        NotFoundError: If ``style`` is no embedded picture set.
        LcmArithError: As the parts say: data, base, training, proof.
    """
    if request.data is None and style not in pictures.sets():
        raise NotFoundError(
            f"{style}: no embedded picture set", hint=f"one of {', '.join(pictures.sets())}"
        )
    check_output(request.out, force=request.force)
    how = how or Denoising()
    with _ground(request, (style,), on_stage, keep_text=text_encoder) as ground:
        plan = request.planned(ground.row.style)
        below = None if accel is None else load(accel)
        ground.start = None if request.start is None else load(request.start)
        roles = on_one_base(
            ground.base.unet,
            plan,
            ground.numbers,
            targets=ground.targets(plan),
            seed=request.seed,
            start=ground.start,
            accel=below,
        )
        known = ground.known()
        if text_encoder:
            known["read"] = _reader(ground, plan)
        before = roles.teacher
        if below is not None:
            before = with_adapters(ground.base.unet, (ACCEL,), ground.numbers)
        trained = torch.nn.ModuleList(ground.networks.values())
        lesson = denoising(trained, roles.student, before, ground.data, plan, how, **known)
        about = {
            "kind": "style",
            **({"style": style} if request.data is None else {}),
            **asdict(how),
            **({"accel": provenance(below)} if below is not None else {}),
        }
        columns = (
            (Column("dpm++", ground.row.teacher_steps, ground.row.guidance),)
            if below is None
            else tuple(Column("lcm", steps, 1.0) for steps in request.watching.steps)
        )
        return _make(ground, plan, lesson, about, columns)


def _reader(ground: Ground, plan: Training) -> Callable[[Sequence[str], Condition], Condition]:
    """Puts LoRAs on the text encoders; captions are then read by these."""
    base, options = ground.base, ground.request.options
    for component in ("text_encoder", "text_encoder_2"):
        encoder = getattr(base.pipeline, component, None)
        if encoder is None:
            continue
        encoder.to(ground.device)
        add_adapter(
            encoder,
            rank=plan.rank,
            alpha=plan.alpha,
            targets=TEXT_TARGETS,
            seed=ground.request.seed,
            start=ground.start,
            component=component,
        )
        ground.networks[component] = encoder

    def read(captions: Sequence[str], cached: Condition) -> Condition:
        with torch.enable_grad(), ground.numbers.autocast(ground.device):
            found = base.encode(
                captions, clip_skip=options.clip_skip, max_tokens=options.max_tokens
            )
        return {**cached, **{name: values.float() for name, values in found.items()}}

    return read


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
def _ground(
    request: Request, sets: tuple[str, ...], on_stage: OnStage, *, keep_text: bool = False
) -> Iterator[Ground]:
    """Base and data, checked from the cheapest to the dearest."""
    machine = request.machine
    durable.make_folder(request.run)
    default = embedded_pictures(sets, "A", VARIANTS) if request.data is None else request.data
    found = survey(default, request.options)
    processes = find_processes(machine.device, machine.report_to, request.run, {})
    try:
        formats = numbers(machine.precision, processes.device)
        base = load_base(request.base, config=request.config)
        reading = {
            "clip_skip": request.options.clip_skip,
            "max_tokens": request.options.max_tokens,
        }
        base.vae.to(processes.device)
        with processes.main_first():
            data = prepare(base, found, request.options, cache=request.kept, on_stage=on_stage)
        base.vae.to("cpu")
        prompts = request.watching.prompts
        if prompts:
            cond = base.encode(prompts, **reading)
            if base.kind == "sdxl":
                side = (base.size, base.size)
                cond = {**cond, "time_ids": time_ids(side, (0, 0), side).expand(len(prompts), -1)}
        else:
            drawn = data.batch(0, SHOWN, request.seed)
            prompts, cond = drawn.captions, drawn.cond
        if not keep_text:
            base.pipeline.text_encoder = None
            if base.kind == "sdxl":
                base.pipeline.text_encoder_2 = None
        base.unet.to(processes.device)
        _save_memory(base.unet, machine, processes.device)
        yield Ground(
            request, base, family(base.family), data, processes, formats, on_stage,
            tuple(prompts), cond, data.uncond(cond), {"unet": base.unet},
        )  # fmt: skip
    finally:
        processes.end()


def _save_memory(unet: Any, machine: Machine, device: torch.device) -> None:
    """Gradient checkpointing and compilation."""
    large = sum(p.numel() for p in unet.parameters()) > LARGE
    on = machine.checkpointing == "on" or (large and device.type == "cuda")
    if on and machine.checkpointing != "off":
        unet.enable_gradient_checkpointing()
    if machine.compiled:
        if device.type != "cuda":
            raise UsageError(
                f"--compile on {device.type}: only a GPU gains by it",
                hint="on a CPU, compiled gradients under bfloat16 are wrong; leave it out",
            )
        unet.compile()


def _make(
    ground: Ground,
    plan: Training,
    lesson: Lesson,
    about: dict[str, Any],
    columns: tuple[Column, ...],
) -> dict[str, Any]:
    """Trains, then writes and proves the vector."""
    request = ground.request
    _check_start(ground)

    def write(path: Path, told: Mapping[str, Any], *, force: bool) -> str:
        tau = adapter_vector(ground.networks, {"operation": "train"})
        return save(
            tau,
            path,
            dtype=DTYPES[request.dtype],
            about=dict(told),
            force=force,
            prove=lambda part: prove_loads(part, ground.base),
        ).sha256

    outcome, about = _trained(ground, plan, lesson, about, columns, {}, write)
    sha256 = ""
    if ground.processes.main:
        sha256 = write(request.out, about, force=request.force)
    layers = sum(len(adapter_layers(network)) for network in ground.networks.values())
    return _told(ground, about, outcome, sha256, modules=layers)


def _check_start(ground: Ground) -> None:
    """Raises where the vector to go on from has parts that are not trained."""
    if ground.start is None:
        return
    other = [m for m in ground.start if m.partition(".")[0] not in ground.networks]
    if other:
        raise IncompatibleError(
            f"{len(other)} modules of the vector to start from are not trained, {other[0]} for one",
            hint="train the text encoder, too, or start from a vector of the UNet",
        )


def _trained(
    ground: Ground,
    plan: Training,
    lesson: Lesson,
    about: dict[str, Any],
    columns: tuple[Column, ...],
    told: Condition,
    write: Callable[..., str] | None,
) -> tuple[Outcome, dict[str, Any]]:
    """The training itself; also what is known of it in the end."""
    request, base, processes = ground.request, ground.base, ground.processes
    about = {
        **about,
        "base": base.digest,
        "family": base.family,
        "prediction": base.prediction,
        "data": ground.data.origin,
        "seed": request.seed,
        "plan": asdict(plan),
        **({"start": provenance(ground.start)} if ground.start is not None else {}),
    }
    checkpoint = Checkpoint(request.run / CHECKPOINT, about, every=request.checkpoint_every)
    if not request.resume and processes.main:
        checkpoint.path.unlink(missing_ok=True)
    processes.wait()
    log = Log(request.run, plan.batch * plan.accumulation * processes.count, processes)
    rows = {name: values.expand(len(ground.prompts)) for name, values in told.items()}
    sheets = Sheets(
        request.run, base.pipeline, columns, ground.prompts,
        {**ground.cond, **rows}, ground.uncond,
        lambda: ground.numbers.autocast(ground.device),
    )  # fmt: skip
    keep = None if write is None else lambda path: write(path, about, force=True)
    recent: deque[float] = deque(maxlen=50)

    def on_step(step: Step) -> None:
        log.step(step)
        recent.append(step.loss)
        ground.on_stage("train", step.number, plan.steps, f"loss {sum(recent) / len(recent):.4f}")

    if not checkpoint.path.exists() and request.looks(plan.steps):
        log.errors(0, lesson.errors())
    with _stoppable() as stop:
        outcome = fit(
            lesson.model,
            lesson.loss,
            plan,
            on_step,
            run=Run(
                processes,
                ground.numbers,
                checkpoint,
                lesson.averages,
                looks(request, plan.steps, log, lesson.errors, sheets, keep),
                stop,
            ),
        )
    return outcome, {**about, "skipped_steps": outcome.skipped}


@contextmanager
def _stoppable() -> Iterator[Callable[[], bool]]:
    """Whether SIGINT or SIGTERM came; a second one ends at once."""
    asked: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(number)

    try:
        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread, which alone hears signals
        yield lambda: False
        return
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _told(
    ground: Ground, about: dict[str, Any], outcome: Outcome, sha256: str, *, modules: int
) -> dict[str, Any]:
    """What was done, JSON-ready; the checkpoint is not needed any more."""
    request = ground.request
    if ground.processes.main:
        (request.run / CHECKPOINT).unlink(missing_ok=True)
    tail = outcome.losses[-max(1, len(outcome.losses) // 10) :]
    return {
        "path": str(request.out),
        "run": str(request.run),
        "sha256": sha256,
        "modules": modules,
        "pictures": ground.data.pictures,
        "skipped_pictures": list(ground.data.skipped),
        "cut_captions": ground.data.origin["cut_captions"],
        "final_loss": sum(tail) / len(tail),
        **about,
    }
