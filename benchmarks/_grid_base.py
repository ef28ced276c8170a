"""The base models and adapters of ``grid.py``: Stable Diffusion's layers, random weights."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

import tiny

from lcm_arith.architectures import UNETS, VAES
from lcm_arith.targets import LCM_TARGETS

SEED: Final = 0
ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
LOUD: Final = 0.05  # standard deviation of B: pictures of two λ differ, and no weight explodes


@dataclass(frozen=True)
class Size:
    """How large a base and its adapters are.

    Args:
        unet, vae: Options of the networks.
        style_rank, accel_rank: Of the adapters: one of the attention's layers, one of all layers
            that LCM-LoRA has.
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    style_rank: int = 32
    accel_rank: int = 64


def _vae(channels: tuple[int, ...]) -> dict[str, Any]:
    return {**VAES["sd15"], "block_out_channels": channels, "norm_num_groups": 4}


_SMALL_VAE: Final = _vae((8, 16, 16, 16))
FULL_VAE: Final = dict(VAES["sd15"])
SIZES: Final = {
    # 142 M parameters: SD1.5's layers at 0.4 of its width; 128 px.
    "142M": Size(
        {
            "sample_size": 16,
            "block_out_channels": (128, 256, 512, 512),
            "cross_attention_dim": 768,
            "attention_head_dim": 8,
        },
        _SMALL_VAE,
    ),
    "toy": Size(
        {
            "sample_size": 16,
            "block_out_channels": (16, 32, 32, 32),
            "cross_attention_dim": 32,
            "attention_head_dim": 4,
            "norm_num_groups": 8,
        },
        _SMALL_VAE,
        style_rank=4,
        accel_rank=8,
    ),
    "sd15": Size(dict(UNETS["sd15"]), FULL_VAE),
}


@dataclass(frozen=True)
class Files:
    """Where a base and its adapters lie.

    Args:
        base: A diffusers folder.
        style, accel: Adapters as diffusers saves them.
    """

    base: str
    style: str
    accel: str


def make_files(folder: Path, name: str) -> Files:
    """Builds a row of :data:`SIZES` into a folder."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    size, base = SIZES[name], folder / name
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        pipeline = tiny.pipeline("sd15")
        pipeline.register_modules(
            unet=UNet2DConditionModel(**size.unet).eval(),
            vae=AutoencoderKL(**size.vae).eval(),
            text_encoder=_text_encoder(pipeline.tokenizer, size.unet["cross_attention_dim"]),
        )
        pipeline.save_pretrained(base)
        style = _adapter(pipeline, folder / f"{name}-style", ATTENTION, size.style_rank)
        accel = _adapter(pipeline, folder / f"{name}-accel", LCM_TARGETS, size.accel_rank)
    return Files(str(base), style, accel)


def _text_encoder(tokenizer: Any, width: int) -> Any:
    """Two layers of CLIP."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=4,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config).eval()


def _adapter(pipeline: Any, folder: Path, targets: Sequence[str], rank: int) -> str:
    """A file of diffusers' own making, and the parameters in it."""
    from peft import LoraConfig, get_peft_model_state_dict

    unet = pipeline.unet
    unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), "made")
    with torch.no_grad():
        for key, values in unet.named_parameters():
            if "lora_B" in key:
                values.normal_(0, LOUD)
    state = get_peft_model_state_dict(unet, adapter_name="made")
    name = "adapter.safetensors"
    pipeline.save_lora_weights(folder, unet_lora_layers=state, weight_name=name)
    unet.delete_adapters("made")
    return str(folder / name)
