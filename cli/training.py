"""The options that ``distill`` and ``finetune`` have in common."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lcm_arith.cli import naming, options
from lcm_arith.cli.choices import (
    Crop,
    Missing,
    Optimizer,
    Precision,
    Rate,
    Resume,
    Switch,
    number,
    option,
)

if TYPE_CHECKING:
    from lcm_arith.training.request import Request

INSTEAD: Final = "Instead of training"
DATA: Final = "Data"
SPEED: Final = "Optimisation"
MACHINE: Final = "Machine"
RUN: Final = "Run"


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options of both commands, as the user gave them."""

    base: Annotated[
        str | None,
        option(
            DATA,
            "Base model: diffusers folder, .safetensors checkpoint, or owner/name of a hub.",
            metavar="MODEL",
            show_default="the embedded one",
        ),
    ] = None
    config: Annotated[
        Path | None,
        option(
            DATA,
            "Diffusers folder of the same family, for a base that is a single file.",
            metavar="DIR",
        ),
    ] = None
    data: Annotated[
        str | None,
        option(
            DATA,
            "Folder of pictures with captions (.txt beside, metadata.jsonl or .csv), tar shards "
            "('{000..009}.tar'), a cache folder, or a .txt of prompts, whose pictures the base "
            "model makes.",
            metavar="SOURCE",
            show_default="embedded pictures",
        ),
    ] = None
    cache: Annotated[
        Path | None,
        option(
            DATA,
            "Where latents and prompt embeddings are kept for other runs.",
            metavar="DIR",
            show_default="RUN/cache",
        ),
    ] = None
    cache_dtype: Annotated[options.DtypeName, option(DATA, "Number format they are kept in.")] = (
        options.DtypeName.float32
    )
    resolution: Annotated[
        int | None,
        option(
            DATA,
            "Side of a square training picture; others have about its area.",
            metavar="PX",
            show_default="the base's",
        ),
    ] = None
    bucket_step: Annotated[
        int | None,
        option(
            DATA,
            "Sides are multiples of it; the resolution itself means squares only.",
            metavar="PX",
            show_default="64 from 512 px on, else squares",
        ),
    ] = None
    crop: Annotated[Crop, option(DATA, "Which part of a picture stays.")] = Crop.middle
    flip: Annotated[bool, option(DATA, "Show pictures mirrored, too.", "--flip")] = False
    repeats: Annotated[
        int, option(DATA, "Times that each picture comes in an epoch.", metavar="N", min=1)
    ] = 1
    caption_missing: Annotated[Missing, option(DATA, "About pictures without a caption.")] = (
        Missing.error
    )
    trigger: Annotated[
        str, option(DATA, "Put in front of every caption.", metavar="WORD", show_default=False)
    ] = ""
    shuffles: Annotated[
        int,
        option(DATA, "Orders of each caption's comma-separated tags to draw from.", metavar="N"),
    ] = 0
    keep_tokens: Annotated[
        int, option(DATA, "Tags at the front that are not shuffled.", metavar="N")
    ] = 0
    clip_skip: Annotated[
        int, option(DATA, "Layers of the text encoder left out at its end.", metavar="N")
    ] = 0
    max_tokens: Annotated[
        int | None,
        option(
            DATA,
            "Tokens of a caption that are read: 75, 150 or 225.",
            metavar="N",
            show_default="once what the encoder reads",
        ),
    ] = None
    per_prompt: Annotated[
        int, option(DATA, "Latents made for each prompt of a list.", metavar="N", min=1)
    ] = 1
    teacher_sampler: Annotated[options.SamplerName, option(DATA, "Sampler that makes them.")] = (
        options.SamplerName.dpmpp
    )
    teacher_steps: Annotated[int, option(DATA, "Its steps.", metavar="STEPS", min=1)] = 20
    teacher_guidance: Annotated[
        float | None, number(DATA, "Its guidance scale, 1 + ω.", "SCALE")
    ] = None
    teacher_seed: Annotated[int, option(DATA, "Seed of the first.", metavar="N", min=0)] = 0

    steps: Annotated[int | None, number(SPEED, "Training steps.", "STEPS")] = None
    batch: Annotated[int | None, number(SPEED, "Pictures at once.", "N")] = None
    accumulation: Annotated[
        int | None, number(SPEED, "Batches a step; gradients are averaged.", "N")
    ] = None
    learning_rate: Annotated[float | None, number(SPEED, "Peak learning rate.", "RATE")] = None
    rate: Annotated[
        Rate | None,
        number(SPEED, "Its course; hold falls over the last half.", "COURSE", "--rate-schedule"),
    ] = None
    warmup: Annotated[
        float | None, number(SPEED, "Share of the steps over which it rises.", "SHARE")
    ] = None
    weight_decay: Annotated[float | None, number(SPEED, "AdamW's.", "RATE")] = None
    optimizer: Annotated[
        Optimizer | None,
        number(SPEED, "adamw8bit needs the extra 8bit.", "NAME"),
    ] = None
    max_grad_norm: Annotated[
        float | None, number(SPEED, "Gradients are clipped to it.", "NORM")
    ] = None
    max_nonfinite: Annotated[
        int | None, number(SPEED, "Non-finite steps in a row that end the training.", "STEPS")
    ] = None
    ema: Annotated[
        float | None,
        number(SPEED, "Decay of the average that is kept in the end; 0 keeps the last.", "DECAY"),
    ] = None
    rank: Annotated[int | None, number(SPEED, "Rank of the adapter.", "R")] = None
    alpha: Annotated[
        float | None,
        option(SPEED, "ΔW = alpha / rank · BA.", metavar="A", show_default="the rank"),
    ] = None
    targets: Annotated[
        str | None,
        option(
            SPEED,
            "Layers of the UNet: lcm, attn or linear, endings of names, or re:EXPRESSION.",
            metavar="LAYERS",
            show_default="lcm",
        ),
    ] = None
    start: Annotated[
        str | None,
        option(
            SPEED,
            "Go on from this vector: name or file.",
            "--from",
            "--init-from",
            metavar="VECTOR",
            autocompletion=options.completion.vectors,
        ),
    ] = None

    device: Annotated[str, option(MACHINE, "auto, cpu, cuda or cuda:N.", metavar="DEVICE")] = "auto"
    precision: Annotated[
        Precision, option(MACHINE, "Of the frozen weights; what is trained is float32.")
    ] = Precision.auto
    gradient_checkpointing: Annotated[
        Switch, option(MACHINE, "Compute activations twice instead of keeping them.")
    ] = Switch.auto
    compiled: Annotated[bool, option(MACHINE, "torch.compile, on a GPU.", "--compile")] = False
    report_to: Annotated[
        list[str] | None,
        option(
            MACHINE, "A tracker of accelerate, such as tensorboard or wandb.", metavar="TRACKER"
        ),
    ] = None

    run: Annotated[
        Path | None,
        option(
            RUN,
            "Folder for metrics, sheets, checkpoint and cache.",
            metavar="DIR",
            show_default="beside the output",
        ),
    ] = None
    resume: Annotated[Resume, option(RUN, "Whether an interrupted run in that folder goes on.")] = (
        Resume.auto
    )
    checkpoint_every: Annotated[
        int | None,
        option(
            RUN,
            "Steps between two checkpoints, beside one every four minutes.",
            metavar="STEPS",
            min=1,
        ),
    ] = None
    validate_every: Annotated[
        int | None,
        option(
            RUN,
            "Steps between two sheets of pictures and errors by timestep; 0 is never.",
            metavar="STEPS",
            min=0,
            show_default="a quarter of all",
        ),
    ] = None
    validate_prompts: Annotated[
        Path | None,
        option(
            RUN,
            "Prompts of the sheets, one a line.",
            metavar="FILE",
            show_default="the first captions",
        ),
    ] = None
    validate_steps: Annotated[
        str | None,
        option(
            RUN,
            "Sampling steps of the sheets, with commas between them.",
            metavar="LIST",
            show_default="1,2,4,8; without acceleration the teacher's",
        ),
    ] = None
    save_every: Annotated[
        int,
        option(
            RUN,
            "Steps between two vectors kept in the run's folder; 0 keeps none.",
            metavar="STEPS",
        ),
    ] = 0

    plan: Annotated[
        bool,
        option(INSTEAD, "Tell parameters, memory, FLOPs and values; nothing is loaded.", "--plan"),
    ] = False
    family: Annotated[
        str | None,
        option(
            INSTEAD,
            "With --plan, in place of --base: sd15, sd2, ssd1b, sdxl or emoji.",
            metavar="NAME",
            show_default="the base's",
        ),
    ] = None
    cache_only: Annotated[
        bool, option(INSTEAD, "Encode the data into the cache and stop.", "--cache-only")
    ] = False

    out: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--out",
            metavar="PATH",
            help="What to write.",
            show_default="named after what it is",
        ),
    ] = None
    name: naming.Name = None
    force: options.Force = False
    dtype: options.Dtype = options.DtypeName.float32
    seed: options.Seed = 0
    as_json: options.Json = False

    def planned(self) -> dict[str, Any]:
        """What replaces the family's defaults."""
        names = (
            "steps", "batch", "accumulation", "learning_rate", "rate", "warmup", "weight_decay",
            "optimizer", "max_grad_norm", "max_nonfinite", "ema", "rank", "alpha", "targets",
        )  # fmt: skip
        return {name: _plain(v) for name in names if (v := getattr(self, name)) is not None}

    def request(self, out: Path, run: Path) -> Request:
        """All of it, for the library.

        Raises:
            UsageError: If a value cannot work.
            NotFoundError, InvalidContentError: If the file of prompts cannot be used.
        """
        from lcm_arith.data.options import DataOptions
        from lcm_arith.training.request import Machine, Request, Watching

        own = {field.name: _plain(getattr(self, field.name)) for field in fields(DataOptions)}
        return Request(
            out=out,
            run=run,
            base=self.base,
            config=self.config,
            data=self.data,
            options=DataOptions(**own),
            cache=self.cache,
            plan=self.planned(),
            seed=self.seed,
            dtype=self.dtype.value,
            force=self.force,
            start=self.start,
            resume=self.resume is Resume.auto,
            checkpoint_every=self.checkpoint_every,
            machine=Machine(
                self.device,
                self.precision.value,
                self.gradient_checkpointing.value,
                self.compiled,
                tuple(self.report_to or ()),
            ),
            watching=Watching(
                self.validate_every,
                _prompts(self.validate_prompts),
                _steps(self.validate_steps),
                self.save_every,
            ),
        )


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, StrEnum) else value


def _prompts(path: Path | None) -> tuple[str, ...]:
    if path is None:
        return ()
    from lcm_arith.errors import InvalidContentError, NotFoundError

    if not path.is_file():
        raise NotFoundError(f"{path}: no such file", hint="prompts stand in it, one a line")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidContentError(f"{path}: is no UTF-8 text ({error})") from error
    found = tuple(line.strip() for line in lines if line.strip())
    if not found:
        raise InvalidContentError(f"{path}: holds no prompt", hint="write one a line")
    return found


def _steps(listed: str | None) -> tuple[int, ...] | None:
    if listed is None:
        return None
    from lcm_arith.errors import UsageError

    try:
        return tuple(int(part) for part in listed.split(","))
    except ValueError as error:
        raise UsageError(f"--validate-steps {listed}: numbers with commas between them") from error


def with_shared(command: Callable[..., None]) -> Callable[..., None]:
    """A command whose parameter ``shared`` is every option of :class:`Shared`."""
    own = inspect.signature(command, eval_str=True)
    theirs = inspect.signature(Shared, eval_str=True).parameters
    mine = {name: p for name, p in own.parameters.items() if name != "shared"}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        shared = Shared(**{name: given[name] for name in theirs})
        command(**{name: given[name] for name in mine}, shared=shared)

    merged = [*mine.values(), *theirs.values()]
    run.__signature__ = own.replace(parameters=merged)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in merged}
    return run
