"""Statistics of a grid: against closed forms, enumeration, and grids whose truth is known."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from decimal import Decimal
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
from simulated import false_winner, misses, optimum, our_ends, pictures

from lcm_arith.errors import UsageError
from lcm_arith.evaluation import answers
from lcm_arith.evaluation.asked import (
    Asked,
    Margin,
    Search,
    Searched,
    confirmation,
    parse_asked,
)
from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.findings import (
    COMPARISON_COLUMNS,
    answer,
    confirmed,
    find,
    whole_table,
    with_findings,
)
from lcm_arith.evaluation.grid import CELL_COLUMNS, IMAGE_COLUMNS, Result, named
from lcm_arith.evaluation.judging.metrics import BETTER, PICTURE_METRICS
from lcm_arith.evaluation.judging.yardstick import cell_means
from lcm_arith.evaluation.measuring import MISSING
from lcm_arith.evaluation.plans.axes import make_cells
from lcm_arith.evaluation.plans.plan import Grid, make_grid, plain_cells
from lcm_arith.evaluation.plans.rows import others
from lcm_arith.evaluation.report import csv_bytes, notes
from lcm_arith.evaluation.statistics.best import TARGETS, best_set, lower_bounds
from lcm_arith.evaluation.statistics.comparisons import compare, holm, sign_flip
from lcm_arith.evaluation.statistics.stats import intervals, per_prompt
from lcm_arith.families import embedded

T_23 = 2.0687  # 97.5 % point of Student's t with 23 degrees of freedom


def random(*shape: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=shape)


# --- intervals ---------------------------------------------------------------------------------


def test_the_bootstrap_t_of_normal_prompts_is_students_interval_on_average() -> None:
    values = random(24, 400)
    mean, low, high = intervals(values).T
    error = values.std(axis=0, ddof=1) / np.sqrt(24)
    # The mean of 400 columns scatters by about 0.01; bootstrap-t is right to first order in 1/n.
    assert ((high - mean) / error).mean() == pytest.approx(T_23, rel=0.03)
    assert ((mean - low) / error).mean() == pytest.approx(T_23, rel=0.03)


def test_a_columns_interval_does_not_know_the_other_columns() -> None:
    values = random(13, 70)
    values[3, 5], values[:, 6], values[4:, 7], values[:, 8] = np.nan, np.nan, np.nan, 0.1
    found = intervals(values)
    for n in (0, 5, 69):
        alone = values[np.isfinite(values[:, n]), n : n + 1]
        np.testing.assert_allclose(intervals(alone)[0], found[n], rtol=1e-12)
    assert np.isnan(found[6]).all()
    assert found[7, 0] == values[:4, 7].mean()
    assert np.isnan(found[7, 1:]).all()  # four prompts
    assert found[8].tolist() == [pytest.approx(0.1, abs=1e-15)] * 3
    np.testing.assert_allclose(intervals(values[:, ::-1])[::-1], found, rtol=1e-12)


def test_seeds_are_averaged_where_they_are_defined() -> None:
    values = np.array([[1.0, np.nan], [np.nan, np.nan], [2.0, 4.0]])
    assert per_prompt(values)[[0, 2]].tolist() == [1.0, 3.0]
    assert np.isnan(per_prompt(values)[1])


@pytest.mark.parametrize("heavy", [False, True])
def test_intervals_cover_at_their_level(heavy: bool) -> None:
    assert 0.92 <= 1 - sum(misses(our_ends(pictures(0, 1000, heavy=heavy)))) <= 0.97


# --- comparisons -------------------------------------------------------------------------------


def enumerated(differences: np.ndarray) -> float:
    sums = [
        abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
        for signs in itertools.product((1, -1), repeat=len(differences))
    ]
    return float(np.mean([total >= abs(differences.sum()) - 1e-12 for total in sums]))


def test_sign_flip_p_is_that_of_every_pattern() -> None:
    values = random(8, 6) + 0.4
    values[:, 1] = np.round(values[:, 1])  # ties
    values[2:4, 2] = np.nan
    values[:, 3] = 0
    values[:, 4] = [1] * 8
    values[:, 5] = np.nan
    expected = [enumerated(column[np.isfinite(column)]) for column in values.T[:5]]
    assert sign_flip(values)[:5].tolist() == pytest.approx(expected, abs=1e-15)
    assert expected[3:] == [1.0, 2 / 2**8]
    assert np.isnan(sign_flip(values)[5])


def test_random_flips_estimate_the_exact_p_and_are_never_zero() -> None:
    values = random(17, 3) + np.array([0.3, 0.6, 9.0])
    exact = sign_flip(values)
    beside = np.concatenate([values, np.zeros((1, 3))])  # one more, which decides nothing
    drawn = sign_flip(beside, flips=20_000)
    # Five standard errors of 20,000 draws.
    assert np.abs(drawn - exact).max() < 5 * np.sqrt(0.25 / 20_000)
    assert drawn[2] == pytest.approx(1 / 20_001, rel=3)
    assert drawn[2] > 0


def test_holm_by_hand() -> None:
    p = np.array([0.04, 0.01, np.nan, 0.03, 0.005])
    adjusted = holm(p)
    assert adjusted[[4, 1, 3, 0]].tolist() == pytest.approx([0.02, 0.03, 0.06, 0.06])
    assert np.isnan(adjusted[2])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    assert holm(p[[1]], among=10).tolist() == pytest.approx([0.1])
    assert holm(np.empty(0)).size == 0


def test_a_comparison_is_the_paired_difference_and_says_which_is_better() -> None:
    baseline = random(24, 4)
    cells = np.stack([baseline + 0.2, baseline, baseline + random(24, 4, seed=1)])
    for better, sure in (("high", 1.0), ("low", 0.0)):
        same, equal, other = compare(cells, baseline, better)
        assert (same.diff.mean, same.diff.low, same.diff.high) == pytest.approx((0.2,) * 3)
        assert same.p_better == sure
        assert (equal.p, equal.p_better, equal.prompts) == (1.0, 0.5, 24)
        column = per_prompt(cells[2] - baseline)
        expected = np.random.default_rng(0).choice(column, size=(4000, 24)).mean(axis=1)
        share = (expected > 0).mean() if better == "high" else (expected < 0).mean()
        assert other.p_better == pytest.approx(share, abs=0.03)


def test_nearest_to_one_is_better_where_one_is_best() -> None:
    noise = 0.01 * random(24, 4)
    near, far = compare(np.stack([1.1 + noise, 0.5 + noise]), 0.8 + noise, "one")
    assert (near.p_better, far.p_better) == (1.0, 0.0)
    assert best_set(np.stack([0.5 + noise, 1.1 + noise, 0.8 + noise]), "one").members == (1,)


def test_a_baseline_that_the_data_chose_is_adjusted_for_every_pair() -> None:
    baseline, cells = random(10, 2), random(4, 10, 2, seed=1) + 2
    plain = compare(cells, baseline, "high")
    chosen = compare(cells, baseline, "high", chosen=True)
    first = min(range(4), key=lambda n: plain[n].p)
    assert chosen[first].p_holm == pytest.approx(min(10 * plain[first].p, 1))  # 5 cells, 10 pairs
    assert plain[first].p_holm == pytest.approx(min(4 * plain[first].p, 1))


# --- the best set ------------------------------------------------------------------------------


def test_probabilities_of_two_cells_are_those_of_their_difference() -> None:
    cells = random(2, 40, 3) + np.array([0.25, 0.0])[:, None, None]
    found = best_set(cells, "high")
    difference = per_prompt(cells[0] - cells[1])
    z = difference.mean() / (difference.std() / np.sqrt(40))
    normal = 0.5 * (1 + math.erf(z / math.sqrt(2)))
    assert found.p[0] == pytest.approx(normal, abs=0.02)  # 40 prompts are nearly normal
    assert found.p.sum() == pytest.approx(1)
    assert found.members[0] == int(np.argmax(found.p))


def test_the_order_of_cells_decides_nothing() -> None:
    cells = random(9, 16, 2)
    cells[4] = cells[7]  # a tie
    order = np.random.default_rng(1).permutation(9)
    plain, shuffled = best_set(cells, "low"), best_set(cells[order], "low")
    np.testing.assert_allclose(shuffled.p, plain.p[order], atol=1e-12)
    assert {int(order[n]) for n in shuffled.members} == set(plain.members)
    assert plain.p[4] == pytest.approx(plain.p[7])
    assert set(best_set(np.ones((20, 8, 1)), "high").members) == set(range(20))


def test_undefined_cells_and_prompts_are_left_out() -> None:
    cells = random(4, 9, 2)
    alone = best_set(cells[:3, :8], "high")
    cells[3], cells[0, 8] = np.nan, np.nan
    found = best_set(cells, "high")
    assert found.p[:3].tolist() == alone.p.tolist()
    assert np.isnan(found.p[3])
    assert (found.members, found.prompts) == (alone.members, 8)
    assert best_set(cells[:, :4], "high").members == ()
    assert best_set(cells[3:], "high").members == ()
    assert best_set(cells[:1], "high").members == (0,)


def test_a_null_grid_has_no_winner_and_a_clear_optimum_is_kept() -> None:
    assert np.mean([false_winner(seed, flips=4_000) for seed in range(60)]) <= 0.13  # 5 % ± 3 se
    kept, sizes = zip(*(optimum(seed) for seed in range(60)), strict=True)
    assert np.mean(kept) >= 0.95
    assert np.median(sizes) <= 10


# --- no worse than the teacher -----------------------------------------------------------------


def test_one_cells_bound_is_the_end_of_its_interval_and_many_are_wider() -> None:
    teacher = random(24, 2)
    cells = teacher + 0.1 * random(6, 24, 2, seed=1)
    low = intervals(per_prompt(cells - teacher).T)[:, 1]
    assert lower_bounds(cells[:1], teacher, "high")[0] == pytest.approx(low[0])
    assert (lower_bounds(cells, teacher, "high") < low).all()
    high = intervals(per_prompt(cells - teacher).T)[:, 2]
    assert lower_bounds(cells[2:3], teacher, "low")[0] == pytest.approx(-high[2])
    constant = lower_bounds(np.stack([teacher + 0.5, cells[0]]), teacher, "high")
    assert constant[0] == pytest.approx(0.5)
    assert np.isnan(lower_bounds(cells[:, :4], teacher[:4], "high")).all()


def test_a_cell_without_figures_takes_no_bound_from_the_others() -> None:
    teacher = random(9, 2)
    cells = teacher + 0.1 * random(4, 9, 2, seed=1)
    alone = lower_bounds(cells[:3, :8], teacher[:8], "high")
    cells[3], cells[0, 8] = np.nan, np.nan
    found = lower_bounds(cells, teacher, "high")
    assert found[:3].tolist() == alone.tolist()
    assert np.isfinite(alone).all()
    assert np.isnan(found[3])
    assert np.isnan(lower_bounds(cells[3:], teacher, "high")).all()


def test_bounds_of_many_cells_hold_together() -> None:
    held = [
        (lower_bounds(random(20, 24, 1, seed=seed), np.zeros((24, 1)), "high") <= 0).all()
        for seed in range(150)
    ]
    assert np.mean(held) >= 0.975 - 3 * np.sqrt(0.975 * 0.025 / 150)


# --- a grid ------------------------------------------------------------------------------------


def plan(prompts: int = 12, l1: str = "0.8 1", l2: str = "1", seeds: int = 2) -> Grid:
    weights = [Decimal(x) for x in l1.split()], [Decimal(x) for x in l2.split()]
    return make_grid(
        cells=plain_cells("noto", "lcm", *weights, (1, 2, 4)), seeds=seeds,
        prompts=[f"p{n}" for n in range(prompts)],
        family=lambda _: embedded(), style_set=lambda style: style,
    )  # fmt: skip


def measured(grid: Grid, effect: dict[int, float] | None = None, seed: int = 0) -> Result:
    """A grid as if it had been drawn: the more steps, the better; ``effect`` by step count."""
    effect = effect or {1: 0.5, 2: 0.05, 4: 0.01}
    rng, count = np.random.default_rng(seed), len(grid.items)
    common = rng.normal(size=count)  # the same noise for all
    margins = [
        row
        for s in grid.settings
        for row in (s.base, s.teacher, *(ways[0] for ways in s.controls.values()))
    ]
    rows = (*margins, *grid.cells)
    metrics = {}
    for row in rows:
        loss = effect.get(row.steps, 0.0) + 0.02 * rng.normal(size=count) + common
        metrics[row] = {
            name: loss if BETTER[name] == "low" else -loss for name in PICTURE_METRICS
        } | {"style_accuracy": np.full(count, np.nan), "sharp_ratio": np.ones(count)}
    cells = pd.DataFrame([named(row) for row in rows]).assign(
        **pd.DataFrame([cell_means(metrics[row]) for row in rows])
    )
    for name in set(CELL_COLUMNS) - set(cells):
        cells[name] = 1
    return Result(
        grid,
        rows,
        cells[list(CELL_COLUMNS)],
        pd.DataFrame(columns=list(IMAGE_COLUMNS)),
        metrics,
        cast(Any, {}),
        [],
        [],
        Counters(),
    )


def test_the_columns_of_a_grid_are_the_intervals_of_its_rows() -> None:
    result = measured(plan())
    table = with_findings(result, find(result))
    assert tuple(table)[: len(CELL_COLUMNS)] == CELL_COLUMNS
    assert tuple(table)[len(CELL_COLUMNS) :] == (
        *(f"{name}_{end}" for name in PICTURE_METRICS for end in ("lo", "hi")),
        "p_best", "in_best_set", "pareto",
    )  # fmt: skip
    for line, row in zip(table.to_dict("records"), result.rows, strict=True):
        mean, low, high = intervals(per_prompt(result.metric(row, "prompt_score"))[:, None])[0]
        assert line["prompt_score"] == pytest.approx(mean)
        assert (line["prompt_score_lo"], line["prompt_score_hi"]) == pytest.approx((low, high))
        assert line["sharp_ratio_lo"] == line["sharp_ratio_hi"] == 1
        assert np.isnan(line["style_accuracy_lo"])
    cells = table[table.role == "cell"]
    assert cells.p_best.sum() == pytest.approx(1)
    assert set(cells[cells.in_best_set.astype(bool)].steps) == {4}
    text = csv_bytes(table).decode().splitlines()
    assert text[1].endswith(",,")  # the base is no candidate
    assert text[-1].endswith(",True")


def test_comparisons_are_paired_with_the_papers_cell_or_the_one_that_is_named() -> None:
    result = measured(plan())
    found = find(result)
    assert (found.baseline.l1, found.baseline.l2, found.baseline.steps) == (
        Decimal("0.8"),
        Decimal(1),
        4,
    )
    assert tuple(found.comparisons) == COMPARISON_COLUMNS
    assert len(found.comparisons) == 5 * len(PICTURE_METRICS)
    line = found.comparisons.query("metric == 'pair_distance' and steps == 1 and l1 == '1'").iloc[0]
    cell = next(r for r in result.rows if r.role == "cell" and r.l1 == 1 and r.steps == 1)
    difference = result.metric(cell, "pair_distance") - result.metric(
        found.baseline, "pair_distance"
    )
    assert line["diff"] == pytest.approx(difference.mean())
    assert line["p_perm"] == pytest.approx(2 / 2**12)
    assert line["p_holm"] == pytest.approx(5 * 2 / 2**12)
    assert (line["p_better"], line["n_prompts"], line["baseline_steps"]) == (0, 12, 4)
    told = answers.baseline_line(found)
    assert "of 5 cells 0 better, 4 worse, 1 not told apart" in told
    asked = parse_asked(
        result.grid, best_by=None, baseline="1.0,1,2", noninferior=None, confirm=None
    )
    assert (find(result, asked).baseline.steps, find(result, asked).chosen) == (2, False)
    other = find(measured(plan(l1="1")))
    assert other.chosen
    assert other.baseline == other.ranked[0]
    assert "chosen by these pictures" in answers.baseline_line(other)


def test_a_search_that_did_not_end_is_adjusted_for_all_cells_of_the_plan_and_says_so() -> None:
    whole, part = plan(l1="0.6 0.8 1 1.2"), plan(l1="0.8 1")
    cut = replace(
        measured(part),
        grid=whole,
        left_out=dict.fromkeys(set(whole.cells) - set(part.cells), MISSING),
    )
    asked = Asked(search=Search("random", 1000))
    ended = replace(asked, searched=Searched(total=12, proposed=12, finished=6, spent=1000))
    least = find(cut, asked).comparisons.query("metric == 'pair_distance'").p_holm.min()
    assert least == pytest.approx(11 * 2 / 2**12)
    pd.testing.assert_frame_equal(
        find(cut, asked).comparisons, find(measured(part), ended).comparisons
    )
    (line,) = answers.search_lines(asked, cut)
    assert line.startswith("The search has not ended: of 12 cells 6 are whole")
    assert answers.search_lines(ended, cut)[0].startswith("Searched: of 12 cells")
    assert answers.search_lines(asked, measured(part)) == answers.search_lines(Asked(), cut) == []


def axes(l1: str, *more: str) -> Grid:
    cells = make_cells(
        style=None, accel=None, defaults=("noto", "lcm"), l1=l1, l2="1", steps="4", axes=more
    )
    return make_grid(
        cells=cells, prompts=[f"p{n}" for n in range(6)], seeds=1,
        family=lambda _: embedded(), style_set=lambda style: style,
    )  # fmt: skip


def test_a_baseline_has_its_weights_at_every_step_and_is_as_usual_as_can_be() -> None:
    none = dict.fromkeys(("best_by", "noninferior", "confirm"))
    sloping = axes("1.2/0.9/0.7/0.4,0.8")
    usual = axes("0.8", "guidance=2,1", "sampler=ddim,lcm", "rank=8,none", "method=ties,linear")
    for grid, cell in ((sloping, sloping.cells[1]), (usual, usual.cells[-1])):
        assert (cell.l1_schedule, others(cell)) == ((), ())
        assert find(measured(grid)).baseline == cell
        assert parse_asked(grid, baseline="0.8,1,4", **none).baseline == cell
    foreign = axes("0.8", "sampler=ddim,euler")
    assert find(measured(foreign)).baseline == foreign.cells[0]
    alone = axes("1.2/0.9/0.7/0.4")
    assert find(measured(alone)).chosen
    for grid, hint in ((sloping, "0.8,1,4"), (alone, "cannot be named")):
        with pytest.raises(UsageError, match="no such cell") as caught:
            parse_asked(grid, baseline="0.9,1,4", **none)
        assert hint in caught.value.hint


def test_the_fewest_steps_keep_the_margin_to_the_teacher() -> None:
    result = measured(plan())
    for delta, steps in ((1.0, 1), (0.1, 2), (0.03, 4), (0.0, None)):
        found = find(result, Asked(margin=Margin("pair_distance", delta)))
        assert (found.fewest[0].steps if found.fewest else None) == steps
    assert answers.margin_line(found).startswith("No cell is proven")
    assert "Fewest steps at most 0.1 worse than the teacher by prompt_score: 2," in (
        answers.margin_line(find(result, Asked(margin=Margin("prompt_score", 0.1))))
    )


def test_few_prompts_give_empty_cells_and_are_noted() -> None:
    four, seven, many = (measured(plan(prompts=n)) for n in (4, 7, 12))
    found = find(four, Asked(margin=Margin("prompt_score", 1.0)))
    assert found.columns.drop(columns="in_best_set").isna().all().all()
    assert found.columns.in_best_set.isna().all()
    assert found.comparisons[["lo", "hi", "p_better"]].isna().all().all()
    assert (found.best, found.fewest) == ({}, None)
    assert "so few prompts" in answers.best_line(found)
    assert csv_bytes(with_findings(four, found)).decode().splitlines()[1].endswith("," * 14)
    assert any("no intervals" in note for note in notes(four))
    assert any("rough" in note for note in notes(seven))
    assert not any("prompts:" in note for note in notes(many))


def test_what_other_tools_would_not_draw_as_words_is_noted() -> None:
    result = measured(plan(prompts=4))
    prompts = ("# fox", "a (red:1.2) fox", "fox <lora:ink:1>", "fox #1 (in: 2)")
    (note,) = (n for n in notes(replace(result, grid=replace(result.grid, prompts=prompts)))
               if "plain words" in n)  # fmt: skip
    assert note.endswith(": " + ", ".join(map(repr, prompts[:3])))


def test_one_cell_is_the_best_and_compared_with_nothing() -> None:
    grid = plan()
    result = measured(replace(grid, cells=grid.cells[:1]))
    found = find(result)
    assert list(found.best.values()) == [1.0]
    assert tuple(found.comparisons) == COMPARISON_COLUMNS
    assert found.comparisons.empty
    assert answers.baseline_line(found) == ""


def test_confirmation_measures_the_likeliest_cells_on_fresh_seeds() -> None:
    result = measured(plan())
    found = find(result)
    again, sure = confirmed(result.grid, found, 2, lambda grid: measured(grid, seed=1))
    assert again.grid.seeds == (2, 3)
    assert set(again.grid.cells) == set(found.ranked[:2]) == set(sure.ranked)
    assert set(again.grid.only.controls) == {4}
    lines = answers.lines(result, found, (again, sure))
    start = lines.index("Confirmed by pair_distance on pictures that chose nothing, seeds 2 to 3:")
    mean = again.cells.pair_distance[list(again.rows).index(sure.ranked[0])]
    assert f": {mean:.3f} [" in lines[start + 1]
    assert lines[-1].startswith("At 4 UNet passes")
    assert confirmation(again.grid, found.ranked[:1]).seeds == (4, 5)


def test_the_answers_are_json() -> None:
    result = measured(plan())
    found = find(result, Asked(margin=Margin("prompt_score", 0.1)))
    told = json.loads(json.dumps(answers.as_json(result, found), allow_nan=False))
    assert told["best_set"]["metric"] == "pair_distance"
    assert told["min_steps"]["steps"] == 2
    baseline = told["baseline"]
    assert (baseline["l1"], baseline["l2"], baseline["steps"]) == (0.8, 1.0, 4)
    assert (baseline["sampler"], baseline["chosen_by_these_pictures"]) == ("lcm", False)
    row = result.cells[result.cells.cell_id == baseline["cell_id"]].iloc[0]
    assert row.steps == 4
    assert told["confirmed"] is None
    records = answers.records(with_findings(result, found))
    json.dumps(records, allow_nan=False)
    assert records[0]["in_best_set"] is None
    assert {type(line["l1"]) for line in records} == {float}
    assert records[-1]["in_best_set"] is True


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("best_by", "diversity"),
        ("baseline", "0.8,1"),
        ("baseline", "0.8,1,8"),
        ("baseline", "a,1,4"),
        ("noninferior", "prompt_score"),
        ("noninferior", "prompt_score:-1"),
        ("noninferior", "sharp_ratio:0.1"),
        ("noninferior", "luma_shift:0.1"),
        ("best_by", "clip_frac"),
        ("noninferior", "beauty:0.1"),
        ("confirm", 0),
        ("confirm", 7),
    ],
)
def test_questions_that_the_grid_cannot_answer_are_refused(option: str, value: Any) -> None:
    none = dict.fromkeys(("best_by", "baseline", "noninferior", "confirm"))
    with pytest.raises(UsageError, match=f"--{option.replace('_', '-')}"):
        parse_asked(plan(), **{**none, option: value})


def test_what_is_best_at_zero_wins_nearest_to_it_and_an_open_direction_has_no_winner() -> None:
    noise = np.random.default_rng(0).normal(size=(12, 2)) * 0.01
    cells = np.stack([noise - 2, noise + 0.5, noise - 0.1])
    assert best_set(cells, "zero").members == (2,)
    found = compare(cells[:2], cells[2], "teacher", flips=100)
    assert np.isnan([one.p_better for one in found]).all()
    assert found[0].diff.mean == pytest.approx(-1.9)


def test_every_metric_has_a_direction() -> None:
    assert {*PICTURE_METRICS, "diversity"} <= BETTER.keys()
    assert set(BETTER.values()) <= {"high", "low", *TARGETS, "teacher", "none"}


def test_each_base_and_style_answers_for_itself() -> None:
    cells = [
        cell
        for style in ("noto", "twemoji")
        for cell in plain_cells(style, "lcm", [Decimal(1)], [Decimal("0.8"), Decimal(1)], (1, 4))
    ]
    grid = make_grid(
        cells=cells, prompts=[f"p{n}" for n in range(12)], seeds=1,
        family=lambda _: embedded(), style_set=lambda style: style,
    )  # fmt: skip
    result = measured(grid)
    asked = Asked(baseline=cells[1])
    first, second = answer(result, asked)
    assert {row.context.style for row in first.result.rows} == {"noto"}
    assert first.found.baseline == cells[1]
    assert second.found.baseline == cells[5]  # the same but for its style
    assert sum(first.found.best.values()) + sum(second.found.best.values()) > 1.9
    table = whole_table((first, second))
    assert list(table.cell_id) == [
        row.cell_id for one in (first, second) for row in one.result.rows
    ]
    lines = answers.all_lines((first, second))
    assert [line for line in lines if line.endswith(":")] == ["noto:", "twemoji:"]
    assert [part["style"] for part in answers.all_json((first, second))["parts"]] == [
        "noto", "twemoji",
    ]  # fmt: skip


def test_a_metric_that_a_prompt_lacks_does_not_decide_by_the_others() -> None:
    result = measured(plan())
    metrics = {row: dict(values) for row, values in result.metrics.items()}
    for values in metrics.values():
        values["pair_distance"] = values["pair_distance"].copy()
        values["pair_distance"][0] = np.nan
    assert find(result).metric == "pair_distance"
    assert find(replace(result, metrics=metrics)).metric == "prompt_score"


def test_intervals_end_where_their_metric_does() -> None:
    columns = find(measured(plan(prompts=7))).columns
    for name, low, high in (("clip_frac", 0, 1), ("ssim", -1, 1), ("pair_distance", 0, 2)):
        found = columns[[f"{name}_lo", f"{name}_hi"]]
        assert (found.min().min(), found.max().max()) >= (low, low)
        assert found.max().max() <= high
    assert (columns.clip_frac_lo == 0).any(), "what is drawn here reaches below"


def test_one_confirmed_cell_is_no_contest() -> None:
    result = measured(plan())
    found = find(result, Asked(confirm=1))
    alone = replace(found, ranked=found.ranked[:1])
    assert answers.best_line(found)
    assert answers.best_line(alone) == ""
    assert all(answers.lines(result, found, (result, alone)))
