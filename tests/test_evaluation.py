"""The grid: lists, plan, metrics, statistics, resume."""

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from support import random_vector

from lcm_arith.embedded import files, pictures
from lcm_arith.embedded.probe import load_judge, load_probe
from lcm_arith.errors import IncompatibleError, InvalidContentError, NotFoundError, UsageError
from lcm_arith.evaluation.drawing.engine import Engine
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.grid import CELL_COLUMNS, IMAGE_COLUMNS, Result
from lcm_arith.evaluation.judging.yardstick import Yardstick, mean_pair_distance
from lcm_arith.evaluation.plans.lists import parse_counts, parse_decimals
from lcm_arith.evaluation.plans.plan import (
    as_json,
    choose_prompts,
    control_candidates,
    from_json,
    make_grid,
    plain_cells,
)
from lcm_arith.evaluation.plans.rows import Context, Row
from lcm_arith.evaluation.report import csv_bytes, write_report
from lcm_arith.evaluation.running import run_grid
from lcm_arith.evaluation.showing.sheets import font
from lcm_arith.evaluation.statistics.stats import closed_gap, of_means, paired, ratio
from lcm_arith.families import embedded
from lcm_arith.vector import TaskVector


def quiet(*_: object) -> None:
    """No progress."""


# --- lists -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("0.4,0.8", ["0.4", "0.8"]),
        ("0:1.2:0.2", ["0", "0.2", "0.4", "0.6", "0.8", "1", "1.2"]),
        ("0:1:0.1", [str(Decimal(n) / 10) for n in range(11)]),
        ("1:0:-0.5", ["1", "0.5", "0"]),
        ("-0.5,0.5", ["-0.5", "0.5"]),
        ("1,1.0,+01.00", ["1"]),
        ("0.4,0:1:0.5", ["0.4", "0", "0.5", "1"]),
        ("10,20", ["10", "20"]),
    ],
)
def test_lists_are_exact_decimals(text: str, values: list[str]) -> None:
    assert [str(value) for value in parse_decimals(text, "--l1")] == values


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "0:1:0",
        "0:1:-0.1",
        "0:1",
        "1,,2",
        "nan",
        "inf",
        "0:1:1e-5000",
        "1e999999",
        "0:999999:0.000001",
        "0:1:0.1:2",
    ],
)
def test_impossible_lists_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--l1"):
        parse_decimals(text, "--l1")


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "2,0"])
def test_step_counts_are_whole_and_positive(text: str) -> None:
    with pytest.raises(UsageError):
        parse_counts(text, "--steps")


# --- plan --------------------------------------------------------------------------------------


def test_controls_spend_the_same_unet_passes_in_every_allowed_way() -> None:
    ways = {
        n: {(c.sampler, c.steps, c.guidance) for c in control_candidates(n, 2.0, STYLED)}
        for n in (1, 4)
    }
    assert ways[1] == {("lcm", 1, 1.0), ("dpm++", 1, 1.0)}
    assert ways[4] == {
        ("lcm", 4, 1.0), ("dpm++", 4, 1.0), ("lcm", 2, 2.0), ("dpm++", 2, 2.0),
    }  # fmt: skip
    assert {c.nfe for c in control_candidates(4, 2.0, STYLED)} == {4}


STYLED = Context(style="fluent-emoji")


def small_grid(style: str = "fluent-emoji", steps: tuple[int, ...] = (1, 2), **changes: Any) -> Any:
    weights = parse_decimals("0.8,1", ""), parse_decimals("1", "")
    values: dict[str, Any] = {
        "cells": plain_cells(style, "lcm", *weights, steps),
        "prompts": ("fox", "cactus", "snake"), "seeds": 2,
        "family": Sources().family, "style_set": Sources().style_set,
    }  # fmt: skip
    return make_grid(**{**values, **changes})


def test_a_grid_goes_through_json_unchanged() -> None:
    odd = Row(
        "cell", Decimal("0.85"), Decimal(1), "euler", 4, 2.0,
        Context("emoji", "a:1+b:0.5", "blurry, \"ugly\"", "fox=>cat"), "lcm", "ties", 8,
        Decimal("0.5"), (Decimal("1.2"), Decimal("1.0"), Decimal("0.6"), Decimal("0.6")), (),
    )  # fmt: skip
    grid = small_grid(cells=(*plain_cells("none", "lcm", [Decimal(1)], [Decimal(1)], [1]), odd),
                      style_set=lambda _: None)  # fmt: skip
    again = from_json(json.loads(json.dumps(as_json(grid), sort_keys=True)))
    assert again == grid
    assert again.rows == grid.rows  # in order, too
    assert [len(row.mixes) for row in grid.cells] == [1, 4]
    assert grid.cells[0].mixes[0].style == "none"
    assert len({row.cell_id for row in grid.rows}) == len(grid.rows)


def test_a_grid_holds_margins_one_control_per_nfe_and_every_cell() -> None:
    grid, setting = small_grid(), small_grid().only
    assert (setting.base.l1, setting.base.l2) == (0, 0)
    assert (setting.base.sampler, setting.base.steps) == ("dpm++", 25)
    guidance = json.loads((files.ROOT / "defaults.json").read_text())["guidance"]
    assert (setting.teacher.l1, setting.teacher.l2, setting.teacher.guidance) == (1, 0, guidance)
    assert list(setting.controls) == [2, 1]
    assert all((c.l1, c.l2) == (1, 0) for rows in setting.controls.values() for c in rows)
    assert {(c.l1, c.l2, c.steps, c.guidance) for c in grid.cells} == {
        (Decimal(a), 1, n, 1.0) for a in ("0.8", "1") for n in (1, 2)
    }


def test_without_a_style_the_teacher_is_the_base() -> None:
    grid = small_grid("none")
    setting = grid.only
    assert (setting.teacher.l1, setting.teacher.l2) == (setting.base.l1, setting.base.l2) == (0, 0)
    assert setting.target_sets == pictures.base_sets()
    assert {cell.l1 for cell in grid.cells} == {0}


def test_prompts_are_the_first_captions_of_a_fixed_order_or_a_file(tmp_path: Path) -> None:
    first, more = choose_prompts("5", "A"), choose_prompts("9", "A")
    assert more[:5] == first
    assert all(pictures.by_caption()[p].part == "A" for p in more)
    assert len(choose_prompts("9999", "B")) == len(pictures.concepts("B"))
    listed = tmp_path / "prompts.txt"
    listed.write_text("fox\n\n  cactus \nfox\n")
    assert choose_prompts(str(listed), "all") == ("fox", "cactus")
    for text, error in (
        ("0", UsageError),
        ("-3", UsageError),
        ("--5", NotFoundError),
        ("²", NotFoundError),
        ("nowhere.txt", NotFoundError),
    ):
        with pytest.raises(error):
            choose_prompts(text, "all")
    with pytest.raises(UsageError, match="no captions of part B"):
        choose_prompts(str(listed), "B")
    listed.write_bytes(b"\xff\xfe")
    with pytest.raises(InvalidContentError, match="UTF-8"):
        choose_prompts(str(listed), "all")
    listed.write_text("\n")
    with pytest.raises(UsageError, match="no prompt"):
        choose_prompts(str(listed), "all")


# --- metrics -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yardstick() -> Yardstick:
    prompts = ["fox", "cactus", "snake", "a thing nobody drew"]
    return Yardstick(load_judge(), load_probe(), ("noto",), "noto", prompts)


def test_metrics_equal_their_definitions(yardstick: Yardstick) -> None:
    names = ["fox", "cactus", "fox"]
    known = pictures.by_caption()
    pixels = np.concatenate([pictures.variants("twemoji", known[n], 1, seed=5) for n in names])
    teacher = yardstick.judge.embed_pictures(pixels[::-1])
    got, e = yardstick.picture_metrics(pixels, names, teacher)
    captions = [c.caption for c in pictures.concepts()]
    text = yardstick.judge.embed_captions(captions)
    for row, name in enumerate(names):
        cosines = [float(np.dot(e[row], text[j])) for j in range(len(captions))]
        own = captions.index(name)
        assert got["prompt_score"][row] == pytest.approx(cosines[own], abs=1e-6)
        assert got["retrieval_top1"][row] == float(int(np.argmax(cosines)) == own)
        true = pictures.variants("noto", known[name], 24)
        rows = yardstick.judge.embed_pictures(true)
        nearest = min(1 - float(np.dot(e[row], r)) for r in rows)
        assert got["pair_distance"][row] == pytest.approx(nearest, abs=1e-5)
        assert got["teacher_distance"][row] == pytest.approx(
            1 - float(e[row] @ teacher[row]), abs=1e-6
        )
        ratio = energy(pixels[row]) / np.mean([energy(picture) for picture in true])
        assert got["sharp_ratio"][row] == pytest.approx(ratio, rel=1e-6)
    assert got["style_accuracy"].tolist() == [
        float(name == "noto") for name in yardstick.probe.predict(e)
    ]


def energy(picture: np.ndarray) -> float:
    x = picture / 255.0
    return float(((x[1:] - x[:-1]) ** 2).mean() + ((x[:, 1:] - x[:, :-1]) ** 2).mean())


def test_true_pictures_are_at_distance_zero_and_as_sharp_and_diverse_as_themselves(
    yardstick: Yardstick,
) -> None:
    true = pictures.variants("noto", pictures.by_caption()["fox"], 24)
    got, e = yardstick.picture_metrics(true, ["fox"] * 24)
    assert float(np.abs(got["pair_distance"]).max()) < 1e-5
    assert float(got["sharp_ratio"].mean()) == pytest.approx(1.0, rel=1e-6)
    assert yardstick.diversity(e[None], ["fox"]) == pytest.approx(1.0, rel=1e-5)
    assert np.isnan(yardstick.diversity(e[None, :1], ["fox"]))
    assert yardstick.diversity(np.repeat(e[None, :1], 3, axis=1), ["fox"]) == pytest.approx(
        0, abs=1e-5
    )


def test_a_prompt_without_truth_has_no_paired_metrics(yardstick: Yardstick) -> None:
    assert yardstick.unknown_prompts == ["a thing nobody drew"]
    got, _ = yardstick.picture_metrics(np.zeros((1, 64, 64, 3), np.uint8), ["a thing nobody drew"])
    assert np.isnan(got["pair_distance"]).all()
    assert np.isnan(got["sharp_ratio"]).all()
    assert np.isfinite(got["prompt_score"]).all()


def test_mean_pair_distance_equals_the_double_loop() -> None:
    rng = np.random.default_rng(0)
    e = rng.normal(size=(5, 3))
    e /= np.linalg.norm(e, axis=1, keepdims=True)
    loop = np.mean([1 - e[i] @ e[j] for i in range(5) for j in range(5) if i != j])
    assert mean_pair_distance(e) == pytest.approx(loop)


# --- statistics --------------------------------------------------------------------------------


def test_the_paired_interval_covers_at_its_level() -> None:
    rng, hits, runs = np.random.default_rng(1), 0, 300
    for _ in range(runs):
        shared = rng.normal(size=(24, 1)) * 0.5  # a prompt's own effect: seeds are not independent
        gap = paired(0.3 + shared + rng.normal(size=(24, 3)), np.zeros((24, 3)), seed=3)
        hits += gap.low <= 0.3 <= gap.high
    # Nominal 0.95; three standard errors of 300 runs are 0.038.
    assert 0.91 <= hits / runs <= 0.99


def test_pairing_removes_what_both_share() -> None:
    rng = np.random.default_rng(0)
    shared = rng.normal(size=(30, 2)) * 10
    gap = paired(shared + 0.5, shared + rng.normal(size=(30, 2)) * 0.1)
    assert gap.off_zero
    assert gap.mean == pytest.approx(0.5, abs=0.1)


def test_few_or_equal_prompts_are_said_not_invented() -> None:
    few = paired(np.ones((4, 2)), np.zeros((4, 2)))
    assert few.mean == 1.0
    assert np.isnan(few.low)
    assert not few.off_zero
    same = paired(np.ones((9, 2)), np.zeros((9, 2)))
    assert (same.low, same.high) == (1.0, 1.0)
    holes = paired(np.array([[1.0]] * 9 + [[np.nan]]), np.zeros((10, 1)))
    assert holes.mean == 1.0


def test_a_ratio_of_means_and_its_interval_cover_at_their_level() -> None:
    rng, hits, runs = np.random.default_rng(2), 0, 300
    for _ in range(runs):
        prompt = rng.normal(size=(60, 1)) * 0.5
        first = 2.0 + prompt + rng.normal(size=(60, 4)) * 0.3
        found = of_means(ratio, first, 4.0 + 2 * prompt + rng.normal(size=(60, 4)) * 0.3)
        hits += found.low <= 0.5 <= found.high
    assert 0.90 <= hits / runs <= 0.99  # nominal 0.95, a little less for 60 prompts
    assert found.mean == pytest.approx(0.5, abs=0.05)


def test_the_closed_gap_is_the_share_of_the_way_to_the_teacher() -> None:
    control, teacher = np.full((8, 2), 0.5), np.full((8, 2), 0.1)
    for combined, share in ((0.5, 0.0), (0.3, 0.5), (0.1, 1.0), (0.6, -0.25)):
        found = of_means(closed_gap, control, np.full((8, 2), combined), teacher)
        assert (found.mean, found.low, found.high) == pytest.approx((share,) * 3)
    against_constant = of_means(ratio, control, np.array([[0.25]]))
    assert against_constant.mean == pytest.approx(2.0)
    few = of_means(ratio, control[:4], control[:4])
    assert few.mean == 1.0
    assert np.isnan(few.low)


# --- the whole ---------------------------------------------------------------------------------


def run(folder: Path, grid: Any) -> Result:
    return run_grid(grid, Sources(), folder=folder, on_stage=quiet)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Result]:
    folder = tmp_path_factory.mktemp("grid")
    few = replace(embedded(), teacher_steps=5)  # of a teacher no figure is asked
    result = run(folder, small_grid(family=lambda _: few))
    write_report(result, folder, folder / "cells.csv")
    return folder, result


def test_the_tables_hold_exactly_the_promised_columns_and_rows(
    finished: tuple[Path, Result],
) -> None:
    folder, _ = finished
    cells, images = (pd.read_csv(folder / name) for name in ("cells.csv", "images.csv"))
    assert tuple(cells.columns)[: len(CELL_COLUMNS)] == CELL_COLUMNS
    assert tuple(images.columns) == IMAGE_COLUMNS
    assert cells.role.tolist() == ["base", "teacher", "control", "control", *["cell"] * 4]
    assert len(images) == 8 * 6
    for name in ("prompt_score", "retrieval_top1", "pair_distance", "sharp_ratio"):
        means = images.groupby(["role", "l1", "l2", "steps", "guidance"])[name].mean()
        expected = cells.set_index(["role", "l1", "l2", "steps", "guidance"])[name]
        assert np.allclose(means.sort_index(), expected.sort_index(), atol=1e-5)
    for line in images.to_dict(orient="records"):
        assert files.sha256(folder / line["path"]) == line["sha256"]


def test_the_control_is_the_best_candidate(finished: tuple[Path, Result]) -> None:
    folder, result = finished
    grid, setting = result.grid, result.grid.only
    store = Store(folder, keys_of(Sources()))
    yardstick = Yardstick(
        load_judge(), load_probe(), setting.target_sets, setting.style_set, grid.prompts
    )
    prompts = [prompt for prompt, _ in grid.items]
    for candidates in setting.controls.values():
        mean = {
            c: yardstick.picture_metrics(store.pixels(c, grid.items), prompts)[0][
                "pair_distance"
            ].mean()
            for c in candidates
        }
        assert result.control(candidates[0]) == min(mean, key=lambda c: float(mean[c]))


def test_work_is_done_once(finished: tuple[Path, Result]) -> None:
    _, result = finished
    grid, counters = result.grid, result.counters
    assert counters.text_encodes == len(grid.prompts) + 1  # and ∅
    assert counters.weight_rebuilds == 4  # (0, 0), (1, 0), (0.8, 1), (1, 1)
    items, chunks = len(grid.items), len(grid.seeds)
    assert counters.unet_rows_unshared == sum(row.nfe for row in grid.rows) * items
    # base 10; teacher 10, controls 2 more; two pairs of cells 2 each. The noise of a seed and ∅ are
    # the same for all prompts, so the first ∅ of base and teacher is one row a seed.
    assert counters.unet_rows == (10 + 12 + 2 + 2) * items - 2 * (items - chunks)
    assert counters.pictures == counters.decodes == len(grid.rows) * items


def test_a_cut_grid_resumes_and_ends_with_the_same_tables(
    finished: tuple[Path, Result], tmp_path: Path
) -> None:
    folder, result = finished
    import shutil

    copy = tmp_path / "grid"
    shutil.copytree(folder, copy)
    victim = result.images.iloc[-1]
    (copy / victim.path).write_bytes((folder / victim.path).read_bytes()[:20])
    again = run(copy, result.grid)
    # Its chunk, whole: the steps 1 and 2 of one mix, all prompts and seeds, first steps shared.
    assert again.counters.pictures == 2 * len(result.grid.items)
    assert again.counters.unet_rows == 2 * len(result.grid.items)
    timeless = [c for c in CELL_COLUMNS if c != "seconds_per_image"]
    assert csv_bytes(again.cells[timeless]) == csv_bytes(result.cells[timeless])
    assert csv_bytes(again.images) == csv_bytes(result.images)
    assert run(copy, result.grid).counters.unet_rows == 0


def test_a_cell_is_what_its_file_draws(finished: tuple[Path, Result], tmp_path: Path) -> None:
    """The grid's pictures come from rebuilt weights; the saved sum must give the same ones."""
    from lcm_arith.adapters import load
    from lcm_arith.combination import combine
    from lcm_arith.fuse import LiveWeights
    from lcm_arith.sampling import encode_prompts, load_pipeline, sample
    from lcm_arith.saving import save

    _, result = finished
    cell = next(r for r in result.rows if r.role == "cell" and r.l1 == 1 and r.steps == 2)
    save(combine("fluent-emoji", "lcm", l1=1.0, l2=1.0), tmp_path / "x.safetensors")
    pipeline = load_pipeline(embedded().base)
    LiveWeights(pipeline).apply(load(tmp_path / "x.safetensors"))
    prompts = [prompt for prompt, _ in result.grid.items]
    pixels = sample(
        pipeline, encode_prompts(pipeline, prompts), encode_prompts(pipeline, [""]),
        [seed for _, seed in result.grid.items], sampler="lcm", steps=2, guidance=1.0,
    )  # fmt: skip
    assert int(np.abs(pixels.astype(int) - result.pixels[cell].astype(int)).max()) <= 2


def test_every_metric_has_a_heatmap_and_the_sheet_prints_lambda(
    finished: tuple[Path, Result],
) -> None:
    folder, _ = finished
    names = {path.name for path in folder.glob("*.png")}
    assert {"sheet.png", "heatmap_pair_distance.png", "heatmap_style_accuracy.png"} <= names
    missing = bytes(font(24).getmask("\U0010ffff"))
    for glyph in "λ₁₂":
        assert bytes(font(24).getmask(glyph)) != missing


def sources_of(style: TaskVector, accel: TaskVector) -> Sources:
    return Sources(_vectors={"fluent-emoji": style, "lcm": accel})


def engine_of(style: TaskVector, accel: TaskVector, folder: Path) -> Engine:
    sources = sources_of(style, accel)
    return Engine(Store(folder, keys_of(sources)), sources)


def test_pictures_of_other_weights_or_vectors_are_other_pictures(tmp_path: Path) -> None:
    grid = small_grid()
    row, item = grid.cells[0], grid.items[0]
    a, b = random_vector(4, 1.0, seed=1), random_vector(4, 1.0, seed=2)
    paths = {
        engine_of(style, accel, tmp_path).store.picture_path(row, item)
        for style, accel in ((a, b), (0.5 * a, b), (b, a), (a, a), (a + b, b))
    }
    assert len(paths) == 5
    assert engine_of(a, b, tmp_path).store.picture_path(row, item) in paths


def test_a_style_that_ships_no_pictures_is_not_measured_against_others() -> None:
    grid = small_grid(style_set=lambda _: None)
    assert grid.only.target_sets == ()
    mine = Yardstick(load_judge(), load_probe(), (), None, grid.prompts)
    got, _ = mine.picture_metrics(np.zeros((1, 64, 64, 3), np.uint8), ["fox"])
    assert np.isnan(got["pair_distance"]).all()
    assert np.isfinite(got["prompt_score"]).all()


def test_a_text_encoder_that_follows_the_weights_is_asked_again(
    tmp_path: Path, fresh_pipeline: Callable[[], Any]
) -> None:
    """Prompt embeddings belong to the weights that made them, in a fresh run and a resumed one."""
    encoder = fresh_pipeline().text_encoder
    names = [n for n, _ in encoder.named_modules() if n.endswith("self_attn.q_proj")]
    style = 30 * random_vector(4, 4.0, seed=1, modules={f"text_encoder.{names[0]}": (128, 128)})
    grid = small_grid(prompts=("fox",), seeds=1, steps=(1,))
    whole = engine_of(style, TaskVector(), tmp_path / "a")
    whole.render(grid.rows, grid.items, quiet)
    for row in grid.cells:
        alone = engine_of(style, TaskVector(), tmp_path / f"b{row.l1}")
        alone.render([row], grid.items, quiet)
        drawn = [each.store.pixels(row, grid.items) for each in (alone, whole)]
        assert (drawn[0] == drawn[1]).all()
    first, second = (whole.store.pixels(r, grid.items).astype(int) for r in grid.cells[:2])
    assert np.abs(first - second).max() > 2


def test_a_vector_of_another_architecture_stops_the_grid_before_any_work(tmp_path: Path) -> None:
    alien = random_vector(4, 4.0, 1, {"unet.conv_in": (320, 4, 3, 3)})
    sources = sources_of(alien, alien)
    with pytest.raises(IncompatibleError):
        run_grid(small_grid(), sources, folder=tmp_path / "g", on_stage=quiet)
    assert not (tmp_path / "g").exists()


def test_no_cell_of_a_csv_is_a_formula() -> None:
    captions = ["=HYPERLINK(1)", "+1+cmd|x", "@SUM(1)", "-0.3", "a cat", "\t=1"]
    table = pd.DataFrame({"prompt": captions, "score": [0.5, -1.0, 2.0, 3.0, 4.0, 5.0]})
    text = csv_bytes(table).decode()
    assert text.splitlines()[1:5] == ["'=HYPERLINK(1),0.5", "'+1+cmd|x,-1", "'@SUM(1),2", "-0.3,3"]
    assert "\n'\t=1" in text.replace('"', "")
