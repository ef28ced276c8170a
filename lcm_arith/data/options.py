"""What a user can say about training data. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any, Final

from lcm_arith.errors import UsageError

CROPS: Final = ("center", "random")
MISSING: Final = ("error", "empty", "skip")
CACHE_DTYPES: Final = ("float32", "bfloat16", "float16")
BUCKETS_FROM: Final = 512  # px; below, pictures are square unless asked otherwise
BUCKET_STEP: Final = 64  # px
MOST_REPEATS: Final = 1000

OF_PICTURES: Final = ("resolution", "bucket_step", "crop", "flip", "caption_missing")
OF_PROMPTS: Final = (
    "per_prompt",
    "teacher_sampler",
    "teacher_steps",
    "teacher_guidance",
    "teacher_seed",
)


@dataclass(frozen=True)
class DataOptions:
    """How training data is read and drawn.

    Args:
        resolution: Side of a square training picture, px; others have about its area. None is the
            base model's own.
        bucket_step: Sides of training pictures are multiples of it, px: with several shapes to
            choose from (aspect buckets), less of a picture is cropped. The resolution itself
            means squares only. None is 64 from 512 px on, squares below.
        crop: Which part of a picture stays where its shape differs: ``center``, or ``random``, one
            place a picture that depends on its content alone.
        flip: Draw each picture as it is and mirrored, equally often.
        caption_missing: What is done about pictures without a caption: ``error`` lists them,
            ``empty`` shows them without one, ``skip`` leaves them out.
        trigger: A word that is put in front of every caption, with a comma.
        shuffles: So many random orders of the comma-separated tags of each caption are encoded,
            and one is drawn each time; 0 leaves captions as they are.
        keep_tokens: So many tags at the front stay there while the others are shuffled; the
            trigger counts as one.
        clip_skip: Layers of the text encoder left out at its end; 0 is the model's own choice.
            kohya's number is one higher for SD.
        max_tokens: Tokens of a caption that are read, a multiple of what the text encoder reads at
            once, 75 of CLIP: 75, 150, 225. None is once.
        repeats: Times that each picture comes in an epoch; ``repeats`` in its metadata multiplies.
        cache_dtype: Number format in which latents and embeddings are kept: ``float32``,
            ``bfloat16`` or ``float16``.
        per_prompt: Latents that the base model makes for each prompt of a list without pictures.
        teacher_sampler: Sampler that makes them.
        teacher_steps: Its steps.
        teacher_guidance: diffusers' guidance scale of it, 1 + ω. None is the base model's own.
        teacher_seed: Seed of the first; each has its own.

    Raises:
        UsageError: If a value cannot work.
    """

    resolution: int | None = None
    bucket_step: int | None = None
    crop: str = "center"
    flip: bool = False
    caption_missing: str = "error"
    trigger: str = ""
    shuffles: int = 0
    keep_tokens: int = 0
    clip_skip: int = 0
    max_tokens: int | None = None
    repeats: int = 1
    cache_dtype: str = "float32"
    per_prompt: int = 1
    teacher_sampler: str = "dpm++"
    teacher_steps: int = 20
    teacher_guidance: float | None = None
    teacher_seed: int = 0

    def __post_init__(self) -> None:
        choices = {"crop": CROPS, "caption_missing": MISSING, "cache_dtype": CACHE_DTYPES}
        least = {
            "resolution": 8,
            "bucket_step": 8,
            "shuffles": 0,
            "keep_tokens": 0,
            "clip_skip": 0,
            "max_tokens": 1,
            "repeats": 1,
            "per_prompt": 1,
            "teacher_steps": 1,
            "teacher_seed": 0,
        }
        if self.repeats > MOST_REPEATS:
            raise UsageError(f"repeats {self.repeats}: at most {MOST_REPEATS}")
        for name, among in choices.items():
            if getattr(self, name) not in among:
                raise UsageError(f"{name} {getattr(self, name)!r}: one of {', '.join(among)}")
        for name, bound in least.items():
            value = getattr(self, name)
            if value is not None and value < bound:
                raise UsageError(f"{name} {value}: at least {bound}")
        if self.keep_tokens and not self.shuffles:
            raise UsageError(
                "keep_tokens says which tags stay while others are shuffled, and shuffles is 0",
                hint="set shuffles, too",
            )

    def given(self) -> dict[str, Any]:
        """The fields that differ from their defaults, JSON-ready."""
        return {f.name: v for f in fields(self) if (v := getattr(self, f.name)) != f.default}

    def refuse(self, names: Iterable[str], why: str) -> None:
        """Raises where one of the fields was set, which cannot do anything here.

        Raises:
            UsageError: Names them.
        """
        if wrong := sorted(self.given().keys() & set(names)):
            raise UsageError(f"{', '.join(wrong)}: without effect, for {why}")

    def shape(self, size: int) -> tuple[int, int]:
        """Resolution and bucket step, px, for a base model of ``size`` px.

        Raises:
            UsageError: If the resolution is no multiple of the step.
        """
        resolution = self.resolution or size
        squares = resolution < BUCKETS_FROM
        step = self.bucket_step or (resolution if squares else BUCKET_STEP)
        if resolution % step:
            raise UsageError(
                f"resolution {resolution} px is no multiple of bucket_step {step} px",
                hint=f"resolution {max(1, resolution // step) * step}, or another bucket_step",
            )
        return resolution, step
