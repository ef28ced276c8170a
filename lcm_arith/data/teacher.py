"""Latents of prompts without pictures: the base model makes them (diffusers #5756)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from lcm_arith.bases import Base
from lcm_arith.data.captions import forms
from lcm_arith.data.drawing import Row
from lcm_arith.data.sources import Survey
from lcm_arith.data.work import Made, Work, a_pass, parts
from lcm_arith.errors import InvalidContentError
from lcm_arith.families import embedded
from lcm_arith.sampling import denoise

SD_GUIDANCE: Final = 7.5  # diffusers' default, what SD families are sampled at


@dataclass(frozen=True)
class _Asked:
    """One picture that the base model is asked for."""

    text: str
    seed: int
    row: Row


def prompted(work: Work, found: Survey) -> Made:
    """``per_prompt`` latents of each prompt, every one of its own seed.

    Raises:
        InvalidContentError: If the base model makes NaN or infinity of a prompt; names it.
        UsageError: If it has no such sampler or number of steps.
    """
    options, base = work.options, work.base
    guidance = _guidance(base) if options.teacher_guidance is None else options.teacher_guidance
    how: dict[str, Any] = {
        "sampler": options.teacher_sampler,
        "steps": options.teacher_steps,
        "guidance": guidance,
    }
    plain = replace(options, shuffles=0, keep_tokens=0)
    asked: list[_Asked] = []
    for prompt in found.prompts:
        text = forms(prompt, plain)[0]
        for _ in range(options.per_prompt):
            seed = options.teacher_seed + len(asked)
            key = work.key(teacher=base.digest, prompt=text, seed=seed, **work.reading(), **how)
            asked.append(_Asked(text, seed, _row(key, prompt, base.size, work)))
    new = [each for each in asked if f"{each.row.latents[0]}.z0" not in work.store]
    _make(work, new, how)
    about = {"resolution": base.size, "teacher": how}
    return Made(tuple(each.row for each in asked), found.skipped, about)


def _row(key: str, prompt: str, side: int, work: Work) -> Row:
    whole = (side, side, 0, 0, side, side)
    return Row(
        prompt, (side, side), (key,), (whole,), forms(prompt, work.options), work.options.repeats
    )


def _make(work: Work, new: Sequence[_Asked], how: dict[str, Any]) -> None:
    uncond = work.base.uncond(**work.reading()) if new else {}
    done = 0
    for part in parts(new, a_pass(work.base.size, work.base.size)):
        told = work.base.encode([each.text for each in part], **work.reading())
        seeds = [each.seed for each in part]
        z0 = denoise(work.base.pipeline, told, uncond, seeds, **how)
        for each, z in zip(part, z0, strict=True):
            if not bool(z.isfinite().all()):
                raise InvalidContentError(
                    f"{each.text!r}: the base model makes NaN or infinity of it",
                    hint="leave the prompt out, or use more teacher_steps or another sampler",
                )
            work.store.add(f"{each.row.latents[0]}.z0", z)
        done += len(part)
        work.on_stage("teacher", done, len(new), "")


def _guidance(base: Base) -> float:
    return embedded().guidance if base.family == embedded().name else SD_GUIDANCE
