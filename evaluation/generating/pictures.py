"""Pictures of prompts as files, with a sheet: what ``generate`` does."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from lcm_arith.adapters import load, open_adapter
from lcm_arith.combination import NONE
from lcm_arith.condition import Condition
from lcm_arith.embedded import files, pictures
from lcm_arith.errors import NotFoundError, UsageError
from lcm_arith.evaluation.drawing import trajectories
from lcm_arith.evaluation.drawing.pngs import Lora, Told, lora_hash, picture_bytes, told_of_loras
from lcm_arith.evaluation.drawing.trajectories import Column
from lcm_arith.evaluation.generating.wishes import Wish
from lcm_arith.evaluation.plans.lists import parse_schedule
from lcm_arith.evaluation.plans.rows import mean
from lcm_arith.evaluation.showing.sheets import gallery
from lcm_arith.families import check_same_family, embedded
from lcm_arith.formats.container import write_bytes
from lcm_arith.fuse import LiveWeights, check_compatible
from lcm_arith.sampling import (
    decode,
    encode_prompts,
    load_pipeline,
    make_scheduler,
    too_long,
)
from lcm_arith.vector import TaskVector

_CHUNK: Final = 32
_WEIGHTS: Final = "unet/diffusion_pytorch_model.safetensors"

OnStage = Callable[[str, int, int, str], None]
"""Told about progress: (stage, done, total, note)."""


def nearest_captions(prompts: Sequence[str], count: int = 3) -> dict[str, list[str]]:
    """Of each prompt that the embedded model never learnt, the captions nearest in meaning."""
    known = list(pictures.by_caption())
    unknown = [prompt for prompt in prompts if prompt not in pictures.by_caption()]
    if not unknown:
        return {}
    from lcm_arith.embedded.probe import load_judge

    judge = load_judge()
    cosines = judge.embed_captions(unknown) @ judge.embed_captions(known).T
    near = {}
    for prompt, row in zip(unknown, cosines, strict=True):
        spelled = difflib.get_close_matches(prompt, known, n=count, cutoff=0.75)
        meant = [known[index] for index in np.argsort(-row)[:count]]
        near[prompt] = list(dict.fromkeys([*spelled, *meant]))[:count]
    return near


@dataclass(frozen=True)
class Drawn:
    """What was written, and the prompts of which only the beginning was read."""

    pictures: list[Path]
    sheet: Path
    cut_prompts: list[str]


def draw(wish: Wish, folder: Path, on_stage: OnStage) -> Drawn:
    """Makes the pictures of a wish as numbered PNGs and a sheet; earlier ones stay.

    Raises:
        NotFoundError: If ``folder`` is a file.
        IncompatibleError: If a vector does not fit the base model; nothing is written then.
        UsageError: If sampler, steps or guidance are impossible.
    """
    if folder.exists() and not folder.is_dir():
        raise NotFoundError(f"{folder}: is a file, not a folder", hint="--out takes a folder")
    if not 0 <= wish.guidance < float("inf"):
        raise UsageError(f"guidance {wish.guidance}: a number of 0 or more")
    taus = {name: load(name) for name, _ in wish.vectors if name != NONE}
    check_same_family(taus)
    pipeline = load_pipeline(embedded().base)
    make_scheduler(pipeline.scheduler.config, wish.sampler, wish.steps, wish.grid_points)
    for tau in taus.values():
        check_compatible(pipeline, tau)
    pixels = make_pixels(
        pipeline, wish, taus, lambda done, total: on_stage("draw", done, total, "")
    )
    folder.mkdir(parents=True, exist_ok=True)
    paths, sheet = _write(wish, pixels, folder)
    read = (*wish.prompts, wish.negative)
    return Drawn(paths, sheet, too_long(pipeline.tokenizer, read))


@torch.no_grad()
def make_pixels(
    pipeline: Any,
    wish: Wish,
    taus: Mapping[str, TaskVector],
    on_step: Callable[[int, int], None],
) -> np.ndarray:
    """The pictures of a wish, uint8 ``[prompts, H, W, 3]``; the weights stay as the last step's.

    Args:
        pipeline: Of the base model.
        wish: What to draw.
        taus: Its vectors by name.
        on_step: Told about progress, (done, total).
    """
    prompts = len(wish.prompts)
    column = Column(
        wish.sampler, wish.steps, wish.guidance, seeds=(wish.seed,) * prompts,
        cond=tuple(range(prompts)), uncond=(prompts,) * prompts, grid_points=wish.grid_points,
    )  # fmt: skip
    stepwise = Stepwise(pipeline, wish, taus)

    def told(step: int) -> Condition:
        on_step(step, wish.steps)
        return stepwise.at(step)

    (z,) = trajectories.draw(pipeline, [column], told, batch=_CHUNK).latents
    on_step(wish.steps, wish.steps)
    return np.concatenate([decode(pipeline, part) for part in z.split(_CHUNK)])


@dataclass(eq=False)
class Stepwise:
    """A model whose weights, text encoders included, are those of each step's λ.

    They are rebuilt from pristine ones, and only where λ differs from the step before.

    Args:
        pipeline: Of the base model; its weights change.
        wish: Prompts and λ.
        taus: Vectors by name.
    """

    pipeline: Any
    wish: Wish
    taus: Mapping[str, TaskVector]
    _applied: tuple[Decimal, ...] | None = None
    _told: dict[tuple[Decimal, ...], Condition] = field(default_factory=dict)

    def at(self, step: int) -> Condition:
        """Rebuilds the weights for a step; the prompts' rows, and below them the negative one."""
        mix = self.wish.mixes[step % len(self.wish.mixes)]
        if mix != self._applied:
            named = zip(mix, (name for name, _ in self.wish.vectors), strict=True)
            terms = (float(weight) * self.taus[name] for weight, name in named if name != NONE)
            LiveWeights(self.pipeline).apply(sum(terms, TaskVector()))
            self._applied = mix
        if mix not in self._told:
            texts = (*self.wish.prompts, self.wish.negative)
            self._told[mix] = {"embeds": encode_prompts(self.pipeline, texts)}
        return self._told[mix]


def _write(wish: Wish, pixels: np.ndarray, folder: Path) -> tuple[list[Path], Path]:
    taken = [int(m[1]) for p in folder.iterdir() if (m := re.match(r"(\d{4,})[-_]", p.name))]
    first = max(taken, default=-1) + 1
    paths, told = [], _told(wish)
    for index, (prompt, picture) in enumerate(zip(wish.prompts, pixels, strict=True), first):
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "picture"
        path = folder / f"{index:04d}-{slug}-seed{wish.seed}.png"
        write_bytes(path, picture_bytes(picture, {**told, "prompt": prompt}), force=True)
        paths.append(path)
    mix = " + ".join(f"{weight} · {name}" for name, weight in wish.vectors) or "base model"
    title = f"{mix}, {wish.sampler} {wish.steps}, guidance {wish.guidance:g}"
    sheet = folder / f"{first:04d}_sheet.png"
    shown = gallery(list(zip(wish.prompts, pixels, strict=True)), title)
    write_bytes(sheet, picture_bytes(np.asarray(shown), {"sheet": title}), force=True)
    return paths, sheet


def _told(wish: Wish) -> Told:
    """What every picture of a wish says of itself."""
    family = embedded()
    loras = []
    for name, weight in wish.vectors:
        if name != NONE:
            lambdas = parse_schedule(weight, name)
            schedule = weight if len(lambdas) > 1 else ""
            digest = lora_hash(open_adapter(name)[0].path)
            loras.append(Lora(name, str(mean(lambdas)), digest, schedule))
    return {
        "sampler": wish.sampler,
        "steps": wish.steps,
        "guidance": wish.guidance,
        "seed": wish.seed,
        "model": family.name,
        "model_hash": files.sha256(family.base / _WEIGHTS)[:10],
        **({"negative": wish.negative} if wish.negative else {}),
        **({"grid_points": wish.grid_points} if wish.grid_points else {}),
        **{f"vector_{i}": ":".join(each) for i, each in enumerate(wish.vectors, 1)},
        **told_of_loras(loras),
    }
