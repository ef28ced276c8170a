"""Stages ``guidance``, ``styles``, ``acceleration``; by what ``finetune`` and ``distill`` call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from ground.common import Bar, Options, say
from lcm_arith.embedded import files, pictures
from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.evaluation.judging.yardstick import Yardstick, cell_means
from lcm_arith.families import embedded
from lcm_arith.make_vectors import make_acceleration, make_style
from lcm_arith.sampling import encode_prompts, load_pipeline, sample
from lcm_arith.training.ground import OnStage
from lcm_arith.training.request import Machine, Request, Watching

GUIDANCE: Final = (1.5, 2.0, 3.0, 5.0)
SCAN_SEEDS, CHUNK = 2, 64
TEACHER_STEPS: Final = 25
STYLE_SEED, ACCELERATION_SEED = 51, 61
# Twice over, the second time from the first's result, more slowly and with room for more.
STYLE_PASSES: Final = ({"steps": 1000}, {"steps": 1000, "learning_rate": 5e-4})
ACCELERATION_PASSES: Final = (
    {"steps": 3600},
    {"steps": 3000, "learning_rate": 2e-4, "rank": 64},
)
ACCELERATION_STRIDE: Final = 3  # of a long training; a short one does better with the default
SCAN: Final = "guidance.json"


def build_guidance(options: Options) -> None:
    """Draws part A with the base at every guidance and keeps the one nearest to the true pictures.

    Writes ``defaults.json``, and the scan into the work folder for the report.
    """
    chosen = pictures.hash_order(pictures.concepts("A"))[: options.prompts]
    prompts = [c.caption for c in chosen]
    pipeline = load_pipeline(files.MODEL).to(options.device)
    yardstick = Yardstick(load_judge(), load_probe(), pictures.base_sets(), None, prompts)
    items = [(prompt, seed) for prompt in prompts for seed in range(SCAN_SEEDS)]
    scan: dict[str, dict[str, float]] = {}
    with Bar("guidance", len(GUIDANCE) * len(items)) as bar:
        for guidance in GUIDANCE:
            shown = []
            for at in range(0, len(items), CHUNK):
                part = items[at : at + CHUNK]
                shown.append(
                    sample(
                        pipeline,
                        encode_prompts(pipeline, [prompt for prompt, _ in part]),
                        encode_prompts(pipeline, [""]),
                        [seed for _, seed in part],
                        sampler="dpm++",
                        steps=TEACHER_STEPS,
                        guidance=guidance,
                        fast=True,
                    )
                )
                bar(len(scan) * len(items) + at + len(part), 0.0)
            metrics, _ = yardstick.picture_metrics(
                np.concatenate(shown), [prompt for prompt, _ in items]
            )
            scan[f"{guidance:g}"] = {k: round(v, 4) for k, v in cell_means(metrics).items()}
    best = min(GUIDANCE, key=lambda g: scan[f"{g:g}"]["pair_distance"])
    files.write_file(options.work / SCAN, json.dumps(scan, indent=1) + "\n")
    write_defaults(best)
    print(json.dumps(scan, indent=1))
    say(f"guidance: {best:g} is nearest to the true pictures")


def write_defaults(guidance: float) -> None:
    """``defaults.json``: guidance, the ω that equals it, and the default pair of vectors."""
    styles = pictures.style_sets()
    values = {
        "accel": "lcm",
        "guidance": guidance,
        "omega": guidance - 1.0,
        "style": "fluent-emoji" if "fluent-emoji" in styles else styles[0],
        "teacher_steps": TEACHER_STEPS,
    }
    files.write_file(files.ROOT / "defaults.json", json.dumps(values, indent=1) + "\n")
    files.defaults.cache_clear()
    embedded.cache_clear()


def build_styles(options: Options) -> None:
    """Trains the style vectors on part A."""
    for name in options.only or pictures.style_sets():

        def train(request: Request, on_stage: OnStage, style: str = name) -> dict[str, Any]:
            return make_style(request, style, on_stage)

        make = partial(_make, f"style {name}", train)
        _passes(name, f"style-{name}", STYLE_SEED, STYLE_PASSES, options, make)


def build_acceleration(options: Options) -> None:
    """Distils the acceleration vector on part A, at the ω that equals the base's guidance."""

    def distil(request: Request, on_stage: OnStage) -> dict[str, Any]:
        return make_acceleration(request, on_stage, variant={"stride": ACCELERATION_STRIDE})

    make = partial(_make, "acceleration", distil)
    _passes("lcm", "acceleration", ACCELERATION_SEED, ACCELERATION_PASSES, options, make)


def _passes(
    name: str,
    stage: str,
    seed: int,
    passes: Sequence[Mapping[str, Any]],
    options: Options,
    make: Callable[[Request], None],
) -> None:
    """One training after the other, each from the one before; the last one's file ships."""
    files.VECTORS.mkdir(exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    start: Path | None = None
    for number, given in enumerate(passes, 1):
        last = number == len(passes)
        own = stage if number == 1 else f"{stage}-{number}"
        out = (files.VECTORS if last else options.work) / f"{name}.safetensors"
        request = Request(
            out=out,
            run=options.work / own,
            cache=options.work / "cache",
            seed=seed + 100 * (number - 1),
            dtype="float16" if last else "float32",
            force=True,
            machine=Machine(options.device),
            watching=Watching(every=0 if options.shorter > 1 else None),
            start=str(start) if start else None,
            plan={**given, "steps": max(1, given["steps"] // options.shorter)},
        )
        make(request)
        start = out


def _make(stage: str, make: Callable[[Request, OnStage], dict[str, Any]], request: Request) -> None:
    with Bar(stage, request.plan["steps"]) as bar:

        def on_stage(kind: str, done: int, _: int, note: str) -> None:
            if kind == "train":
                bar(done, float(note.removeprefix("loss ")))

        made = make(request, on_stage)
    say(f"{Path(made['path']).name}: final loss {made['final_loss']:.4f}, {made['sha256'][:16]}")
