"""Pipelines of every kind with random weights, built from configurations; nothing is downloaded.

A UNet pass takes milliseconds. The norms are drawn at random, too, and the layers that read prompt
and time are loud, so that a condition that is dropped changes the result.
"""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from lcm_arith.modules import sgm_path, with_text_model

KINDS: Final = ("sd15", "sd2-v", "sd2-zsnr", "sdxl")
WIDTH, WIDTH_2 = 16, 24  # of the two text encoders
SIZE: Final = 64  # px
_LONGEST: Final = 77  # tokens, as in every published CLIP
_BOS, _EOS = "<|startoftext|>", "<|endoftext|>"
_MERGES: Final = ("a p", "r e", "f o", "fo x</w>", "re d</w>", "c a", "ca t</w>", "s t")


@dataclass(frozen=True)
class Kind:
    """What differs between the tiny pipelines.

    Args:
        scheduler: Options of its scheduler.
        pad: Its tokenizer's padding.
        unet: Options of its UNet.
    """

    scheduler: dict[str, Any] = field(default_factory=dict)
    pad: str = _EOS
    unet: dict[str, Any] = field(default_factory=dict)


_V: Final = {"prediction_type": "v_prediction"}
_TIME_IDS: Final = 8  # channels of each of the six numbers
_TABLE: Final = {
    "sd15": Kind(),
    "sd2-v": Kind(_V, "!", {"use_linear_projection": True}),
    "sd2-zsnr": Kind(
        {**_V, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        "!",
        {"use_linear_projection": True},
    ),
    "sdxl": Kind(
        unet={
            "cross_attention_dim": WIDTH + WIDTH_2,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": _TIME_IDS,
            "projection_class_embeddings_input_dim": 6 * _TIME_IDS + WIDTH_2,
            "use_linear_projection": True,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
        },
    ),
}


def tiny(folder: Path, kind: str = "sd15", **unet: Any) -> Path:
    """A pipeline of a kind, saved into a folder.

    Args:
        folder: Made, and returned.
        kind: One of ``KINDS``.
        unet: Options of the UNet beside the kind's own, such as ``in_channels=9``.
    """
    pipeline(kind, **unet).save_pretrained(folder)
    return folder


def pipeline(kind: str, seed: int = 0, **unet: Any) -> Any:
    """The same, in memory."""
    import diffusers
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    row = _TABLE[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        tokenizer = clip_tokenizer(row.pad)
        parts: dict[str, Any] = {
            "unet": diffusers.UNet2DConditionModel(**{**_UNET, **row.unet, **unet}),
            "vae": diffusers.AutoencoderKL(**_VAE, scaling_factor=0.18215),
            "text_encoder": CLIPTextModel(clip_text_config(tokenizer)),
        }
        if kind == "sdxl":
            second = clip_tokenizer("!")
            config = clip_text_config(second, WIDTH_2)
            parts["text_encoder_2"] = CLIPTextModelWithProjection(config)
        for part in parts.values():
            _shake(part.eval())
    parts |= {"tokenizer": tokenizer, "scheduler": _scheduler(kind, row.scheduler)}
    if kind == "sdxl":
        return diffusers.StableDiffusionXLPipeline(
            **parts, tokenizer_2=second, add_watermarker=False
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return diffusers.StableDiffusionPipeline(
            **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
        )


_UNET: Final[dict[str, Any]] = {
    "sample_size": SIZE // 8,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (8, 16),
    "norm_num_groups": 4,
    "attention_head_dim": 2,
    "cross_attention_dim": WIDTH,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
_VAE: Final[dict[str, Any]] = {
    "sample_size": SIZE,
    "latent_channels": 4,
    "layers_per_block": 1,
    "block_out_channels": (4, 8, 8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


def _scheduler(kind: str, options: dict[str, Any]) -> Any:
    import diffusers

    published = {
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "steps_offset": 1,
    }
    if kind == "sd15":
        return diffusers.PNDMScheduler(**published, skip_prk_steps=True, **options)
    if kind == "sdxl":
        return diffusers.EulerDiscreteScheduler(**published, **options)
    return diffusers.DDIMScheduler(
        **published, clip_sample=False, set_alpha_to_one=False, **options
    )


def clip_tokenizer(pad: str = _EOS) -> Any:
    """CLIP's byte pairs with few merges; the published ones pad with the end, or with ``!``."""
    from transformers import CLIPTokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    words += ["".join(merge.split()) for merge in _MERGES]
    vocabulary = {word: number for number, word in enumerate([*words, _BOS, _EOS])}
    merges: Any = [tuple(merge.split()) for merge in _MERGES]
    return CLIPTokenizer(
        vocab=vocabulary,
        merges=merges,
        pad_token=pad,
        model_max_length=_LONGEST,
    )


def clip_text_config(tokenizer: Any, width: int = WIDTH) -> Any:
    """Of a small text encoder."""
    from transformers import CLIPTextConfig

    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        projection_dim=width,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=_LONGEST,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@torch.no_grad()
def _shake(model: nn.Module) -> None:
    """Norms of their own, embeddings and condition layers that are heard."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.GroupNorm | nn.LayerNorm):
            nn.init.normal_(layer.weight, 1.0, 0.3)
            nn.init.normal_(layer.bias, 0.0, 0.3)
        if isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)
        elif name.endswith(
            ("attn2.to_out.0", "time_emb_proj", "attn2.to_v", "add_embedding.linear_2")
        ):
            layer.weight.mul_(3)


def single_file(pipeline: Any, path: Path) -> Path:
    """A pipeline (of two layers a block) as one file with Stability's names."""
    tensors = {**_sgm_unet(pipeline.unet.state_dict()), **_sgm_vae(pipeline.vae.state_dict())}
    clip = {
        with_text_model(f"text_encoder.{k}"): v
        for k, v in pipeline.text_encoder.state_dict().items()
    }
    second = getattr(pipeline, "text_encoder_2", None)
    prefix = "conditioner.embedders.0" if second else "cond_stage_model"
    for key, values in clip.items():
        tensors[f"{prefix}.transformer.{key.removeprefix('text_encoder.')}"] = values
    if second:
        tensors |= _open_clip(second.state_dict(), "conditioner.embedders.1.model.")
    save_file({key: values.contiguous().clone() for key, values in tensors.items()}, path)
    return path


def _sgm_unet(state: dict[str, Tensor]) -> dict[str, Tensor]:
    attending = {key.partition("attentions.")[0] for key in state if ".attentions." in key}
    found = {}
    for key, values in state.items():
        module, _, part = key.rpartition(".")
        attends = module.partition("upsamplers.")[0] in attending
        found[f"model.diffusion_model.{sgm_path(module, attends=attends)}.{part}"] = values
    return found


_VAE_NAMES: Final = (
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda m: f"up.{3 - int(m[1])}.block.{m[2]}"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda m: f"up.{3 - int(m[1])}.upsample"),
    (r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"attn_1\.group_norm", "attn_1.norm"),
    (r"attn_1\.to_([qkv])", r"attn_1.\1"),
    (r"attn_1\.to_out\.0", "attn_1.proj_out"),
    ("conv_shortcut", "nin_shortcut"),
    ("conv_norm_out", "norm_out"),
)


def _sgm_vae(state: dict[str, Tensor]) -> dict[str, Tensor]:
    found = {}
    for key, values in state.items():
        for pattern, name in _VAE_NAMES:
            key = re.sub(pattern, name, key)
        square = "attn_1" in key and values.ndim == 2  # convolutions of 1×1 there
        found[f"first_stage_model.{key}"] = values[:, :, None, None] if square else values
    return found


_OPEN_CLIP: Final = (
    ("text_model.encoder.layers.", "transformer.resblocks."),
    ("self_attn.out_proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("layer_norm", "ln_"),
    ("text_model.final_ln_", "ln_final"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
)


def _open_clip(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {}
    for key, values in state.items():
        if ".k_proj." in key or ".v_proj." in key:
            continue
        if key == "text_projection.weight":
            key, values = "text_projection", values.T
        if ".q_proj." in key:
            values = torch.cat([state[key.replace("q_proj", f"{x}_proj")] for x in "qkv"])
            key = key.replace("self_attn.q_proj.", "attn.in_proj_")
        for own, name in _OPEN_CLIP:
            key = key.replace(own, name)
        found[prefix + key] = values
    return found
