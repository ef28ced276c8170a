"""Text to image: few or many steps, any sampler, batches that know their own noise.

The loop is diffusers' (``StableDiffusionPipeline.__call__`` gives the same picture from the same
seed), with prompts encoded once and every picture's noise drawn from its own CPU generator, so the
noise depends on neither device nor batch (the last bits of the network's sums do).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lcm_arith.errors import UsageError


@dataclass(frozen=True)
class Sampler:
    """A row of the samplers table.

    Args:
        scheduler: Name of diffusers' class.
        options: What differs from the base model's scheduler configuration.
        source: Where it comes from.
    """

    scheduler: str
    options: dict[str, Any]
    source: str


SAMPLERS: Final = {
    "lcm": Sampler("LCMScheduler", {}, "arXiv:2310.04378, alg. 3"),
    "dpm++": Sampler(
        "DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}, "arXiv:2211.01095, 2M"
    ),
    "ddim": Sampler(
        "DDIMScheduler",
        {"timestep_spacing": "trailing", "clip_sample": False},
        "arXiv:2010.02502; trailing: arXiv:2305.08891",
    ),
}


def fast_math(device: torch.device, *, enabled: bool = True) -> AbstractContextManager[Any]:
    """bfloat16 products where the processor multiplies them natively; parameters stay float32.

    On a CPU without matrix units for bfloat16 it would be slower, so it changes nothing there.
    """
    native = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled and native)


def nfe(steps: int, guidance: float) -> int:
    """UNet passes a picture: one a step, two with guidance (every sampler here is of one pass)."""
    return steps * (2 if guidance > 1 else 1)


def load_pipeline(base: Path) -> Any:
    """The ``StableDiffusionPipeline`` of a folder, float32, quiet, in evaluation mode."""
    import diffusers

    diffusers.utils.logging.disable_progress_bar()
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
        base, dtype=torch.float32, local_files_only=True
    )
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


def too_long(tokenizer: Any, prompts: Sequence[str]) -> list[str]:
    """Prompts of which the text encoder reads only the beginning."""
    distinct = list(dict.fromkeys(prompts))
    lengths = [len(ids) for ids in tokenizer(distinct).input_ids]
    most = tokenizer.model_max_length
    return [p for p, length in zip(distinct, lengths, strict=True) if length > most]


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str]) -> Tensor:
    """Prompt embeddings, ``[prompts, tokens, width]``; ``""`` is the unconditional one, ∅."""
    tokens = pipeline.tokenizer(
        list(prompts),
        padding="max_length",
        max_length=pipeline.tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    )
    ids = tokens.input_ids.to(pipeline.text_encoder.device)
    embeds: Tensor = pipeline.text_encoder(ids)[0]
    return embeds


@torch.no_grad()
def sample(
    pipeline: Any,
    embeds: Tensor,
    uncond: Tensor,
    seeds: Sequence[int],
    *,
    sampler: str,
    steps: int,
    guidance: float,
    fast: bool = False,
    on_step: Callable[[], None] | None = None,
) -> np.ndarray:
    """One picture per row of ``embeds``.

    Args:
        pipeline: A ``StableDiffusionPipeline``.
        embeds: Prompt embeddings ``[B, tokens, width]``.
        uncond: Embedding of the empty prompt, ``[1, tokens, width]``; unused at guidance 1.
        seeds: One seed per picture.
        sampler: A name of :data:`SAMPLERS`.
        steps: Sampling steps, 1 to 1000 (LCM: at most 50).
        guidance: diffusers' guidance scale s = 1 + ω; s ≤ 1 is no guidance.
        fast: Let the UNet multiply in bfloat16 where the processor does so natively: several times
            as fast, pictures differ in details.
        on_step: Called after each step.

    Returns:
        uint8 ``[B, H, W, 3]``.

    Raises:
        UsageError: If the sampler is unknown or the steps are out of range.
    """
    scheduler = make_scheduler(pipeline.scheduler.config, sampler, steps)
    unet, device = pipeline.unet, pipeline.unet.device
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    size = unet.config.sample_size
    shape = (1, unet.config.in_channels, size, size)
    z = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)
    z = z * scheduler.init_noise_sigma
    guided = guidance > 1
    c = torch.cat([uncond.expand_as(embeds), embeds]) if guided else embeds
    takes = inspect.signature(scheduler.step).parameters
    extra = {"generator": generators} if "generator" in takes else {}
    for t in scheduler.timesteps:
        z_in = scheduler.scale_model_input(z, t)
        z_in = torch.cat([z_in, z_in]) if guided else z_in
        with fast_math(device, enabled=fast):
            out = unet(z_in, t, encoder_hidden_states=c).sample.float()
        if guided:
            out_uncond, out_cond = out.chunk(2)
            out = out_uncond + guidance * (out_cond - out_uncond)
        result = scheduler.step(out, t, z, return_dict=True, **extra)
        z = result.prev_sample
        if on_step:
            on_step()
    return decode(pipeline, z)


@torch.no_grad()
def decode(pipeline: Any, z: Tensor) -> np.ndarray:
    """Latents ``[B, C, h, w]`` to uint8 pictures ``[B, H, W, 3]``, rounded as diffusers does."""
    pixels = pipeline.vae.decode(z / pipeline.vae.config.scaling_factor).sample  # in [-1, 1]
    pixels = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return np.asarray((pixels * 255).round().astype(np.uint8))


def make_scheduler(config: Any, sampler: str, steps: int) -> Any:
    """The scheduler of a row of :data:`SAMPLERS` with its timesteps set.

    Raises:
        UsageError: If the sampler is unknown or cannot take that many steps.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"sampler {sampler!r} is unknown", hint=f"one of {', '.join(SAMPLERS)}")
    row = SAMPLERS[sampler]
    scheduler = _scheduler_class(row.scheduler).from_config(config, **row.options)
    most = getattr(scheduler.config, "original_inference_steps", None) or 1000
    if not 1 <= steps <= most:
        raise UsageError(f"steps {steps}: {sampler} takes 1 to {most} steps")
    scheduler.set_timesteps(steps)
    return scheduler


@cache
def _scheduler_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)
