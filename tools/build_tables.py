"""Module tables of the base families, from their published configurations on the meta device.

Writes ``lcm_arith/tables/FAMILY.json.xz``: canonical module → shape of its weight. No weights are
needed and none are made.

    python tools/build_tables.py
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

FOLDER: Final = Path(__file__).resolve().parents[1] / "lcm_arith" / "tables"

_SD: Final = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8}
_XL: Final = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS: Final[dict[str, dict[str, Any]]] = {
    "sd15": _SD,
    "sd2": {
        **_SD,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    "ssd1b": {
        **_XL,
        "transformer_layers_per_block": (1, 2, 4),
        "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
        "mid_block_type": "UNetMidBlock2D",
    },
    "sdxl": _XL,
}
_CLIP_L: Final = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12,
    "num_attention_heads": 12, "projection_dim": 768,
}  # fmt: skip
_OPEN_CLIP_H: Final = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23,
    "num_attention_heads": 16, "projection_dim": 512,
}  # fmt: skip
_OPEN_CLIP_G: Final = {
    "hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32,
    "num_attention_heads": 20, "projection_dim": 1280,
}  # fmt: skip
TEXT_ENCODERS: Final[dict[str, tuple[dict[str, int], ...]]] = {
    "sd15": (_CLIP_L,),
    "sd2": (_OPEN_CLIP_H,),
    "ssd1b": (_CLIP_L, _OPEN_CLIP_G),
    "sdxl": (_CLIP_L, _OPEN_CLIP_G),
}


def table(family: str) -> dict[str, list[int]]:
    """Canonical module → shape of its weight, for UNet and text encoders, in traversal order."""
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        parts: dict[str, nn.Module] = {"unet": UNet2DConditionModel(**UNETS[family])}
        for index, sizes in enumerate(TEXT_ENCODERS[family]):
            config: Any = CLIPTextConfig
            kind: Any = CLIPTextModelWithProjection if index else CLIPTextModel
            name = f"text_encoder_{index + 1}" if index else "text_encoder"
            parts[name] = kind(config(vocab_size=49408, **sizes))
    return {
        f"{name}.{canonical(path) if name != 'unet' else path}": list(module.weight.shape)
        for name, part in parts.items()
        for path, module in part.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor)
    }


def canonical(path: str) -> str:
    """A text encoder's path as published files have it; transformers 5 dropped ``text_model.``."""
    if path.startswith(("text_model.", "text_projection")):
        return path
    return f"text_model.{path}"


def packed(rows: dict[str, list[int]]) -> bytes:
    """The bytes of a table's file; the same rows give the same bytes."""
    text = json.dumps(rows, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for family in UNETS:
        rows = table(family)
        path = FOLDER / f"{family}.json.xz"
        path.write_bytes(packed(rows))
        print(f"{path.name}: {len(rows)} modules, {path.stat().st_size / 1024:.1f} KiB")


if __name__ == "__main__":
    main()
