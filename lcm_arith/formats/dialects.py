"""Adapter files of every dialect → updates of canonical modules, and back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.formats import diffusers
from lcm_arith.formats.keys import Sorted, sort_keys
from lcm_arith.formats.kinds import update
from lcm_arith.formats.preflight import SafeFile, shown
from lcm_arith.modules import BIAS, PUBLISHED, is_norm, is_vector, kohya_name, sgm_names

_SHOWN: Final = 5  # lines of a list in an error


@dataclass(frozen=True, eq=False)
class Parsed:
    """What a file holds.

    Args:
        deltas: Canonical module → update; of a file, each is read when it is asked for.
        outlines: The same without their numbers.
        kinds: Kind of adapter → number of modules.
        without_alpha: Modules whose alpha is nowhere in the file, so that it is their rank.
    """

    deltas: Mapping[str, LowRankDelta]
    outlines: Mapping[str, LowRankDelta]
    kinds: Mapping[str, int]
    without_alpha: int


@dataclass(frozen=True, eq=False)
class Stored(Mapping[str, LowRankDelta]):
    """Canonical module → update, made of the file's tensors whenever it is asked for."""

    tensors: Mapping[str, Tensor]
    keys_of: Mapping[str, Mapping[str, str]]
    alphas: Mapping[str, float | None]

    def __getitem__(self, module: str) -> LowRankDelta:
        parts = {part: self.tensors[key] for part, key in self.keys_of[module].items()}
        return update(parts, self.alphas[module])[1]

    def __contains__(self, module: object) -> bool:
        return module in self.alphas  # Mapping's own would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self.alphas)

    def __len__(self) -> int:
        return len(self.alphas)


def parse(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: str) -> Parsed:
    """Updates of canonical modules from a file's tensors and header, in whatever dialect.

    Args:
        tensors: Key → tensor; of a SafeFile, only alphas are read here.
        metadata: The header's ``__metadata__``.
        where: Named in errors, usually the path.

    Raises:
        InvalidContentError: If a key maps to nothing, is there twice, or belongs to a kind of
            adapter that is no sum of factors; or if a module's parts make up no update.
    """
    found = sort_keys(tensors)
    _check_keys(found, len(tensors), where)
    shapes = (
        tensors.outlines()
        if isinstance(tensors, SafeFile)
        else {key: tensor.to("meta") for key, tensor in tensors.items()}
    )
    configured = diffusers.Alphas(metadata, where)
    alphas: dict[str, float | None] = {}
    outlines: dict[str, LowRankDelta] = {}
    kinds: Counter[str] = Counter()
    broken, silent = [], 0
    for module, keys in sorted(found.parts.items()):
        parts = {part: (tensors if part == "alpha" else shapes)[key] for part, key in keys.items()}
        try:
            alpha = None
            if "alpha" not in parts and "down" in parts:
                alpha = configured.of(module, int(parts["down"].shape[0]))
                silent += alpha is None
            if is_vector(module) and not _flat(parts):
                raise InvalidContentError("a bias or norm is one list of numbers (diff)")
            kind, outlines[module] = update(parts, alpha)
            alphas[module] = alpha
            kinds[kind] += 1
        except InvalidContentError as error:
            broken.append(f"{module}: {error.message}")
    if broken:
        raise InvalidContentError(
            f"{where}: {len(broken)} of {len(found.parts)} target modules cannot be read:"
            f"{_listed(broken)}",
            hint="the file is damaged, mixes two adapters, or is of a kind that is not summed",
        )
    deltas: Mapping[str, LowRankDelta] = Stored(tensors, found.parts, alphas)
    if not isinstance(tensors, SafeFile):
        deltas = dict(deltas)
    return Parsed(deltas, outlines, dict(kinds), silent)


def _flat(parts: Mapping[str, Tensor]) -> bool:
    return parts.keys() == {"diff"} and parts["diff"].ndim == 1


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


@dataclass(frozen=True, eq=False)
class Spelling:
    """The names of a vector in a dialect, without a number.

    Args:
        keys: Canonical module → names of its down and up factor and, where there is one, of alpha;
            of a bias or norm, one name.
        metadata: The header.
    """

    keys: Mapping[str, tuple[str, str, str | None] | tuple[str]]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def tensors(self, module: str, delta: LowRankDelta) -> dict[str, Tensor]:
        """What the file holds of one module; the scale goes into up, so that alpha = rank."""
        names = self.keys[module]
        if len(names) == 1:
            return {names[0]: delta.dense().flatten()}
        delta = concatenate([delta])
        down, up, alpha = names
        named = {down: delta.down, up: delta.up}
        return named if alpha is None else named | {alpha: torch.tensor(float(delta.rank))}


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
    vectors = [module for module in outlines if is_vector(module)]
    if vectors:
        raise InvalidContentError(
            f"{len(vectors)} biases or norms are changed, {vectors[0]} for one, which readers of "
            "diffusers' and PEFT's files reject",
            hint="write --format comfy or kohya, which hold them",
        )
    keys = {m: (f"{m}.lora_A.weight", f"{m}.lora_B.weight", None) for m in outlines}
    return Spelling(keys, diffusers.adapter_metadata({m: outlines[m].rank for m in outlines}))


def _peft(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """PEFT's own file: ``base_model.model.<path>.lora_A.weight``, of the UNet alone."""
    others = sorted(module for module in outlines if not module.startswith("unet."))
    if others:
        raise InvalidContentError(
            f"{others[0]}: a PEFT file holds one component, this adapter has more "
            f"({len(others)} modules outside the UNet)",
            hint="write diffusers or kohya",
        )
    stems = {m: f"base_model.model.{m.removeprefix('unet.')}" for m in outlines}
    keys = {m: (f"{s}.lora_A.weight", f"{s}.lora_B.weight", None) for m, s in stems.items()}
    return Spelling(keys, _diffusers(outlines, family).metadata)


def _kohya(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """Kohya's file with diffusers' block names; alpha = rank in every module."""
    return _underscored(outlines, family, {})


def _kohya_sgm(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """Kohya's file with Stability's block names, as kohya trains SDXL."""
    return _underscored(outlines, family, sgm_names(_published(family, "kohya-sgm")))


def _comfy(outlines: Mapping[str, LowRankDelta], family: str | None) -> Spelling:
    """ComfyUI's own: ``diffusion_model.<SGM path>.lora_up.weight``; text encoders by CLIP."""
    names = sgm_names(_published(family, "comfy"))
    clip = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}

    def stem(module: str) -> str:
        component, path = module.split(".", 1)
        if component == "unet":
            return f"diffusion_model.{names[module]}"
        return f"text_encoders.{clip[component]}.transformer.{path}"

    return _up_down(outlines, stem)


def _underscored(
    outlines: Mapping[str, LowRankDelta], family: str | None, sgm: Mapping[str, str]
) -> Spelling:
    encoders = 2 if family in ("ssd1b", "sdxl") or _has_second(outlines) else 1

    def stem(module: str) -> str:
        if module in sgm:
            return f"lora_unet_{sgm[module].replace('.', '_')}"
        return kohya_name(module, text_encoders=encoders)

    return _up_down(outlines, stem)


def _up_down(outlines: Mapping[str, LowRankDelta], stem: Callable[[str], str]) -> Spelling:
    stems = {module: stem(module.removesuffix(BIAS)) for module in outlines}
    return Spelling(
        {
            m: (f"{name}.{_vector_part(m)}",)
            if is_vector(m)
            else (f"{name}.lora_down.weight", f"{name}.lora_up.weight", f"{name}.alpha")
            for m, name in stems.items()
        }
    )


def _vector_part(target: str) -> str:
    """The ending that LyCORIS and ComfyUI read."""
    if is_norm(target):
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
