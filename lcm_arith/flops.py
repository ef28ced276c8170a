"""Floating point operations of a UNet, from the shapes of its weights: no network, no torch.

A product of matrices ``[m, k] [k, n]`` counts 2mkn, all else nothing, as torch's FlopCounterMode
has it (tests/test_planning.py lays one beside the other). A layer's products follow from its weight
and from how many positions it is applied at, which its place in the UNet tells. In the backward
pass a layer has the gradient of its weight, if that is trained, and of its input, if that depends
on anything trained before.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from lcm_arith.errors import IncompatibleError

Shape = tuple[int, ...]
Stage = tuple[int, ...]

_LAST: Final = 1_000_000  # after all layers of a block
_NEVER: Final = (_LAST,)
_BLOCK: Final = re.compile(
    r"(?P<part>down|mid|up)_block(?:s\.(?P<block>\d+))?\.(?P<kind>\w+)\.(?P<layer>\d+)\.(?P<rest>.+)"
)
_PARTS: Final = ("down", "mid", "up")
_OUTSIDE: Final[Mapping[str, int]] = {"conv_in": -1, "conv_out": len(_PARTS)}
_INPUT: Final[Mapping[str, int]] = {
    "conv1": 0, "conv_shortcut": 0, "conv2": 2,
    "attn1.to_q": 0, "attn1.to_k": 0, "attn1.to_v": 0, "attn1.to_out.0": 1,
    "attn2.to_q": 2, "attn2.to_k": 2, "attn2.to_v": 2, "attn2.to_out.0": 3,
    "ff.net.0.proj": 4, "ff.net.2": 5,
}  # fmt: skip
"""Where inside a ResNet or transformer block a layer takes its input …"""
_OUTPUT: Final[Mapping[str, int]] = {**_INPUT, "time_emb_proj": 1, "conv_shortcut": 3}
"""… and where its output comes in: seen by all layers with a later input."""
_TIME: Final[Mapping[str, int]] = {
    "time_embedding.cond_proj": 0, "time_embedding.linear_1": 1, "time_embedding.linear_2": 2,
    "add_embedding.linear_1": 1, "add_embedding.linear_2": 2,
}  # fmt: skip


@dataclass(frozen=True)
class Work:
    """Floating point operations of one picture's pass: forward, and backward from its output."""

    forward: int
    backward: int


def passes(
    modules: Mapping[str, Shape],
    *,
    side: int,
    tokens: int,
    ranks: Mapping[str, int] | None = None,
    whole: bool = False,
) -> Work:
    """The work of a UNet2DConditionModel on one picture with one prompt.

    Args:
        modules: UNet module → shape of its weight; normalisations count nothing.
        side: Of the latents.
        tokens: Length of the prompt's embedding.
        ranks: Module → rank of the low-rank delta that is trained on it, applied beside it.
        whole: The weights themselves are trained.

    Raises:
        IncompatibleError: If a layer is none that Stable Diffusion's UNets have.
    """
    ranks = ranks or {}
    layers = {name: shape for name, shape in modules.items() if len(shape) in (2, 4)}
    at = _positions(layers, side, tokens)
    trained = _Trained(layers if whole else ranks)
    forward = backward = 0
    for name, shape in layers.items():
        passed = trained.before(name)
        product = 2 * at[name] * math.prod(shape)
        down = 2 * at[name] * ranks.get(name, 0) * math.prod(shape[1:])
        up = 2 * at[name] * ranks.get(name, 0) * shape[0]
        forward += product + down + up
        backward += product * (passed + whole) + down * (passed + 1) + up * 2
        if name.endswith(".to_q"):
            key, value = (name.removesuffix("to_q") + other for other in ("to_k", "to_v"))
            product = 2 * at[name] * at[key] * shape[0]
            q, k, v = (trained.within(other) for other in (name, key, value))
            forward += 2 * product  # q kᵀ, and its softmax times v
            backward += product * (v + q + k + (q or k))
    return Work(forward, backward)


def _positions(modules: Mapping[str, Shape], side: int, tokens: int) -> dict[str, int]:
    """Module → number of vectors that it is applied to, for one picture."""
    halved = _blocks_with(modules, "down_blocks", "downsamplers")
    doubled = _blocks_with(modules, "up_blocks", "upsamplers")
    sides = [side]
    for _ in halved:
        sides.append(math.ceil(sides[-1] / 2))

    def of(name: str) -> int:
        if name in _TIME or name.endswith(".time_emb_proj"):
            return 1
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            return tokens
        found = _BLOCK.fullmatch(name)
        if found is None:  # conv_in, conv_out
            return side**2
        block, sampled = int(found["block"] or 0), found["kind"].endswith("samplers")
        level = {
            "down": sum(b < block for b in halved) + sampled,
            "mid": len(halved),
            "up": len(halved) - sum(b < block for b in doubled) - sampled,
        }[found["part"]]
        return sides[level] ** 2

    return {name: of(name) for name in modules}


def _blocks_with(modules: Iterable[str], side: str, kind: str) -> set[int]:
    pattern = re.compile(rf"{side}\.(\d+)\.{kind}\..+")
    return {int(found[1]) for found in map(pattern.fullmatch, modules) if found}


class _Trained:
    """Which layers' inputs and outputs depend on something that is trained."""

    def __init__(self, names: Iterable[str]) -> None:
        self._names = frozenset(names)
        self._time = any(name in _TIME for name in self._names)
        stages = [_stage(name, _OUTPUT) for name in self._names if name not in _TIME]
        if self._time:  # it reaches all through the first block's time_emb_proj
            stages.append(_stage("down_blocks.0.resnets.0.time_emb_proj", _OUTPUT))
        self._first = min(stages, default=_NEVER)

    def before(self, name: str) -> bool:
        """Whether the input of ``name`` depends on a trained layer."""
        if name in _TIME:
            chain = name.partition(".")[0]
            return any(
                other.startswith(f"{chain}.") and _TIME[other] < _TIME[name]
                for other in self._names & _TIME.keys()
            )
        if name.endswith(".time_emb_proj"):
            return self._time
        if name.endswith((".attn2.to_k", ".attn2.to_v")):
            return False  # the text
        return self._first < _stage(name, _INPUT)

    def within(self, name: str) -> bool:
        """Whether its output does."""
        return name in self._names or self.before(name)


def _stage(name: str, inner: Mapping[str, int]) -> Stage:
    """When a layer's turn comes; stages compare as the UNet runs."""
    if name in _OUTSIDE:
        return (_OUTSIDE[name],)
    found = _BLOCK.fullmatch(name)
    if found is None:
        raise _unknown(name)
    block = (_PARTS.index(found["part"]), int(found["block"] or 0))
    if found["kind"].endswith("samplers"):
        return (*block, _LAST)
    place: Stage = (*block, int(found["layer"]), int(found["kind"] == "attentions"))
    rest = found["rest"]
    if rest in ("proj_in", "proj_out"):
        return (*place, -1 if rest == "proj_in" else _LAST)
    if rest.startswith("transformer_blocks."):
        _, number, rest = rest.split(".", 2)
        place = (*place, int(number))
    else:
        place = (*place, 0)
    if rest not in inner:
        raise _unknown(name)
    return (*place, inner[rest])


def _unknown(name: str) -> IncompatibleError:
    return IncompatibleError(
        f"unet.{name}: no layer of a UNet such as Stable Diffusion's",
        hint="its work cannot be told from shapes; the families that can be planned are "
        "those of Stable Diffusion 1, 2 and XL",
    )
