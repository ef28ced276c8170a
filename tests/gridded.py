"""Tables of grids that nobody drew, as cells.csv, images.csv and comparisons.csv have them."""

from __future__ import annotations

import hashlib
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from lcm_arith.evaluation.findings import COMPARISON_COLUMNS
from lcm_arith.evaluation.grid import CELL_COLUMNS, IMAGE_COLUMNS
from lcm_arith.evaluation.judging.metrics import PICTURE_METRICS

METRICS = (*PICTURE_METRICS, "color_swd")


@dataclass(frozen=True)
class Tables:
    """The three tables; ``pictures`` are PNGs by path."""

    cells: pd.DataFrame
    images: pd.DataFrame
    comparisons: pd.DataFrame
    pictures: dict[str, bytes]


def gridded(
    *,
    prompts: Sequence[str] = ("a fox", "a cat"),
    seeds: int = 2,
    side: int = 8,
    same: int = 0,
    left: int = 0,
    **axes: Sequence[Any],
) -> Tables:
    """A grid of random values over ``axes``; its first cell is the baseline.

    Args:
        prompts, seeds: Of its pictures.
        side: Of its pictures, px; noise, which compresses badly. 0 makes none.
        same: Rows that share the pictures of the first.
        left: Cells, of the last ones, that could not be drawn.
        axes: Columns and their values; λ1, λ2 and steps have two each if they are not named.
    """
    axes = {"l1": ("0.8", "1"), "l2": ("0.5", "1"), "steps": (1, 2), **axes}
    keys = [dict(zip(axes, at, strict=True)) for at in itertools.product(*axes.values())]
    styles = axes.get("style", ("noto",))
    margins = [
        {"role": role, "style": style, "sampler": "dpm++", "steps": steps, "guidance": scale}
        for style in styles
        for role, steps, scale in (("base", 25, 3.0), ("teacher", 25, 3.0),
                                   *(("control", n, 1.0) for n in axes["steps"]))
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    lines = [_line(rng, row, len(prompts), seeds) for row in (*margins, *keys)]
    lines = [*lines[: len(lines) - left], *map(_without_figures, lines[len(lines) - left :])]
    cells = pd.DataFrame(lines)
    order = [*CELL_COLUMNS, *(c for c in cells if c not in CELL_COLUMNS)]
    pictures, images = _pictures(rng, lines, prompts, seeds, side, same)
    comparisons = _comparisons(rng, lines[: len(lines) - left])
    return Tables(cells.reindex(columns=order), images, comparisons, pictures)


def _line(rng: np.random.Generator, row: dict[str, Any], prompts: int, seeds: int) -> Any:
    cell = "role" not in row
    usual = {"role": "cell", "style": "noto", "accel": "lcm", "l1": "1", "l2": "0", "base": "emoji",
             "sampler": "lcm", "guidance": 1.0, "method": "linear", "rank": None, "te": None,
             "l1_schedule": "", "l2_schedule": "", "negative": "", "edit": ""}  # fmt: skip
    line = {**usual, **row, "n_prompts": prompts, "n_seeds": seeds, "n_images": prompts * seeds}
    line["cell_id"] = hashlib.sha256(repr(line).encode()).hexdigest()[:16]
    line["nfe"] = line["steps"] * (2 if line["guidance"] > 1 else 1)
    for metric in METRICS:
        value, half = rng.normal(), abs(rng.normal())
        line[metric] = value
        if metric in PICTURE_METRICS:
            line |= {f"{metric}_lo": value - half, f"{metric}_hi": value + half}
    best = bool(rng.random() < 0.3) if cell else None
    line |= {"n_defects": 0, "status": "ok", "n_failed": 0}
    return {**line, "p_best": rng.random() if cell else np.nan, "in_best_set": best}


def _without_figures(line: dict[str, Any]) -> dict[str, Any]:
    figures = {name: np.nan for name in line if name.startswith(METRICS)}
    lost = {"n_defects": np.nan, "p_best": np.nan, "in_best_set": None, "n_images": 0}
    return {**line, **figures, **lost, "status": "error", "n_failed": line["n_images"]}


def _pictures(
    rng: np.random.Generator, lines: list[Any], prompts: Sequence[str], seeds: int, side: int,
    same: int,
) -> tuple[dict[str, bytes], pd.DataFrame]:  # fmt: skip
    made: dict[str, bytes] = {}
    rows = []
    for number, line in enumerate(lines):
        for prompt, seed in itertools.product(prompts, range(seeds)):
            owner = lines[0] if number <= same else line
            name = hashlib.sha256(f"{owner['cell_id']}{prompt!r}{seed}".encode()).hexdigest()
            path = f"images/{name[:24]}.png"
            if side and path not in made:
                made[path] = _png(rng.integers(0, 256, (side, side, 3), np.uint8))
            there = {"path": path, "sha256": name, "defect": "ok"}
            gone = {"path": "", "sha256": "", "defect": None}
            own = there if line["status"] == "ok" else gone
            rows.append({**line, "prompt": prompt, "seed": seed, **own})
    return made, pd.DataFrame(rows).reindex(columns=list(IMAGE_COLUMNS))


def _png(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=1)
    return out.getvalue()


def _comparisons(rng: np.random.Generator, lines: list[Any]) -> pd.DataFrame:
    found = []
    cells = [line for line in lines if line["role"] == "cell"]
    first = {line["style"]: line for line in reversed(cells)}
    for line, metric in itertools.product(cells, PICTURE_METRICS):
        baseline = first[line["style"]]
        if line is not baseline:
            p = float(rng.random() ** 4)
            found.append({**line, "baseline_id": baseline["cell_id"], "metric": metric,
                          "diff": rng.normal(), "lo": -3.0, "hi": 3.0, "p_perm": p, "p_holm": p,
                          "p_better": rng.random()})  # fmt: skip
    return pd.DataFrame(found).reindex(columns=list(COMPARISON_COLUMNS))
