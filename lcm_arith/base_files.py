"""What a base model's files are: their kind, whether they can be trained on, and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lcm_arith.errors import IncompatibleError, InvalidContentError
from lcm_arith.formats.layouts import COMPONENTS
from lcm_arith.formats.pickles import is_pickle
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.modules import with_text_model

PARTS: Final = {
    "sd": ("unet", "vae", "text_encoder"),
    "sdxl": ("unet", "vae", "text_encoder", "text_encoder_2"),
}
_INDEX: Final = "model_index.json"
_KINDS: Final = {
    "StableDiffusionPipeline": "sd",
    "StableDiffusionImg2ImgPipeline": "sd",
    "StableDiffusionInpaintPipeline": "sd",  # of four channels, others are refused below
    "LatentConsistencyModelPipeline": "sd",
    "StableDiffusionXLPipeline": "sdxl",
    "StableDiffusionXLImg2ImgPipeline": "sdxl",
    "StableDiffusionXLInpaintPipeline": "sdxl",
}
_USE: Final = "give a text-to-image model of Stable Diffusion 1, 2 or XL"


@dataclass(frozen=True)
class Refusal:
    """A row of what cannot be a base.

    Args:
        applies: Whether it is so, from the configurations of UNet and VAE.
        why: It, in words.
    """

    applies: Callable[[Mapping[str, Any], Mapping[str, Any]], bool]
    why: str


REFUSALS: Final = (
    Refusal(
        lambda unet, vae: unet.get("time_cond_proj_dim") is not None,
        "its UNet is told the guidance weight (time_cond_proj_dim): it is a latent consistency "
        "model already",
    ),
    Refusal(
        lambda unet, vae: unet.get("in_channels", 4) != vae.get("latent_channels", 4),
        "its UNet takes more channels than its latents have, as inpainting and depth models do",
    ),
    Refusal(
        lambda unet, vae: unet.get("out_channels", 4) != vae.get("latent_channels", 4),
        "its UNet predicts other channels than its latents have",
    ),
    Refusal(
        lambda unet, vae: (
            unet.get("addition_embed_type") not in (None, "text_time")
            or any(unet.get(name) for name in ("class_embed_type", "encoder_hid_dim_type"))
        ),
        "its UNet is told more than a prompt and the picture's size",
    ),
    Refusal(
        lambda unet, vae: vae.get("latents_mean") is not None,
        "its VAE shifts each channel (latents_mean)",
    ),
)


def check_architecture(where: Path | str, unet: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
    """Raises IncompatibleError unless UNet and VAE of these configurations can be a base."""
    for row in REFUSALS:
        if row.applies(unet, vae):
            raise IncompatibleError(f"{where}: {row.why}", hint=_USE)


def folder_kind(folder: Path) -> str:
    """The kind ("sd" or "sdxl") of a diffusers folder, from its configurations.

    Raises:
        InvalidContentError: If it is no pipeline, or lacks a component.
        IncompatibleError: If it is one of another architecture.
    """
    index = _config(folder / _INDEX)
    name = str(index.get("_class_name"))
    if name not in _KINDS:
        raise IncompatibleError(f"{folder}: is a {name}, no model that is trained here", hint=_USE)
    kind = _KINDS[name]
    lacking = [part for part in PARTS[kind] if not (index.get(part) or [None])[0]]
    if lacking:
        raise InvalidContentError(
            f"{folder}: its {_INDEX} names no {' and no '.join(lacking)}", hint=_USE
        )
    unet, vae = (_config(folder / part / "config.json") for part in ("unet", "vae"))
    check_architecture(folder, unet, vae)
    return kind


def _config(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InvalidContentError(
            f"{path.parent}: is no diffusers pipeline, there is no {path.name}",
            hint="give a folder that save_pretrained wrote, or a .safetensors checkpoint",
        ) from None
    except (ValueError, RecursionError) as error:
        raise InvalidContentError(f"{path}: is not JSON ({str(error)[:80]})") from None
    if not isinstance(found, dict):
        raise InvalidContentError(f"{path}: is no JSON object")
    return found


def folder_digests(folder: Path, kind: str) -> dict[str, str]:
    """Component → sha256 of its weights; of several files, of their names and digests.

    Raises:
        InvalidContentError: If a component's weights are missing, damaged or not finite.
    """
    found = {}
    for part in PARTS[kind]:
        files = {
            path.name: _open(path).checked(keep=False)[0] for path in weight_files(folder / part)
        }
        listed = json.dumps(files, sort_keys=True).encode()
        (first, *others) = files.values()
        found[part] = hashlib.sha256(listed).hexdigest() if others else first
    return found


def check_complete(folder: Path, pipeline: Any, kind: str) -> None:
    """Raises InvalidContentError where a loaded layer has no values in the files.

    The libraries fill such layers with random numbers and go on.
    """
    for part in PARTS[kind]:
        stored = {
            _canonical(part, key) for path in weight_files(folder / part) for key in _open(path)
        }
        missing = [
            key
            for key in getattr(pipeline, part).state_dict()
            if _canonical(part, key) not in stored
            and not key.endswith("position_ids")
            # older VAEs name the layers of their attention otherwise
            and not (part == "vae" and ".attentions." in key)
        ]
        if missing:
            raise InvalidContentError(
                f"{folder / part}: {len(missing)} tensors of the model are missing from its files, "
                f"{missing[0]} for one",
                hint="download the model again",
            )


def _canonical(part: str, key: str) -> str:
    return with_text_model(f"{part}.{key}") if part in COMPONENTS else f"{part}.{key}"


def _open(path: Path) -> SafeFile:
    return SafeFile.open(path, checkpoint=True)


def weight_files(component: Path) -> list[Path]:
    """The files that diffusers and transformers read: one, or the parts of a split one."""
    for stem in ("diffusion_pytorch_model", "model"):
        index = component / f"{stem}.safetensors.index.json"
        if (whole := component / f"{stem}.safetensors").is_file():
            return [whole]
        if index.is_file():
            return [component / name for name in sorted(set(_config(index)["weight_map"].values()))]
    other = ", ".join(sorted(p.name for p in component.glob("*") if p.suffix != ".json"))
    raise InvalidContentError(
        f"{component}: holds no model.safetensors ({other or 'nothing'} is there)",
        hint="save the pipeline again with save_pretrained, without a variant",
    )


UNET_KEYS: Final = "model.diffusion_model."
_MARKS: Final = (
    (f"{UNET_KEYS}double_blocks.", "is a Flux transformer"),
    (f"{UNET_KEYS}joint_blocks.", "is a Stable Diffusion 3 transformer"),
    (f"{UNET_KEYS}time_embed.cond_proj.", REFUSALS[0].why),
    ("conditioner.embedders.0.model.", "is the refiner of SDXL"),
)
_NEEDED: Final = {
    "sd": (UNET_KEYS, "first_stage_model.", "cond_stage_model."),
    "sdxl": (
        UNET_KEYS,
        "first_stage_model.",
        "conditioner.embedders.0.",
        "conditioner.embedders.1.",
    ),
}
# Empty tensors by which checkpoints say what their scheduler must be.
SCHEDULER_MARKS: Final[Mapping[str, dict[str, Any]]] = {
    "v_pred": {"prediction_type": "v_prediction"},
    "ztsnr": {"rescale_betas_zero_snr": True},
}


def file_kind(file: SafeFile) -> str:
    """The kind ("sd" or "sdxl") of a single-file checkpoint, from the names in it.

    Raises:
        InvalidContentError: If it is no whole model.
        IncompatibleError: If it is one of another architecture.
    """
    for prefix, why in _MARKS:
        if any(key.startswith(prefix) for key in file):
            raise IncompatibleError(f"{file.path}: {why}", hint=_USE)
    kind = "sdxl" if any(key.startswith("conditioner.") for key in file) else "sd"
    lacking = [
        prefix for prefix in _NEEDED[kind] if not any(key.startswith(prefix) for key in file)
    ]
    if lacking:
        raise InvalidContentError(
            f"{file.path}: is no whole checkpoint, it has no {lacking[0]}… tensors",
            hint="a base holds UNet, text encoders and VAE; an adapter or a bare UNet is none",
        )
    entry = file.entries.get(f"{UNET_KEYS}input_blocks.0.0.weight")
    if entry is not None:
        check_architecture(file.path, {"in_channels": entry.shape[1]}, {})
    return kind


def file_digest(path: Path) -> tuple[SafeFile, str]:
    """A single-file checkpoint and its sha256.

    Raises:
        InvalidContentError: If it is a pickle, damaged, or not finite.
    """
    if is_pickle(path):
        raise InvalidContentError(
            f"{path}: is a pickle (.ckpt, .bin, .pt), models are read as .safetensors alone",
            hint="convert it once with diffusers, if you trust it",
        )
    file = _open(path)
    return file, file.checked(keep=False)[0]
