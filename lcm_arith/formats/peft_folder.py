"""PEFT's folder: ``adapter_config.json`` beside ``adapter_model.safetensors``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from lcm_arith.errors import InvalidContentError, NotFoundError, StorageError
from lcm_arith.formats.diffusers import ADAPTER_METADATA
from lcm_arith.formats.preflight import unpickling

CONFIG: Final = "adapter_config.json"
WEIGHTS: Final = "adapter_model.safetensors"
PICKLED: Final = "adapter_model.bin"  # PEFT's default before 0.7
MOST_CONFIG: Final = 2**20  # bytes
_COMPONENTS: Final = ("unet", "transformer", "text_encoder")

# Field → what it says when an update is no plain sum of factors.
_REFUSED: Final = {
    "lora_bias": "LoRA with trained biases",
    "fan_in_fan_out": "LoRA on transposed weights",
    "modules_to_save": "whole modules beside the LoRA",
    "trainable_token_indices": "trained token embeddings",
}
# Ways of starting a training that take out of the base what the factors begin with.
_SHIFTING: Final = ("pissa", "olora", "corda", "loftq", "lora_ga")


def whole(path: Path) -> Path:
    """The folder of a file whose alphas are in the configuration beside it; other paths as is."""
    beside = path.name == WEIGHTS and (path.parent / CONFIG).is_file()
    return path.parent if beside else path


def resolve(folder: Path, *, allow_pickle: bool = False) -> tuple[Path, dict[str, str]]:
    """The file with the numbers, and the configuration as a diffusers header says it.

    Args:
        folder: Of the two files.
        allow_pickle: Whether the numbers may be pickled; the file is not opened here.

    Raises:
        NotFoundError: If one of the two files is absent.
        InvalidContentError: If the configuration is no LoRA of factors alone, or the numbers are
            a pickle that is not allowed.
        StorageError: If it cannot be read.
    """
    config, weights = folder / CONFIG, folder / WEIGHTS
    if not weights.is_file() and (folder / PICKLED).is_file():
        weights = folder / PICKLED
        if not allow_pickle:
            raise InvalidContentError(
                f"{folder}: its numbers are in {PICKLED}, a pickle", hint=unpickling(folder)
            )
    for path in (config, weights):
        if not path.is_file():
            raise NotFoundError(
                f"{folder}: is a folder without {path.name}",
                hint="give a .safetensors file, or a folder that PEFT's save_pretrained wrote",
            )
    try:
        with config.open("rb") as file:
            text = file.read(MOST_CONFIG + 1)
    except OSError as error:
        raise StorageError(f"{config}: cannot be read ({error.strerror})") from error
    if len(text) > MOST_CONFIG:
        raise InvalidContentError(f"{config}: has more than {MOST_CONFIG >> 20} MiB")
    try:
        fields: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidContentError(f"{config}: is not JSON ({str(error)[:80]})") from None
    if not isinstance(fields, dict):
        raise InvalidContentError(f"{config}: is not an object")
    if fields.get("peft_type", "LORA") != "LORA":
        kind = str(fields["peft_type"])[:40]
        raise InvalidContentError(f"{config}: is of the kind {kind}, not LORA")
    for name, what in _REFUSED.items():
        if fields.get(name):
            raise InvalidContentError(f"{config}: {name}: {what}; that cannot be summed")
    start = str(fields.get("init_lora_weights", ""))
    if start.startswith(_SHIFTING):
        raise InvalidContentError(
            f"{config}: init_lora_weights: {start[:40]} moves a part of the base's weights "
            "into the factors; their product is no update of the base",
            hint="convert it to a plain LoRA with PEFT's path_initial_model_for_weight_conversion",
        )
    said = {f"{component}.{name}": v for component in _COMPONENTS for name, v in fields.items()}
    return weights, {ADAPTER_METADATA: json.dumps(said, sort_keys=True)}


def config_text(metadata: Mapping[str, str]) -> str:
    """``adapter_config.json`` of a file of one component, from its header."""
    said = json.loads(metadata[ADAPTER_METADATA])
    own = {name.partition(".")[2]: value for name, value in said.items()}
    fixed = {"peft_type": "LORA", "bias": "none", "lora_dropout": 0.0, "inference_mode": True}
    return json.dumps({**fixed, **own}, sort_keys=True, indent=2) + "\n"
