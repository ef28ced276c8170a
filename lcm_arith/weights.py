"""λ of a vector as people write it: ``style:0.8``, ``style:0.8,te=0.5,up.1=0``, ``<lora:a:0.8>``.

A part of the model gets its own λ by name: a component (``unet``, ``te``, ``te1``, ``te2``), a
block (``down``, ``mid``, ``up.1``, ``up.1.attentions.0``), any beginning of a canonical module, or
a regular expression between slashes. The longest match wins, so every module can be reached.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Final

from lcm_arith.errors import UsageError
from lcm_arith.modules import PUBLISHED, candidates, owner, sgm_path
from lcm_arith.vector import Lazy, Source, TaskVector

_NUMBER: Final = re.compile(r"[-+]?(?=\.?[0-9])[0-9]{0,6}(?:\.[0-9]{0,6})?")
_PASTED: Final = re.compile(r"<lora:([^<>]+)>")
_SHORT: Final = {
    "te": "text_encoder",
    "te1": "text_encoder",
    "te2": "text_encoder_2",
    "down": "unet.down_blocks",
    "mid": "unet.mid_block",
    "up": "unet.up_blocks",
}
_BOTH_ENCODERS: Final = "te"

# kohya's --lbws: entry → SGM blocks it weighs; the first entry is the text encoder.
LBW: Final[Mapping[int, tuple[str, ...]]] = {
    length: (
        *(f"input_blocks.{i}" for i in ins),
        "middle_block",
        *(f"output_blocks.{i}" for i in outs),
    )
    for length, ins, outs in (
        (12, (4, 5, 7, 8), range(6)),  # SDXL
        (17, (1, 2, 4, 5, 7, 8), range(3, 12)),  # SD1.5
        (20, range(9), range(9)),  # SDXL with convolutions
        (26, range(12), range(12)),  # SD1.5 with convolutions
    )
}


@dataclass(frozen=True)
class Weights:
    """λ of one vector.

    Args:
        overall: Where no part says otherwise.
        parts: (selector, λ) in the order given.
        blocks: A block-weight list of kohya or A1111, which multiplies; empty is none.
    """

    overall: Decimal
    parts: tuple[tuple[str, Decimal], ...] = ()
    blocks: tuple[Decimal, ...] = ()

    def of(self, module: str) -> Decimal:
        """λ of a canonical module."""
        longest, weight = -1, self.overall
        for selector, own in self.parts:
            length = match_length(selector, module)
            if length >= 0 and length >= longest:
                longest, weight = length, own
        return weight * self._block(module)

    def _block(self, module: str) -> Decimal:
        if not self.blocks:
            return Decimal(1)
        if not module.startswith("unet."):
            return self.blocks[0]
        path = sgm_path(module.removeprefix("unet."))
        places = LBW[len(self.blocks)]
        for place, weight in zip(places, self.blocks[1:], strict=True):
            if path.startswith(f"{place}."):
                return weight
        return Decimal(0)  # A1111's rule: a block without an entry is off

    def __str__(self) -> str:
        listed = f":lbw={','.join(map(str, self.blocks))}" if self.blocks else ""
        return ",".join((str(self.overall), *(f"{s}={w}" for s, w in self.parts))) + listed


@dataclass(frozen=True)
class Term:
    """One vector of a combination as the user wrote it."""

    name: str
    weights: Weights


def parse_term(text: str) -> Term:
    """``NAME[:λ[,PART=λ…][:lbw=…]]`` or ``<lora:NAME:λ>``; the last colon splits, λ is 1 without.

    Raises:
        UsageError: If there is no name, or a λ is no decimal number.
    """
    pasted = _PASTED.fullmatch(text.strip())
    body = pasted[1] if pasted else text.strip()
    body, blocks = _take_blocks(body, text)
    name, colon, numbers = body.rpartition(":")
    if not colon or not re.fullmatch(r"[-+.0-9]", numbers[:1]):
        name, numbers = body, "1"
    if not name:
        raise UsageError(f"{text!r}: names no vector", hint="write NAME:λ, such as my-style:0.8")
    overall, *rest = numbers.split(",")
    parts = []
    for item in rest:
        selector, equals, number = item.rpartition("=")
        if not equals:
            raise UsageError(f"{text!r}: {item!r} is no PART=λ", hint="such as te=0.5 or up.1=0")
        _check_selector(selector, text)
        parts.append((selector, decimal(number, text)))
    return Term(name, Weights(decimal(overall, text), tuple(parts), blocks))


def _take_blocks(body: str, text: str) -> tuple[str, tuple[Decimal, ...]]:
    before, found, listed = body.partition(":lbw=")
    if not found:
        return body, ()
    blocks = tuple(decimal(item, text) for item in listed.split(","))
    if len(blocks) not in LBW:
        raise UsageError(
            f"{text!r}: {len(blocks)} block weights",
            hint="kohya's lists have 12 (SDXL), 17 (SD1.5), 20 (SDXL LoCon) or 26 (LoCon) entries",
        )
    return before, blocks


def decimal(number: str, text: str) -> Decimal:
    """A λ, exact in decimal.

    Raises:
        UsageError: If it is no plain decimal number.
    """
    if not _NUMBER.fullmatch(number.strip()):
        raise UsageError(
            f"{text!r}: {number!r} is not a number of at most 6 digits and 6 decimals",
            hint="write λ as 0.8, 1 or -0.25",
        )
    return Decimal(number.strip())


def _check_selector(selector: str, text: str) -> None:
    if selector.startswith("/") and selector.endswith("/") and len(selector) > 2:
        try:
            re.compile(selector[1:-1])
        except re.error as error:
            raise UsageError(f"{text!r}: {selector} is no regular expression ({error})") from None
    elif not re.fullmatch(r"\w+(?:\.\w+)*", selector):
        raise UsageError(
            f"{text!r}: {selector!r} names no part", hint="such as te, up.1 or /attn2/"
        )


def match_length(selector: str, module: str) -> int:
    """How many characters of ``module`` a selector matches; −1 where it does not."""
    if selector.startswith("/"):
        found = re.search(selector[1:-1], module)
        return found.end() - found.start() if found else -1
    head, _, rest = selector.partition(".")
    if head == _BOTH_ENCODERS and not rest and module.startswith("text_encoder"):
        return len("text_encoder")
    prefix = ".".join(filter(None, (_SHORT.get(head, head), rest)))
    return len(prefix) if module == prefix or module.startswith(f"{prefix}.") else -1


def weigh(tau: TaskVector, weights: Weights, name: str) -> TaskVector:
    """``tau`` with every module times its λ; symbolic where there is one λ for all.

    Raises:
        UsageError: If a part matches no module of ``tau``: it would change nothing. If there is a
            block-weight list and the model has no such blocks.
    """
    if not weights.parts and not weights.blocks:
        return float(weights.overall) * tau
    _check_used(weights, tau, name)
    if weights.blocks:
        fitting = candidates({module: tuple(tau.shape_of(module)) for module in tau})
        if not any(found.family in PUBLISHED for found in fitting):
            raise UsageError(
                f"{name}: lbw= lists blocks of Stable Diffusion, which its model does not have",
                hint="name the parts, such as up.1=0.5",
            )
    own = {target: float(weights.of(owner(target))) for target in tau}
    kept = {module: weight for module, weight in own.items() if weight}
    origin = {"weights": str(weights), "of": tau}
    deltas = Lazy(kept, lambda target: kept[target] * tau[target])
    outlines = Lazy(kept, lambda target: kept[target] * tau.outline(target))
    return TaskVector(((1.0, Source(deltas, origin, outlines=outlines, base=tau.base)),))


def _check_used(weights: Weights, modules: Iterable[str], name: str) -> None:
    names = list(modules)
    idle = [s for s, _ in weights.parts if all(match_length(s, owner(m)) < 0 for m in names)]
    if idle:
        raise UsageError(
            f"{name}: {', '.join(idle)} matches none of its {len(names)} modules",
            hint="see their names with: lcm-arith inspect",
        )
