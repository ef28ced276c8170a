"""From pictures to a proven vector file: what ``finetune`` and ``distill`` do from end to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith.adapters import check_output, save
from lcm_arith.dataset import Captioned, TrainingSet, embedded_pictures, encode, folder_pictures
from lcm_arith.embedded import pictures
from lcm_arith.errors import NotFoundError
from lcm_arith.families import Training, embedded
from lcm_arith.finetune import finetune
from lcm_arith.lcd.guidance import check_omega
from lcm_arith.lcd.trainer import distill
from lcm_arith.proof import prove_loads
from lcm_arith.sampling import load_pipeline, too_long
from lcm_arith.vector import TaskVector

VARIANTS: Final = 24  # pictures of each drawing for a style vector
DISTILL_VARIANTS: Final = 8  # … for the acceleration vector, of every set of the base

OnStage = Callable[[str, int, int, str], None]
"""Told about progress: (stage, done, total, note)."""


@dataclass(frozen=True)
class Request:
    """What the user asked of a training.

    Args:
        out: File to write.
        data: Folder of captioned pictures; None takes the embedded ones.
        rank, steps: Replace the family's defaults where given.
        seed: Of everything random.
        dtype: Of the written file.
        force: Replace ``out``.
    """

    out: Path
    data: Path | None = None
    rank: int | None = None
    steps: int | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    force: bool = False

    def plan(self, default: Training) -> Training:
        """The family's defaults with the user's values in their place."""
        given = {"rank": self.rank, "steps": self.steps}
        return replace(default, **{k: v for k, v in given.items() if v is not None})


def make_style(request: Request, style: str, on_stage: OnStage) -> dict[str, Any]:
    """Trains, writes and proves a style vector; returns what was done, JSON-ready.

    Args:
        request: Output, data and sizes.
        style: Picture set to learn (part A of it), where ``request.data`` is None.
        on_stage: Told about progress.

    Raises:
        NotFoundError: If ``style`` is no embedded picture set.
        OutputExistsError, InvalidContentError, UsageError, DivergedError, VerificationError.
    """
    if request.data is None and style not in pictures.SETS:
        raise NotFoundError(
            f"{style}: no embedded picture set", hint=f"one of {', '.join(pictures.SETS)}"
        )
    plan = request.plan(embedded().style)

    def train(
        pipeline: Any, data: TrainingSet, on_step: Callable[[int, float], None]
    ) -> TaskVector:
        return finetune(pipeline, data, plan, seed=request.seed, on_step=on_step)

    about = {"kind": "style", **({"style": style} if request.data is None else {})}
    return _make(request, plan, train, (style,), VARIANTS, about, on_stage)


def make_acceleration(request: Request, omega: float | None, on_stage: OnStage) -> dict[str, Any]:
    """Distils, writes and proves an acceleration vector; returns what was done, JSON-ready.

    Args:
        request: Output, data and sizes.
        omega: The paper's ω; None takes the family's.
        on_stage: Told about progress.

    Raises:
        OutputExistsError, InvalidContentError, UsageError, DivergedError, VerificationError.
    """
    plan = request.plan(embedded().acceleration)
    strength = embedded().omega if omega is None else omega
    check_omega(strength)

    def train(
        pipeline: Any, data: TrainingSet, on_step: Callable[[int, float], None]
    ) -> TaskVector:
        return distill(pipeline, data, plan, omega=strength, seed=request.seed, on_step=on_step)

    about = {"kind": "acceleration", "omega": repr(float(strength))}
    return _make(request, plan, train, pictures.BASE_SETS, DISTILL_VARIANTS, about, on_stage)


def _make(
    request: Request,
    plan: Training,
    train: Callable[[Any, TrainingSet, Callable[[int, float], None]], TaskVector],
    sets: tuple[str, ...],
    variants: int,
    about: dict[str, Any],
    on_stage: OnStage,
) -> dict[str, Any]:
    check_output(request.out, force=request.force)
    shown = _pictures(request, sets, variants)
    pipeline = load_pipeline(embedded().base)
    data = encode(pipeline, shown, on_chunk=lambda done, of: on_stage("encode", done, of, ""))
    cut = len(too_long(pipeline.tokenizer, shown.captions))
    pipeline.vae = pipeline.text_encoder = None  # everything is encoded; make room for training
    losses: list[float] = []

    def on_step(step: int, loss: float) -> None:
        losses.append(loss)
        recent = losses[-50:]
        on_stage("train", step, plan.steps, f"loss {sum(recent) / len(recent):.4f}")

    tau = train(pipeline, data, on_step)
    about = {**about, "data": shown.origin, "seed": request.seed, "plan": asdict(plan)}
    digest = save(
        tau,
        request.out,
        dtype=request.dtype,
        about=about,
        force=request.force,
        prove=lambda part: prove_loads(part, embedded().base),
    )
    tail = losses[-max(1, len(losses) // 10) :]
    return {
        "path": str(request.out),
        "sha256": digest,
        "modules": len(tau),
        "pictures": len(shown.captions),
        "cut_captions": cut,
        "final_loss": sum(tail) / len(tail),
        **about,
    }


def _pictures(request: Request, sets: tuple[str, ...], variants: int) -> Captioned:
    if request.data is None:
        return embedded_pictures(sets, "A", variants)
    return folder_pictures(request.data, size=pictures.SIDE)
