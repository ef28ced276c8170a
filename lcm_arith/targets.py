"""Which layers an adapter is put on: named sets, endings as PEFT takes them, or an expression.

::

    lcm              a set, see :data:`SETS`
    attn,ff.net.2    sets and endings of names, separated by commas
    re:.*attn2.*     one regular expression for the whole of a name
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from lcm_arith.errors import UsageError

Shape = tuple[int, ...]

# The 14 kinds of layer that LCM-LoRA adapts (arXiv:2311.05556, Table 1; 278 modules of SD1.5).
LCM_TARGETS: Final = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
SETS: Final[Mapping[str, tuple[str, ...]]] = {
    "lcm": LCM_TARGETS,
    "attn": ("to_q", "to_k", "to_v", "to_out.0"),
    "linear": tuple(ending for ending in LCM_TARGETS if "conv" not in ending),
}
"""Name → endings. "linear" is what is linear in SDXL; the older ones have proj_in 1×1 instead."""

EXPRESSION: Final = "re:"


def resolve(targets: str | Sequence[str], modules: Mapping[str, Shape]) -> tuple[str, ...]:
    """The modules that ``targets`` names, in the order of ``modules``.

    An ending matches whole parts of a name, as PEFT's ``target_modules`` does: ``to_q`` and
    ``attn1.to_q``, not ``o_q``. Of a set, what a model lacks is no error (a small UNet may have no
    ``conv_shortcut``), but one of its endings has to be there.

    Args:
        targets: As at the top of this file; a sequence is what the commas would separate.
        modules: Name → shape of its weight. Only layers count: linear or convolution, no
            normalisation, no embedding of tokens.

    Returns:
        Whole names, which PEFT's ``LoraConfig(target_modules=[...])`` takes as they are.

    Raises:
        UsageError: If a set, an ending or the expression matches nothing, or the expression is
            none; it lists all that match nothing, and names that are close.
    """
    layers = [name for name, shape in modules.items() if _is_layer(name, shape)]
    if isinstance(targets, str) and targets.startswith(EXPRESSION):
        return _matching(targets, layers)
    given = targets.split(",") if isinstance(targets, str) else targets
    patterns = [pattern.strip() for pattern in given]
    found = {pattern: _ending_in(SETS.get(pattern, (pattern,)), layers) for pattern in patterns}
    lost = [pattern for pattern, names in found.items() if not names]
    if lost or not patterns:
        raise UsageError(
            f"targets {', '.join(map(repr, lost))}: no layer of the model ends so",
            hint=_advice(lost, layers),
        )
    wanted = frozenset().union(*found.values())
    return tuple(name for name in layers if name in wanted)


def _is_layer(name: str, shape: Shape) -> bool:
    return len(shape) in (2, 4) and not name.endswith("_embedding")


def _ending_in(endings: Sequence[str], layers: Sequence[str]) -> frozenset[str]:
    dotted = tuple(f".{ending}" for ending in endings if ending)
    return frozenset(name for name in layers if f".{name}".endswith(dotted))


def _matching(targets: str, layers: Sequence[str]) -> tuple[str, ...]:
    try:
        expression = re.compile(targets.removeprefix(EXPRESSION))
    except re.error as error:
        raise UsageError(f"targets {targets!r}: no regular expression: {error}") from error
    found = tuple(name for name in layers if expression.fullmatch(name))
    if not found:
        raise UsageError(
            f"targets {targets!r}: matches no layer of the model",
            hint=f"it has to match a whole name, such as {layers[0]}",
        )
    return found


def _advice(lost: Sequence[str], layers: Sequence[str]) -> str:
    known = sorted({*SETS, *(ending for name in layers for ending in _endings(name))})
    near = {close: None for word in lost for close in difflib.get_close_matches(word, known, 3)}
    sets = f"sets are {', '.join(SETS)}; or endings of names, or {EXPRESSION}EXPRESSION"
    return f"did you mean {', '.join(near)}? {sets}" if near else sets


def _endings(name: str) -> Iterator[str]:
    """``attn1.to_out.0`` and ``to_out.0`` of ``….attn1.to_out.0``: up to three parts of a name."""
    parts = name.split(".")
    for start in range(max(0, len(parts) - 3), len(parts)):
        if not parts[start].isdigit():
            yield ".".join(parts[start:])
