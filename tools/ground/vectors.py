"""Stages ``guidance``, ``styles``, ``acceleration``; by what ``finetune`` and ``distill`` call."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from ground.common import Bar, Options, say
from lcm_arith.embedded import files, pictures
from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.evaluation.metrics import Yardstick, cell_means
from lcm_arith.families import embedded
from lcm_arith.make_vectors import Request, make_acceleration, make_style
from lcm_arith.sampling import encode_prompts, load_pipeline, sample

GUIDANCE: Final = (1.5, 2.0, 3.0, 5.0)
SCANNED, SCAN_SEEDS, CHUNK = 200, 2, 64
TEACHER_STEPS: Final = 25
STYLE_SEED, ACCELERATION_SEED = 51, 61
STYLE_STEPS, ACCELERATION_STEPS = 1000, 3600  # ``finetune`` and ``distill`` stop sooner by default
SCAN: Final = "guidance.json"


def build_guidance(options: Options) -> None:
    """Draws part A with the base at every guidance and keeps the one nearest to the true pictures.

    Writes ``defaults.json``, and the scan into the work folder for the report.
    """
    prompts = [c.caption for c in pictures.hash_order(pictures.concepts("A"))[:SCANNED]]
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
        request = _request(name, f"style-{name}", STYLE_SEED, STYLE_STEPS, options)
        _make(f"style {name}", request, partial(make_style, request, name))


def build_acceleration(options: Options) -> None:
    """Distils the acceleration vector on part A, at the ω that equals the base's guidance."""
    request = _request("lcm", "acceleration", ACCELERATION_SEED, ACCELERATION_STEPS, options)
    _make("acceleration", request, partial(make_acceleration, request, None))


def _request(name: str, stage: str, seed: int, steps: int, options: Options) -> Request:
    files.VECTORS.mkdir(exist_ok=True)
    options.work.mkdir(parents=True, exist_ok=True)
    return Request(
        files.VECTORS / f"{name}.safetensors",
        steps=max(1, steps // options.shorter),
        seed=seed,
        dtype=torch.float16,
        force=True,
        checkpoint=options.work / f"{stage}.pt",
        log=options.work / f"{stage}.csv",
        device=options.device,
    )


def _make(stage: str, request: Request, make: Callable[[Any], dict[str, Any]]) -> None:
    with Bar(stage, request.steps or 0) as bar:

        def on_stage(kind: str, done: int, _: int, note: str) -> None:
            if kind == "train":
                bar(done, float(note.removeprefix("loss ")))

        made = make(on_stage)
    say(f"{Path(made['path']).name}: final loss {made['final_loss']:.4f}, {made['sha256'][:16]}")
