"""What a training will take, told before anything is loaded: parameters, memory, FLOPs, values.

Everything follows from the family's shapes; neither a base model, nor data, nor torch is needed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Final

from lcm_arith.architectures import Architecture, architecture
from lcm_arith.errors import UsageError
from lcm_arith.families import Family, family
from lcm_arith.flops import Shape, passes
from lcm_arith.targets import resolve
from lcm_arith.training.plan import Plan, Training
from lcm_arith.training.request import LARGE

W_EMBEDDING: Final = "time_embedding.cond_proj"
"""Module by which a student is told ω; ``time_cond_proj_dim`` of diffusers' UNet."""

PRECISIONS: Final[Mapping[str, int]] = {"fp32": 4, "bf16": 2, "fp16": 2}
"""Name → bytes a number of the frozen weights; what is trained is float32 in all."""

FLOAT32: Final = 4

OPTIMIZERS: Final[Mapping[str, int]] = {"adamw": 8, "adamw8bit": 2}
"""Name → bytes of state a trained parameter: two moments."""


@dataclass(frozen=True)
class Mode:
    """What a kind of training runs for each picture beside the student's pass with gradients.

    Args:
        teacher: Passes of the frozen base: with the prompt and without.
        target: Passes of the student, or of its average, without gradients.
        whole: All weights are trained, not an adapter, and an average of them is the target.
        student: Passes of the student with gradients.
    """

    teacher: int
    target: int
    whole: bool = False
    student: int = 1

    def passing(self, solver: str, anchor: float) -> Mode:
        """The same with this solver of the teacher; with an anchor, LCD's passes beside LCF's."""
        own = Mode(teacher=2, target=self.target + 1, student=2) if anchor else self
        return replace(own, teacher=own.teacher * SOLVERS[solver])


SOLVERS: Final[Mapping[str, int]] = {"ddim": 1, "dpm++2s": 2}
"""Solver of the teacher → its passes a step, each with the prompt and without."""

MODES: Final[Mapping[str, Mode]] = {
    "lora": Mode(teacher=2, target=1),  # Algorithm 1 of arXiv:2311.05556
    "full": Mode(teacher=2, target=1, whole=True),
    "lcf": Mode(teacher=0, target=1),  # §3.4 of arXiv:2310.04378
    "finetune": Mode(teacher=0, target=0),
}


@dataclass(frozen=True, kw_only=True)
class Planned:
    """What a training will take. JSON-ready by :meth:`as_dict`.

    Args:
        family: Id of the base family.
        mode: One of :data:`MODES`.
        rank: Of the adapter; None where all weights are trained.
        target_modules: Number of modules that are trained by the adapter; 0 without one.
        trainable_parameters: Of the adapter, or of UNet and w-embedding.
        unet_parameters: Of the base.
        text_encoder_parameters: Of all text encoders.
        vae_parameters: Of the VAE.
        total_parameters: Of the base: UNet, text encoders and VAE.
        memory: Bytes that are held while training, by what they are, and ``total``. Activations
            come on top; they depend on how attention is computed.
        caching: Bytes of weights while pictures and prompts are encoded, before the UNet is needed,
            and ``total``. The VAE is float32: SDXL's overflows in float16.
        flops: Floating point operations for one picture: ``base_forward``, ``student_forward``,
            ``student_backward``; ``picture`` is all of a picture's share of a step,
            ``picture_checkpointed`` the same with gradient checkpointing, whose second forward pass
            of the blocks is counted as one of the whole UNet. What ``finetune`` asks the base about
            the few pictures that lose their captions is not in it.
        flops_per_step: Of an optimizer step of all pictures, checkpointed or not as configured.
        config: All values that were used, given or the family's.
    """

    family: str
    mode: str
    rank: int | None
    target_modules: int
    trainable_parameters: int
    unet_parameters: int
    text_encoder_parameters: int
    vae_parameters: int
    total_parameters: int
    memory: Mapping[str, int]
    caching: Mapping[str, int]
    flops: Mapping[str, int]
    flops_per_step: int
    config: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return asdict(self)


def plan(
    name: str,
    *,
    mode: str = "lora",
    targets: str | Sequence[str] | None = None,
    resolution: int | None = None,
    precision: str = "bf16",
    optimizer: str = "adamw",
    gradient_checkpointing: bool | None = False,
    solver: str = "ddim",
    anchor: float = 0.0,
    target_decay: float = 0.0,
    omega_dim: int = 256,
    model: Architecture | None = None,
    config: Mapping[str, Any] | None = None,
    **values: Any,
) -> Planned:
    """What a training of a family will take, from shapes alone.

    Args:
        name: Of the family, see :func:`lcm_arith.families.family`.
        mode: One of :data:`MODES`.
        targets: Modules of the adapter, see :mod:`lcm_arith.targets`; None is ``lcm``.
        resolution: Side of the pictures, px; None is the family's.
        precision: Of the frozen weights, one of :data:`PRECISIONS`.
        optimizer: One of :data:`OPTIMIZERS`.
        gradient_checkpointing: Whether blocks are run again for the backward pass; None is what
            a GPU gets, only a UNet of over a billion parameters.
        solver: The teacher's, one of :data:`SOLVERS`.
        anchor: Weight of LCD's loss in mode ``lcf``.
        target_decay: μ of a target that is an average of the student's adapter.
        omega_dim: Width of the w-embedding in mode ``full``; 0 is a student that is not told ω.
        model: Sizes of the base, where its family has no published ones.
        config: More values that the result's ``config`` is to tell, such as ω; they change nothing
            else.
        **values: Fields of :class:`lcm_arith.families.Plan`, and ``rank`` of an adapter; None is
            the family's.

    Raises:
        NotFoundError: If there is no such family, or nothing is known of its sizes.
        UsageError: If a value is none of its table or out of range, ``targets`` match nothing, the
            resolution is no multiple of a latent's pixels, or ``targets`` or a rank are given to a
            mode without an adapter.
        IncompatibleError: If ``model`` has layers that Stable Diffusion's UNets do not have.
    """
    _check(mode, precision, optimizer, solver)
    if MODES[mode].whole and (targets is not None or values.get("rank") is not None):
        raise UsageError(f"mode {mode} trains all weights: it has no rank and no targets")
    defaults = family(name)
    sizes = model or architecture(name)
    running = MODES[mode].passing(solver, anchor)
    if gradient_checkpointing is None:
        gradient_checkpointing = sizes.parameters["unet"] > LARGE
    training = _training(defaults, mode, values)
    side = defaults.resolution if resolution is None else resolution
    used = {
        "resolution": side,
        "prediction": defaults.prediction,
        **({"omega": defaults.omega} if running.teacher else {}),
        **({"grid_points": defaults.grid_points} if MODES[mode].target else {}),
        **({"stride": defaults.stride} if MODES[mode].target else {}),
        **asdict(training),
        "precision": precision,
        "optimizer": optimizer,
        "gradient_checkpointing": gradient_checkpointing,
    }
    ranks: dict[str, int] = {}
    if isinstance(training, Training):
        used |= {"targets": "lcm" if targets is None else targets, "alpha": training.rank}
        ranks = dict.fromkeys(resolve(used["targets"], sizes.modules), training.rank)
    else:
        used["omega_dim"] = omega_dim
        sizes = _told_omega(sizes, omega_dim)
    flops = _flops(running, sizes, ranks, _latents(side, sizes))
    copies = bool(training.ema) + (MODES[mode].whole or target_decay > 0)
    planned = _planned(name, mode, sizes, ranks, flops, used, copies)
    return replace(planned, config={**used, **(config or {})})


def _check(mode: str, precision: str, optimizer: str, solver: str) -> None:
    for option, given, allowed in (
        ("mode", mode, MODES),
        ("precision", precision, PRECISIONS),
        ("optimizer", optimizer, OPTIMIZERS),
        ("solver", solver, SOLVERS),
    ):
        if given not in allowed:
            raise UsageError(f"{option} {given!r}: one of {', '.join(allowed)}")


def low_rank_parameters(shape: Shape, rank: int) -> int:
    """Parameters of a low-rank delta on a weight ``[out, in(, kh, kw)]``."""
    return rank * (shape[0] + math.prod(shape[1:]))


def _training(defaults: Family, mode: str, values: Mapping[str, Any]) -> Plan:
    own: Plan = {"full": defaults.full, "finetune": defaults.style}.get(mode, defaults.acceleration)
    return replace(own, **{key: value for key, value in values.items() if value is not None})


def _latents(side: int, sizes: Architecture) -> int:
    if side < 1 or side % sizes.latent_scale:
        raise UsageError(f"resolution {side}: a multiple of {sizes.latent_scale} px, above 0")
    return side // sizes.latent_scale


def _told_omega(sizes: Architecture, width: int) -> Architecture:
    """The same with a w-embedding, which has no bias."""
    if not width:
        return sizes
    shape = (sizes.modules["conv_in"][0], width)
    return replace(
        sizes,
        modules={**sizes.modules, W_EMBEDDING: shape},
        parameters={**sizes.parameters, W_EMBEDDING: math.prod(shape)},
    )


def _flops(mode: Mode, sizes: Architecture, ranks: Mapping[str, int], side: int) -> dict[str, int]:
    own = partial(passes, side=side, tokens=sizes.tokens)
    base = {name: shape for name, shape in sizes.modules.items() if name != W_EMBEDDING}
    teacher = own(base).forward
    student = own(sizes.modules, ranks=ranks, whole=mode.whole)
    students = mode.target * student.forward + mode.student * (student.forward + student.backward)
    picture = mode.teacher * teacher + students
    return {
        "base_forward": teacher,
        "student_forward": student.forward,
        "student_backward": student.backward,
        "picture": picture,
        "picture_checkpointed": picture + mode.student * student.forward,
    }


def _planned(
    name: str,
    mode: str,
    sizes: Architecture,
    ranks: Mapping[str, int],
    flops: Mapping[str, int],
    config: Mapping[str, Any],
    copies: int,
) -> Planned:
    parts = sizes.parameters
    unet, text, vae = parts["unet"], sizes.text_encoder_parameters, parts["vae"]
    trained = sum(low_rank_parameters(sizes.modules[m], rank) for m, rank in ranks.items())
    if MODES[mode].whole:
        trained = unet + parts.get(W_EMBEDDING, 0)
    frozen = PRECISIONS[config["precision"]]
    picture = flops["picture_checkpointed" if config["gradient_checkpointing"] else "picture"]
    return Planned(
        family=name,
        mode=mode,
        rank=config.get("rank"),
        target_modules=len(ranks),
        trainable_parameters=trained,
        unet_parameters=unet,
        text_encoder_parameters=text,
        vae_parameters=vae,
        total_parameters=unet + text + vae,
        memory=_with_total(
            base=unet * frozen,  # of mode full: the teacher
            trained=trained * FLOAT32,
            gradients=trained * FLOAT32,
            optimizer=trained * OPTIMIZERS[config["optimizer"]],
            average=trained * FLOAT32 * copies,
        ),
        caching=_with_total(text_encoders=text * FLOAT32, vae=vae * FLOAT32),
        flops=flops,
        flops_per_step=picture * config["batch"] * config["accumulation"],
        config=config,
    )


def _with_total(**parts: int) -> dict[str, int]:
    return {**parts, "total": sum(parts.values())}
