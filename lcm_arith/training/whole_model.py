"""The model that full-weight distillation ends in: a diffusers folder whose UNet is told ω."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lcm_arith.bases import Base
from lcm_arith.embedded.files import sha256
from lcm_arith.errors import UsageError, VerificationError
from lcm_arith.formats import container
from lcm_arith.sampling import SAMPLERS

_MARK = "model_index.json"
_TOLERANCE = 1e-6  # of the largest output: the same weights in the same format


def check_model_output(out: Path, *, force: bool) -> None:
    """Raises where the folder could not be put; call it before long work.

    Raises:
        UsageError: If it looks like a file's name.
        OutputExistsError, NotFoundError: As :func:`container.refuse_existing_folder`.
    """
    if out.suffix == ".safetensors":
        raise UsageError(f"{out}: mode full writes a model, a folder", hint="name a folder")
    container.refuse_existing_folder(out, force=force, mark=_MARK)


@torch.no_grad()
def write_model(
    base: Base, unet: Any, out: Path, dtype: torch.dtype, *, grid_points: int, force: bool
) -> str:
    """Writes ``base`` with another UNet and LCM's sampler; returns the UNet file's sha256.

    Args:
        base: Loaded anew; its other parts stay as they are.
        unet: The distilled one, which is told ω.
        out: Folder to make; it appears whole or not at all.
        dtype: Of all weights.
        grid_points: K of the distillation, which the sampler is told.
        force: Replace ``out``.

    Raises:
        VerificationError: If diffusers reads the folder back as another network.
        OutputExistsError, StorageError: As for a file.
    """
    import diffusers

    pipeline = base.pipeline
    unet = unet.to("cpu", dtype).eval()
    unet._compiled_call_impl = None  # what is compared computes as diffusers' own does
    pipeline.unet = unet
    pipeline.to(dtype)
    lcm = getattr(diffusers, SAMPLERS["lcm"].scheduler)
    pipeline.scheduler = lcm.from_config(
        pipeline.scheduler.config, original_inference_steps=grid_points
    )
    with container.whole_folder(out, force=force, mark=_MARK) as part:
        pipeline.save_pretrained(part, safe_serialization=True)
        read = type(unet).from_pretrained(part, subfolder="unet", dtype=dtype).eval()
        inputs = _inputs(unet, dtype)
        own, its = (each(**inputs).sample.float() for each in (unet, read))
        if not bool((own - its).abs().max() <= _TOLERANCE * own.abs().max()):
            raise VerificationError(
                f"{out}: diffusers reads another network back", hint="please report it"
            )
        files = sorted((part / "unet").glob("*.safetensors"))
        return ",".join(sha256(file) for file in files)


def _inputs(unet: Any, dtype: torch.dtype) -> dict[str, Any]:
    """One row of anything that the UNet takes."""
    config, generator = unet.config, torch.Generator().manual_seed(0)

    def some(*shape: int) -> torch.Tensor:
        return torch.randn(1, *shape, generator=generator).to(dtype)

    width = config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]
    told: dict[str, Any] = {
        "sample": some(config.in_channels, 8, 8),
        "timestep": torch.tensor([499]),
        "encoder_hidden_states": some(4, width),
        "timestep_cond": some(config.time_cond_proj_dim),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        told["added_cond_kwargs"] = {"text_embeds": some(pooled), "time_ids": some(6)}
    return told
