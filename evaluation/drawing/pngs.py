"""PNGs that say how they were made, to people's tools and to ours.

Chunk ``parameters`` is what AUTOMATIC1111's web UI, its forks, Civitai and file browsers read. Its
format is theirs and lossy: it has no λ per step, and a line of a prompt that begins with "Negative
prompt:" counts as one. Chunk ``lcm-arith`` is JSON and keeps everything exactly.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lcm_arith.errors import InvalidContentError

Told = Mapping[str, str | int | float]
"""What a picture says of itself.

``prompt``, ``negative``, ``sampler`` (a name of SAMPLERS), ``steps``, ``guidance``, ``seed``,
``model``, ``model_hash`` and those of :func:`told_of_loras` are understood by others, too; other
names are kept for ours. Without a ``prompt`` there is no chunk for others.
"""

OWN: Final = "lcm-arith"
_OTHERS: Final = "parameters"
_SAMPLERS: Final = {
    "lcm": "LCM",
    "dpm++": "DPM++ 2M",
    "ddim": "DDIM",
    "euler": "Euler",
    "tcd": "TCD",
}
"""Ours → A1111's name, or what its forks call it."""


@dataclass(frozen=True)
class Lora:
    """A vector that took part.

    Args:
        name: Shipped or registered name, or a path.
        weight: λ as a decimal string.
        digest: :func:`lora_hash` of its file; empty where there is not one safetensors file.
        schedule: λ per step as it is written, ``1.2/1.0/0.6``; empty where it is the same in all.
    """

    name: str
    weight: str
    digest: str = ""
    schedule: str = ""


def told_of_loras(loras: Sequence[Lora]) -> dict[str, str]:
    """The parts of :data:`Told` that name vectors: ``loras``, ``lora_hashes``, ``lora_weights``.

    A prompt of A1111 names its LoRAs as ``<lora:NAME:λ>``. It has no λ per step: the tag then holds
    the mean, and ``lora_weights`` what it was.
    """
    names = {lora: _tag_name(lora.name) for lora in loras}
    told = {
        "loras": " ".join(f"<lora:{names[lora]}:{lora.weight}>" for lora in loras),
        "lora_hashes": ", ".join(f"{names[lora]}: {lora.digest}" for lora in loras if lora.digest),
        "lora_weights": ", ".join(
            f"{names[lora]}: {lora.schedule}" for lora in loras if lora.schedule
        ),
    }
    return {name: text for name, text in told.items() if text}


def _tag_name(name: str) -> str:
    """A file's name without suffix, and without what would end it in a prompt."""
    stem = Path(name).stem if name.endswith(".safetensors") else Path(name).name
    return re.sub(r"[:,<>\s\0]+", "-", stem).strip("-")


def lora_hash(file: Path) -> str:
    """A1111's hash of an adapter (Civitai's AutoV3): 12 hex digits of what follows the header."""
    digest = hashlib.sha256()
    with file.open("rb") as adapter:
        adapter.seek(8 + int.from_bytes(adapter.read(8), "little"))
        while block := adapter.read(2**20):
            digest.update(block)
    return digest.hexdigest()[:12]


def picture_bytes(pixels: np.ndarray, told: Told) -> bytes:
    """A PNG, the same bytes for the same content.

    Args:
        pixels: uint8 ``[H, W, 3]``.
        told: What it says of itself.
    """
    info = PngInfo()
    height, width, _ = pixels.shape
    if "prompt" in told:
        info.add_text(_OTHERS, parameters(told, width, height))  # iTXt where it is not Latin-1
    info.add_text(OWN, json.dumps(dict(told), sort_keys=True, separators=(",", ":")))
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", pnginfo=info)
    return buffer.getvalue()


def parameters(told: Told, width: int, height: int) -> str:
    """The text that A1111 writes: prompt, negative prompt, and one line of settings.

    Args:
        told: As it is kept.
        width: Of the picture, px.
        height: Of the picture, px.

    Source:
        AUTOMATIC1111/stable-diffusion-webui 1.10, ``create_infotext`` writes and
        ``parse_generation_parameters`` reads it.
    """
    sampler = str(told.get("sampler", ""))
    settings = {
        "Steps": told.get("steps"),
        "Sampler": _SAMPLERS.get(sampler, sampler),
        "CFG scale": f"{float(told['guidance']):g}" if "guidance" in told else None,
        "Seed": told.get("seed"),
        "Size": f"{width}x{height}",
        "Model hash": told.get("model_hash"),
        "Model": re.sub("[,:]", "", str(told.get("model", ""))),
        "RNG": "CPU",  # where sampling.denoise draws its noise; theirs is the GPU's
        "Lora hashes": told.get("lora_hashes"),
        "Lora weights": told.get("lora_weights"),
        "Version": _version(),
    }
    listed = (f"{name}: {_quoted(value)}" for name, value in settings.items() if value not in _NONE)
    prompt = " ".join(str(told[name]) for name in ("prompt", "loras") if told.get(name))
    negative = [f"Negative prompt: {told['negative']}"] if told.get("negative") else []
    text = "\n".join((prompt, *negative, ", ".join(listed))).strip()
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}").encode("utf-8", "replace").decode()


@cache
def _version() -> str:
    return f"lcm-arith {version('lcm-arith')}"


_NONE: Final = (None, "")


def _quoted(value: object) -> str:
    """As JSON where A1111 would take it for more than one value, or for a quotation."""
    text = str(value)
    plain = not re.search(r'[,:\n]|^"|^\s|\s$', text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def read_told(path: Path) -> dict[str, str | int | float]:
    """What a picture of :func:`picture_bytes` says of itself.

    Raises:
        InvalidContentError: If it says nothing, or is no PNG.
    """
    try:
        with Image.open(path, formats=["PNG"]) as picture:
            picture.load()
            told = json.loads(getattr(picture, "text", {})[OWN])
    except (OSError, SyntaxError, KeyError, ValueError) as error:
        raise InvalidContentError(
            f"{path}: no PNG that says how it was made", hint="pictures of lcm-arith do"
        ) from error
    if not isinstance(told, dict):
        raise InvalidContentError(f"{path}: chunk {OWN!r} is no JSON object")
    return told
