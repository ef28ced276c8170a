"""Are the statistics of a grid right where the truth is known?

    pip install --no-deps scipy   # no dependency of this project
    python benchmarks/grid_statistics.py

Simulated grids of 24 prompts × 4 seeds (``tests/simulated.py``). One core, about a CPU minute.
Writes ``benchmarks/results/grid_statistics.md``, which begins with the goals that were missed.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np
from _page import Section, page

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from simulated import PROMPTS, false_winner, misses, optimum, our_ends, pictures

from lcm_arith.evaluation.statistics.best import best_set, means_of
from lcm_arith.evaluation.statistics.stats import RESAMPLES, of_means, per_prompt

RESULTS: Final = Path(__file__).resolve().parent / "results"
GRIDS: Final = 1000
COVERAGE: Final = (0.92, 0.97)
NULL_GOAL, KEPT_GOAL, SIZE_GOAL = 0.064, 0.95, 10
AT_ONCE: Final = 100
FEW: Final = 400
SAMPLES: Final = 25
APART: Final = 4.0  # of 50 normal ones the largest is about 2.3; ends of skewed means spread wider


def students(values: np.ndarray) -> np.ndarray:
    means = per_prompt(values)
    half = 2.0687 * means.std(axis=1, ddof=1) / math.sqrt(PROMPTS)  # t, 23 degrees of freedom
    return np.stack([means.mean(axis=1) - half, means.mean(axis=1) + half], axis=1)


def percentile(values: np.ndarray) -> np.ndarray:
    blocks = [per_prompt(values[at : at + AT_ONCE]) for at in range(0, len(values), AT_ONCE)]
    return np.concatenate(
        [np.quantile(means_of(block.T), (0.025, 0.975), axis=1).T for block in blocks]
    )


def unclustered(values: np.ndarray) -> np.ndarray:
    return percentile(values.reshape(len(values), -1, 1))


WAYS: Final[dict[str, Callable[[np.ndarray], np.ndarray]]] = {
    "ours: bootstrap-t over prompts": our_ends,
    "Student's t over prompts": students,
    "percentile bootstrap over prompts": percentile,
    "percentile bootstrap over pictures": unclustered,
}


def shares(seed: int, columns: int) -> np.ndarray:
    """Pictures that are right or not, right with 80 %: of a prompt most are, or few."""
    rng = np.random.default_rng(seed)
    easy = rng.beta(1.6, 0.4, size=(columns, PROMPTS, 1))
    return (rng.random((columns, PROMPTS, 4)) < easy).astype(float)


def coverage() -> Section:
    section = Section(
        "Coverage",
        f"Shares of {GRIDS:,} 95 % intervals of a mean that hold the truth, and of those that lie "
        f"above and below it. Goal of ours, normal and heavy tails (Student's t, 3 degrees of "
        f"freedom): {COVERAGE[0]} to {COVERAGE[1]}. Two standard errors of {GRIDS:,} are 0.014.",
        ("values", "interval", "holds", "above", "below"),
    )
    drawn = {
        "normal": (pictures(1, GRIDS), 0.0),
        "heavy tails": (pictures(2, GRIDS, heavy=True), 0.0),
        "right or wrong, 80 %": (shares(3, GRIDS), 0.8),
    }
    for kind, (values, truth) in drawn.items():
        for way, ends in WAYS.items():
            above, below = misses(ends(values), truth)
            holds = 1 - above - below
            cells = (f"{holds:.3f}", f"{above:.3f}", f"{below:.3f}")
            section.rows.append((kind, way, *cells))
            goal = ends is our_ends and truth == 0
            if goal and not COVERAGE[0] <= holds <= COVERAGE[1]:
                section.missed.append(f"coverage, {kind}: {holds:.3f}")
    return section


def null() -> Section:
    section = Section(
        "A hundred equal cells",
        "Grids in which the best set is a single cell, or a cell is told apart from the baseline "
        f"(Holm, 5 %). Goal: at most {NULL_GOAL:.1%}, which is 5 % and two standard errors of "
        f"{GRIDS:,} grids. A baseline that the same pictures chose would make false alarms; its p "
        "is adjusted for all pairs of cells.",
        ("values", "baseline", "grids", "false winners"),
    )
    for kind, baseline, grids in (
        ("normal", "fixed", GRIDS),
        ("heavy tails", "fixed", GRIDS // 5),
        ("normal", "the best cell", GRIDS // 10),
    ):
        chosen = baseline != "fixed"
        found = [
            false_winner(
                seed, flips=100_000 if chosen else 10_000, chosen=chosen, heavy=kind != "normal"
            )
            for seed in range(grids)
        ]
        rate = float(np.mean(found))
        section.rows.append((kind, baseline, f"{grids:,}", f"{rate:.1%}"))
        if rate > NULL_GOAL and grids == GRIDS:
            section.missed.append(f"null grid, {kind}: {rate:.1%}")
    return section


def planted() -> Section:
    section = Section(
        "One cell is better",
        "By so many standard errors of the difference of two cells (what the tables print) than 99 "
        "equal ones: how often is it in the best set, and how large is that? Goals at 3: in at "
        f"least {KEPT_GOAL:.0%}, median size at most {SIZE_GOAL}.",
        ("values", "better by", "grids", "in the best set", "median size", "90 % up to"),
    )
    for kind, errors, grids in (
        ("normal", 3.0, GRIDS),
        ("heavy tails", 3.0, GRIDS // 5),
        ("normal", 2.0, GRIDS // 5),
        ("normal", 4.0, GRIDS // 5),
    ):
        found = [
            optimum(seed, errors=errors * math.sqrt(2), heavy=kind != "normal")
            for seed in range(grids)
        ]
        kept, sizes = np.mean([hit for hit, _ in found]), [size for _, size in found]
        median = float(np.median(sizes))
        section.rows.append(
            (kind, f"{errors:g}", f"{grids:,}", f"{kept:.1%}", f"{median:g}",
             f"{np.quantile(sizes, 0.9):.0f}")
        )  # fmt: skip
        if errors == 3 and not (kept >= KEPT_GOAL and median <= SIZE_GOAL):
            section.missed.append(f"optimum, {kind}: kept {kept:.1%}, median size {median:g}")
    return section


def few_prompts() -> Section:
    section = Section(
        "Fewer prompts",
        "Among ten cells one is better by a single standard error of the difference: how often is "
        "it in the best set? And how often is the best set of two equal cells a single one (10 % "
        "by its definition: either may seem better with 95 %)? "
        f"Of {FEW} grids each; no goal. A bootstrap of few prompts is too sure of itself.",
        ("prompts", "in the best set of ten", "one of two equal cells"),
    )
    for prompts in (5, 8, 12, 24, 48):
        kept = [few_kept(prompts, seed) for seed in range(FEW)]
        alone = [
            len(best_set(np.random.default_rng(seed).normal(size=(2, prompts, 1)), "high").members)
            for seed in range(FEW)
        ]
        single = np.mean(np.array(alone) == 1)
        section.rows.append((str(prompts), f"{np.mean(kept):.1%}", f"{single:.1%}"))
    return section


def few_kept(prompts: int, seed: int) -> bool:
    cells = np.random.default_rng(seed).normal(size=(10, prompts, 1))
    cells[0] += math.sqrt(2 / prompts)
    return 0 in best_set(cells, "high").members


def beside_scipy() -> Section:
    """Our percentile intervals, of one seed, and those of another library."""
    from scipy.stats import bootstrap

    tail, density = 0.025, 0.0584  # of a normal mean at its 2.5 % point, a standard error wide
    error = math.sqrt(2 * tail * (1 - tail) / RESAMPLES) / density
    section = Section(
        "Beside scipy",
        "`of_means` is the percentile bootstrap over prompts, used where a figure is a ratio of "
        "means; `scipy.stats.bootstrap(method='percentile')` is another program for it. Both "
        f"draw {RESAMPLES:,} times, with numbers of their own, so ends differ by {error:.3f} "
        "standard errors of the mean for that alone: the largest of all differences, in units of "
        f"that. Goal: at most {APART:g}.",
        ("values", "prompts", "samples", "largest difference of an end"),
    )
    for name, draw in (("normal", "normal"), ("skewed", "exponential")):
        for prompts in (24, 48):
            apart = []
            for seed in range(SAMPLES):
                rng = np.random.default_rng(seed)
                values = getattr(rng, draw)(size=prompts)
                own = of_means(lambda mean: mean, values[:, None])
                theirs = bootstrap((values,), np.mean, method="percentile", rng=rng,
                                   n_resamples=RESAMPLES).confidence_interval  # fmt: skip
                width = error * values.std() / math.sqrt(prompts)
                apart += [abs(own.low - theirs.low) / width, abs(own.high - theirs.high) / width]
            largest = max(apart)
            if largest > APART:
                section.missed.append(f"beside scipy, {name}, {prompts} prompts: {largest:.1f}")
            section.rows.append((name, str(prompts), str(SAMPLES), f"{largest:.1f}"))
    return section


def main() -> None:
    if find_spec("scipy") is None:
        sys.exit("scipy is missing: pip install --no-deps scipy")
    began, sections = time.process_time(), []
    for table_of in (coverage, null, planted, few_prompts, beside_scipy):
        sections.append(table_of())
        print(f"{table_of.__name__}: {time.process_time() - began:.0f} s", file=sys.stderr)
    seconds = time.process_time() - began
    text = page(
        "The statistics of a grid", "grid_statistics.py", sections, seconds, ("numpy", "scipy")
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "grid_statistics.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
