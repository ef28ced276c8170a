"""From pictures to a proven vector file: what ``finetune`` and ``distill`` do from end to end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith.adapters import check_output, load, provenance, save
from lcm_arith.dataset import Captioned, TrainingSet, embedded_pictures, encode, folder_pictures
from lcm_arith.embedded import files, pictures
from lcm_arith.errors import NotFoundError
from lcm_arith.families import Training, embedded
from lcm_arith.finetune import finetune
from lcm_arith.lcd.guidance import check_omega
from lcm_arith.lcd.trainer import distill
from lcm_arith.proof import prove_loads
from lcm_arith.sampling import load_pipeline, too_long
from lcm_arith.training import Checkpoint, Outcome
from lcm_arith.vector import TaskVector

VARIANTS: Final = 24  # pictures of each drawing

OnStage = Callable[[str, int, int, str], None]
"""Told about progress: (stage, done, total, note)."""


@dataclass(frozen=True)
class Request:
    """What the user asked of a training.

    Args:
        out: File to write.
        data: Folder of captioned pictures; None takes the embedded ones.
        rank, steps, learning_rate: Replace the family's defaults where given.
        seed: Of everything random.
        dtype: Of the written file.
        force: Replace ``out``.
        checkpoint: Kept while training, so that a killed one goes on; None keeps none.
        log: CSV of the loss of every step; None writes none.
        device: torch's name of where it is trained.
        start: Name or file of a vector to go on from; None begins with ΔW = 0.
    """

    out: Path
    data: Path | None = None
    rank: int | None = None
    steps: int | None = None
    seed: int = 0
    dtype: torch.dtype = torch.float32
    force: bool = False
    checkpoint: Path | None = None
    log: Path | None = None
    device: str = "cpu"
    start: str | None = None
    learning_rate: float | None = None

    def plan(self, default: Training) -> Training:
        """The family's defaults with the user's values in their place."""
        names = ("rank", "steps", "learning_rate")
        given: dict[str, Any] = {name: getattr(self, name) for name in names}
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
    if request.data is None and style not in pictures.sets():
        raise NotFoundError(
            f"{style}: no embedded picture set", hint=f"one of {', '.join(pictures.sets())}"
        )
    plan = request.plan(embedded().style)

    def train(pipeline: Any, data: TrainingSet, **how: Any) -> tuple[TaskVector, Outcome]:
        return finetune(pipeline, data, plan, seed=request.seed, **how)

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

    def train(pipeline: Any, data: TrainingSet, **how: Any) -> tuple[TaskVector, Outcome]:
        return distill(pipeline, data, plan, omega=strength, seed=request.seed, **how)

    about = {"kind": "acceleration", "omega": repr(float(strength))}
    return _make(request, plan, train, pictures.base_sets(), VARIANTS, about, on_stage)


def _make(
    request: Request,
    plan: Training,
    train: Callable[..., tuple[TaskVector, Outcome]],
    sets: tuple[str, ...],
    variants: int,
    about: dict[str, Any],
    on_stage: OnStage,
) -> dict[str, Any]:
    check_output(request.out, force=request.force)
    shown = _pictures(request, sets, variants)
    pipeline = load_pipeline(embedded().base).to(request.device)
    data = encode(pipeline, shown, on_chunk=lambda done, of: on_stage("encode", done, of, ""))
    cut = len(too_long(pipeline.tokenizer, shown.captions))
    pipeline.vae = pipeline.text_encoder = None  # everything is encoded; make room for training
    about = {**about, "data": shown.origin, "seed": request.seed, "plan": asdict(plan)}
    start = None if request.start is None else load(request.start)
    if start is not None:
        about["start"] = provenance(start)
    recent: deque[float] = deque(maxlen=50)

    def on_step(step: int, loss: float) -> None:
        recent.append(loss)
        on_stage("train", step, plan.steps, f"loss {sum(recent) / len(recent):.4f}")

    checkpoint = _checkpoint(request, about)
    tau, outcome = train(pipeline, data, on_step=on_step, checkpoint=checkpoint, start=start)
    written = save(
        tau,
        request.out,
        dtype=request.dtype,
        about=about,
        force=request.force,
        prove=lambda part: prove_loads(part, embedded().base),
    )
    if request.log is not None:
        outcome.write_csv(request.log)
    tail = outcome.losses[-max(1, len(outcome.losses) // 10) :]
    return {
        "path": str(request.out),
        "sha256": written.sha256,
        "modules": len(tau),
        "pictures": len(shown.captions),
        "cut_captions": cut,
        "final_loss": sum(tail) / len(tail),
        **about,
    }


def _checkpoint(request: Request, about: dict[str, Any]) -> Checkpoint | None:
    """For this base model, these pictures and this seed alone."""
    if request.checkpoint is None:
        return None
    weights = sorted(embedded().base.glob("*/*.safetensors"))
    return Checkpoint(request.checkpoint, {**about, "base": [files.sha256(w) for w in weights]})


def _pictures(request: Request, sets: tuple[str, ...], variants: int) -> Captioned:
    if request.data is None:
        return embedded_pictures(sets, "A", variants)
    return folder_pictures(request.data, size=pictures.SIDE)
