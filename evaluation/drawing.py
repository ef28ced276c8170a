"""Pictures of prompts as files, with a sheet: what ``generate`` does."""

from __future__ import annotations

import difflib
import io
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lcm_arith.adapters import facts, load
from lcm_arith.combination import NONE
from lcm_arith.embedded import pictures
from lcm_arith.errors import NotFoundError, UsageError
from lcm_arith.evaluation.lists import parse_one
from lcm_arith.evaluation.sheets import gallery
from lcm_arith.families import check_same_family, embedded
from lcm_arith.formats.container import write_bytes
from lcm_arith.fuse import LiveWeights
from lcm_arith.sampling import encode_prompts, load_pipeline, make_scheduler, sample, too_long
from lcm_arith.vector import TaskVector

DOZEN: Final = 12
_CHUNK: Final = 32
_FEW: Final = 4  # steps where a vector accelerates
_FAST: Final = ("acceleration", "combined")

OnStage = Callable[[str, int, int, str], None]
"""Told about progress: (stage, done, total, note)."""


@dataclass(frozen=True)
class Wish:
    """What to draw, with every default resolved.

    Args:
        prompts: None of them empty.
        vectors: (name or path, weight as decimal string).
        sampler, steps, guidance, seed: As in ``lcm_arith.sampling.sample``.
    """

    prompts: tuple[str, ...]
    vectors: tuple[tuple[str, str], ...]
    sampler: str
    steps: int
    guidance: float
    seed: int

    @classmethod
    def resolve(
        cls,
        prompts: Sequence[str],
        vectors: Sequence[str],
        *,
        sampler: str | None,
        steps: int | None,
        guidance: float | None,
        seed: int,
    ) -> Wish:
        """Fills in what the user left open: few unguided LCM steps where a vector accelerates.

        Raises:
            UsageError: If a prompt is empty or a weight no number.
            NotFoundError, InvalidContentError: If a vector cannot be read.
        """
        if any(not prompt.strip() for prompt in prompts):
            raise UsageError("a prompt is empty", hint="leave it out to draw a dozen captions")
        named = tuple(split_weight(text) for text in vectors)
        kinds = [facts(load(name)).get("kind") for name, _ in named if name != NONE]
        fast = any(kind in _FAST for kind in kinds)
        family = embedded()
        chosen = sampler or ("lcm" if fast else "dpm++")
        dozen = [c.caption for c in pictures.hash_order(pictures.concepts())[:DOZEN]]
        few = _FEW if chosen == "lcm" else family.teacher_steps
        return cls(
            tuple(prompts) or tuple(dozen),
            named,
            chosen,
            few if steps is None else steps,
            (1.0 if fast else family.guidance) if guidance is None else guidance,
            seed,
        )

    def facts(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return asdict(self)


def split_weight(text: str) -> tuple[str, str]:
    """``NAME:λ`` as (name, λ); λ is 1 where it is left out. A path may hold colons.

    Raises:
        UsageError: If the name is missing or λ is no number.
    """
    name, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        name, weight = text, "1"
    if not name:
        raise UsageError(f"--vector {text!r}: lacks a name", hint="write NAME:λ, fluent-emoji:0.8")
    return name, str(parse_one(weight, f"--vector {text!r}"))


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
    make_scheduler(pipeline.scheduler.config, wish.sampler, wish.steps)
    weighed = (float(weight) * taus[name] for name, weight in wish.vectors if name in taus)
    LiveWeights(pipeline).apply(sum(weighed, TaskVector()))
    folder.mkdir(parents=True, exist_ok=True)
    embeds, uncond = encode_prompts(pipeline, wish.prompts), encode_prompts(pipeline, [""])
    starts, done = range(0, len(embeds), _CHUNK), 0

    def on_step() -> None:
        nonlocal done
        done += 1
        on_stage("draw", done, wish.steps * len(starts), "")

    chunks = [
        sample(
            pipeline,
            embeds[at : at + _CHUNK],
            uncond,
            [wish.seed] * len(embeds[at : at + _CHUNK]),
            sampler=wish.sampler,
            steps=wish.steps,
            guidance=wish.guidance,
            on_step=on_step,
        )
        for at in starts
    ]
    paths, sheet = _write(wish, np.concatenate(chunks), folder)
    return Drawn(paths, sheet, too_long(pipeline.tokenizer, wish.prompts))


def _write(wish: Wish, pixels: np.ndarray, folder: Path) -> tuple[list[Path], Path]:
    taken = [int(m[1]) for p in folder.iterdir() if (m := re.match(r"(\d{4,})[-_]", p.name))]
    first = max(taken, default=-1) + 1
    paths = []
    for index, (prompt, picture) in enumerate(zip(wish.prompts, pixels, strict=True), first):
        slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower()).strip("-")[:40] or "picture"
        path = folder / f"{index:04d}-{slug}-seed{wish.seed}.png"
        about = json.dumps({**wish.facts(), "prompts": [prompt]}, sort_keys=True)
        write_bytes(path, _png(picture, about), force=True)
        paths.append(path)
    mix = " + ".join(f"{weight} · {name}" for name, weight in wish.vectors) or "base model"
    title = f"{mix}, {wish.sampler} {wish.steps}, guidance {wish.guidance:g}"
    sheet = folder / f"{first:04d}_sheet.png"
    shown = gallery(list(zip(wish.prompts, pixels, strict=True)), title)
    write_bytes(sheet, _png(np.asarray(shown), title), force=True)
    return paths, sheet


def _png(picture: np.ndarray, about: str) -> bytes:
    info = PngInfo()
    info.add_text("lcm-arith", about)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()
