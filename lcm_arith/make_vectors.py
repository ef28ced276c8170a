"""From pictures to a proven file: what ``finetune`` and ``distill`` do from end to end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from lcm_arith.adapters import load
from lcm_arith.bases import load_base
from lcm_arith.condition import Condition, chosen
from lcm_arith.embedded import pictures
from lcm_arith.errors import IncompatibleError, NotFoundError, UsageError
from lcm_arith.formats.container import DTYPES
from lcm_arith.proof import prove_loads
from lcm_arith.saving import check_output, provenance, save
from lcm_arith.training.adapter import ACCEL, adapter_vector, add_adapter, trained_layers
from lcm_arith.training.denoising import Denoising, Read, denoising
from lcm_arith.training.distillation import Distillation, distillation
from lcm_arith.training.ground import Ground, OnStage, standing
from lcm_arith.training.lesson import Lesson
from lcm_arith.training.loop import Outcome
from lcm_arith.training.plan import Training
from lcm_arith.training.request import CHECKPOINT, Request
from lcm_arith.training.roles import on_one_base, three_networks, with_adapters
from lcm_arith.training.session import train
from lcm_arith.training.watch import Column
from lcm_arith.training.whole_model import check_model_output, write_model

TEXT_TARGETS: Final = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
TARGET_DECAY: Final = 0.95  # μ of mode full, arXiv:2310.04378
SHEET_STEPS: Final = (1, 2, 4, 8)


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
    _check_useful(mode, given, request)
    _check_values(mode, given, request)
    check = check_model_output if mode == "full" else check_output
    check(request.out, force=request.force)
    below = load(accel) if accel is not None and freeze_accel else None
    begun = accel if accel is not None and not freeze_accel else request.start
    start = None if begun is None else load(begun)
    vectors = (below, start)
    with standing(request, pictures.base_sets(), on_stage, vectors=vectors) as ground:
        row = ground.row
        defaults = {"omega": row.omega, "grid_points": row.grid_points, "stride": row.stride}
        if mode == "full":
            defaults["target_decay"] = TARGET_DECAY
        how = Distillation(**{**defaults, **given})
        if mode == "full":
            return _make_full(ground, how)
        plan = request.planned(row.acceleration)
        about = {
            "kind": "style" if freeze_accel else "acceleration",
            **_variant(how),
            "sampler": "lcm",
            **({"accel": provenance(below)} if below is not None else {}),
        }
        ground.start = start
        roles = on_one_base(
            ground.base.unet,
            plan,
            ground.numbers,
            targets=ground.targets(plan),
            seed=request.seed,
            device=ground.device,
            decay=how.target_decay,
            start=ground.start,
            accel=below,
        )
        lesson = distillation(roles, ground.data, plan, how, **ground.known())
        return _make(ground, plan, lesson, about, _few_steps(request))


def _few_steps(request: Request) -> tuple[Column, ...]:
    return tuple(Column("lcm", steps, 1.0) for steps in request.watching.steps or SHEET_STEPS)


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


def _check_useful(mode: str, given: Mapping[str, Any], request: Request) -> None:
    """Raises where a value was set that this mode has no use for."""
    asked = {**given, **{k: v for k, v in request.plan.items() if v is not None}}
    asked |= {"start": request.start, "save_every": request.watching.save_every or None}
    idle: tuple[str, ...] = ()
    if mode == "full":
        idle, why = _ADAPTERS, "mode full trains all weights and writes their average θ⁻"
    elif mode == "lcf" and not given.get("anchor"):
        idle, why = _TEACHERS, "mode lcf has no teacher, unless it has an anchor"
    if wrong := [name for name in idle if asked.get(name) is not None]:
        raise UsageError(f"{', '.join(wrong)}: without effect, {why}")


_ADAPTERS: Final = ("rank", "alpha", "targets", "ema", "start", "save_every")
_TEACHERS: Final = ("omega", "solver")


def _check_values(mode: str, given: Mapping[str, Any], request: Request) -> None:
    """Raises where a value is impossible with any family, before anything is read."""
    decay = TARGET_DECAY if mode == "full" else 0.0
    Distillation(**{"omega": 0.0, "target_decay": decay, **given})
    _check_plan(request)


def _check_plan(request: Request) -> None:
    request.planned(Training(rank=1, steps=1, batch=1, learning_rate=1.0))


def _variant(how: Distillation) -> dict[str, Any]:
    """What a vector says of how it was distilled; ω as decimals."""
    if not how.taught:
        return {k: v for k, v in asdict(how).items() if k not in _TEACHERS}
    ends = how.omega if isinstance(how.omega, tuple) else (how.omega,)
    return {**asdict(how), "omega": " to ".join(repr(float(end)) for end in ends)}


def _make_full(ground: Ground, how: Distillation) -> dict[str, Any]:
    request, base = ground.request, ground.base
    plan = request.planned(ground.row.full)
    roles = three_networks(base.unet, ground.numbers, decay=how.target_decay, device=ground.device)
    base.pipeline.unet = roles.written  # what the sheets show
    lesson = distillation(roles, ground.data, plan, how, **ground.known())
    ends = how.omega if isinstance(how.omega, tuple) else (how.omega, how.omega)
    strength = sum(ends) / 2
    told = torch.full((1,), strength)
    columns = _few_steps(request)
    about = {"kind": "model", **_variant(how), "sampler": "lcm"}
    outcome, about = train(ground, plan, lesson, about, columns, {"omega": told}, None)
    sha256 = ""
    if ground.processes.main:
        fresh = load_base(request.base, config=request.config)
        sha256 = write_model(
            fresh,
            roles.written,
            request.out,
            DTYPES[request.dtype],
            grid_points=how.grid_points,
            force=request.force,
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
    _check_plan(request)
    check_output(request.out, force=request.force)
    how = how or Denoising()
    below = None if accel is None else load(accel)
    start = None if request.start is None else load(request.start)
    vectors = (below, start)
    with standing(request, (style,), on_stage, keep_text=text_encoder, vectors=vectors) as ground:
        plan = request.planned(ground.row.style)
        ground.start = start
        roles = on_one_base(
            ground.base.unet,
            plan,
            ground.numbers,
            targets=ground.targets(plan),
            seed=request.seed,
            device=ground.device,
            start=ground.start,
            accel=below,
        )
        known = ground.known()
        if text_encoder:
            known["read"] = ground.read = _reader(ground, plan)
        before = roles.teacher
        if below is not None:
            before = with_adapters(ground.base.unet, (ACCEL,), ground.numbers)
        trained = torch.nn.ModuleList(ground.networks.values())
        lesson = denoising(trained, roles.student, before, ground.data, plan, how, **known)
        about = {
            "kind": "style",
            "text_encoder": text_encoder,
            **({"trigger": request.options.trigger} if request.options.trigger else {}),
            **({"style": style} if request.data is None else {}),
            **asdict(how),
            **({"accel": provenance(below)} if below is not None else {}),
        }
        columns = _few_steps(request) if below is not None else _many_steps(ground)
        return _make(ground, plan, lesson, about, columns)


def _many_steps(ground: Ground) -> tuple[Column, ...]:
    listed = ground.request.watching.steps or (ground.row.teacher_steps,)
    return tuple(Column("dpm++", steps, ground.row.guidance) for steps in listed)


def _reader(ground: Ground, plan: Training) -> Read:
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

    def read(captions: Sequence[str], cached: Condition, dropped: Tensor) -> Condition:
        words = ["" if none else caption for caption, none in zip(captions, dropped, strict=True)]
        with ground.numbers.autocast(ground.device):
            found = base.encode(
                words, clip_skip=options.clip_skip, max_tokens=options.max_tokens, trained=True
            )
        found = {name: values.float() for name, values in found.items()}
        if base.zero_uncond:
            zeros = {name: torch.zeros_like(values) for name, values in found.items()}
            found = dict(chosen(dropped.to(ground.device), zeros, found))
        return {**cached, **found}

    return read


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

    def write(path: Path, told: Mapping[str, Any]) -> str:
        tau = adapter_vector(ground.networks, {"operation": "train"})
        return save(
            tau,
            path,
            dtype=DTYPES[request.dtype],
            about=dict(told),
            force=request.force or path != request.out,
            prove=lambda part: prove_loads(part, ground.base),
        ).sha256

    outcome, about = train(ground, plan, lesson, about, columns, {}, write)
    sha256 = ""
    if ground.processes.main:
        sha256 = write(request.out, about)
    layers = sum(len(trained_layers(network)) for network in ground.networks.values())
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


def _told(
    ground: Ground, about: dict[str, Any], outcome: Outcome, sha256: str, *, modules: int
) -> dict[str, Any]:
    """What was done, JSON-ready; the checkpoint is not needed any more."""
    request = ground.request
    if ground.processes.main:
        (request.run / CHECKPOINT).unlink(missing_ok=True)
    tail = [step.loss for step in outcome.steps if not step.skipped]
    tail = tail[-max(1, len(tail) // 10) :]
    return {
        "path": str(request.out),
        "run": str(request.run),
        "sha256": sha256,
        "modules": modules,
        "pictures": ground.data.pictures,
        "skipped_pictures": list(ground.data.skipped),
        "cut_captions": ground.data.origin["cut_captions"],
        "final_loss": sum(tail) / len(tail) if tail else None,
        **about,
    }
