"""Which metrics a grid cannot have, and why: known before anything is drawn."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final

from lcm_arith.embedded import pictures
from lcm_arith.errors import UsageError
from lcm_arith.evaluation.judging.judges import Judges
from lcm_arith.evaluation.judging.metrics import METRICS, Metric
from lcm_arith.evaluation.judging.mmd import FEWEST
from lcm_arith.evaluation.judging.references import References
from lcm_arith.evaluation.judging.sample import FEWEST_REFERENCES
from lcm_arith.evaluation.plans.plan import Grid, Setting

Held = Mapping[str, References]
_GIVE: Final = {
    "clip": "--clip DIR",
    "dino": "--dino DIR",
    "pickscore": "--pickscore DIR",
    "aesthetic": "--aesthetic FILE",
}
_NEED_SEEDS: Final = ("diversity", "teacher_rel")
_NEED_STYLE: Final = ("style_accuracy",)
_NEED_MEAN: Final = ("style_cos", "style_gain")
_NEED_RIVALS: Final = ("retrieval_top1",)
_OF_STYLE: Final = ("references", "unstyled")
_NEED_SETS: Final = ("cmmd_u", "cmmd_n")


def lacking(metric: Metric, setting: Setting, grid: Grid, judges: Judges, references: Held) -> str:
    """What keeps a metric empty in a setting, and what to do; "" where nothing does.

    Args:
        metric: Asked for.
        setting: Of the grid.
        grid: The plan.
        judges: Of all bases.
        references: Base → those of ``--style-refs``; empty without.
    """
    here = judges.on(setting.context.base)
    shown = [p for p in map(setting.context.text, grid.prompts) if p in pictures.by_caption()]
    true = bool(setting.target_sets and shown)
    own = references.get(setting.context.base)
    held = len(own.pixels) if own else None
    reasons = (
        (metric.judge in _GIVE and getattr(here, metric.judge) is None, _GIVE.get(metric.judge)),
        (metric.needs == "truth" and not true, "a style, and captions, of which pictures ship"),
        (metric.name in _NEED_STYLE and not setting.style_set, "a style that is a shipped set"),
        (metric.needs in _OF_STYLE and not held and not true, "--style-refs DIR"),
        (metric.name in _NEED_MEAN and not held and not setting.style_set, "--style-refs DIR"),
        (
            metric.name in _NEED_MEAN and held is not None and held < FEWEST_REFERENCES,
            f"{FEWEST_REFERENCES} pictures or more in --style-refs, which has {held}",
        ),
        (
            metric.name in _NEED_RIVALS and not shown and len(grid.prompts) < 2,
            "another prompt to be told from, or a shipped caption",
        ),
        (metric.name in _NEED_SEEDS and len(grid.seeds) < 2, "--seeds 2 or more"),
        (metric.name in _NEED_SETS and len(grid.items) < FEWEST, f"{FEWEST} pictures a row"),
    )
    return next((what or "" for applies, what in reasons if applies), "")


def empty(names: Collection[str], grid: Grid, judges: Judges, references: Held) -> Iterator[str]:
    """One line for each thing that is lacking: the metrics it empties, where, and what to give."""
    lines: dict[tuple[str, tuple[str, str]], list[str]] = {}
    for setting in grid.settings:
        for name in names:
            what = lacking(METRICS[name], setting, grid, judges, references)
            held = lines.setdefault((what, setting.context.group), []) if what else []
            held += [name] if name not in held else []
    for (what, (base, style)), held in lines.items():
        yield f"{', '.join(held)} of {style} on {base}: needs {what}"


def expected(chosen: Collection[str]) -> tuple[str, ...]:
    """Metrics whose absence is told: those chosen; of all, those that CLIP has of any two pictures.

    Args:
        chosen: Names of metrics that are computed.
    """
    if len(set(chosen)) < len(METRICS):
        return tuple(chosen)
    usual = (m for m in METRICS.values() if m.judge == "clip" and m.name not in _NEED_SETS)
    return tuple(m.name for m in usual if m.needs in ("caption", "teacher"))


def require(names: Collection[str], grid: Grid, judges: Judges, references: Held) -> None:
    """Raises unless every metric of ``--require-metric`` can be computed in all of a grid.

    Raises:
        UsageError: If one stays empty in a setting.
    """
    lines = list(empty(names, grid, judges, references))
    if lines:
        raise UsageError(
            "--require-metric: cannot be computed\n" + "\n".join(f"  {line}" for line in lines),
            hint="give what is needed, or do not require it",
        )
