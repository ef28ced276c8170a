"""CLIP and DINOv2 of random weights in folders as published ones are; nothing is downloaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tiny import clip_text_config, clip_tokenizer
from torch import Tensor

CLIP_SIZE, DINO_SIZE, DINO_SHORTEST = 32, 28, 40  # px
_TOWER: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def tiny_clip(folder: Path, width: int = 12) -> Path:
    """A CLIP with its tokenizer and ``preprocessor_config.json``."""
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig

    tokenizer = clip_tokenizer()
    vision = CLIPVisionConfig(**_TOWER, image_size=CLIP_SIZE, patch_size=8)
    config = CLIPConfig(
        text_config=clip_text_config(tokenizer).to_dict(),
        vision_config=vision.to_dict(),
        projection_dim=width,
    )
    _save(CLIPModel, config, folder)
    tokenizer.save_pretrained(folder)
    _say(folder, "CLIPImageProcessor", CLIP_SIZE, CLIP_SIZE, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28])
    return folder


def tiny_dino(folder: Path) -> Path:
    """A DINOv2 with its ``preprocessor_config.json``."""
    from transformers import Dinov2Config, Dinov2Model

    _save(Dinov2Model, Dinov2Config(**_TOWER, image_size=DINO_SIZE, patch_size=7), folder)
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    _say(folder, "BitImageProcessor", DINO_SHORTEST, DINO_SIZE, mean, std)
    return folder


def head(width: int = 12) -> dict[str, Tensor]:
    """State dict of an aesthetic head on rows of some width."""
    ends = (width, 6, 5, 4, 3, 1)
    drawn = torch.Generator().manual_seed(1)
    found = {}
    for at, start, end in zip((0, 2, 4, 6, 7), ends, ends[1:], strict=False):
        found[f"layers.{at}.weight"] = torch.randn(end, start, generator=drawn)
        found[f"layers.{at}.bias"] = torch.randn(end, generator=drawn)
    return found


def save_head(path: Path, width: int = 12) -> Path:
    """The same in a file, safetensors or by its suffix a pickle as LAION's is."""
    if path.suffix == ".safetensors":
        save_file(head(width), path)
    else:
        torch.save(head(width), path)
    return path


def _save(cls: Any, config: Any, folder: Path) -> None:
    """With layers that are heard; the usual random ones give almost equal rows to all pictures."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = cls(config)
        for name, values in model.named_parameters():
            if "norm" in name and name.endswith("weight"):
                torch.nn.init.normal_(values, 1.0, 0.3)
            elif values.ndim > 1:
                torch.nn.init.normal_(values, 0.0, 0.3)
    model.save_pretrained(folder)


def _say(
    folder: Path, kind: str, shortest: int, crop: int, mean: list[float], std: list[float]
) -> None:
    told = {
        "crop_size": {"height": crop, "width": crop},
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "do_rescale": True,
        "image_mean": mean,
        "image_std": std,
        "image_processor_type": kind,
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": shortest},
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
