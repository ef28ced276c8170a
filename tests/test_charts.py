"""Heat maps, the front of quality against cost, contact sheets."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gridded import gridded
from hostile_strings import HOSTILE
from PIL import Image, ImageDraw

from lcm_arith.evaluation.judging.metrics import BETTER
from lcm_arith.evaluation.showing import tables
from lcm_arith.evaluation.showing.heatmap import heatmap
from lcm_arith.evaluation.showing.pareto import front, pareto_png
from lcm_arith.evaluation.showing.sheets import contact_sheet, contact_sheets, drawable, font

BEST = (0xC2, 0x57, 0x0C)


def opened(png: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(png)) as picture:
        return np.asarray(picture.convert("RGB"))


# --- quality against cost ----------------------------------------------------------------------


@pytest.mark.parametrize("metric", ["prompt_score", "pair_distance", "sharp_ratio", "clip_frac"])
def test_no_cell_of_its_base_and_style_beats_one_of_the_front(metric: str) -> None:
    cells = gridded(style=("noto", "twemoji"), l1=("0", "1", "2"), steps=(1, 2, 4)).cells
    holes = (cells.index % 7 == 6) & (cells.role == "cell")
    cells[metric] = cells[metric].round(0).mask(holes)  # ties, too
    lines = [line for _, line in cells.iterrows()]
    teachers = {line["style"]: line[metric] for line in lines if line.role == "teacher"}
    losses: dict[str, Callable[[float, str], float]] = {
        "high": lambda value, _: -value,
        "low": lambda value, _: value,
        "one": lambda value, _: abs(value - 1),
        "teacher": lambda value, style: abs(value - teachers[style]),
    }
    loss = losses[BETTER[metric]]
    found = front(cells, metric)

    def beats(b: Any, a: Any) -> bool:
        same = b["style"] == a["style"] and b.role == "cell" and np.isfinite(b[metric])
        gain = loss(a[metric], a["style"]) - loss(b[metric], b["style"])
        return bool(same and (gain > 0 if b.nfe == a.nfe else b.nfe < a.nfe and gain >= 0))

    for on, own in zip(found, lines, strict=True):
        if own.role != "cell":
            assert on is None
        else:
            beaten = any(beats(other, own) for other in lines)
            assert on == (np.isfinite(own[metric]) and not beaten)
    assert 1 <= (found == True).sum() < len(cells)  # noqa: E712


# --- tables ------------------------------------------------------------------------------------


def test_axes_are_the_columns_that_vary_and_a_schedule_is_named_by_its_steps() -> None:
    cells = gridded(l1=("10", "2"), l2=("1",), steps=(4,), rank=(None, 4, 16)).cells
    cells.loc[cells.l1 == "2", "l1_schedule"] = "3/2/2/1"
    vary, fixed = tables.axes(cells)
    assert [(axis.column, axis.values) for axis in vary] == [
        ("l1", ("3/2/2/1", "10")), ("rank", ("4", "16", "full")),
    ]  # fmt: skip
    lines = tables.of_cells(cells)
    assert vary[0].at.tolist() == [int(text == "10") for text in lines.l1]
    assert [axis.spoken(axis.values[0]) for axis in fixed if axis.telling] == [
        "λ₂ 1", "4 steps", "guidance 1", "sampler lcm", "style noto", "acceleration lcm",
        "base model emoji",
    ]  # fmt: skip


# --- heat maps ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("axes", "panels"),
    [
        ({}, 2),
        ({"l1": ("1",), "l2": ("1",), "steps": (4,)}, 1),
        ({"l1": ("1",)}, 1),
        ({"l1": ("1",), "sampler": ("lcm", "tcd"), "style": ("noto", "$a$ \u732b")}, 4),
    ],
    ids=["λ1 × λ2 × steps", "one cell", "λ2 × steps", "with sampler and style"],
)
def test_a_heatmap_has_a_panel_for_each_value_behind_the_first_two_axes(
    axes: dict[str, Any], panels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = gridded(**axes)
    drawn: list[Any] = []
    monkeypatch.setattr("lcm_arith.evaluation.showing.plots.png", drawn.append)
    heatmap(made.cells, made.comparisons, "pair_distance", "$x$ + lcm", "pair_distance")
    shown = [axis for axis in drawn[0].axes if axis.images]
    assert len(shown) == panels
    texts = [text.get_text() for axis in shown for text in axis.texts]
    cells = made.cells[made.cells.role == "cell"]
    halves = (cells.pair_distance_hi - cells.pair_distance_lo) / 2
    expected = [f"{a:#.3g}\n± {b:#.3g}" for a, b in zip(cells.pair_distance, halves, strict=True)]
    for chosen in set(made.comparisons.baseline_id):
        expected[cells.cell_id.tolist().index(chosen)] += "\nbaseline"
    assert sorted(texts) == sorted(expected)
    marks = [patch for axis in shown for patch in axis.patches]
    assert (
        sum(bool(patch.get_hatch()) for patch in marks)
        == tables.undecided(made.cells, made.comparisons, "pair_distance").sum()
    )
    assert sum(not patch.get_hatch() for patch in marks) == (cells.in_best_set == True).sum()  # noqa: E712


def test_a_partial_grid_has_a_heatmap_with_empty_places() -> None:
    made = gridded(l1=("0", "1", "2"))
    whole = opened(heatmap(made.cells, made.comparisons, "prompt_score", "x", "pair_distance"))
    cells = made.cells.drop(index=made.cells.index[-2:])
    cells.loc[cells.index[5], "prompt_score"] = np.nan
    part = opened(heatmap(cells, made.comparisons, "prompt_score", "x", "pair_distance"))
    assert whole.shape == part.shape
    assert (part == 255).all(axis=2).mean() > (whole == 255).all(axis=2).mean()


def test_the_charts_show_the_best_set_and_no_other_marks_in_its_colour() -> None:
    made = gridded()
    none = made.cells.assign(in_best_set=None)
    for cells, there in ((made.cells, True), (none, False)):
        for png in (
            heatmap(cells, made.comparisons, "color_swd", "x", "pair_distance"),
            pareto_png(cells, "prompt_score", "\u732b $x$"),
        ):
            assert (opened(png) == BEST).all(axis=2).any() == there


# --- contact sheets ----------------------------------------------------------------------------


def test_no_letter_of_a_sheet_is_an_empty_box() -> None:
    tofu = bytes(font(24).getmask("\U0010ffff"))
    for text in (*HOSTILE.values(), "λ₁ 0.8 λ₂ 1 ± × → \u732b \U0001f98a"):
        for letter in set(drawable(text)):
            assert bytes(font(24).getmask(letter)) != tofu
    assert drawable("λ₁ \u732b\U0001f98a") == "λ₁ \\u732b\\U0001f98a"
    assert drawable("plain\u202e\ntext") == "plain text"


def test_a_caption_without_letters_is_a_number_that_the_foot_explains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = []
    for name in ("text", "multiline_text"):
        monkeypatch.setattr(ImageDraw.ImageDraw, name, lambda _, at, text, **how: said.append(text))
    tile = np.zeros((8, 8, 3), np.uint8)
    plain = contact_sheet([("row", [tile, tile])], ["a fox", "a cat"], "title")
    assert said == ["title", "a fox", "a cat", "row"]
    said.clear()
    sheet = contact_sheet([("row", [tile, tile])], ["a fox", "a \u732b"], "title \u732b")
    assert said == ["title \\u732b", "a fox", "#2", "row", "#2  a \\u732b"]
    assert sheet.height == plain.height + 15


def test_a_sheet_that_is_too_large_is_split_and_no_row_is_lost() -> None:
    shades = [np.full((8, 8, 3), 10 + 10 * n, np.uint8) for n in range(9)]
    rows = [(f"row {n}", [shade] * 3) for n, shade in enumerate(shades)]
    columns = ["a", "b", "\u732b"]
    one = contact_sheets(rows, columns, "t")
    assert len(one) == 1
    most = one[0].width * one[0].height // 2
    pages = contact_sheets(rows, columns, "t", most)
    assert len(pages) >= 2
    assert all(page.width * page.height <= most for page in pages)
    found = {
        int(level)
        for page in pages
        for level, count in zip(*np.unique(np.asarray(page), return_counts=True), strict=True)
        if count >= 3 * 96 * 96 * 3
    }
    assert found == {*range(10, 100, 10), 255}
    assert len(contact_sheets(rows, columns, "t", 1)) == len(rows)


def test_teachers_of_several_contexts_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    made = gridded(style=("noto", "twemoji"))
    monkeypatch.setattr("lcm_arith.evaluation.showing.plots.png", lambda figure: figure)
    (axis,) = pareto_png(made.cells, "prompt_score", "x").axes  # type: ignore[attr-defined]
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert {"teacher, noto, 50 passes", "teacher, twemoji, 50 passes"} <= set(labels)
