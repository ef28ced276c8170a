"""What the families are built of: published configurations, and the parameters of each part.

Nothing heavy is imported for sizes and tables; :func:`meta_unet` builds a UNet without weights.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lcm_arith.embedded import files
from lcm_arith.errors import NotFoundError
from lcm_arith.modules import EMBEDDED, PUBLISHED, Shape, table, weight_shapes

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
UNETS: Final[Mapping[str, Mapping[str, Any]]] = {
    "sd15": _SD,
    "sd2": {
        **_SD,
        "sample_size": 96,
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
"""Arguments of diffusers' UNet2DConditionModel, where they differ from its defaults."""

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
TEXT_ENCODERS: Final[Mapping[str, tuple[Mapping[str, int], ...]]] = {
    "sd15": (_CLIP_L,),
    "sd2": (_OPEN_CLIP_H,),
    "ssd1b": (_CLIP_L, _OPEN_CLIP_G),
    "sdxl": (_CLIP_L, _OPEN_CLIP_G),
}
"""Arguments of transformers' CLIPTextConfig; the second encoder is one with projection."""

_VAE: Final = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
}
VAES: Final[Mapping[str, Mapping[str, Any]]] = dict.fromkeys(PUBLISHED, _VAE)
"""Arguments of diffusers' AutoencoderKL."""

PARAMETERS: Final = "parameters.json"
"""File beside the tables: family → component → its parameters, by ``tools/build_tables.py``."""


@dataclass(frozen=True)
class Architecture:
    """The sizes of a base model.

    Args:
        modules: UNet module, without its component → shape of its weight.
        parameters: Component (``unet``, ``text_encoder``, ``text_encoder_2``, ``vae``) → count.
        latent_scale: Pixels a latent, along a side.
        tokens: Length of a prompt's embedding.
    """

    modules: Mapping[str, Shape]
    parameters: Mapping[str, int]
    latent_scale: int
    tokens: int

    @property
    def text_encoder_parameters(self) -> int:
        """Of all text encoders together."""
        return sum(n for part, n in self.parameters.items() if part.startswith("text_encoder"))


@cache
def architecture(family: str) -> Architecture:
    """The sizes of a family, without a network and without torch.

    Raises:
        NotFoundError: If the family is neither published nor the embedded one.
    """
    if family == EMBEDDED:
        return of_folder(files.MODEL)
    known(family)
    stored = resources("lcm_arith").joinpath("tables", PARAMETERS).read_text(encoding="utf-8")
    return _architecture(table(family), json.loads(stored)[family], VAES[family])


def of_folder(folder: Path) -> Architecture:
    """The sizes of a diffusers folder, from its configurations and its files' headers."""
    vae = json.loads((folder / "vae" / "config.json").read_text(encoding="utf-8"))
    return _architecture(weight_shapes(folder), _counted(folder), vae)


def _architecture(
    shapes: Mapping[str, Shape], parameters: Mapping[str, int], vae: Mapping[str, Any]
) -> Architecture:
    own = {m.removeprefix("unet."): s for m, s in shapes.items() if m.startswith("unet.")}
    return Architecture(
        modules=MappingProxyType(own),
        parameters=MappingProxyType(dict(parameters)),
        latent_scale=2 ** (len(vae["block_out_channels"]) - 1),
        tokens=max(s[0] for m, s in shapes.items() if m.endswith(".position_embedding")),
    )


def _counted(folder: Path) -> dict[str, int]:
    """Component → parameters in its files; the position ids that old files hold are none."""
    sizes: dict[str, dict[str, int]] = {}
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name not in ("unet", "text_encoder", "text_encoder_2", "vae"):
            continue
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for key, entry in header.items():
            if key != "__metadata__" and not key.endswith("position_ids"):
                sizes.setdefault(path.parent.name, {})[key] = math.prod(entry["shape"])
    return {component: sum(found.values()) for component, found in sizes.items()}


def known(family: str) -> None:
    """Raises unless the configuration of ``family`` is published here.

    Raises:
        NotFoundError: If it is not.
    """
    if family not in UNETS:
        raise NotFoundError(
            f"{family}: no family whose configuration is known here",
            hint=f"one of {', '.join((*UNETS, EMBEDDED))}",
        )


def meta_unet(family: str) -> Any:
    """The family's UNet2DConditionModel on the meta device: shapes alone.

    Raises:
        NotFoundError: If the family is neither published nor the embedded one.
    """
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        if family == EMBEDDED:
            config = UNet2DConditionModel.load_config(files.MODEL / "unet")
            return UNet2DConditionModel.from_config(config)
        known(family)
        return UNet2DConditionModel(**UNETS[family])


def meta_parts(family: str) -> dict[str, Any]:
    """Component → network on the meta device, of a published family.

    Raises:
        NotFoundError: If it is not published.
    """
    import torch
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    known(family)
    parts: dict[str, Any] = {"unet": meta_unet(family)}
    with torch.device("meta"):
        for index, sizes in enumerate(TEXT_ENCODERS[family]):
            config: Any = CLIPTextConfig
            kind: Any = CLIPTextModelWithProjection if index else CLIPTextModel
            name = f"text_encoder_{index + 1}" if index else "text_encoder"
            parts[name] = kind(config(vocab_size=49408, **sizes))
        parts["vae"] = AutoencoderKL(**VAES[family])
    return parts
