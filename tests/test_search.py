"""Searches: over planted grids, whose truth is known, and over one that is drawn."""

from __future__ import annotations

import sys
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
from planted import SMOOTH, problem, random_search, rows

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.asked import Asked, Margin, Search, parse_asked
from lcm_arith.evaluation.drawing.engine import Engine
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.plans.plan import Grid, make_grid
from lcm_arith.evaluation.plans.rows import Context, Row
from lcm_arith.evaluation.searching import fixed_rows, parse_search, search_grid
from lcm_arith.evaluation.statistics.best import best_set, score
from lcm_arith.evaluation.statistics.comparisons import compare
from lcm_arith.evaluation.statistics.search import EXPLORED, Instance, Problem, blocks, search

Asks = list[tuple[int, Instance]]


def searched(share: float, method: str = "tpe", seed: int = 0) -> tuple[Asks, int]:
    """What a search of the planted grid looks at, and the UNet rows it says it took."""
    asked: Asks = []
    values = SMOOTH.values(seed)
    found = search(
        problem(SMOOTH, values, asked), int(share * rows(SMOOTH)), method=method, seed=seed
    )
    return asked, found.spent


# --- planted grids -----------------------------------------------------------------------------


def test_a_fifth_of_the_rows_finds_what_may_be_best_by_the_whole_grid() -> None:
    regrets = []
    for seed in range(3):
        values, budget = SMOOTH.values(seed), rows(SMOOTH) // 5
        found = search(problem(SMOOTH, values), budget, seed=seed)
        tried, _ = random_search(SMOOTH, values, budget, seed)
        chance = max(tried, key=lambda cell: float(values[cell].mean()))
        assert found.champion in best_set(values, "high").members
        regrets.append((-SMOOTH.truth[found.champion], -SMOOTH.truth[chance]))
    ours, others = np.mean(regrets, axis=0)
    assert ours < others  # benchmarks/grid_search.py: by how much, over 200 grids


@pytest.mark.parametrize("share", [0.008, 0.03, 0.2])
def test_a_budget_is_never_exceeded_and_nothing_is_measured_twice(share: float) -> None:
    asked, spent = searched(share, "random")
    assert len(set(asked)) == len(asked)
    assert sum(SMOOTH.points[cell][2] for cell, _ in asked) == spent <= share * rows(SMOOTH)


def test_a_search_repeats_and_a_larger_budget_begins_alike() -> None:
    small, _ = searched(0.05)
    assert searched(0.05)[0] == small
    explored = np.cumsum([SMOOTH.points[cell][2] for cell, _ in small])
    same = int((explored <= EXPLORED * 0.05 * rows(SMOOTH)).sum())
    assert searched(0.1)[0][:same] == small[:same]
    assert same > 100


def test_finished_cells_are_measured_on_all_instances_and_the_start_is_one() -> None:
    values = SMOOTH.values(0)
    found = search(problem(SMOOTH, values), rows(SMOOTH) // 10, method="random", start=7)
    whole = np.isfinite(found.values).all(axis=(1, 2))
    assert set(found.finished) == set(np.flatnonzero(whole)) >= {7, found.champion}
    assert found.champion == max(found.finished, key=lambda cell: float(values[cell].mean()))
    assert len(found.proposed) > len(found.finished)


def test_blocks_hold_every_instance_once_all_prompts_before_the_next_seed() -> None:
    found = blocks(13, 2)
    assert [instance for block in found for instance in block] == [
        (prompt, seed) for seed in range(2) for prompt in range(13)
    ]
    assert [len(block) for block in found] == [5, 4, 4] * 2


def over(values: np.ndarray, better: str = "high") -> Problem:
    """A search over ``[cells, prompts, seeds]`` of one NFE, along one axis."""
    cells, prompts, seeds = values.shape
    return Problem(
        [(cell,) for cell in range(cells)],
        blocks(prompts, seeds),
        [1] * cells,
        lambda cell, block: np.array([values[cell][instance] for instance in block]),
        better,
    )


@pytest.mark.parametrize(("better", "best"), [("high", 5), ("low", 0), ("one", 3), ("zero", 0)])
def test_the_best_mean_is_by_the_metrics_own_direction(better: str, best: int) -> None:
    noise = np.random.default_rng(0).normal(size=(6, 12, 2)) * 0.02
    values = np.array([0.1, 0.4, 0.7, 1.02, 1.5, 2.0])[:, None, None] + noise
    found = search(over(values, better), 6 * 24, method="random")
    assert found.champion == best == int(np.argmax(score(values.mean(axis=(1, 2)), better)))


def test_a_cell_without_figures_is_given_up_and_a_prompt_without_truth_counts_for_none() -> None:
    values = np.random.default_rng(0).normal(size=(3, 18, 1)) * 0.1
    values[:, :7] = np.nan  # prompts without true pictures: the whole first block
    values[1] += 5
    values[2] = np.nan
    found = search(over(values), 3 * 18, method="random", start=0)
    assert found.champion == 1
    assert found.finished == (0, 1)
    assert found.spent == 18 + 18 + 12  # the second block shows that cell 2 has no figures


def test_p_is_adjusted_for_the_cells_that_a_search_left_out() -> None:
    cells = np.random.default_rng(0).normal(size=(3, 12, 1)) + 1
    baseline = np.zeros((12, 1))
    alone, among = compare(cells, baseline, "high"), compare(cells, baseline, "high", total=50)
    least = min(one.p for one in among)
    assert min(one.p_holm for one in alone) == pytest.approx(min(1, 3 * least))
    assert min(one.p_holm for one in among) == pytest.approx(min(1, 49 * least))
    assert min(one.p_holm for one in among) < 1


def test_choices_have_no_order_and_numbers_have() -> None:
    best = ("b", Decimal("0.6"))
    points = [(name, Decimal(n) / 5) for name in "cab" for n in range(6)]
    values = np.array([-(point[0] != best[0]) - abs(float(point[1] - best[1])) for point in points])
    every = np.broadcast_to(values[:, None, None], (18, 6, 1))
    task = replace(over(every.copy()), points=points)
    assert points[search(task, 6 * 14).champion] == best


def test_without_optuna_tpe_is_refused_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UsageError, match=r"needs optuna") as caught:
        search(over(np.zeros((2, 6, 1))), 12)
    assert 'pip install "lcm-arith[search]"' in caught.value.hint
    assert search(over(np.zeros((2, 6, 1))), 12, method="random").spent == 12


def test_a_budget_below_one_cell_is_refused() -> None:
    with pytest.raises(UsageError, match="the cheapest cell takes 6 on all 6 pictures"):
        search(over(np.zeros((2, 6, 1))), 5, method="random")


# --- a grid that is drawn ----------------------------------------------------------------------

STYLE = "fluent-emoji"


def drawn_grid(sources: Sources, **context: str) -> Grid:
    cells = [
        Row("cell", Decimal(l1), Decimal(1), "lcm", steps, 1.0, Context(style=style), "lcm")
        for style in (STYLE, *context.values())
        for l1 in ("0.2", "0.8")
        for steps in (1, 2)
    ]
    return make_grid(
        cells=cells, prompts=("fox", "cactus"), seeds=1,
        family=sources.family, style_set=sources.style_set,
    )  # fmt: skip


def test_a_drawn_grid_is_searched_within_its_budget_and_again_for_nothing(tmp_path: Path) -> None:
    sources = Sources()
    grid = drawn_grid(sources)
    budget = fixed_rows(grid) + 2 * 4  # all cells take 2 * 6
    asked = Asked(
        search=parse_search(grid, "random", budget, grid.cells[2]), baseline=grid.cells[2]
    )
    told: list[tuple[int, int]] = []

    def engine() -> Engine:
        return Engine(Store(tmp_path, keys_of(sources)), sources)

    first = engine()
    small, found = search_grid(
        grid, asked, first,
        on_stage=lambda stage, done, total, note: told.append((done, total)),
    )  # fmt: skip
    assert grid.cells[2] in small.cells
    assert (found.total, found.finished) == (4, len(small.cells))
    assert told[-1] == (found.spent, budget)
    drawn = sum(row.nfe for row in (grid.only.teacher, *small.cells)) * len(grid.items)
    assert first.counters.unet_rows_unshared == drawn <= found.spent <= budget

    again = engine()
    assert search_grid(grid, asked, again) == (small, found)
    assert again.counters.pictures == 0


@pytest.mark.parametrize(
    ("method", "short", "message"),
    [
        (None, 0, "--budget caps a search"),
        ("tpe", None, "--search tpe needs a cap"),
        ("grid", 0, "no such method"),
        ("random", 1, "for 2 pictures each, and one cell 2 more"),
    ],
)
def test_impossible_searches_are_refused_before_anything_is_drawn(
    method: str | None, short: int | None, message: str
) -> None:
    grid = drawn_grid(Sources())
    least = fixed_rows(grid) + 2
    with pytest.raises(UsageError, match=message):
        parse_search(grid, method, None if short is None else least - short, None)
    assert parse_search(grid, "random", least, None) == Search("random", least)
    assert parse_search(grid, None, None, None) is None


def test_psnr_has_no_margin_since_the_teachers_own_is_infinite() -> None:
    def asked(noninferior: str) -> Margin | None:
        return parse_asked(
            drawn_grid(Sources()),
            best_by=None,
            baseline=None,
            noninferior=noninferior,
            confirm=None,
        ).margin

    with pytest.raises(UsageError, match="teacher to itself is infinite") as caught:
        asked("psnr:3")
    assert "ssim" in caught.value.hint
    assert asked("ssim:0.3") == Margin("ssim", 0.3)


def test_a_part_of_a_grid_is_taken_without_comparing_every_cell_with_every_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grid, compared = drawn_grid(Sources()), []
    some = grid.cells[2:]

    def told(one: Row, other: object) -> bool:
        compared.append(one)
        return False

    monkeypatch.setattr(Row, "__eq__", told)
    part = grid.of_cells(some)
    assert not compared
    assert [cell.label for cell in part.cells] == [cell.label for cell in some]


def test_a_search_by_what_needs_the_whole_grid_is_refused() -> None:
    grid = drawn_grid(Sources())
    odd = replace(grid, prompts=("fox", "a fox of no shipped caption"))
    for where, metric in (
        (grid, "teacher_rel"), (grid, "style_gain"), (odd, "retrieval_top1"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match=f"--best-by {metric}: ") as caught:
            parse_search(where, "random", 10**6, None, metric)
        assert "pair_distance" in caught.value.hint
        assert metric not in caught.value.hint
    assert parse_search(grid, "random", 10**6, None, "retrieval_top1")
    assert parse_search(odd, "random", 10**6, None, "prompt_score")


def test_a_search_over_several_styles_is_refused() -> None:
    grid = drawn_grid(Sources(), other="twemoji")
    with pytest.raises(UsageError, match="the grid has 2 bases or styles"):
        parse_search(grid, "random", 10**6, None)
