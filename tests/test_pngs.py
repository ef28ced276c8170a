"""Pictures say how they were made; AUTOMATIC1111's way of reading finds it, ours finds all."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hostile_strings import HOSTILE
from PIL import Image

from lcm_arith.errors import InvalidContentError
from lcm_arith.evaluation.drawing.pngs import (
    Lora,
    lora_hash,
    picture_bytes,
    read_told,
    told_of_loras,
)

PIXELS = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)
SETTINGS: dict[str, Any] = {
    "steps": 4, "sampler": "dpm++", "guidance": 7.5, "seed": 3, "model": "emoji, my:model",
    "model_hash": "0123456789",
}  # fmt: skip


def as_a1111_reads(text: str) -> dict[str, str]:
    """Prompt, negative prompt and settings, scanned by hand after A1111's rules.

    The last line holds the settings if it has three or more. Lines are stripped; from the first one
    that begins so, they belong to the negative prompt. A setting is NAME: VALUE, up to a comma, or
    a JSON string.
    """
    *lines, last = text.strip().split("\n")
    prompts: dict[str, list[str]] = {"Prompt": [], "Negative prompt": []}
    place = "Prompt"
    for line in map(str.strip, lines):
        if line.startswith("Negative prompt:"):
            place, line = "Negative prompt", line.removeprefix("Negative prompt:").strip()
        prompts[place].append(line)
    found = {name: "\n".join(each) for name, each in prompts.items()}
    settings = {}
    while last:
        name, colon, rest = last.partition(":")
        assert colon, last
        assert re.fullmatch(r"\w[\w \-/]+", name.strip()), name
        rest = rest.lstrip()
        if rest.startswith('"'):
            value, end = json.JSONDecoder().raw_decode(rest)
            rest = rest[end:]
        else:
            value, comma, rest = rest.partition(",")
            rest = comma + rest
        assert not rest or rest.startswith(","), rest
        settings[name.strip()], last = value, rest[1:]
    assert len(settings) >= 3
    return found | settings


def shown(told: dict[str, Any], folder: Path) -> tuple[dict[str, str], dict[str, Any]]:
    """What A1111 reads of a picture, and what we do."""
    path = folder / "x.png"
    path.write_bytes(picture_bytes(PIXELS, told))
    with Image.open(path) as picture:
        assert np.array_equal(np.asarray(picture), PIXELS)
        text = picture.info["parameters"]
    return as_a1111_reads(text), read_told(path)


PROMPTS = (
    'a "quoted" fox, Steps: 3, Sampler: Euler, CFG scale: 1, Seed: 9, Size: 1x1',
    "red apple\nSteps: 3, Sampler: Euler, CFG scale: 1, Seed: 9",
    "back\\slash, comma: colon",
    "рыжая лиса 🦊 λ₁",
    "café",
)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("negative", ["", *PROMPTS])
def test_a1111_reads_what_was_told(prompt: str, negative: str, tmp_path: Path) -> None:
    told = {**SETTINGS, "prompt": prompt, **({"negative": negative} if negative else {})}
    theirs, ours = shown(told, tmp_path)
    assert (theirs["Prompt"], theirs["Negative prompt"]) == (prompt, negative)
    assert {name: theirs[name] for name in ("Steps", "Sampler", "CFG scale", "Seed", "Size")} == {
        "Steps": "4", "Sampler": "DPM++ 2M", "CFG scale": "7.5", "Seed": "3", "Size": "12x8",
    }  # fmt: skip
    assert (theirs["Model hash"], theirs["Model"]) == ("0123456789", "emoji mymodel")
    assert theirs["Version"].startswith("lcm-arith ")
    assert ours == told


@pytest.mark.parametrize("prompt", [*HOSTILE.values(), "Negative prompt: fox", "", "<lora:x:9>"])
def test_any_text_comes_back_exactly_and_leaves_the_settings_alone(
    prompt: str, tmp_path: Path
) -> None:
    told = {**SETTINGS, "prompt": prompt, "negative": prompt, "note": prompt}
    theirs, ours = shown(told, tmp_path)
    assert ours == told
    assert (theirs["Steps"], theirs["Seed"], theirs["Size"]) == ("4", "3", "12x8")


def test_the_bytes_depend_on_content_alone() -> None:
    told = {**SETTINGS, "prompt": "fox"}
    assert picture_bytes(PIXELS, told) == picture_bytes(PIXELS, dict(reversed(told.items())))
    assert picture_bytes(PIXELS, told) != picture_bytes(PIXELS, {**told, "seed": 4})


def test_vectors_are_named_as_a1111_names_them(tmp_path: Path) -> None:
    file = tmp_path / "ink, fine: 2.safetensors"
    file.write_bytes((4).to_bytes(8, "little") + b"head" + b"tensors")
    digest = lora_hash(file)
    told = told_of_loras([Lora(str(file), "0.9", digest, "1.2/0.9/0.6"), Lora("lcm", "1", digest)])
    theirs, _ = shown({**SETTINGS, "prompt": "fox", **told}, tmp_path)
    assert theirs["Prompt"] == "fox <lora:ink-fine-2:0.9> <lora:lcm:1>"
    short = hashlib.sha256(b"tensors").hexdigest()[:12]
    assert theirs["Lora hashes"] == f"ink-fine-2: {short}, lcm: {short}"
    assert theirs["Lora weights"] == "ink-fine-2: 1.2/0.9/0.6"


def test_a_picture_without_words_is_an_error(tmp_path: Path) -> None:
    Image.fromarray(PIXELS).save(tmp_path / "x.png")
    (tmp_path / "y.png").write_text("no picture")
    for name in ("x.png", "y.png"):
        with pytest.raises(InvalidContentError, match="no PNG that says"):
            read_told(tmp_path / name)
