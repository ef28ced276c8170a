"""Where the weights of a whole model lie: a diffusers folder, or one Stability-style file.

The files people share (``model.diffusion_model.input_blocks.…``) hold UNet, text encoders and VAE.
OpenCLIP text encoders keep query, key and value in one tensor there, one below the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from lcm_arith.errors import IncompatibleError, InvalidContentError, NotFoundError
from lcm_arith.formats.pickles import is_pickle
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.modules import BIAS, GAIN, PUBLISHED, fits, sgm_names, table, with_text_model

_WEIGHTS: Final = (".safetensors", ".bin", ".pt", ".ckpt", ".msgpack")
COMPONENTS: Final = ("unet", "text_encoder", "text_encoder_2")
_FILES: Final = ("diffusion_pytorch_model.safetensors", "model.safetensors")
_TEXT_MODEL: Final = "text_model."


@dataclass(frozen=True)
class Place:
    """Where the values of a target lie.

    Args:
        file: Name of a file of the model.
        key: Of a tensor in it.
        rows: First row and count, where the tensor holds more than this; ``None`` for all of it.
        transposed: Whether the tensor holds ``[in, out]``.
    """

    file: str
    key: str
    rows: tuple[int, int] | None = None
    transposed: bool = False

    def of(self, tensor: Tensor) -> Tensor:
        """The part of the tensor that is meant, as a view."""
        part = tensor if self.rows is None else tensor.narrow(0, *self.rows)
        return part.T if self.transposed else part


@dataclass(frozen=True, eq=False)
class Model:
    """A whole model on disk.

    Args:
        path: Folder or file.
        files: Name within the folder → the checked file.
        places: Target (a module for its weight, ``MODULE.bias`` for its bias) → where it lies.
    """

    path: Path
    files: Mapping[str, SafeFile]
    places: Mapping[str, Place]

    @classmethod
    def open(cls, path: Path) -> Model:
        """The model at a path.

        Raises:
            NotFoundError: If nothing is there, or the folder holds no UNet.
            InvalidContentError: If a component is split into several files, a file is damaged, or
                it is no model whose names are known.
        """
        if path.is_dir():
            return _of_folder(path)
        if not path.exists():
            raise NotFoundError(f"{path}: no such model", hint="give a diffusers folder or a file")
        return _of_file(path)

    def place(self, target: str) -> Place | None:
        """Where a target lies; text encoders are named with and without ``text_model.``.

        A gain lies where its weight does.
        """
        target = target.removesuffix(GAIN)
        component, _, path = target.partition(".")
        other = f"{component}.{path.removeprefix(_TEXT_MODEL)}"
        if other == target and component != "unet":
            other = f"{component}.{_TEXT_MODEL}{path}"
        return self.places.get(target) or self.places.get(other)

    def weight(self, module: str) -> Tensor:
        """A module's weight.

        Raises:
            IncompatibleError: If the model has no such module.
        """
        place = self.place(module)
        if place is None:
            raise IncompatibleError(
                f"{self.path}: has no module {module}", hint="it is not the base of the adapter"
            )
        return self.read(place)

    def shape_of(self, module: str) -> tuple[int, ...] | None:
        """Shape of a module's weight; None where there is no such module."""
        place = self.place(module)
        return None if place is None else self.shape(place)

    def shape(self, place: Place) -> tuple[int, ...]:
        """Shape of the values at a place."""
        whole = self.files[place.file].entries[place.key].shape
        return tuple(place.of(torch.empty(whole, device="meta")).shape)

    def read(self, place: Place) -> Tensor:
        """The values at a place."""
        return place.of(self.files[place.file][place.key])

    def others(self) -> list[Place]:
        """What else UNet and text encoders hold: buffers, layers that the family does not have."""
        placed = {(place.file, place.key) for place in self.places.values()}
        return [
            Place(name, key)
            for name, file in self.files.items()
            for key in file
            if (name, key) not in placed
            and not key.endswith(_UNREAD)
            and (self.path.is_dir() or key.startswith(_PARTS))
        ]


def _target(component: str, key: str) -> str | None:
    """The canonical target of a key in a diffusers folder; None for a buffer."""
    if not key.endswith((".weight", BIAS)):
        return None
    return with_text_model(f"{component}.{key.removesuffix('.weight')}")


def _of_folder(folder: Path) -> Model:
    files, places = {}, {}
    for component in COMPONENTS:
        own = folder / component
        split = sorted(own.glob("*.safetensors.index.json"))
        if split:
            raise InvalidContentError(
                f"{split[0]}: the component is split into several files",
                hint="save the model again with max_shard_size above its size",
            )
        weights = sorted(p for p in own.glob("*") if p.suffix in _WEIGHTS)
        if not weights:
            continue
        path = weights[0]
        if len(weights) > 1 or path.name not in _FILES:
            raise InvalidContentError(
                f"{own}: its weights are in {', '.join(p.name for p in weights)}",
                hint=f"leave one file there, {' or '.join(_FILES)}",
            )
        name = f"{component}/{path.name}"
        files[name] = SafeFile.open(path, checkpoint=True)
        for key in files[name].entries:
            target = _target(component, key)
            if target is not None:
                places[target] = Place(name, key)
    if not any(target.startswith("unet.") for target in places):
        raise NotFoundError(
            f"{folder}: holds no unet/{_FILES[0]}", hint="give a folder in diffusers' layout"
        )
    return Model(folder, files, places)


def _of_file(path: Path) -> Model:
    if is_pickle(path):
        raise InvalidContentError(
            f"{path}: is a pickle (.ckpt, .bin, .pt), models are read as .safetensors alone",
            hint="convert it once with diffusers, if you trust it: "
            f"StableDiffusionPipeline.from_single_file({str(path)!r}).save_pretrained"
            f"({path.stem!r}); of SDXL StableDiffusionXLPipeline",
        )
    file = SafeFile.open(path, checkpoint=True)
    family = _family(file)
    if family is None:
        raise InvalidContentError(
            f"{path}: is no whole model whose names are known: no UNet of "
            f"{', '.join(PUBLISHED)} is in it",
            hint="give a diffusers folder, or a file with model.diffusion_model.… keys",
        )
    places = {}
    for module in table(family):
        for target, part in ((module, "weight"), (module + BIAS, "bias")):
            place = _stability(path.name, file, family, module, part)
            if place is not None:
                places[target] = place
    return Model(path, {path.name: file}, places)


def _family(file: SafeFile) -> str | None:
    """The family with the most modules whose UNet is all there; inputs may have other channels."""
    found = [
        family
        for family in PUBLISHED
        if all(
            f"{_UNET}{key}.weight" in file.entries
            and (
                module == "unet.conv_in"
                or fits(table(family)[module], file.entries[f"{_UNET}{key}.weight"].shape)
            )
            for module, key in sgm_names(family).items()
        )
    ]
    return max(found, key=lambda family: len(table(family)), default=None)


_UNET: Final = "model.diffusion_model."
_UNREAD: Final = (".position_ids", "logit_scale")  # which no sampler reads
_PARTS: Final = (_UNET, "cond_stage_model.", "conditioner.")
# Component of a family → prefix of its keys and whether it is written as OpenCLIP's.
_CLIP_L: Final = ("conditioner.embedders.0.transformer.", False)
_CLIP_G: Final = ("conditioner.embedders.1.model.", True)
_TEXT: Final[Mapping[str, Mapping[str, tuple[str, bool]]]] = {
    "sd15": {"text_encoder": ("cond_stage_model.transformer.", False)},
    "sd2": {"text_encoder": ("cond_stage_model.model.", True)},
    "ssd1b": {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
    "sdxl": {"text_encoder": _CLIP_L, "text_encoder_2": _CLIP_G},
}
# Path in CLIP, weight or bias → OpenCLIP's; N is the layer's number.
_OPEN_CLIP: Final = {
    "text_model.encoder.layers.N.self_attn.out_proj": "transformer.resblocks.N.attn.out_proj",
    "text_model.encoder.layers.N.mlp.fc1": "transformer.resblocks.N.mlp.c_fc",
    "text_model.encoder.layers.N.mlp.fc2": "transformer.resblocks.N.mlp.c_proj",
    "text_model.encoder.layers.N.layer_norm1": "transformer.resblocks.N.ln_1",
    "text_model.encoder.layers.N.layer_norm2": "transformer.resblocks.N.ln_2",
    "text_model.final_layer_norm": "ln_final",
    "text_model.embeddings.token_embedding": "token_embedding",
}
_STACKED: Final = ("q_proj", "k_proj", "v_proj")  # from the top
_LAYER: Final = re.compile(r"(?<=text_model\.encoder\.layers\.)\d+")


def _stability(name: str, file: SafeFile, family: str, module: str, part: str) -> Place | None:
    """Where such a file has a module's weight or bias."""
    component, path = module.split(".", 1)
    if component == "unet":
        return _at(name, file, f"{_UNET}{sgm_names(family)[module]}.{part}")
    prefix, open_clip = _TEXT[family][component]
    if not open_clip:
        bare = path.removeprefix(_TEXT_MODEL)  # as transformers 5 names them
        return _at(name, file, f"{prefix}{path}.{part}") or _at(
            name, file, f"{prefix}{bare}.{part}"
        )
    if part == "weight" and path == "text_projection":
        return _at(name, file, f"{prefix}text_projection", transposed=True)
    if part == "weight" and path == "text_model.embeddings.position_embedding":
        return _at(name, file, f"{prefix}positional_embedding")
    layer = _LAYER.search(path)
    number = layer[0] if layer else ""
    inner = path.rpartition(".")[2]
    if inner in _STACKED:
        key = f"{prefix}transformer.resblocks.{number}.attn.in_proj_{part}"
        return _at(name, file, key, third=_STACKED.index(inner))
    renamed = _OPEN_CLIP.get(_LAYER.sub("N", path), "").replace(".N.", f".{number}.")
    return _at(name, file, f"{prefix}{renamed}.{part}")


def _at(
    name: str, file: SafeFile, key: str, *, third: int | None = None, transposed: bool = False
) -> Place | None:
    entry = file.entries.get(key)
    if entry is None:
        return None
    size = entry.shape[0] // 3
    return Place(name, key, None if third is None else (third * size, size), transposed)
