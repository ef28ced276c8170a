"""Adapter files of every dialect → updates of canonical modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor

from lcm_arith import dit
from lcm_arith.delta import LowRankDelta, column
from lcm_arith.dora import decomposed
from lcm_arith.errors import IncompatibleError, InvalidContentError
from lcm_arith.formats import diffusers
from lcm_arith.formats.keys import Sorted, sort_keys
from lcm_arith.formats.kinds import update
from lcm_arith.formats.opening import shown
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.modules import (
    GAIN,
    axes_of,
    fits,
    is_vector,
    kernels,
)
from lcm_arith.vector import Base, Deltas

_NEEDS_BASE: Final = "a DoRA, without its base"
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
class Stored(Deltas):
    """Target → update, made of the file's tensors whenever it is asked for; gains are kept."""

    tensors: Mapping[str, Tensor]
    keys_of: Mapping[str, Mapping[str, str]]
    alphas: Mapping[str, float | None]
    axes: Mapping[str, int]
    base: Base | None = None
    _gains: dict[str, LowRankDelta] = field(default_factory=dict)  # a number a row

    def __getitem__(self, target: str) -> LowRankDelta:
        if target in self._gains:
            return self._gains[target]
        module = target.removesuffix(GAIN)
        parts = {part: self.tensors[key] for part, key in self.keys_of[module].items()}
        magnitude = _magnitude(parts)
        delta = _update(module, parts, self.alphas[target])[1]
        delta = delta.with_axes(self.axes.get(module, delta.down.ndim))
        if magnitude is None or self.base is None:
            return delta
        turned, gain = decomposed(delta, magnitude, self.base.weight(module))
        self._gains[module + GAIN] = gain
        return turned if target == module else gain

    @property
    def names(self) -> Mapping[str, object]:
        """Those that have an alpha, be it None."""
        return self.alphas


def parse(
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    where: str,
    base: Base | None = None,
) -> Parsed:
    """Updates of canonical modules from a file's tensors and header, in whatever dialect.

    Args:
        tensors: Key → tensor; of a SafeFile, only alphas are read here.
        metadata: The header's ``__metadata__``.
        where: Named in errors, usually the path.
        base: The model that the adapter was made for; DoRA needs its weights.

    Raises:
        IncompatibleError: If it needs a weight that the base lacks or holds in another shape.
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
            magnitude = _magnitude(parts)
            kind, outlines[module] = _update(module, parts, alpha)
            alphas[module] = alpha
            if magnitude is not None:
                kind = f"DoRA ({kind})"
                _check_base(base, module, outlines[module], magnitude)
                outlines[module] = LowRankDelta(
                    outlines[module].down, outlines[module].up.float(), outlines[module].scale
                )
                outlines[module + GAIN], alphas[module + GAIN] = column(magnitude.float()), alpha
            kinds[kind] += 1
        except InvalidContentError as error:
            broken.append(f"{shown(module)}: {error.message}")
    if broken:
        raise InvalidContentError(
            f"{where}: {len(broken)} of {len(found.parts)} target modules cannot be read:"
            f"{_listed(broken)}",
            hint="its update depends on the weights of its base: give that with --base MODEL"
            if any(_NEEDS_BASE in line for line in broken)
            else "the file is damaged, mixes two adapters, or is of a kind that is not summed",
        )
    axes = axes_of({target: tuple(outline.shape) for target, outline in outlines.items()})
    outlines = {t: own.with_axes(axes.get(t, own.down.ndim)) for t, own in outlines.items()}
    deltas: Mapping[str, LowRankDelta] = Stored(tensors, found.parts, alphas, axes, base)
    if not isinstance(tensors, SafeFile):
        deltas = dict(deltas)
    return Parsed(deltas, outlines, dict(kinds), silent)


def _magnitude(parts: dict[str, Tensor]) -> Tensor | None:
    """Takes m of a DoRA out of the parts of a module, ``[out]``; None where it is none.

    PEFT keeps ``[out]``, of a convolution ``[1, out, 1, 1]``; others ``[out, 1(, 1, 1)]``.
    """
    peft, other = parts.pop("magnitude", None), parts.pop("dora_scale", None)
    if other is not None and other.ndim > 1 and len(other) == 1 < other.numel():
        raise InvalidContentError(
            "DoRA by columns (dora_scale with one row) is another decomposition, not understood"
        )
    if peft is not None and other is not None:
        raise InvalidContentError("holds two magnitudes")
    magnitude = other if peft is None else peft
    return None if magnitude is None else magnitude.flatten()


def _check_base(base: Base | None, module: str, outline: LowRankDelta, magnitude: Tensor) -> None:
    """Raises where a DoRA cannot be told from its base."""
    if base is None:
        raise InvalidContentError(_NEEDS_BASE)
    if len(magnitude) != outline.shape[0]:
        raise InvalidContentError(
            f"DoRA: {len(magnitude)} magnitudes for {outline.shape[0]} rows of the weight"
        )
    weight = base.shape_of(module)
    if weight is None or not fits(tuple(outline.shape), weight):
        raise IncompatibleError(
            f"{module}: {list(outline.shape)} in the adapter, "
            f"{'missing' if weight is None else list(weight)} in {base.path}",
            hint="that is not the base which the adapter was made for",
        )


def _flat(parts: Mapping[str, Tensor]) -> bool:
    return parts.keys() == {"diff"} and parts["diff"].ndim == 1


def _update(
    module: str, parts: Mapping[str, Tensor], alpha: float | None
) -> tuple[str, LowRankDelta]:
    """Kind and update, in the shape of its weight: LyCORIS stores LoHa and LoKr of it flat."""
    kind, delta = update(parts, alpha)
    inner = kernels(module).get(delta.down.shape[1]) if delta.down.ndim == 2 else None
    if inner is None:
        return kind, delta
    down, up = delta.down.reshape(-1, *inner), delta.up[:, :, None, None]
    return kind, LowRankDelta(down, up, delta.scale)


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
    spelled = dit.spellings_of(found.parts)
    if len(spelled) > 1:
        raise InvalidContentError(
            f"{where}: {dit.two_spellings(spelled)}",
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
    return "".join(f"\n  {shown(line, 240)}" for line in sorted(lines)[:_SHOWN]) + more
