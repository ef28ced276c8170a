"""Sampling equals diffusers' own pipeline, and NFE is what the UNet really does."""

from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch

from lcm_arith.bases import load_base
from lcm_arith.condition import time_ids
from lcm_arith.errors import UsageError
from lcm_arith.sampling import SAMPLERS, encode_prompts, make_scheduler, nfe, sample

PROMPTS = ["fox", "red apple"]
ETA = {"tcd": 0.3}  # γ of its authors; the pipelines say 0 to every scheduler unless they are told


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_pictures_equal_the_diffusers_pipeline(
    pipeline: Any, sampler: str, guidance: float
) -> None:
    embeds, uncond = encode_prompts(pipeline, PROMPTS), encode_prompts(pipeline, [""])
    ours = sample(pipeline, embeds, uncond, [3, 7], sampler=sampler, steps=3, guidance=guidance)
    row = SAMPLERS[sampler]
    theirs_of: Any = diffusers.StableDiffusionPipeline(
        **{
            **{k: v for k, v in pipeline.components.items() if k != "scheduler"},
            "scheduler": getattr(diffusers, row.scheduler).from_config(
                pipeline.scheduler.config, **row.options
            ),
            "requires_safety_checker": False,
        }
    )
    theirs_of.set_progress_bar_config(disable=True)
    theirs = theirs_of(
        PROMPTS,
        num_inference_steps=3,
        guidance_scale=guidance,
        eta=ETA.get(sampler, 0.0),
        generator=[torch.Generator().manual_seed(seed) for seed in (3, 7)],
        output_type="np",
    ).images
    # One grey level: the same float32 sums in another order may round apart.
    assert int(np.abs(ours.astype(int) - (theirs * 255).round().astype(int)).max()) <= 1


@pytest.mark.parametrize("sampler", list(SAMPLERS))
@pytest.mark.parametrize("kind", ["zsnr", "sdxl"])
def test_every_kind_of_base_is_sampled_as_its_pipeline_does(
    request: pytest.FixtureRequest, kind: str, sampler: str
) -> None:
    base, row = load_base(request.getfixturevalue(f"tiny_{kind}")), SAMPLERS[sampler]
    told = base.encode(PROMPTS)
    options: dict[str, Any] = {"sampler": sampler, "steps": 3, "guidance": 3.0}
    sizes: dict[str, Any] = {}
    if kind == "sdxl":
        sizes = {
            "original_size": (96, 32),
            "crops_coords_top_left": (4, 8),
            "target_size": (64, 48),
        }
        plain = sample(base.pipeline, told, base.uncond(), [3, 7], **options)
        told = {**told, "time_ids": time_ids(*sizes.values()).expand(2, -1)}
    ours = sample(base.pipeline, told, base.uncond(), [3, 7], **options)
    base.pipeline.scheduler = getattr(diffusers, row.scheduler).from_config(
        base.pipeline.scheduler.config, **row.options
    )

    def theirs(**sizes: Any) -> np.ndarray:
        images = base.pipeline(
            PROMPTS,
            num_inference_steps=3,
            guidance_scale=3.0,
            eta=ETA.get(sampler, 0.0),
            generator=[torch.Generator().manual_seed(seed) for seed in (3, 7)],
            output_type="np",
            **sizes,
        ).images
        return np.asarray((images * 255).round().astype(int))

    # One grey level: the same float32 sums in another order may round apart.
    assert int(np.abs(ours - theirs(**sizes)).max()) <= 1
    if kind == "sdxl":
        assert int(np.abs(plain - theirs()).max()) <= 1
        assert int(np.abs(plain.astype(int) - ours).max()) > 1


def test_a_student_that_is_told_omega_is_sampled_as_its_pipeline_does() -> None:
    pipeline = tiny.pipeline("sd15", time_cond_proj_dim=32)
    pipeline.set_progress_bar_config(disable=True)
    told = {"embeds": encode_prompts(pipeline, PROMPTS), "omega": torch.full((2,), 7.5)}
    noise = torch.cat(
        [torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (3, 7)]
    )
    options: dict[str, Any] = {"sampler": "lcm", "steps": 1, "guidance": 1.0}
    ours = sample(pipeline, told, encode_prompts(pipeline, [""]), [3, 7], **options)
    pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)

    def theirs(scale: float) -> np.ndarray:
        shown = pipeline(
            PROMPTS, num_inference_steps=1, guidance_scale=scale, latents=noise, output_type="np"
        )
        return np.asarray((shown.images * 255).round().astype(int))

    assert int(np.abs(ours - theirs(8.5)).max()) <= 1  # s = 1 + ω
    assert int(np.abs(ours - theirs(2.0)).max()) > 1


@pytest.mark.parametrize("guidance", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("sampler", list(SAMPLERS))
def test_nfe_is_the_number_of_unet_rows_a_picture(
    pipeline: Any, sampler: str, guidance: float
) -> None:
    rows: list[int] = []
    hook = pipeline.unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    embeds, uncond = encode_prompts(pipeline, ["fox"]), encode_prompts(pipeline, [""])
    sample(pipeline, embeds, uncond, [0], sampler=sampler, steps=3, guidance=guidance)
    hook.remove()
    assert sum(rows) == nfe(3, guidance)


def test_every_sampler_starts_from_pure_noise_whatever_its_steps(pipeline: Any) -> None:
    for sampler in SAMPLERS:
        for steps in (1, 2, 4, 25):
            assert (
                int(make_scheduler(pipeline.scheduler.config, sampler, steps).timesteps[0]) == 999
            )


def test_a_picture_does_not_depend_on_its_batch(pipeline: Any) -> None:
    embeds, uncond = encode_prompts(pipeline, PROMPTS), encode_prompts(pipeline, [""])
    options: dict[str, Any] = {"sampler": "lcm", "steps": 2, "guidance": 1.0}
    both = sample(pipeline, embeds, uncond, [5, 6], **options)
    alone = sample(pipeline, embeds[1:], uncond, [6], **options)
    assert int(np.abs(both[1].astype(int) - alone[0].astype(int)).max()) <= 1


@pytest.mark.parametrize(
    ("sampler", "steps"), [("lcm", 0), ("lcm", 51), ("tcd", 51), ("heun", 4), ("ddim", -1)]
)
def test_impossible_sampling_is_refused(pipeline: Any, sampler: str, steps: int) -> None:
    with pytest.raises(UsageError):
        make_scheduler(pipeline.scheduler.config, sampler, steps)
