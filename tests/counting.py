"""A base model that counts what it encodes, and pictures for it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lcm_arith.condition import Condition
from lcm_arith.data.drawing import TrainingSet


class Words:
    """A tokenizer whose tokens are words."""

    model_max_length = 7  # 5 words

    def __call__(self, prompts: Sequence[str], **_: Any) -> Any:
        return SimpleNamespace(input_ids=[p.split() for p in prompts])


class Counting:
    """Stands in for a base model: 8 px a latent, means of blocks; embeddings of the letters."""

    size, latent_scale, digest, zero_uncond = 32, 8, "base", False

    def __init__(self, kind: str = "sd", vae: str = "v", text: str = "t") -> None:
        self.kind, self.family = kind, kind
        self.parts = {"vae": vae, "text_encoder": text, "unet": "u"}
        self.pipeline = SimpleNamespace(tokenizer=Words())
        self.pictures = self.prompts = 0

    def encode(
        self, prompts: Sequence[str], *, clip_skip: int = 0, max_tokens: int | None = None
    ) -> Condition:
        self.prompts += len(prompts)
        letters = [[len(p), sum(map(ord, p)), clip_skip, max_tokens or 0] for p in prompts]
        told = {"embeds": torch.tensor(letters).float()[:, None]}  # [B, 1, 4]
        return told | ({"pooled": told["embeds"][:, 0, :2]} if self.kind == "sdxl" else {})

    def uncond(self, **how: Any) -> Condition:
        empty = self.encode([""], **how)
        self.prompts -= 1
        return empty

    def to_latents(self, shown: np.ndarray) -> Tensor:
        self.pictures += len(shown)
        n, h, w, _ = shown.shape
        blocks = torch.from_numpy(shown.copy()).float().reshape(n, h // 8, 8, w // 8, 8, 3)
        return blocks.mean((2, 4)).permute(0, 3, 1, 2) / 127  # [n, 3, h/8, w/8]


def picture(colour: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Wide, high; darker to the right, so that it is known when it is mirrored."""
    ramp = np.linspace(colour, colour // 4, size[0]).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(ramp[None, :, None], (size[1], size[0], 3)).copy())


def three_pictures(folder: Path) -> Path:
    """``a.png``, ``b.png`` and ``more/c.png``, each lighter than the one before, with captions."""
    (folder / "more").mkdir(parents=True)
    for at, name in enumerate(("a.png", "b.png", "more/c.png")):
        picture(100 + 50 * at).save(folder / name)
        (folder / name).with_suffix(".txt").write_text(f"caption {name[-5]}\n")
    return folder


def tensors(data: TrainingSet) -> dict[str, Tensor]:
    """All that a set may draw, by key."""
    keys = [f"{key}.z0" for row in data.rows for key in row.latents]
    return {key: data.store[key] for key in keys} | {
        text: data.store[f"{key}.embeds"] for text, key in data.embeds.items()
    }


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
