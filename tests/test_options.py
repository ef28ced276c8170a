"""No option of ``distill`` and ``finetune`` idles: each is seen by the training, or refused."""

from __future__ import annotations

import inspect
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import made_up
from lessons import Noise, shake
from test_adapter import CPU, PLAN, SCHEDULE, lesson_of, one_base, unet_of
from typer.testing import CliRunner

from lcm_arith.cli import distill, finetune
from lcm_arith.cli.main import app
from lcm_arith.training.adapter import TRAINED
from lcm_arith.training.denoising import Denoising, denoising
from lcm_arith.training.distillation import MODES, TIMESTEPS, Distillation
from lcm_arith.training.lesson import Lesson
from lcm_arith.training.numbers import PRECISIONS
from lcm_arith.training.plan import OPTIMIZERS, RATES
from lcm_arith.training.request import CHECKPOINTING
from lcm_arith.training.roles import Roles

COMMANDS = {"distill": distill, "finetune": finetune}

# --- from the command line to the library -------------------------------------------------------

SHARED_FLIPS = {
    "base": "--base other", "config": "--config folder", "data": "--data art",
    "cache": "--cache kept", "cache_dtype": "--cache-dtype float16",
    "resolution": "--resolution 128", "bucket_step": "--bucket-step 8", "crop": "--crop random",
    "flip": "--flip", "repeats": "--repeats 3", "caption_missing": "--caption-missing skip",
    "trigger": "--trigger word", "shuffles": "--shuffles 2",
    "keep_tokens": "--shuffles 2 | --keep-tokens 1", "clip_skip": "--clip-skip 1",
    "max_tokens": "--max-tokens 150", "per_prompt": "--per-prompt 2",
    "teacher_sampler": "--teacher-sampler ddim", "teacher_steps": "--teacher-steps 9",
    "teacher_guidance": "--teacher-guidance 3", "teacher_seed": "--teacher-seed 4",
    "steps": "--steps 9", "batch": "--batch 3", "accumulation": "--accumulation 2",
    "learning_rate": "--learning-rate 1e-3", "rate": "--rate-schedule cosine",
    "warmup": "--warmup 0.2", "weight_decay": "--weight-decay 0.1",
    "optimizer": "--optimizer adamw8bit", "max_grad_norm": "--max-grad-norm 3",
    "max_nonfinite": "--max-nonfinite 2", "ema": "--ema 0.5", "rank": "--rank 3",
    "alpha": "--alpha 3", "targets": "--targets attn", "start": "--from lcm",
    "device": "--device cpu", "precision": "--precision bf16",
    "gradient_checkpointing": "--gradient-checkpointing on", "compiled": "--compile",
    "report_to": "--report-to tensorboard", "run": "--run here", "resume": "--resume never",
    "checkpoint_every": "--checkpoint-every 5", "validate_every": "--validate-every 7",
    "validate_prompts": "--validate-prompts prompts.txt", "validate_steps": "--validate-steps 3",
    "save_every": "--save-every 5", "plan": "--plan", "family": "--family sdxl",
    "cache_only": "--cache-only", "out": "-o other.safetensors", "name": "--name mine",
    "force": "--force", "dtype": "--dtype float16", "seed": "--seed 5", "as_json": "--json",
}  # fmt: skip
FLIPS = {
    "distill": {
        "mode": "--mode lcf", "omega": "--omega 3", "omega_range": "--omega-range 1,2",
        "grid_points": "--grid-points 20", "stride": "--stride 2",
        "timesteps": "--timesteps literal", "solver": "--solver dpm++2s", "loss": "--loss l2",
        "target_decay": "--target-decay 0.9", "accel": "--accel lcm",
        "freeze_accel": "--freeze-accel", "anchor": "--anchor 0.5", **SHARED_FLIPS,
    },
    "finetune": {
        "embedded_style": "--embedded-style noto", "timesteps": "--timesteps logit-normal",
        "snr_gamma": "--snr-gamma 4", "snr_floor": "--snr-floor 0.1",
        "caption_dropout": "--caption-dropout 0.5", "learn_empty": "--learn-empty",
        "text_encoder": "--text-encoder", "with_accel": "--with-accel lcm", **SHARED_FLIPS,
    },
}  # fmt: skip


def options_of(command: str) -> list[str]:
    return list(inspect.signature(COMMANDS[command].command).parameters)


@pytest.mark.parametrize(
    ("command", "name"), [(command, name) for command in COMMANDS for name in options_of(command)]
)
def test_every_option_reaches_the_training_or_is_refused(
    tmp_cwd: Path, monkeypatch: pytest.MonkeyPatch, command: str, name: str
) -> None:
    """A new option fails here until it is in the table with a value that is not its default."""
    Path("prompts.txt").write_text("fox\n")

    def trace(arguments: str) -> Any:
        seen: list[Any] = []

        def record(request: Any, *given: Any, **named: Any) -> dict[str, Any]:
            seen.extend((request, [g for g in given if isinstance(g, str)], named))
            return made_up(request)

        for place in ("make_vectors.make_acceleration", "make_vectors.make_style"):
            monkeypatch.setattr(f"lcm_arith.{place}", record)
        monkeypatch.setattr("lcm_arith.training.ground.cache_only", record)
        result = CliRunner().invoke(app, [command, *arguments.split()])
        assert result.exception is None or result.exception.__class__.__name__ == "UsageError"
        return repr(seen), result.stdout, result.exit_code

    before, _, flip = FLIPS[command][name].rpartition("|")
    assert trace(f"{before} {flip}") != trace(before)


def test_choices_are_the_librarys_tables() -> None:
    from lcm_arith.cli import choices
    from lcm_arith.data.options import CROPS, MISSING
    from lcm_arith.lcd.loss import LOSSES
    from lcm_arith.lcd.solver import SOLVERS
    from lcm_arith.planning import SOLVERS as PLANNED
    from lcm_arith.training.denoising import DRAWS

    for offered, table in (
        (distill.Mode, MODES), (distill.Timesteps, TIMESTEPS), (distill.Solver, SOLVERS),
        (distill.Loss, LOSSES), (finetune.Timesteps, DRAWS), (choices.Crop, CROPS),
        (choices.Missing, MISSING), (choices.Rate, RATES), (choices.Optimizer, OPTIMIZERS),
        (choices.Precision, PRECISIONS), (choices.Switch, CHECKPOINTING),
    ):  # fmt: skip
        assert {each.value for each in offered} == set(table)
    assert set(PLANNED) == set(SOLVERS)


# --- from the library's values to the numbers ---------------------------------------------------

LCF = {"mode": "lcf"}
VARIANTS: list[tuple[str, dict[str, Any], Any]] = [
    ("omega", {}, 3.0),
    ("omega", {}, (7.0, 8.0)),
    ("mode", {}, "lcf"),
    ("grid_points", {}, 20),
    ("stride", {}, 2),
    ("timesteps", {}, "literal"),
    ("solver", {}, "dpm++2s"),
    ("loss", {}, "l2"),
    ("target_decay", {}, 0.5),
    ("anchor", LCF, 0.5),
]


@pytest.fixture(scope="module")
def roles() -> Roles:
    """A loud LoRA as the student, a silent one as a target that is an average."""
    unet = unet_of()
    found = one_base(unet, decay=0.5)
    shake(unet, TRAINED)
    return found


def losses(lesson: Lesson) -> list[float]:
    with torch.no_grad():
        return [float(lesson.loss(number)) for number in range(3)]


def distilled(roles: Roles, how: Distillation) -> list[float]:
    own = roles if how.target_decay else replace(roles, target=roles.student, average=None)
    return losses(lesson_of(own, how))


@pytest.mark.parametrize(("name", "before", "value"), VARIANTS)
def test_every_value_of_a_distillation_changes_its_losses(
    roles: Roles, name: str, before: dict[str, Any], value: Any
) -> None:
    plain = {"omega": 7.5, **before}
    changed = Distillation(**{**plain, name: value})
    assert distilled(roles, Distillation(**plain)) != distilled(roles, changed)


LESSONS: list[tuple[str, Any]] = [
    ("timesteps", "logit-normal"),
    ("timesteps", "style-friendly"),
    ("caption_dropout", 0.0),
    ("keep_empty", False),
    ("gamma", 1.0),
    ("floor", 0.5),
]


def styled(roles: Roles, how: Denoising) -> list[float]:
    lesson = denoising(
        roles.trained, roles.student, roles.teacher, Noise(), PLAN, how, schedule=SCHEDULE,
        prediction="epsilon", seed=0, device=CPU,
    )  # fmt: skip
    return losses(lesson)


@pytest.mark.parametrize(("name", "value"), LESSONS)
def test_every_value_of_a_style_changes_its_losses(roles: Roles, name: str, value: Any) -> None:
    plain: dict[str, Any] = {"caption_dropout": 0.5}
    changed = Denoising(**{**plain, name: value})
    assert styled(roles, Denoising(**plain)) != styled(roles, changed)


def test_no_value_is_left_out_above() -> None:
    assert {name for name, *_ in VARIANTS} == {each.name for each in fields(Distillation)}
    assert {name for name, _ in LESSONS} == {each.name for each in fields(Denoising)}
