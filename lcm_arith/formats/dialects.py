"""Adapter files of every dialect → updates of canonical modules, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.formats import diffusers
from lcm_arith.formats.keys import Sorted, sort_keys
from lcm_arith.formats.kinds import update
from lcm_arith.formats.preflight import shown
from lcm_arith.modules import PUBLISHED, kohya_name, sgm_names

_SHOWN: Final = 5  # lines of a list in an error


@dataclass(frozen=True, eq=False)
class Parsed:
    """What a file holds.

    Args:
        deltas: Canonical module → update.
        kinds: Kind of adapter → number of modules.
        without_alpha: Modules whose alpha is nowhere in the file, so that it is their rank.
    """

    deltas: Mapping[str, LowRankDelta]
    kinds: Mapping[str, int]
    without_alpha: int


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> Parsed:
    """Updates of canonical modules from a file's tensors and header, in whatever dialect.

    Args:
        tensors: Key → tensor.
        metadata: The header's ``__metadata__``.
        where: Named in errors, usually the path.

    Raises:
        InvalidContentError: If a key maps to nothing, is there twice, or belongs to a kind of
            adapter that is no sum of factors; or if a module's parts make up no update.
    """
    found = sort_keys(tensors)
    _check_keys(found, len(tensors), where)
    alphas = diffusers.Alphas(metadata, where)
    deltas: dict[str, LowRankDelta] = {}
    kinds: Counter[str] = Counter()
    broken, silent = [], 0
    for module, keys in sorted(found.parts.items()):
        parts = {part: tensors[key] for part, key in keys.items()}
        try:
            alpha = None
            if "alpha" not in parts and "down" in parts:
                alpha = alphas.of(module, int(parts["down"].shape[0]))
                silent += alpha is None
            kind, deltas[module] = update(parts, alpha)
            kinds[kind] += 1
        except InvalidContentError as error:
            broken.append(f"{module}: {error.message}")
    if broken:
        raise InvalidContentError(
            f"{where}: {len(broken)} of {len(found.parts)} target modules cannot be read:"
            f"{_listed(broken)}",
            hint="the file is damaged, mixes two adapters, or is of a kind that is not summed",
        )
    return Parsed(deltas, dict(kinds), silent)


def _check_keys(found: Sorted, count: int, where: str) -> None:
    if found.refused:
        key, kind = next(iter(found.refused.items()))
        raise InvalidContentError(
            f"{where}: {len(found.refused)} of {count} keys belong to {kind}, such as {shown(key)}",
            hint="that is no update of weights which adds up; it cannot be combined",
        )
    if found.embeddings:
        raise InvalidContentError(
            f"{where}: holds token embeddings of a textual inversion "
            f"({', '.join(map(shown, found.embeddings[:_SHOWN]))})",
            hint="they would be lost in a combination; take them out first",
        )
    if found.twice:
        raise InvalidContentError(
            f"{where}: {len(found.twice)} parts are there under two names:{_listed(found.twice)}",
            hint="two adapters were written into one file",
        )
    if found.unknown or not found.parts:
        raise InvalidContentError(
            f"{where}: not an adapter that can be read: {len(found.unknown)} of {count} keys map "
            f"to no target module{_listed(found.unknown)}",
            hint="diffusers, PEFT, kohya, ComfyUI and cloneofsimo files are understood",
        )


def _listed(lines: list[str] | tuple[str, ...]) -> str:
    more = f"\n  … and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else ""
    return "".join(f"\n  {shown(line)}" for line in sorted(lines)[:_SHOWN]) + more


Spelled = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors and header of a file."""


def spell_peft(deltas: Mapping[str, LowRankDelta], family: str | None) -> Spelled:
    """PEFT's own file: ``base_model.model.<path>.lora_A.weight``, of the UNet alone."""
    tensors, metadata = diffusers.spell(deltas)
    others = sorted(module for module in deltas if not module.startswith("unet."))
    if others:
        raise InvalidContentError(
            f"{others[0]}: a PEFT file holds one component, this adapter has more "
            f"({len(others)} modules outside the UNet)",
            hint="write diffusers or kohya",
        )
    renamed = {f"base_model.model.{k.removeprefix('unet.')}": t for k, t in tensors.items()}
    return renamed, metadata


def spell_kohya(deltas: Mapping[str, LowRankDelta], family: str | None) -> Spelled:
    """Kohya's file with diffusers' block names; alpha = rank in every module."""
    return _kohya(deltas, family, {})


def spell_kohya_sgm(deltas: Mapping[str, LowRankDelta], family: str | None) -> Spelled:
    """Kohya's file with Stability's block names, as kohya trains SDXL."""
    return _kohya(deltas, family, sgm_names(_published(family, "kohya-sgm")))


def spell_comfy(deltas: Mapping[str, LowRankDelta], family: str | None) -> Spelled:
    """ComfyUI's own: ``diffusion_model.<SGM path>.lora_up.weight``; text encoders by CLIP."""
    names = sgm_names(_published(family, "comfy"))
    clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}

    def stem(module: str) -> str:
        component, path = module.split(".", 1)
        if component == "unet":
            return f"diffusion_model.{names[module]}"
        return f"text_encoders.{clip[component]}.transformer.{path}"

    return _up_down(deltas, stem)


def _kohya(
    deltas: Mapping[str, LowRankDelta], family: str | None, sgm: Mapping[str, str]
) -> Spelled:
    encoders = 2 if family in ("ssd1b", "sdxl") or _has_second(deltas) else 1

    def stem(module: str) -> str:
        if module in sgm:
            return f"lora_unet_{sgm[module].replace('.', '_')}"
        return kohya_name(module, text_encoders=encoders)

    return _up_down(deltas, stem)


def _up_down(deltas: Mapping[str, LowRankDelta], stem: Callable[[str], str]) -> Spelled:
    tensors: dict[str, Tensor] = {}
    for module in deltas:
        delta = concatenate([deltas[module]])  # the scale goes into up
        name = stem(module)
        tensors[f"{name}.lora_down.weight"] = delta.down
        tensors[f"{name}.lora_up.weight"] = delta.up
        tensors[f"{name}.alpha"] = torch.tensor(float(delta.rank))
    return tensors, {}


def _has_second(deltas: Mapping[str, LowRankDelta]) -> bool:
    return any(module.startswith("text_encoder_2.") for module in deltas)


def _published(family: str | None, dialect: str) -> str:
    if family not in PUBLISHED:
        raise UsageError(
            f"{dialect}: needs a model with Stability's block names, this one is "
            f"{family or 'unknown'}",
            hint="write diffusers or kohya",
        )
    return family


WRITERS: Final[Mapping[str, Callable[[Mapping[str, LowRankDelta], str | None], Spelled]]] = {
    "diffusers": lambda deltas, _: diffusers.spell(deltas),
    "peft": spell_peft,
    "kohya": spell_kohya,
    "kohya-sgm": spell_kohya_sgm,
    "comfy": spell_comfy,
}
