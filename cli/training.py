"""What ``distill`` and ``finetune`` have in common: their options, and what is made of them."""

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
from lcm_arith.cli.output import Stages, print_made, progress

if TYPE_CHECKING:
    from lcm_arith.training.request import Request

DATA: Final = "Data"
SPEED: Final = "Optimisation"
MACHINE: Final = "Machine"
RUN: Final = "Run"


class Crop(StrEnum):
    """Where a picture is cut; lcm_arith.data.options.CROPS."""

    middle = "center"
    random = "random"


class Missing(StrEnum):
    """What is done about missing captions; lcm_arith.data.options.MISSING."""

    error = "error"
    empty = "empty"
    skip = "skip"


class Rate(StrEnum):
    """Courses of the learning rate; lcm_arith.training.plan.RATES."""

    hold = "hold"
    constant = "constant"
    linear = "linear"
    cosine = "cosine"


class Optimizer(StrEnum):
    """Optimizers; lcm_arith.training.plan.OPTIMIZERS."""

    adamw = "adamw"
    adamw8bit = "adamw8bit"


class Precision(StrEnum):
    """Number formats; lcm_arith.training.numbers.PRECISIONS."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"
    fp16 = "fp16"


class Switch(StrEnum):
    """lcm_arith.training.request.CHECKPOINTING."""

    auto = "auto"
    on = "on"
    off = "off"


class Resume(StrEnum):
    """Whether a run goes on."""

    auto = "auto"
    never = "never"


def _option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def _number(panel: str, help: str, metavar: str, *names: str) -> Any:
    """A number that the family has a value for."""
    return _option(panel, help, *names, metavar=metavar, show_default="the family's")


@dataclass(frozen=True, kw_only=True)
class Shared:
    """The options of both commands, as the user gave them."""

    base: Annotated[
        str | None,
        _option(
            DATA,
            "Base model: diffusers folder, .safetensors checkpoint, or owner/name of a hub.",
            metavar="MODEL",
            show_default="the embedded one",
        ),
    ] = None
    config: Annotated[
        Path | None,
        _option(
            DATA,
            "Diffusers folder of the same family, for a base that is a single file.",
            metavar="DIR",
        ),
    ] = None
    data: Annotated[
        str | None,
        _option(
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
        _option(
            DATA,
            "Where latents and prompt embeddings are kept for other runs.",
            metavar="DIR",
            show_default="RUN/cache",
        ),
    ] = None
    cache_dtype: Annotated[options.DtypeName, _option(DATA, "Number format they are kept in.")] = (
        options.DtypeName.float32
    )
    cache_only: Annotated[bool, _option(DATA, "Encode the data and stop.", "--cache-only")] = False
    resolution: Annotated[
        int | None,
        _option(
            DATA,
            "Side of a square training picture; others have about its area.",
            metavar="PX",
            show_default="the base's",
        ),
    ] = None
    bucket_step: Annotated[
        int | None,
        _option(
            DATA,
            "Sides are multiples of it; the resolution itself means squares only.",
            metavar="PX",
            show_default="64 from 512 px on, else squares",
        ),
    ] = None
    crop: Annotated[Crop, _option(DATA, "Which part of a picture stays.")] = Crop.middle
    flip: Annotated[bool, _option(DATA, "Show pictures mirrored, too.", "--flip")] = False
    repeats: Annotated[
        int, _option(DATA, "Times that each picture comes in an epoch.", metavar="N", min=1)
    ] = 1
    caption_missing: Annotated[Missing, _option(DATA, "About pictures without a caption.")] = (
        Missing.error
    )
    trigger: Annotated[
        str, _option(DATA, "Put in front of every caption.", metavar="WORD", show_default=False)
    ] = ""
    shuffles: Annotated[
        int,
        _option(DATA, "Orders of each caption's comma-separated tags to draw from.", metavar="N"),
    ] = 0
    keep_tokens: Annotated[
        int, _option(DATA, "Tags at the front that are not shuffled.", metavar="N")
    ] = 0
    clip_skip: Annotated[
        int, _option(DATA, "Layers of the text encoder left out at its end.", metavar="N")
    ] = 0
    max_tokens: Annotated[
        int | None,
        _option(
            DATA,
            "Tokens of a caption that are read: 75, 150 or 225.",
            metavar="N",
            show_default="once what the encoder reads",
        ),
    ] = None
    per_prompt: Annotated[
        int, _option(DATA, "Latents made for each prompt of a list.", metavar="N", min=1)
    ] = 1
    teacher_sampler: Annotated[options.SamplerName, _option(DATA, "Sampler that makes them.")] = (
        options.SamplerName.dpmpp
    )
    teacher_steps: Annotated[int, _option(DATA, "Its steps.", metavar="STEPS", min=1)] = 20
    teacher_guidance: Annotated[
        float | None, _number(DATA, "Its guidance scale, 1 + ω.", "SCALE")
    ] = None
    teacher_seed: Annotated[int, _option(DATA, "Seed of the first.", metavar="N", min=0)] = 0

    steps: Annotated[int | None, _number(SPEED, "Training steps.", "STEPS")] = None
    batch: Annotated[int | None, _number(SPEED, "Pictures at once.", "N")] = None
    accumulation: Annotated[
        int | None, _number(SPEED, "Batches a step; gradients are averaged.", "N")
    ] = None
    learning_rate: Annotated[float | None, _number(SPEED, "Peak learning rate.", "RATE")] = None
    rate: Annotated[
        Rate | None,
        _number(SPEED, "Its course; hold falls over the last half.", "COURSE", "--rate-schedule"),
    ] = None
    warmup: Annotated[
        float | None, _number(SPEED, "Share of the steps over which it rises.", "SHARE")
    ] = None
    weight_decay: Annotated[float | None, _number(SPEED, "AdamW's.", "RATE")] = None
    optimizer: Annotated[
        Optimizer | None,
        _number(SPEED, "adamw8bit needs the extra 8bit.", "NAME"),
    ] = None
    max_grad_norm: Annotated[
        float | None, _number(SPEED, "Gradients are clipped to it.", "NORM")
    ] = None
    max_nonfinite: Annotated[
        int | None, _number(SPEED, "Non-finite steps in a row that end the training.", "STEPS")
    ] = None
    ema: Annotated[
        float | None,
        _number(SPEED, "Decay of the average that is kept in the end; 0 keeps the last.", "DECAY"),
    ] = None
    rank: Annotated[int | None, _number(SPEED, "Rank of the adapter.", "R")] = None
    alpha: Annotated[
        float | None,
        _option(SPEED, "ΔW = alpha / rank · BA.", metavar="A", show_default="the rank"),
    ] = None
    targets: Annotated[
        str | None,
        _option(
            SPEED,
            "Layers of the UNet: lcm, attn or linear, endings of names, or re:EXPRESSION.",
            metavar="LAYERS",
            show_default="lcm",
        ),
    ] = None
    start: Annotated[
        str | None,
        _option(
            SPEED,
            "Go on from this vector: name or file.",
            "--from",
            "--init-from",
            metavar="VECTOR",
            autocompletion=options.completion.vectors,
        ),
    ] = None
    seed: options.Seed = 0

    device: Annotated[str, _option(MACHINE, "auto, cpu, cuda or cuda:N.", metavar="DEVICE")] = (
        "auto"
    )
    precision: Annotated[
        Precision, _option(MACHINE, "Of the frozen weights; what is trained is float32.")
    ] = Precision.auto
    gradient_checkpointing: Annotated[
        Switch, _option(MACHINE, "Compute activations twice instead of keeping them.")
    ] = Switch.auto
    compiled: Annotated[bool, _option(MACHINE, "torch.compile, on a GPU.", "--compile")] = False
    report_to: Annotated[
        list[str] | None,
        _option(
            MACHINE, "A tracker of accelerate, such as tensorboard or wandb.", metavar="TRACKER"
        ),
    ] = None

    run: Annotated[
        Path | None,
        _option(
            RUN,
            "Folder for metrics, sheets, checkpoint and cache.",
            metavar="DIR",
            show_default="beside the output",
        ),
    ] = None
    resume: Annotated[
        Resume, _option(RUN, "Whether an interrupted run in that folder goes on.")
    ] = Resume.auto
    checkpoint_every: Annotated[
        int | None,
        _option(
            RUN,
            "Steps between two checkpoints, beside one every four minutes.",
            metavar="STEPS",
            min=1,
        ),
    ] = None
    validate_every: Annotated[
        int | None,
        _option(
            RUN,
            "Steps between two sheets of pictures and errors by timestep; 0 is never.",
            metavar="STEPS",
            min=0,
            show_default="a quarter of all",
        ),
    ] = None
    validate_prompts: Annotated[
        Path | None,
        _option(
            RUN,
            "Prompts of the sheets, one a line.",
            metavar="FILE",
            show_default="the first captions",
        ),
    ] = None
    validate_steps: Annotated[
        str, _option(RUN, "Sampling steps of the sheets.", metavar="LIST")
    ] = "1,2,4,8"
    save_every: Annotated[
        int, _option(RUN, "Steps between two vectors kept in the run's folder.", metavar="STEPS")
    ] = 0
    dtype: options.Dtype = options.DtypeName.float32
    out: Annotated[
        Path | None,
        _option(RUN, "What to write.", "-o", "--out", show_default="named after what it is"),
    ] = None
    name: naming.Name = None
    force: options.Force = False
    as_json: options.Json = False

    def plan(self) -> dict[str, Any]:
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
            plan=self.plan(),
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


def _steps(listed: str) -> tuple[int, ...]:
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


def make(
    shared: Shared,
    command: str,
    default: str,
    train: Callable[[Request, Stages], dict[str, Any]],
) -> None:
    """Trains, registers and prints.

    Args:
        shared: The options.
        command: Its name, for the record in the registry.
        default: File or folder where neither ``-o`` nor ``--name`` is given.
        train: What the library does.
    """
    from lcm_arith.training.ground import cache_only

    plain = shared.out or Path(shared.name or default)
    folder = shared.run or plain.with_name(f"{plain.stem}-run")
    if shared.cache_only:
        with progress() as bar:
            told = cache_only(shared.request(plain, folder), Stages(bar))
        print_cached(told, as_json=shared.as_json)
        return
    with naming.output(shared.out, shared.name, default) as to:
        request = shared.request(to.path, folder)
        with progress() as bar:
            made = train(request, Stages(bar))
        made = to.put(made, command)
    print_made(made, as_json=shared.as_json)


def print_cached(told: dict[str, Any], *, as_json: bool) -> None:
    """What ``--cache-only`` did."""
    from lcm_arith.cli.output import print_json, stdout

    if as_json:
        print_json(told)
        return
    stdout.print(f"{told['pictures']} pictures and {told['captions']} captions are in the cache")
    stdout.print(f"wrote {told['path']}", soft_wrap=True)


def planned(shared: Shared, family: str | None, mode: str, **config: Any) -> None:
    """Prints what a training will take; nothing is loaded.

    Args:
        shared: The options.
        family: Of ``lcm_arith.families.family``; None is that of ``--base``, or the embedded one.
        mode: A name of ``lcm_arith.planning.MODES``.
        **config: More values to show.

    Raises:
        UsageError: If both a family and a base were given.
    """
    from lcm_arith.architectures import of_folder
    from lcm_arith.cli.plan_table import print_plan
    from lcm_arith.errors import NotFoundError, UsageError
    from lcm_arith.modules import EMBEDDED
    from lcm_arith.planning import plan

    model = None
    if shared.base is not None:
        if family is not None:
            raise UsageError("--family and --base: a base tells its family itself")
        folder = Path(shared.base)
        if not folder.is_dir():
            raise NotFoundError(
                f"{folder}: no folder of a base model", hint="--plan takes that or --family"
            )
        model = of_folder(folder)
        family = "sdxl" if (folder / "text_encoder_2").is_dir() else "sd"
    values = shared.plan()
    alpha, targets = values.pop("alpha", None), values.pop("targets", None)
    shown = {"alpha": alpha, **config}
    print_plan(
        plan(
            family or EMBEDDED,
            mode=mode,
            targets=targets,
            resolution=shared.resolution,
            precision="bf16" if shared.precision is Precision.auto else shared.precision.value,
            optimizer=values.pop("optimizer", "adamw"),
            gradient_checkpointing=shared.gradient_checkpointing is Switch.on,
            model=model,
            config={name: value for name, value in shown.items() if value is not None},
            **values,
        ),
        as_json=shared.as_json,
    )
