"""Training data: sources, captions, shapes, the cache, and batches."""

import io
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lcm_arith.condition import Condition
from lcm_arith.data import encoding, pixels, store
from lcm_arith.data.captions import forms
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.options import DataOptions
from lcm_arith.data.prepare import prepare
from lcm_arith.data.sources import survey
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    LcmArithError,
    NotFoundError,
    OutputExistsError,
    UsageError,
)


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
        return blocks.mean((2, 4)).permute(0, 3, 1, 2)  # [n, 3, h/8, w/8]


def picture(colour: int, size: tuple[int, int] = (32, 32)) -> Image.Image:
    """Wide, high; darker to the right, so that it is known when it is mirrored."""
    ramp = np.linspace(colour, colour // 4, size[0]).astype(np.uint8)
    return Image.fromarray(np.broadcast_to(ramp[None, :, None], (size[1], size[0], 3)).copy())


@pytest.fixture
def base() -> Any:
    return Counting()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    (data / "more").mkdir(parents=True)
    for at, name in enumerate(("a.png", "b.png", "more/c.png")):
        picture(100 + 50 * at).save(data / name)
        (data / name).with_suffix(".txt").write_text(f"caption {name[-5]}\n")
    return data


def tensors(data: TrainingSet) -> dict[str, Tensor]:
    """All that a set may draw, by key."""
    keys = [f"{key}.z0" for row in data.rows for key in row.latents]
    return {key: data.store[key] for key in keys} | {
        text: data.store[f"{key}.embeds"] for text, key in data.embeds.items()
    }


def same(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


def test_a_folder_is_read_with_all_below_it_and_each_picture_keeps_its_caption(
    base: Any, folder: Path
) -> None:
    data = prepare(base, folder)
    assert [(row.name, row.captions) for row in data.rows] == [
        ("a.png", ("caption a",)),
        ("b.png", ("caption b",)),
        ("more/c.png", ("caption c",)),
    ]
    drawn = data.batch(0, 3, seed=0)
    for z0, embeds, caption in zip(drawn.z0, drawn.cond["embeds"], drawn.captions, strict=True):
        at = "abc".index(caption[-1])
        wanted = base.to_latents(np.asarray(picture(100 + 50 * at))[None])[0]
        assert torch.equal(z0, wanted)
        assert torch.equal(embeds, base.encode([caption])["embeds"][0])
    assert torch.equal(data.uncond(drawn.cond)["embeds"], torch.zeros(3, 1, 4))
    assert (data.pictures, data.skipped, data.origin["pictures"]) == (3, (), 3)


def test_an_epoch_shows_each_picture_as_often_as_its_repeats_and_one_bucket_a_batch(
    base: Any, tmp_path: Path
) -> None:
    sizes = [(32, 32)] * 5 + [(64, 16)] * 3
    for at, size in enumerate(sizes):
        picture(100 + at, size).save(tmp_path / f"{at}.png")
    rows = [{"file_name": f"{at}.png", "text": str(at)} for at in range(8)]
    rows[7]["repeats"] = "3"
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = prepare(base, tmp_path, DataOptions(bucket_step=16))
    assert data.batches(4) == 2 + 2  # 5 squares, 5 wide ones with the repeats
    epochs = []
    for epoch in range(3):
        drawn = [data.batch(4 * epoch + at, 4, seed=7) for at in range(4)]
        assert sorted(len(each.captions) for each in drawn) == [1, 1, 4, 4]
        assert all({c > "4" for c in each.captions} in ({True}, {False}) for each in drawn)
        epochs.append([caption for each in drawn for caption in each.captions])
        assert Counter(epochs[-1]) == Counter("01234567777"[:8] + "77")
    assert epochs[0] != epochs[1] != epochs[2]
    again = prepare(base, tmp_path, DataOptions(bucket_step=16))
    assert again.batch(9, 4, seed=7).captions == data.batch(9, 4, seed=7).captions
    assert data.batch(9, 4, seed=8).captions != data.batch(9, 4, seed=7).captions


def test_three_pictures_make_a_batch_of_three_when_four_are_asked_for(
    base: Any, folder: Path
) -> None:
    data = prepare(base, folder)
    assert data.batches(4) == 1
    assert sorted(data.batch(5, 4, seed=0).captions) == ["caption a", "caption b", "caption c"]
    with pytest.raises(UsageError, match="at least 1"):
        data.batch(0, 0, seed=0)
