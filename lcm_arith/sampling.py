"""Text to image: few or many steps, any sampler, batches that know their own noise.

The loop is diffusers' (``StableDiffusionPipeline.__call__`` gives the same picture from the same
seed), with prompts encoded once and every picture's noise drawn from its own CPU generator, so the
noise depends on neither device nor batch (the last bits of the network's sums do).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lcm_arith.condition import Condition, Model, joined, time_ids
from lcm_arith.encoders import Reading, encode_sd
from lcm_arith.encoders import too_long as too_long
from lcm_arith.errors import UsageError
from lcm_arith.network import network


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
    "euler": Sampler(
        "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "arXiv:2206.00364, alg. 2"
    ),
    "tcd": Sampler("TCDScheduler", {}, "arXiv:2402.19159, alg. 4; γ = 0.3"),
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


_PIPELINES: Final[Mapping[str, tuple[str, dict[str, Any]]]] = {
    "sd": (
        "StableDiffusionPipeline",
        {"safety_checker": None, "requires_safety_checker": False},
    ),
    "sdxl": ("StableDiffusionXLPipeline", {"add_watermarker": False}),
}
"""Kind → diffusers' class, and what is not loaded beside model and tokenizers."""


def pipeline_class(kind: str) -> tuple[Any, dict[str, Any]]:
    """The class of a kind ("sd" or "sdxl"), and how it is loaded: float32, quietly."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    name, options = _PIPELINES[kind]
    unused = {"feature_extractor": None, "image_encoder": None}
    return getattr(diffusers, name), {"dtype": torch.float32, **options, **unused}


def load_pipeline(base: Path, kind: str = "sd") -> Any:
    """The pipeline of a diffusers folder, float32, quiet, in evaluation mode."""
    cls, options = pipeline_class(kind)
    options |= {"local_files_only": True, "use_safetensors": True}
    return ready(cls.from_pretrained(base, **options))


def ready(pipeline: Any) -> Any:
    """The pipeline without progress bars, its UNet laid out as convolutions want it."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.unet.to(memory_format=torch.channels_last)
    return pipeline


@torch.no_grad()
def encode_prompts(pipeline: Any, prompts: Sequence[str]) -> Tensor:
    """Prompt embeddings of SD, ``[prompts, tokens, width]``; ``""`` is the unconditional one, ∅."""
    return encode_sd(pipeline, prompts, Reading())["embeds"]


@torch.no_grad()
def sample(
    pipeline: Any,
    embeds: Tensor | Condition,
    uncond: Tensor | Condition,
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
        pipeline: A ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``.
        embeds: Prompt embeddings ``[B, tokens, width]``, or a whole condition; without ``time_ids``
            SDXL is told that the picture is neither scaled nor cropped.
        uncond: The same of the empty prompt, one row; unused at guidance 1. It is told what else
            ``embeds`` is.
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
    how: dict[str, Any] = {"sampler": sampler, "steps": steps, "guidance": guidance, "fast": fast}
    return decode(pipeline, denoise(pipeline, embeds, uncond, seeds, on_step=on_step, **how))


@torch.no_grad()
def denoise(
    pipeline: Any,
    embeds: Tensor | Condition,
    uncond: Tensor | Condition,
    seeds: Sequence[int],
    *,
    sampler: str,
    steps: int,
    guidance: float,
    fast: bool = False,
    on_step: Callable[[], None] | None = None,
    model: Model | None = None,
    grid_points: int | None = None,
) -> Tensor:
    """The scaled latents ``[B, C, h, w]`` behind the pictures of :func:`sample`; as there.

    ``model`` is the UNet in number formats of its own, the pipeline's as it is where there is none;
    ``grid_points`` is that of :func:`make_scheduler`.
    """
    scheduler = make_scheduler(pipeline.scheduler.config, sampler, steps, grid_points)
    walk = Walk.start(scheduler, seeds, pipeline.unet)
    guided = guidance > 1
    c = whole(pipeline, embeds)
    c = joined(_like(c, uncond), c) if guided else c
    model = model or network(pipeline.unet)
    device = walk.z.device
    while not walk.done:
        z_in, t = walk.input()
        z_in = torch.cat([z_in, z_in]) if guided else z_in
        with fast_math(device, enabled=fast):
            out = model(z_in, t.to(device).expand(len(z_in)), c)
        if guided:
            out_uncond, out_cond = out.chunk(2)
            out = guide(out_uncond, out_cond, guidance)
        walk.advance(out)
        if on_step:
            on_step()
    return walk.z


@dataclass(eq=False)
class Walk:
    """Pictures on their way from noise, all by one sampler; nothing here calls the network.

    Args:
        scheduler: diffusers' scheduler with its timesteps set; it remembers earlier steps.
        z: Where they are, ``[B, C, h, w]``, float32.
        generators: One a picture; each drew its picture's noise, and goes on where that ended. None
            where the sampler takes none.
        step: Steps that are done.
    """

    scheduler: Any
    z: Tensor
    generators: list[torch.Generator]
    step: int = 0

    @classmethod
    def start(cls, scheduler: Any, seeds: Sequence[int], unet: Any) -> Walk:
        """One picture per seed, at the first timestep, as large as the UNet was made for."""
        size = unet.config.sample_size
        shape = (1, unet.config.in_channels, size, size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        device = next(unet.parameters()).device  # unet.device looks through all modules
        z = torch.cat([torch.randn(shape, generator=g) for g in generators]).to(device)
        takes = "generator" in inspect.signature(scheduler.step).parameters
        return cls(scheduler, z * scheduler.init_noise_sigma, generators if takes else [])

    @property
    def done(self) -> bool:
        """Whether the pictures have arrived."""
        return self.step == len(self.scheduler.timesteps)

    def input(self) -> tuple[Tensor, Tensor]:
        """What the network reads next: latents scaled as the sampler wants it, and t."""
        t = self.scheduler.timesteps[self.step]
        return self.scheduler.scale_model_input(self.z, t), t

    def advance(self, out: Tensor) -> None:
        """Takes a step with the network's output, ``[B, C, h, w]``, guided where it is to be."""
        t = self.scheduler.timesteps[self.step]
        extra = {"generator": self.generators} if self.generators else {}
        self.z = self.scheduler.step(out, t, self.z, return_dict=True, **extra).prev_sample
        self.step += 1


def guide(uncond: Tensor, cond: Tensor, guidance: float) -> Tensor:
    """ε_∅ + s (ε_c − ε_∅); classifier-free guidance, arXiv:2207.12598 with s = 1 + ω."""
    return uncond + guidance * (cond - uncond)


def whole(pipeline: Any, told: Tensor | Condition) -> Condition:
    """A condition with everything that the UNet asks for."""
    condition = {"embeds": told} if isinstance(told, Tensor) else dict(told)
    if "pooled" in condition and "time_ids" not in condition:
        side = pipeline.unet.config.sample_size * pipeline.vae_scale_factor
        ids = time_ids((side, side), (0, 0), (side, side)).to(condition["pooled"].device)
        condition["time_ids"] = ids.expand(len(condition["pooled"]), -1)
    return condition


def _like(condition: Condition, uncond: Tensor | Condition) -> Condition:
    """∅ for as many rows, told what else the condition tells."""
    empty = {"embeds": uncond} if isinstance(uncond, Tensor) else uncond
    return {name: empty.get(name, rows).expand_as(rows) for name, rows in condition.items()}


@torch.no_grad()
def decode(pipeline: Any, z: Tensor) -> np.ndarray:
    """Latents ``[B, C, h, w]`` to uint8 pictures ``[B, H, W, 3]``, rounded as diffusers does."""
    return rounded(decoded(pipeline, z))


@torch.no_grad()
def decoded(pipeline: Any, z: Tensor) -> np.ndarray:
    """The same before rounding, float32 in 0 to 1; NaN where the VAE gives NaN."""
    config = pipeline.vae.config
    z = z / config.scaling_factor + (config.shift_factor or 0)
    pixels = pipeline.vae.decode(z.to(pipeline.vae.dtype)).sample  # in [-1, 1]
    found = (pixels / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().cpu().numpy()
    return np.asarray(found)


def rounded(pixels: np.ndarray) -> np.ndarray:
    """Pictures in 0 to 1 as uint8."""
    return np.asarray((pixels * 255).round().astype(np.uint8))


def make_scheduler(config: Any, sampler: str, steps: int, grid_points: int | None = None) -> Any:
    """The scheduler of a row of :data:`SAMPLERS` with its timesteps set.

    Args:
        config: Of the base model's scheduler.
        sampler: A name of :data:`SAMPLERS`.
        steps: Sampling steps.
        grid_points: K of the distillation, among whose points LCM's sampler chooses; None is 50.

    Raises:
        UsageError: If the sampler is unknown or cannot take that many steps.
    """
    if sampler not in SAMPLERS:
        raise UsageError(f"sampler {sampler!r} is unknown", hint=f"one of {', '.join(SAMPLERS)}")
    row = SAMPLERS[sampler]
    own = {"original_inference_steps": grid_points} if grid_points and sampler == "lcm" else {}
    scheduler = _scheduler_class(row.scheduler).from_config(config, **row.options, **own)
    most = getattr(scheduler.config, "original_inference_steps", None) or 1000
    if not 1 <= steps <= most:
        raise UsageError(f"steps {steps}: {sampler} takes 1 to {most} steps")
    scheduler.set_timesteps(steps)
    return scheduler


@cache
def _scheduler_class(name: str) -> Any:
    import diffusers

    return getattr(diffusers, name)
