"""Target modules of the base families, their spellings, and which family an adapter fits.

A family's table holds every module with a weight: canonical name (diffusers' dotted path with its
component) → shape of the weight. ``tools/build_tables.py`` makes the tables from the published
configurations; the embedded model's is read from its own files.
"""

from __future__ import annotations

import json
import lzma
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files as resources
from pathlib import Path
from types import MappingProxyType
from typing import Final

from lcm_arith import dit
from lcm_arith.embedded import files

Shape = dit.Shape

# Targets are weights, named like their modules, and with one of these endings:
BIAS: Final = ".bias"  # its bias
GAIN: Final = ".gain"  # what a DoRA stretches each row of its weight by, see lcm_arith.dora
MAGNITUDE: Final = ".magnitude"  # the length of each row, in a DoRA's file

PUBLISHED: Final = ("sd15", "sd2", "ssd1b", "sdxl")
EMBEDDED: Final = "emoji"
FAMILIES: Final = (*PUBLISHED, EMBEDDED)

KOHYA_PREFIX: Final = {
    "unet": "lora_unet",
    "text_encoder": "lora_te",
    "text_encoder_2": "lora_te2",
    dit.COMPONENT: "lora_unet",
}


@cache
def table(family: str) -> Mapping[str, Shape]:
    """Canonical module → shape of its weight, in the order in which torch walks the model."""
    if family == EMBEDDED:
        return MappingProxyType(weight_shapes(files.MODEL))
    packed = resources("lcm_arith").joinpath("tables", f"{family}.json.xz").read_bytes()
    rows: dict[str, list[int]] = json.loads(lzma.decompress(packed))
    return MappingProxyType({module: tuple(shape) for module, shape in rows.items()})


@cache
def weight_shapes(base: Path) -> dict[str, Shape]:
    """The table of a diffusers folder's UNet and text encoders, from its files' headers."""
    shapes: dict[str, Shape] = {}
    for path in sorted(base.glob("*/*.safetensors")):
        if path.parent.name not in KOHYA_PREFIX:
            continue
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        for key, entry in header.items():
            if key.endswith(".weight"):
                module = f"{path.parent.name}.{key.removesuffix('.weight')}"
                shapes[with_text_model(module)] = tuple(entry["shape"])
    return shapes


_TEXT_MODEL: Final = re.compile(
    r"(?P<component>text_encoder(?:_2)?)\.(?P<path>(?:encoder\.layers|embeddings|final_layer_norm)\b.*)"
)


def with_text_model(module: str) -> str:
    """The canonical name of a text encoder's module; transformers 5.6 drops ``text_model.``."""
    found = _TEXT_MODEL.fullmatch(module)
    return f"{found['component']}.text_model.{found['path']}" if found else module


def kohya_name(module: str, *, text_encoders: int = 1) -> str:
    """Kohya's name of a canonical module with diffusers' block names.

    Args:
        module: Canonical.
        text_encoders: Of the family; with two, the first is ``lora_te1``.
    """
    component, path = module.split(".", 1)
    prefix = KOHYA_PREFIX[component]
    if component == "text_encoder" and text_encoders > 1:
        prefix = "lora_te1"
    return f"{prefix}_{path.replace('.', '_')}"


_RESNET: Final = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_OUTSIDE_BLOCKS: Final = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_BLOCK: Final = re.compile(
    r"(?P<side>down|up)_blocks\.(?P<level>\d+)\."
    r"(?P<kind>resnets|attentions|downsamplers|upsamplers)\.(?P<layer>\d+)(?:\.(?P<rest>.+))?"
)
_MIDDLE: Final = re.compile(r"mid_block\.(?P<kind>resnets|attentions)\.(?P<layer>\d)\.(?P<rest>.+)")


def sgm_path(path: str, *, attends: bool = True) -> str:
    """The path of a UNet module in Stability's checkpoints (``input_blocks.4.1.…``).

    Args:
        path: diffusers' path inside a UNet with two layers a block.
        attends: Whether the module's up block has attentions; places its upsampler.
    """
    if path in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[path]
    middle = _MIDDLE.fullmatch(path)
    if middle:
        first = middle["kind"] == "resnets"
        place = 2 * int(middle["layer"]) if first else 1
        return f"middle_block.{place}.{_inner(middle['kind'], middle['rest'])}"
    block = _BLOCK.fullmatch(path)
    if block is None:
        raise ValueError(f"{path}: no module of a UNet with SGM names")
    level, layer, kind = int(block["level"]), int(block["layer"]), block["kind"]
    if kind == "downsamplers":
        return f"input_blocks.{3 * level + 3}.0.op"
    if kind == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if attends else 1}.conv"
    at = f"input_blocks.{3 * level + 1 + layer}"
    if block["side"] == "up":
        at = f"output_blocks.{3 * level + layer}"
    return f"{at}.{0 if kind == 'resnets' else 1}.{_inner(kind, block['rest'])}"


def _inner(kind: str, rest: str) -> str:
    return _RESNET[rest] if kind == "resnets" else rest


@cache
def sgm_names(family: str) -> Mapping[str, str]:
    """Canonical UNet module → its dotted SGM path, for a family that has such names."""
    own = [m.removeprefix("unet.") for m in table(family) if m.startswith("unet.")]
    attending = {path.partition("attentions.")[0] for path in own if ".attentions." in path}
    return MappingProxyType(
        {
            f"unet.{path}": sgm_path(path, attends=path.partition("upsamplers.")[0] in attending)
            for path in own
        }
    )


@cache
def spellings(family: str) -> Mapping[str, str]:
    """Underscored name, as kohya and ComfyUI write it → canonical module."""
    found: dict[str, str] = {}
    for module in table(family):
        component, path = module.split(".", 1)
        found[kohya_name(module)] = module
        found[kohya_name(module, text_encoders=2)] = module
        found[f"{component}_{path.replace('.', '_')}"] = module
        if path.startswith("text_model."):  # the layer's name in transformers since 5.6
            flat = f"{component}.{path.removeprefix('text_model.')}"
            found[kohya_name(flat)] = found[kohya_name(flat, text_encoders=2)] = module
    if family in PUBLISHED:
        for module, path in sgm_names(family).items():
            found[f"lora_unet_{path.replace('.', '_')}"] = module
    return MappingProxyType(found)


@cache
def kernels(module: str) -> Mapping[int, Shape]:
    """Inputs · kh · kw of a convolution of that name → ``(in, kh, kw)``, in any family.

    Those of 1×1 are left out: the same layer is linear elsewhere.
    """
    shapes = (table(family).get(module, ()) for family in FAMILIES)
    return {math.prod(s[1:]): s[1:] for s in shapes if len(s) == 4 and s[2:] != (1, 1)}


@dataclass(frozen=True)
class Candidate:
    """A family that an adapter fits.

    Args:
        family: Its id.
        coverage: Share of the family's modules of the touched kinds that the adapter has.
    """

    family: str
    coverage: float


def candidates(shapes: Mapping[str, Shape]) -> tuple[Candidate, ...]:
    """The families that have every module in that shape, best covered first.

    Args:
        shapes: Canonical module → shape of its dense update.

    Returns:
        All that fit; more than one where shapes cannot tell them apart.
    """
    found = []
    for family in (*FAMILIES, *dit.TRANSFORMERS):
        fitting = [
            weights
            for weights in _weights(family)
            if all(fits(shape, target_shape(weights, m)) for m, shape in shapes.items())
        ]
        if fitting:
            found.append(Candidate(family, max(coverage(shapes, weights) for weights in fitting)))
    return tuple(sorted(found, key=lambda c: -c.coverage))


@cache
def _weights(family: str) -> tuple[Mapping[str, Shape], ...]:
    """The tables of a family's sizes and spellings; Flux and SD3 share CLIP with SDXL."""
    if family in FAMILIES:
        return (table(family),)
    encoders = ("text_encoder.",) if family == "flux" else ("text_encoder.", "text_encoder_2.")
    text = {module: shape for module, shape in table("sdxl").items() if module.startswith(encoders)}
    return tuple(
        {**dit.spelled(model, spelling), **text}
        for model in dit.layers(family)
        for spelling in (dit.OWN, dit.DIFFUSERS)
    )


def axes_of(shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Module → axes of its weight: 2 of a linear layer, 4 of a convolution.

    Of a 1×1 convolution both are found in files (LyCORIS stores it flat), but only one fits into a
    model's layer.

    Args:
        shapes: Canonical module → shape of its dense update; of all of an adapter.

    Returns:
        Of those modules alone on which all the families that fit agree.
    """
    families = [c.family for c in candidates(shapes) if c.family in FAMILIES] or FAMILIES
    found = {}
    for module, shape in shapes.items():
        weights = (table(family).get(module) for family in families)
        axes = {len(weight) for weight in weights if weight and fits(shape, weight)}
        if len(axes) == 1 and not is_vector(module):
            found[module] = axes.pop()
    return found


def target_shape(weights: Mapping[str, Shape], target: str) -> Shape | None:
    """Shape of a target by a table of weights; of a bias or gain, one number a row."""
    weight = weights.get(owner(target))
    return weight and weight[:1] if owner(target) != target else weight


def owner(target: str) -> str:
    """The module that a target belongs to."""
    stem, _, ending = target.rpartition(".")
    return stem if f".{ending}" in (BIAS, GAIN, MAGNITUDE) else target


def fits(update: Shape, weight: Shape | None) -> bool:
    """Whether an update has a weight's shape.

    A 1×1 convolution and a linear layer are alike, and so are a vector and a matrix of one column.
    """
    return weight is not None and _plain(update) == _plain(weight)


def _plain(shape: Shape) -> Shape:
    if len(shape) == 1:
        return (*shape, 1)
    return shape[:2] if shape[2:] == (1, 1) else shape


def is_vector(target: str) -> bool:
    """Whether a target is a list of numbers, not a matrix of a layer."""
    return owner(target) != target or is_norm(target)


def is_norm(target: str) -> bool:
    """Whether a target is the weight or bias of a normalisation."""
    return "norm" in owner(target).rpartition(".")[2]


def coverage(shapes: Mapping[str, Shape], weights: Mapping[str, Shape]) -> float:
    """Share of a table's modules with the touched endings that ``shapes`` has."""
    endings = {ending(module) for module in shapes}
    touched = [m for m in weights if ending(m) in endings]
    return len(shapes.keys() & set(touched)) / max(1, len(touched))


def ending(module: str) -> str:
    """Component and kind of layer: ``unet attn2.to_k``, ``unet conv1``."""
    component, *path = [part for part in module.split(".") if not part.isdigit()]
    kept = 2 if len(path) > 1 and path[-2].startswith("attn") else 1
    return f"{component} {'.'.join(path[-kept:])}"
