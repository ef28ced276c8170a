"""Updates of canonical modules → the names and numbers of a file in a dialect."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from lcm_arith import dit
from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.formats import diffusers
from lcm_arith.modules import (
    BIAS,
    MAGNITUDE,
    PUBLISHED,
    is_norm,
    is_vector,
    kohya_name,
    owner,
    sgm_names,
)

PARTS: Final = {"unet": "UNet", dit.COMPONENT: "transformer"}


@dataclass(frozen=True, eq=False)
class Spelling:
    """The names of a vector in a dialect, without a number.

    Args:
        keys: Canonical module → names of its down and up factor and, where there is one, of alpha;
            of a list of numbers, one name.
        shapes: Shape of such a list, where it is not flat.
        metadata: The header.
        alpha: Of all modules, where alpha has names; None for the rank of each.
    """

    keys: Mapping[str, tuple[str, str, str | None] | tuple[str]]
    metadata: Mapping[str, str] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    alpha: int | None = None

    def tensors(self, module: str, delta: LowRankDelta) -> dict[str, Tensor]:
        """What the file holds of one module; its scale goes into up."""
        names = self.keys[module]
        if len(names) == 1:
            return {names[0]: delta.dense().reshape(self.shapes.get(module, (-1,)))}
        down, up, alpha = names
        if alpha is None:
            delta = concatenate([delta])
            return {down: delta.down, up: delta.up}
        value = self.alpha or delta.rank
        delta = concatenate([delta * (delta.rank / value)])
        return {down: delta.down, up: delta.up, alpha: torch.tensor(float(value))}


def spelling(outlines: Mapping[str, LowRankDelta], form: str, family: str | None) -> Spelling:
    """Names and header of a vector in a dialect.

    Args:
        outlines: Module → shapes and rank; numbers do no harm.
        form: A row of WRITERS.
        family: Of the model, where it is known.

    Raises:
        UsageError, InvalidContentError: If the dialect cannot hold the model's modules.
    """
    return WRITERS[form](outlines, family)


def spell(
    deltas: Mapping[str, LowRankDelta], form: str = "diffusers", family: str | None = None
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of a vector in a dialect, all in memory."""
    names = spelling(deltas, form, family)
    tensors = {k: t for m in deltas for k, t in names.tensors(m, deltas[m]).items()}
    return tensors, dict(names.metadata)


def _diffusers(outlines: Mapping[str, LowRankDelta], _: str | None) -> Spelling:
    """``unet.<path>.lora_A.weight``; ranks and alphas in the header."""
    return _dotted(outlines, lambda module: module)


def _dotted(outlines: Mapping[str, LowRankDelta], stem: Callable[[str], str]) -> Spelling:
    found = dit.spellings_of(outlines)
    if dit.OWN in found:
        raise UsageError(
            f"{found[dit.OWN]} is spelled as in the model's own code, diffusers does not read it",
            hint="write kohya or comfy",
        )
    vectors = [m for m in outlines if is_vector(m) and not m.endswith(MAGNITUDE)]
    if vectors:
        raise InvalidContentError(
            f"{len(vectors)} biases or norms are changed, {vectors[0]} for one, which readers of "
            "diffusers' and PEFT's files reject",
            hint="write --format comfy or kohya, which hold them",
        )
    keys: dict[str, tuple[str, str, str | None] | tuple[str]] = {}
    shapes = {}
    for target in outlines:
        name = stem(owner(target))
        if owner(target) == target:
            keys[target] = (f"{name}.lora_A.weight", f"{name}.lora_B.weight", None)
        else:
            keys[target] = (f"{name}.lora_magnitude_vector",)
            shapes[target] = _magnitude_shape(outlines, target, first=1)
    ranks = {m: outline.rank for m, outline in outlines.items() if owner(m) == m}
    return Spelling(keys, diffusers.adapter_metadata(ranks, dora=bool(shapes)), shapes)


def _magnitude_shape(
    outlines: Mapping[str, LowRankDelta], target: str, *, first: int
) -> tuple[int, ...]:
    """PEFT keeps m as ``[out]`` or ``[1, out, 1, 1]``; others (first = 0) as ``[out, 1, …]``."""
    ones = (1,) * (len(outlines[owner(target)].shape) - 1)
    rows = outlines[target].shape[0]
    if first:
        return (1, rows, *ones[1:]) if len(ones) > 1 else (rows,)
    return (rows, *ones)


def _peft(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """PEFT's own file: ``base_model.model.<path>.lora_A.weight``, of UNet or transformer alone."""
    main = dit.COMPONENT if any(m.startswith(f"{dit.COMPONENT}.") for m in outlines) else "unet"
    others = sorted(module for module in outlines if not module.startswith(f"{main}."))
    if others:
        raise InvalidContentError(
            f"{others[0]}: a PEFT file holds one component, this adapter has more "
            f"({len(others)} modules outside the {PARTS[main]})",
            hint="write diffusers or kohya",
        )
    return _dotted(outlines, lambda module: f"base_model.model.{module.removeprefix(f'{main}.')}")


def _kohya(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """Kohya's file with diffusers' block names."""
    return _underscored(outlines, family, {})


def _kohya_sgm(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """Kohya's file with Stability's block names, as kohya trains SDXL."""
    return _underscored(outlines, family, sgm_names(_published(family, "kohya-sgm")))


def _comfy(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """ComfyUI's own: ``diffusion_model.<path>.lora_up.weight``; text encoders by CLIP."""
    is_unet = any(module.startswith("unet.") for module in outlines)
    names = sgm_names(_published(family, "comfy")) if is_unet else {}
    first = "clip_h" if family == "sd2" else "clip_l"
    clip = {"text_encoder": first, "text_encoder_2": "clip_g"}

    def stem(module: str) -> str:
        component, path = module.split(".", 1)
        if component == "unet":
            return f"diffusion_model.{names[module]}"
        if component == dit.COMPONENT:
            return f"diffusion_model.{path}"
        return f"text_encoders.{clip[component]}.transformer.{path}"

    return _up_down(outlines, stem)


def _underscored(
    outlines: Mapping[str, LowRankDelta], family: str | None, sgm: Mapping[str, str]
) -> Spelling:
    encoders = 2 if family in ("ssd1b", "sdxl", *dit.TRANSFORMERS) or _has_second(outlines) else 1

    def stem(module: str) -> str:
        if module in sgm:
            return f"lora_unet_{sgm[module].replace('.', '_')}"
        return kohya_name(module, text_encoders=encoders)

    return _up_down(outlines, stem)


def _up_down(outlines: Mapping[str, LowRankDelta], stem: Callable[[str], str]) -> Spelling:
    """Down, up and alpha; of a UNet one alpha for all modules.

    Where alphas differ, diffusers (0.42) loses those of attention and text encoders, and scales
    these modules wrongly. The least rank is that alpha, so that no up factor becomes smaller. Of
    Flux it loses the alphas of the last layers, so that there alpha is the rank of each module.
    """
    ranks = [delta.rank for module, delta in outlines.items() if not is_vector(module)]
    stems = {module: stem(owner(module)) for module in outlines}
    return Spelling(
        {
            m: (f"{name}.{_vector_part(m, outlines)}",)
            if is_vector(m)
            else (f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha")
            for m, name in stems.items()
        },
        shapes={
            m: _magnitude_shape(outlines, m, first=0) for m in outlines if m.endswith(MAGNITUDE)
        },
        alpha=None if _check_named(outlines) else min(ranks, default=None),
    )


def _check_named(outlines: Mapping[str, LowRankDelta]) -> bool:
    """Whether there is a transformer, all of whose modules then have names in kohya's files."""
    paths = {owner(m).partition(".")[2] for m in outlines if m.startswith(f"{dit.COMPONENT}.")}
    nameless = [path for path in paths if not dit.is_named(path, dit.OWN)]
    if nameless:
        raise UsageError(
            f"{dit.COMPONENT}.{min(nameless)}: kohya and ComfyUI have no name for it that would be "
            "read again",
            hint="write diffusers",
        )
    return bool(paths)


def _vector_part(target: str, outlines: Mapping[str, LowRankDelta]) -> str:
    """The ending that LyCORIS and ComfyUI read; they know a norm's bias by its weight alone."""
    if target.endswith(MAGNITUDE):
        return "dora_scale"
    if is_norm(target) and owner(target) in outlines:
        return "b_norm" if target.endswith(BIAS) else "w_norm"
    return "diff_b"


def _has_second(outlines: Mapping[str, LowRankDelta]) -> bool:
    return any(module.startswith("text_encoder_2.") for module in outlines)


def _published(family: str | None, dialect: str) -> str:
    if family not in PUBLISHED:
        raise UsageError(
            f"{dialect}: needs a model with Stability's block names, this one is "
            f"{family or 'unknown'}",
            hint="write diffusers or kohya",
        )
    return family


WRITERS: Final[Mapping[str, Callable[[Mapping[str, LowRankDelta], str | None], Spelling]]] = {
    "diffusers": _diffusers,
    "peft": _peft,
    "kohya": _kohya,
    "kohya-sgm": _kohya_sgm,
    "comfy": _comfy,
}


def dit_spelling(form: str) -> str:
    """How a dialect spells the layers of Flux and SD3."""
    return dit.DIFFUSERS if form in ("diffusers", "peft") else dit.OWN
