"""The figures that a ground is judged by, each with its goal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ground.ceilings import FRESH
from ground.clip import is_kept_out
from lcm_arith.combination import NONE
from lcm_arith.embedded import files, pictures
from lcm_arith.embedded.pictures import concepts
from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.plans.rows import Row
from lcm_arith.evaluation.statistics.stats import Interval, closed_gap, of_means, paired, ratio

Results = Mapping[tuple[str, str], Result]


@dataclass(frozen=True)
class Figure:
    """One figure.

    Args:
        name: What is measured.
        of: Style, set or model.
        part: Captions.
        goal: In words.
        found: Value with its interval.
        met: Whether the value reaches the goal.
    """

    name: str
    of: str
    part: str
    goal: str
    found: str
    met: bool


def _at_least(name: str, of: str, part: str, goal: float, found: Interval) -> Figure:
    text = f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}]"
    return Figure(name, of, part, f"≥ {goal:.2f}", text, found.mean >= goal)


def _off_zero(name: str, of: str, part: str, found: Interval, *, above: bool) -> Figure:
    met = found.low > 0 if above else found.high < 0
    return Figure(name, of, part, "> 0" if above else "< 0", str(found), bool(met))


def constant(value: float) -> np.ndarray:
    """A known number as a sample without spread."""
    return np.array([[value]])


def judge_figures(ceilings: Mapping[str, Any]) -> Iterator[Figure]:
    """What the judge says of true pictures: fresh variants, Wilson's interval."""
    goals = (
        ("true caption first, as drawn", "real", "retrieval_top1", 0.95),
        ("true caption first, through the VAE", "vae", "retrieval_top1", 0.92),
        ("style named, through the VAE", "vae", "style_accuracy", 0.95),
    )
    for name, way, metric, goal in goals:
        for part in ("seen", "kept out") if "seen" in ceilings else ():  # the prototype saw all
            for of in pictures.sets():
                value = ceilings[part][of][way][metric]
                if value is not None:
                    found = wilson(value, fresh_pictures(of, part))
                    yield _at_least(f"judge: {name}", of, part, goal, found)


def fresh_pictures(of: str, part: str) -> int:
    """Pictures that a ceiling of a set is the mean of."""
    return FRESH * sum(is_kept_out(of, thing) == (part == "kept out") for thing in concepts())


def wilson(share: float, count: int, z: float = 1.96) -> Interval:
    """A share of ``count`` with its 95 % interval (Wilson 1927), which stays within 0 and 1."""
    centre = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return Interval(share, centre - half, centre + half)


def _parts(results: Results, style: str) -> list[tuple[str, Result]]:
    return [(part, result) for (of, part), result in results.items() if of == style]


def base_figures(results: Results) -> Iterator[Figure]:
    """The base by its teacher: prompt, diversity of artists, sharpness."""
    for part, result in _parts(results, NONE):
        ceiling = _ceiling(part, "base", "retrieval_top1")
        retrieval = result.metric(result.grid.only.teacher, "retrieval_top1")
        share = of_means(ratio, retrieval, constant(ceiling))
        yield _at_least("base: retrieval_top1 / ceiling", "base", part, 0.90, share)
        artists = of_means(lambda x: x, several_artists(result)[:, None])
        yield _at_least("base: two artists or more among the seeds", "base", part, 0.70, artists)
        sharp = of_means(lambda x: x, result.metric(result.grid.only.teacher, "sharp_ratio"))
        text = f"{sharp.mean:.3f} [{sharp.low:.3f}, {sharp.high:.3f}]"
        met = 0.8 <= sharp.mean <= 1.2
        yield Figure("base: sharp_ratio", "base", part, "0.8 to 1.2", text, met)


def several_artists(result: Result) -> np.ndarray:
    """Whether the teacher's seeds of a caption show two artists or more, ``[prompts]``."""
    shown = result.pixels[result.grid.only.teacher]
    named = load_probe().predict(load_judge().embed_pictures(shown))
    per_prompt = np.array(named).reshape(len(result.grid.prompts), -1)
    return np.array([len(set(row)) >= 2 for row in per_prompt], dtype=float)


def style_figures(results: Results, style: str) -> Iterator[Figure]:
    """A style vector by its teacher: is it the style, is it still the thing?"""
    for part, result in _parts(results, style):
        base = results[NONE, part]
        named = result.metric(result.grid.only.teacher, "style_accuracy")
        if part == "A":
            ceiling = constant(_ceiling(part, style, "style_accuracy"))
            share = of_means(ratio, named, ceiling)
            yield _at_least("style: style_accuracy / ceiling", style, part, 0.90, share)
        else:
            yield _at_least(
                "style: style_accuracy", style, part, 0.60, of_means(lambda x: x, named)
            )
        things = of_means(
            ratio,
            result.metric(result.grid.only.teacher, "retrieval_top1"),
            base.metric(base.grid.only.teacher, "retrieval_top1"),
        )
        goal = {"A": 0.90, "B": 0.80}[part]
        yield _at_least("style: retrieval_top1 / base's", style, part, goal, things)


def acceleration_figures(results: Results, style: str) -> Iterator[Figure]:
    """Is the ground fit, and what does the acceleration vector do on it?"""
    of = "base" if style == NONE else style
    for part, result in _parts(results, style):
        teacher = result.metric(result.grid.only.teacher, "pair_distance")
        cells = {row.nfe: row for row in result.rows if row.role == "cell"}
        for passes in (1, 2):
            control = result.metric(result.control(cells[passes]), "pair_distance")
            worse = paired(control, teacher)
            name = f"fit: control − teacher at {passes} NFE, pair_distance"
            yield _off_zero(name, of, part, worse, above=True)
            combined = result.metric(cells[passes], "pair_distance")
            closed = of_means(closed_gap, control, combined, teacher)
            name = f"acceleration: gap closed at {passes} NFE"
            yield _at_least(name, of, part, 0.50, closed)
        name = "acceleration: combined − control at 4 NFE, pair_distance"
        yield _off_zero(name, of, part, result.against_control(cells[4]), above=False)
        yield from _against_teacher(result, cells[4], of, part)


def _against_teacher(result: Result, cell: Row, of: str, part: str) -> Iterator[Figure]:
    metrics = ["retrieval_top1"] + ([] if of == "base" else ["style_accuracy"])
    for metric in metrics if part == "A" else []:
        share = of_means(
            ratio, result.metric(cell, metric), result.metric(result.grid.only.teacher, metric)
        )
        yield _at_least(f"acceleration: {metric} at 4 NFE / teacher's", of, part, 0.90, share)


def _ceiling(part: str, target: str, metric: str) -> float:
    return float(files.ceilings()[part][target]["vae"][metric])
