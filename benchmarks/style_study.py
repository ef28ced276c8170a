"""What carries a style over to things that the style vector never saw?

Trains short style vectors on part A that differ in one thing each, and judges the many-step teacher
on A and on B: style_accuracy is the style, retrieval_top1 the thing.

    python benchmarks/style_study.py [--style twemoji] [--steps 300] [--variants NAME …]

Minutes a variant on two cores. Writes ``benchmarks/results/style_study_STYLE.md``.
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
from lcm_arith.families import LCM_TARGETS, Training, embedded
from lcm_arith.finetune import CAPTION_DROPOUT, finetune
from lcm_arith.fuse import LiveWeights
from lcm_arith.make_vectors import VARIANTS
from lcm_arith.sampling import encode_prompts, load_pipeline, sample

RESULTS: Final = Path(__file__).resolve().parent / "results"
CONVOLUTIONS: Final = tuple(t for t in LCM_TARGETS if "conv" in t or t == "time_emb_proj")
ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
NO_CAPTION: Final = tuple(t for t in LCM_TARGETS if t not in ATTENTION) + tuple(
    f"attn1.{t}" for t in ATTENTION
)
METRICS: Final = ("style_accuracy", "retrieval_top1", "pair_distance")


@dataclass(frozen=True)
class Variant:
    """One way of training; what differs from the plain one.

    Args:
        name: For the table.
        changes: Fields of the plan.
        dropout: Share of pictures without caption.
        floor: As in ``finetune``.
    """

    name: str
    changes: dict[str, Any]
    dropout: float = CAPTION_DROPOUT
    floor: float = 0.0


STUDY: Final = {
    v.name: v
    for v in (
        Variant("plain", {}),
        Variant("rank 4", {"rank": 4}),
        Variant("no cross-attention", {"targets": NO_CAPTION}),
        Variant("attention only", {"targets": ATTENTION}),
        Variant("convolutions only", {"targets": CONVOLUTIONS}),
        Variant("a third of the learning rate", {"learning_rate": 3e-4}),
        Variant("dropout 0.3", {}, dropout=0.3),
        Variant("dropout 0.7", {}, dropout=0.7),
        Variant("floor 0.1", {}, floor=0.1),
        Variant("floor 1", {}, floor=1.0),
    )
}


def judged(pipeline: Any, style: str, part: str, given: argparse.Namespace) -> dict[str, float]:
    """The metrics of the teacher on the first captions of a part."""
    prompts = [c.caption for c in pictures.hash_order(pictures.concepts(part))[: given.prompts]]
    yardstick = Yardstick(load_judge(), load_probe(), (style,), style, prompts)
    items = [(prompt, seed) for prompt in prompts for seed in range(given.seeds)]
    shown = sample(
        pipeline,
        encode_prompts(pipeline, [prompt for prompt, _ in items]),
        encode_prompts(pipeline, [""]),
        [seed for _, seed in items],
        sampler="dpm++",
        steps=embedded().teacher_steps,
        guidance=embedded().guidance,
        fast=True,
    )
    metrics, _ = yardstick.picture_metrics(shown, [prompt for prompt, _ in items])
    return {name: cell_means(metrics)[name] for name in METRICS}


def study(
    variant: Variant, data: TrainingSet, given: argparse.Namespace, bar: Progress
) -> tuple[str, ...]:
    """A row of the table."""
    pipeline = load_pipeline(embedded().base)
    plan: Training = replace(embedded().style, steps=given.steps, **variant.changes)
    task = bar.add_task(variant.name, total=plan.steps)
    tau, outcome = finetune(
        pipeline,
        data,
        plan,
        seed=0,
        on_step=lambda step, _: bar.update(task, completed=step),
        caption_dropout=variant.dropout,
        floor=variant.floor,
    )
    fresh = load_pipeline(embedded().base)
    LiveWeights(fresh).apply(tau)
    found = [judged(fresh, given.style, part, given) for part in ("A", "B")]
    tail = outcome.losses[-50:]
    row: tuple[str, ...] = (variant.name, f"{sum(tail) / len(tail):.4f}")
    row += tuple(f"{values[m]:.3f}" for m in METRICS for values in found)
    bar.console.print(" | ".join(row))
    return row


def markdown(rows: Sequence[tuple[str, ...]]) -> str:
    head = ("variant", "loss", *(f"{m} {part}" for m in METRICS for part in ("A", "B")))
    ruled = [head, tuple("---" for _ in head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in ruled)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--style", choices=pictures.style_sets(), default="twemoji")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--prompts", type=int, default=46)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--variants", nargs="+", choices=STUDY, default=tuple(STUDY))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with Progress(console=Console(stderr=True)) as bar:
        shown = embedded_pictures((given.style,), "A", VARIANTS)
        data = encode(load_pipeline(embedded().base), shown)
        rows = [study(STUDY[name], data, given, bar) for name in given.variants]
    page = (
        f"# What carries `{given.style}` over to unseen things\n\n"
        f"`python benchmarks/style_study.py --style {given.style} --steps {given.steps}`, "
        f"{datetime.now(UTC).date().isoformat()}: {given.steps} steps of "
        f"{embedded().style.batch} on part A, each variant differs from the plain one (rank "
        f"{embedded().style.rank}, all 14 kinds of layer, learning rate "
        f"{embedded().style.learning_rate:g}, caption dropout {CAPTION_DROPOUT:g}, no SNR floor) "
        f"in one thing. Teacher, {given.prompts} captions a part × {given.seeds} "
        "seeds: a standard error of about 0.05 a share.\n\n"
        f"{markdown(rows)}\n"
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"style_study_{given.style}.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
