"""Training pictures as latents and prompt embeddings, encoded once.

After :func:`encode` neither the VAE nor the text encoder is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from lcm_arith.embedded import pictures
from lcm_arith.errors import InvalidContentError, NotFoundError
from lcm_arith.sampling import encode_prompts

PICTURE_SUFFIXES: Final = (".png", ".jpg", ".jpeg", ".webp")
_CHUNK: Final = 64


@dataclass(frozen=True, eq=False)
class Captioned:
    """Pictures with captions.

    Args:
        pixels: uint8 ``[n, H, W, 3]``.
        captions: One per picture.
        origin: Where they come from, JSON-ready.
    """

    pixels: np.ndarray
    captions: tuple[str, ...]
    origin: dict[str, Any]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Latents and prompt embeddings.

    Args:
        z0: Scaled latents ``[n, C, h, w]``.
        embeds: Embeddings of the distinct captions ``[m, tokens, width]``.
        caption_of: Row of ``embeds`` of each picture, ``[n]``.
        uncond: Embedding of the empty caption ``[1, tokens, width]``.
    """

    z0: Tensor
    embeds: Tensor
    caption_of: Tensor
    uncond: Tensor

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """A batch with replacement: latents ``[count, C, h, w]``, embeddings of their captions."""
        rows = torch.randint(len(self.z0), (count,), generator=generator)
        return self.z0[rows], self.embeds[self.caption_of[rows]]


def embedded_pictures(sets: Sequence[str], part: str, count: int, *, tagged: int = 0) -> Captioned:
    """``count`` variations of every drawing of the named sets in a part, with its caption.

    Every ``tagged``-th variation has one of the thing's tags for a caption; 0 has none.
    """
    rows = [(name, c) for name in sets for c in pictures.concepts(part)]
    pixels = np.concatenate([pictures.variants(name, c, count) for name, c in rows])
    captions = tuple(_words(c, i, tagged) for _, c in rows for i in range(count))
    about = {"sets": list(sets), "part": part, "variants": count, "tagged": tagged}
    return Captioned(pixels, captions, about)


def _words(concept: pictures.Concept, variation: int, tagged: int) -> str:
    if not tagged or not concept.tags or variation % tagged:
        return concept.caption
    return concept.tags[variation // tagged % len(concept.tags)]


def folder_pictures(folder: Path, size: int) -> Captioned:
    """The pairs ``x.png`` + ``x.txt`` of a folder, square-cropped and resized to ``size`` px.

    Raises:
        NotFoundError: If there is no such folder.
        InvalidContentError: If it holds no picture, or pictures without caption or unreadable ones
            (all are listed).
    """
    if not folder.is_dir():
        raise NotFoundError(f"{folder}: no such folder", hint="--data takes a folder of pictures")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURE_SUFFIXES)
    if not paths:
        raise InvalidContentError(
            f"{folder}: holds no picture ({', '.join(PICTURE_SUFFIXES)})",
            hint="put pairs x.png and x.txt (the caption) there",
        )
    pixels, captions, problems = [], [], []
    for path in paths:
        try:
            caption = path.with_suffix(".txt").read_text(encoding="utf-8").strip()
            pixels.append(_read_picture(path, size))
            captions.append(caption)
            if not caption:
                problems.append(
                    f"{path.name}: its caption {path.with_suffix('.txt').name} is empty"
                )
        except FileNotFoundError:
            problems.append(f"{path.name}: lacks its caption {path.with_suffix('.txt').name}")
        except (OSError, UnidentifiedImageError, ValueError, Image.DecompressionBombError) as error:
            problems.append(f"{path.name}: cannot be read ({error})")
    if problems:
        raise InvalidContentError(
            f"{folder}: {len(problems)} of {len(paths)} pictures cannot be used:\n  "
            + "\n  ".join(problems[:5]),
            hint="every picture x.png needs its caption in x.txt, UTF-8",
        )
    return Captioned(np.stack(pixels), tuple(captions), {"pictures": len(paths)})


def _read_picture(path: Path, size: int) -> np.ndarray:
    with Image.open(path) as opened:
        picture = ImageOps.exif_transpose(opened).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    return np.asarray(ImageOps.fit(flat, (size, size), Image.Resampling.LANCZOS))


@torch.no_grad()
def encode(
    pipeline: Any, pictures: Captioned, *, on_chunk: Callable[[int, int], None] | None = None
) -> TrainingSet:
    """Latents (posterior means) and prompt embeddings of ``pictures``.

    Args:
        pipeline: The base model; its VAE and text encoder are used, its UNet is not.
        pictures: Pictures of the base model's size.
        on_chunk: Called with (pictures done, all pictures).
    """
    vae, latents = pipeline.vae, []
    for at in range(0, len(pictures.pixels), _CHUNK):
        x = torch.from_numpy(pictures.pixels[at : at + _CHUNK]).permute(0, 3, 1, 2).float()
        posterior = vae.encode((x / 127.5 - 1).to(vae.device)).latent_dist
        latents.append(posterior.mean.cpu() * vae.config.scaling_factor)
        if on_chunk:
            on_chunk(min(at + _CHUNK, len(pictures.pixels)), len(pictures.pixels))
    distinct = {caption: row for row, caption in enumerate(dict.fromkeys(pictures.captions))}
    return TrainingSet(
        torch.cat(latents),
        encode_prompts(pipeline, list(distinct)).cpu(),
        torch.tensor([distinct[caption] for caption in pictures.captions]),
        encode_prompts(pipeline, [""]).cpu(),
    )
