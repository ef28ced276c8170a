"""Two tables of ``exactness.py``: round trips through dialects, detection of families."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

import torch
from _page import Section
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import LcmArithError
from lcm_arith.formats import dialects, writers
from lcm_arith.modules import FAMILIES, candidates, table
from lcm_arith.targets import LCM_TARGETS

FORMS: Final = tuple(writers.WRITERS)
GOAL: Final = 1e-6
UNET_LAYERS: Final = rf"unet\..*\.({'|'.join(map(re.escape, LCM_TARGETS))})"
# What is adapted → the layers' names.
ADAPTED_LAYERS: Final = {
    "all 14 kinds of LCM-LoRA": UNET_LAYERS,
    "attention": r"unet\..*\.attn\d\.to_.*",
    "cross-attention": r"unet\..*\.attn2\.to_.*",
    "self-attention": r"unet\..*\.attn1\.to_.*",
    "feed-forward": r"unet\..*\.ff\..*",
    "convolutions": r"unet\..*conv\w*",
    "middle block": r"unet\.mid_block\..*",
    "text encoders": r"text_encoder.*\.(self_attn|mlp)\..*",
    "attention and text encoders": r"unet\..*\.attn\d\.to_.*|text_encoder.*\.self_attn\..*",
}


def round_trips(_: Path) -> Section:
    section = Section(
        "Round trips",
        "From each dialect into each other one and back, all layers that LCM-LoRA adapts, rank 2, "
        "scales 0.5, 1.5 and 2.5: layers lost or invented (goal 0), and the largest relative "
        f"difference of any ΔW, from its factors (goal {GOAL:g}).",
        ("family", "layers", "ways", "lost", "largest difference"),
    )
    for family in ("sd15", "sdxl"):
        before = adapter(family, UNET_LAYERS, 2, torch.randn)
        before = {m: d * (0.5 + i % 3) for i, (m, d) in enumerate(before.items())}
        lost, worst, ways = 0, 0.0, 0
        for first in FORMS:
            there = dialects.parse(*writers.spell(before, first, family), first).deltas
            for second in FORMS:
                if second == first:
                    continue
                across = dialects.parse(*writers.spell(there, second, family), second).deltas
                back = dialects.parse(*writers.spell(across, first, family), first).deltas
                lost, ways = lost + len(back.keys() ^ before.keys()), ways + 1
                worst = max(
                    worst, *(difference(back[m], before[m]) for m in before if m in back), 0.0
                )
        cells = (section.held(lost, 0, f"layers of {family}"), section.held(worst, GOAL, family))
        section.rows.append((family, str(len(before)), str(ways), *cells))
    return section


def adapter(
    family: str, layers: str, rank: int, draw: Callable[..., Tensor]
) -> dict[str, LowRankDelta]:
    """An update of every layer of a family whose name matches."""
    return {
        module: LowRankDelta(draw(rank, *shape[1:]), draw(shape[0], rank, *(1 for _ in shape[2:])))
        for module, shape in table(family).items()
        if len(shape) > 1 and re.fullmatch(layers, module)
    }


def difference(one: LowRankDelta, other: LowRankDelta) -> float:
    """‖ΔW − ΔW'‖ / ‖ΔW'‖ of factors that differ little: (B − B') A + B' (A − A')."""
    up, down = one.up.double().flatten(1) * one.scale, one.down.double().flatten(1)
    up2, down2 = other.up.double().flatten(1) * other.scale, other.down.double().flatten(1)
    left, right = torch.cat([up - up2, up2], 1), torch.cat([down, down - down2])
    lost = ((left.T @ left) * (right @ right.T)).sum().clamp(min=0)
    return math.sqrt(float(lost / ((up2.T @ up2) * (down2 @ down2.T)).sum()))


def families(_: Path) -> Section:
    section = Section(
        "Family detection",
        "Adapters of the true shapes of each family, in each dialect that can hold them, read "
        "back: the family that fits best, or a tie where shapes cannot tell. A case is wrong where "
        "the true family is not among the best (goal 0).",
        ("adapted", "cases", "exact", "ties", "wrong", "the ties"),
    )
    whole: Counter[str] = Counter()
    for adapted, layers in ADAPTED_LAYERS.items():
        counts: Counter[str] = Counter()
        ties: set[str] = set()
        for family in FAMILIES:
            deltas = adapter(family, layers, 1, torch.ones)
            for form in FORMS if deltas else ():
                try:
                    file = writers.spell(deltas, form, family)
                except LcmArithError:
                    continue  # no Stability names, or more than one component
                found = dialects.parse(*file, form).outlines
                best = candidates({m: tuple(d.shape) for m, d in found.items()})
                names = [c.family for c in best if c.coverage == best[0].coverage]
                kind = "wrong" if family not in names else "ties" if len(names) > 1 else "exact"
                counts[kind] += 1
                ties |= {" = ".join(sorted(names))} if kind == "ties" else set()
        section.held(counts["wrong"], 0, adapted)
        whole += counts
        section.rows.append((adapted, *_figures(counts), "; ".join(sorted(ties))))
    section.rows.append(("all", *_figures(whole), ""))
    return section


def _figures(counts: Counter[str]) -> tuple[str, ...]:
    return str(counts.total()), *(str(counts[kind]) for kind in ("exact", "ties", "wrong"))
