"""What makes a short distillation good? Acceleration vectors that differ in one thing each.

Every variant is distilled on part A and judged with one, two and four passes of the LCM sampler, on
A and on B, beside the base without acceleration at the same passes and the many-step teacher.

    python benchmarks/distill_study.py [--steps 400] [--variants NAME …]

Minutes a variant on two cores. Writes ``benchmarks/results/distill_study.md``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import torch
from rich.console import Console
from rich.progress import Progress

from lcm_arith.dataset import TrainingSet, embedded_pictures, encode
from lcm_arith.embedded import pictures
from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.evaluation.metrics import Yardstick, cell_means
from lcm_arith.families import embedded
from lcm_arith.fuse import LiveWeights
from lcm_arith.lcd.trainer import STRIDE, distill
from lcm_arith.make_vectors import VARIANTS
from lcm_arith.sampling import encode_prompts, load_pipeline, sample
from lcm_arith.vector import TaskVector

RESULTS: Final = Path(__file__).resolve().parent / "results"
PASSES: Final = (1, 2, 4)
METRICS: Final = ("pair_distance", "retrieval_top1")


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
        Variant("half the learning rate", {"learning_rate": 2.5e-4}),
        Variant("twice the learning rate", {"learning_rate": 1e-3}),
        Variant("ω + 1", {}, omega=1.0),
    )
}


def judged(pipeline: Any, given: argparse.Namespace, ways: Sequence[tuple[str, int, float]]) -> Any:
    """(sampler, steps, guidance) → part → metric, on the first captions of each part."""
    found: dict[tuple[str, int, float], dict[str, dict[str, float]]] = {way: {} for way in ways}
    for part in ("A", "B"):
        ordered = pictures.hash_order(pictures.concepts(part))[: given.prompts]
        prompts = [concept.caption for concept in ordered]
        yardstick = Yardstick(load_judge(), load_probe(), pictures.base_sets(), None, prompts)
        items = [(prompt, seed) for prompt in prompts for seed in range(given.seeds)]
        embeds = encode_prompts(pipeline, [prompt for prompt, _ in items])
        uncond = encode_prompts(pipeline, [""])
        for sampler, steps, guidance in ways:
            shown = sample(
                pipeline,
                embeds,
                uncond,
                [seed for _, seed in items],
                sampler=sampler,
                steps=steps,
                guidance=guidance,
                fast=True,
            )
            metrics, _ = yardstick.picture_metrics(shown, [prompt for prompt, _ in items])
            found[sampler, steps, guidance][part] = cell_means(metrics)
    return found


def cells(found: dict[str, dict[str, float]]) -> tuple[str, ...]:
    """Each metric on A and on B."""
    return tuple(f"{found[part][metric]:.3f}" for metric in METRICS for part in ("A", "B"))


def study(
    variant: Variant, data: TrainingSet, given: argparse.Namespace, bar: Progress
) -> list[tuple[str, ...]]:
    """The rows of one variant."""
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
    return rows(variant.name, tau, given, bar)


def rows(name: str, tau: TaskVector, given: argparse.Namespace, bar: Progress) -> list[Any]:
    """A row for each number of passes with ``tau``."""
    pipeline = load_pipeline(embedded().base)
    LiveWeights(pipeline).apply(tau)
    found = judged(pipeline, given, [("lcm", passes, 1.0) for passes in PASSES])
    made = [(name, str(way[1]), *cells(values)) for way, values in found.items()]
    for row in made:
        bar.console.print(" | ".join(row))
    return made


def references(given: argparse.Namespace) -> list[tuple[str, ...]]:
    """The teacher, and the base without acceleration."""
    pipeline, family = load_pipeline(embedded().base), embedded()
    teacher = ("dpm++", family.teacher_steps, family.guidance)
    controls = [("dpm++", passes, 1.0) for passes in PASSES]
    controls += [("dpm++", passes // 2, family.guidance) for passes in PASSES if passes > 1]
    found = judged(pipeline, given, [teacher, *controls])
    return [
        (
            f"none: {sampler} {steps}" + (f", s={s:g}" if s > 1 else ""),
            str(steps * (2 if s > 1 else 1)),
            *cells(values),
        )
        for (sampler, steps, s), values in found.items()
    ]


def markdown(table: Sequence[tuple[str, ...]]) -> str:
    head = ("variant", "NFE", *(f"{m} {part}" for m in METRICS for part in ("A", "B")))
    ruled = [head, tuple("---" for _ in head), *table]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", choices=STUDY, default=tuple(STUDY))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with Progress(console=Console(stderr=True)) as bar:
        table = references(given)
        shown = embedded_pictures(pictures.base_sets(), "A", VARIANTS)
        data = encode(load_pipeline(embedded().base), shown)
        for name in given.variants:
            table += study(STUDY[name], data, given, bar)
    plan = embedded().acceleration
    page = (
        f"# What makes a short distillation good\n\n"
        f"`python benchmarks/distill_study.py --steps {given.steps}`, "
        f"{datetime.now(UTC).date().isoformat()}: {given.steps} steps of {plan.batch} on part A, "
        f"each variant differs from the plain one (rank {plan.rank}, learning rate "
        f"{plan.learning_rate:g}, average {plan.ema:g}, a solver step of {STRIDE} grid points, ω "
        f"{embedded().omega:g}) in one thing. {given.prompts} captions a part × {given.seeds} "
        "seeds: a standard error of about 0.05 a share.\n\n"
        f"{markdown(table)}\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "distill_study.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
