"""What the studies share: their options, the judging of drawn pictures, the table."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from rich.progress import Progress

from lcm_arith.embedded import pictures
from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.evaluation.judging.yardstick import Yardstick, cell_means
from lcm_arith.sampling import encode_prompts, sample
from lcm_arith.training.request import Request, Watching

RESULTS: Final = Path(__file__).resolve().parent / "results"
PARTS: Final = ("A", "B")

Way = tuple[str, int, float]
"""Sampler, steps, guidance scale."""


def options(description: str, variants: Collection[str], *, steps: int) -> argparse.ArgumentParser:
    """The command line of a study."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--steps", type=int, default=steps, help="of training, each variant")
    parser.add_argument("--prompts", type=int, default=40, help="captions a part")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the page")
    parser.add_argument("--variants", nargs="+", choices=variants, default=tuple(variants))
    return parser


@contextmanager
def training(given: Any, changes: Mapping[str, Any], data: Any = None) -> Iterator[Request]:
    """A training of ``given.steps`` whose files are gone afterwards."""
    with TemporaryDirectory() as folder:
        run = Path(folder)
        out, cache = run / "vector.safetensors", run / "cache" if data else None
        plan = {"steps": given.steps, **changes}
        watching = Watching(every=0)
        yield Request(out=out, run=run, data=data, cache=cache, plan=plan, watching=watching)


def on_stage(bar: Progress, name: str) -> Callable[[str, int, int, str], None]:
    """Shows how far the training of a variant is."""
    task = bar.add_task(name)

    def show(stage: str, done: int, total: int, note: str) -> None:
        bar.update(task, completed=done, total=total, description=f"{name}: {stage} {note}")

    return show


def judged(
    pipeline: Any, ways: Sequence[Way], sets: tuple[str, ...], style: str | None, given: Any
) -> list[dict[str, dict[str, float]]]:
    """Part → metric of each way of drawing the first captions of the parts."""
    found: list[dict[str, dict[str, float]]] = [{} for _ in ways]
    judge, probe = load_judge(), load_probe()
    for part in PARTS:
        ordered = pictures.hash_order(pictures.concepts(part))[: given.prompts]
        prompts = [concept.caption for concept in ordered]
        yardstick = Yardstick(judge, probe, sets, style, prompts)
        items = [(prompt, seed) for prompt in prompts for seed in range(given.seeds)]
        embeds = encode_prompts(pipeline, [prompt for prompt, _ in items])
        for (sampler, steps, guidance), metrics_of in zip(ways, found, strict=True):
            shown = sample(
                pipeline,
                embeds,
                encode_prompts(pipeline, [""]),
                [seed for _, seed in items],
                sampler=sampler,
                steps=steps,
                guidance=guidance,
                fast=True,
            )
            metrics, _ = yardstick.picture_metrics(shown, [prompt for prompt, _ in items])
            metrics_of[part] = cell_means(metrics)
    return found


def cells(found: dict[str, dict[str, float]], metrics: Sequence[str]) -> tuple[str, ...]:
    """Each metric on A and on B, three digits."""
    return tuple(f"{found[part][metric]:.3f}" for metric in metrics for part in PARTS)


def write(
    path: Path, page: str, head: Sequence[str], metrics: Sequence[str], rows: Sequence[Any]
) -> None:
    """The page with its table, to ``path`` and to the terminal."""
    columns = (*head, *(f"{metric} {part}" for metric in metrics for part in PARTS))
    ruled = [columns, tuple("---" for _ in columns), *rows]
    table = "\n".join("| " + " | ".join(row) + " |" for row in ruled)
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"{page}\n{table}\n", encoding="utf-8")
    print(f"{page}\n{table}")
