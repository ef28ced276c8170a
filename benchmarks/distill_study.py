"""What makes a short distillation good? Acceleration vectors that differ in one thing each.

Every variant is distilled on part A and judged with one, two and four passes of the LCM sampler, on
A and on B, beside the base without acceleration at the same passes and the many-step teacher.

    python benchmarks/distill_study.py [--steps 400] [--variants NAME …]

Minutes a variant on two cores. Writes ``benchmarks/results/distill_study.md``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

import torch
from _study import cells, judged, options, write
from rich.console import Console
from rich.progress import Progress

from lcm_arith.bases import load_base
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.drawings import embedded_pictures
from lcm_arith.data.prepare import prepare
from lcm_arith.embedded import pictures
from lcm_arith.families import embedded
from lcm_arith.fuse import LiveWeights
from lcm_arith.lcd.trainer import STRIDE, distill
from lcm_arith.make_vectors import VARIANTS
from lcm_arith.sampling import load_pipeline

PASSES: Final = (1, 2, 4)
METRICS: Final = ("pair_distance", "retrieval_top1")

Row = tuple[str, ...]


@dataclass(frozen=True)
class Variant:
    """One way of distilling; what differs from the plain one.

    Args:
        name: For the table.
        changes: Fields of the plan.
        stride: As in ``distill``.
        omega: More or less than the family's ω.
    """

    name: str
    changes: dict[str, Any]
    stride: int = STRIDE
    omega: float = 0.0


STUDY: Final = {
    v.name: v
    for v in (
        Variant("plain", {}),
        Variant("stride 1", {}, stride=1),
        Variant("stride 5", {}, stride=5),
        Variant("last weights, no average", {"ema": 0.0}),
        Variant("half the learning rate", {"learning_rate": 2e-4}),
        Variant("twice the learning rate", {"learning_rate": 8e-4}),
        Variant("ω + 1", {}, omega=1.0),
    )
}


def study(variant: Variant, data: TrainingSet, given: Any, bar: Progress) -> list[Row]:
    """The rows of one variant, one for each number of passes."""
    pipeline = load_pipeline(embedded().base)
    plan = replace(embedded().acceleration, steps=given.steps, **variant.changes)
    task = bar.add_task(variant.name, total=plan.steps)
    tau, _ = distill(
        pipeline,
        data,
        plan,
        omega=embedded().omega + variant.omega,
        seed=0,
        on_step=lambda step, _: bar.update(task, completed=step),
        stride=variant.stride,
    )
    fresh = load_pipeline(embedded().base)
    LiveWeights(fresh).apply(tau)
    found = judged(
        fresh, [("lcm", passes, 1.0) for passes in PASSES], pictures.base_sets(), None, given
    )
    rows: list[Row] = [
        (variant.name, str(passes), *cells(values, METRICS))
        for passes, values in zip(PASSES, found, strict=True)
    ]
    for row in rows:
        bar.console.print(" | ".join(row))
    return rows


def references(given: Any) -> list[Row]:
    """The teacher, and the base without acceleration."""
    pipeline, family = load_pipeline(embedded().base), embedded()
    ways = [("dpm++", family.teacher_steps, family.guidance)]
    ways += [("dpm++", passes, 1.0) for passes in PASSES]
    ways += [("dpm++", passes // 2, family.guidance) for passes in PASSES if passes > 1]
    found = judged(pipeline, ways, pictures.base_sets(), None, given)
    return [
        (
            f"none: {sampler} {steps}" + (f", s={s:g}" if s > 1 else ""),
            str(steps * (2 if s > 1 else 1)),
            *cells(values, METRICS),
        )
        for (sampler, steps, s), values in zip(ways, found, strict=True)
    ]


def main() -> None:
    given = options(__doc__.split("\n")[0], STUDY, steps=400).parse_args()
    torch.set_num_threads(given.threads)
    with Progress(console=Console(stderr=True)) as bar:
        rows = references(given)
        shown = embedded_pictures(pictures.base_sets(), "A", VARIANTS)
        data = prepare(load_base(), shown)
        for name in given.variants:
            rows += study(STUDY[name], data, given, bar)
    plan = embedded().acceleration
    page = (
        f"# What makes a short distillation good\n\n"
        f"`python benchmarks/distill_study.py --steps {given.steps}`, "
        f"{datetime.now(UTC).date().isoformat()}: {given.steps} steps of {plan.batch} on part A, "
        f"each variant differs from the plain one (rank {plan.rank}, learning rate "
        f"{plan.learning_rate:g}, average {plan.ema:g}, a solver step of {STRIDE} grid points, ω "
        f"{embedded().omega:g}) in one thing. {given.prompts} captions a part × {given.seeds} "
        "seeds: a standard error of about 0.05 a share.\n"
    )
    write(given.out / "distill_study.md", page, ("variant", "NFE"), METRICS, rows)


if __name__ == "__main__":
    main()
