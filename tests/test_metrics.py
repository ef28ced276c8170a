"""The metrics of a grid: the table, mean discrepancy, references, and a measured row."""

import itertools
from collections.abc import Callable
from math import exp, nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ground import tables
from numpy.typing import NDArray
from PIL import Image

from lcm_arith.embedded import pictures
from lcm_arith.embedded.probe import load_probe, sharpness
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.evaluation.grid import CELL_COLUMNS, IMAGE_COLUMNS, MORE_KEYS
from lcm_arith.evaluation.judging import mmd
from lcm_arith.evaluation.judging.judges import Judges
from lcm_arith.evaluation.judging.metrics import DECIDING, METRICS, Better, choose, measure
from lcm_arith.evaluation.judging.references import References, read_references, true_references
from lcm_arith.evaluation.judging.sample import Sample
from lcm_arith.evaluation.judging.yardstick import Yardstick, cell_means
from lcm_arith.evaluation.report import csv_bytes

Pixels = NDArray[np.uint8]
DOCS = Path(__file__).resolve().parents[1] / "docs" / "metrics.md"


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


# --- the table ---------------------------------------------------------------------------------


def test_columns_of_the_first_grid_keep_their_places_and_new_ones_stand_behind() -> None:
    key = ["role", "style", "accel", "l1", "l2", "sampler", "steps", "guidance"]
    six = ["prompt_score", "retrieval_top1", "style_accuracy", "pair_distance"]
    six += ["teacher_distance", "sharp_ratio"]
    counts = ["n_prompts", "n_seeds", "n_images"]
    cells = [*key, *counts, *six, "diversity", "nfe", "seconds_per_image"]
    images = [*key, "prompt", "seed", "path", "sha256", *six]
    assert list(CELL_COLUMNS[: len(cells)]) == cells
    assert list(IMAGE_COLUMNS[: len(images)]) == images
    assert set(CELL_COLUMNS) - set(cells) == {
        *(METRICS.keys() - set(cells)), "n_defects", *MORE_KEYS,
        "status", "n_failed", "partial", "nfe_run",
    }  # fmt: skip
    assert len(set(CELL_COLUMNS)) == len(CELL_COLUMNS)


WORDS: dict[Better, str] = {
    "high": "high",
    "low": "low",
    "one": "near 1",
    "zero": "near 0",
    "teacher": "near the teacher's",
    "none": "",
}


def test_the_page_holds_the_table() -> None:
    rows = [("column", "of", "compared with", "judge", "definition", "better", "source")]
    for m in METRICS.values():
        rows.append((f"`{m.name}`", m.per, m.needs, m.judge, m.meaning, WORDS[m.better], m.source))
    assert tables.markdown(rows) in DOCS.read_text(encoding="utf-8")


def test_chosen_metrics_stand_in_the_order_of_the_table() -> None:
    assert choose("ssim, prompt_score,ssim") == ("prompt_score", "ssim")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ssmi", "did you mean ssim"),
        ("colour_swd", "did you mean color_swd"),
        ("", "one of prompt_score"),
        ("ssim,FID", "2,048"),
        ("kid", "cmmd_u instead"),
        ("lpips", "teacher_distance instead"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_what_can(text: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        choose(text)
    assert said in str(error.value)


def test_infinity_is_written_and_read_back() -> None:
    means = cell_means({"psnr": np.array([np.inf, np.inf]), "ssim": np.array([nan, nan])})
    assert means["psnr"] == np.inf
    text = csv_bytes(pd.DataFrame([means])).decode()
    assert text == "psnr,ssim\ninf,\n"


# --- maximum mean discrepancy ------------------------------------------------------------------


def unit(n: int, d: int = 6, seed: int = 0) -> NDArray[np.float64]:
    rows = np.random.default_rng(seed).normal(size=(n, d)) + 1
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


@pytest.mark.parametrize("estimate", mmd.ESTIMATES)
def test_mmd_equals_the_double_sum(estimate: str) -> None:
    x, y, sigma = unit(5), unit(5, seed=1), 0.7

    def k(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
        return exp(-float(((a - b) ** 2).sum()) / (2 * sigma**2))

    every = list(itertools.product(range(5), repeat=2))
    others = [(i, j) for i, j in every if i != j]
    within = every if estimate == "biased" else others
    across = others if estimate == "paired" else every
    loops = (
        np.mean([k(x[i], x[j]) + k(y[i], y[j]) for i, j in within])
        - 2 * np.mean([k(x[i], y[j]) for i, j in across])
    )  # fmt: skip
    assert mmd.mmd2(x, y, estimate, sigma) == pytest.approx(loops, abs=1e-12)


def test_mmd_of_equal_sets_is_zero_and_of_equal_distributions_zero_on_average() -> None:
    assert mmd.mmd2(unit(9), unit(9)) == pytest.approx(0, abs=1e-15)
    draws = [(unit(32, seed=2 * i), unit(32, seed=2 * i + 1)) for i in range(150)]
    # y shares its noise with x, as pictures of one prompt and seed do
    shared = [(x, x[:, [1, 0, 2, 3, 4, 5]]) for x, _ in draws]
    for pairs, estimate in ((draws, "paired"), (draws, "unbiased"), (shared, "paired")):
        found = np.array([mmd.mmd2(x, y, estimate, 1.0) for x, y in pairs])
        assert abs(found.mean()) < 3.5 * found.std() / len(found) ** 0.5
    biased = [mmd.mmd2(x, y, "biased", 1.0) for x, y in draws]
    assert min(biased) > 0
    ignoring = np.array([mmd.mmd2(x, y, "unbiased", 1.0) for x, y in shared])
    assert abs(ignoring.mean()) > 3.5 * ignoring.std() / len(ignoring) ** 0.5


def test_cmmd_is_ten_times_the_squared_distance_of_means_and_blank_of_few() -> None:
    x, y = unit(800, 3), unit(800, 3, seed=1) * [1, -1, 1]
    gap = float(((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum())
    assert mmd.cmmd_u(x, y) == pytest.approx(10 * gap, rel=0.02)  # second order in 1 / σ²
    assert np.isnan(mmd.cmmd_u(unit(31), unit(31)))
    assert np.isfinite(mmd.cmmd_u(unit(32), unit(32)))


def test_sets_that_cannot_be_compared_are_refused() -> None:
    for x, y in ((unit(5), unit(4)), (unit(1), unit(1)), (unit(5), unit(5, 3))):
        with pytest.raises(InvalidContentError, match="MMD needs"):
            mmd.mmd2(x, y)
    assert np.isfinite(mmd.mmd2(unit(5), unit(4), "unbiased"))


# --- references --------------------------------------------------------------------------------


def test_references_are_read_in_order_on_white_and_of_one_size(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (10, 20, 30)).save(tmp_path / "b.png")
    Image.new("RGBA", (20, 10), (0, 0, 0, 0)).save(tmp_path / "a.png")
    (tmp_path / "notes.txt").write_text("mine")
    found = read_references(tmp_path, (4, 4))
    assert found.captions is None
    assert found.pixels.shape == (2, 4, 4, 3)
    assert (found.pixels[0] == 255).all()
    assert (found.pixels[1] == [10, 20, 30]).all()


def test_references_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no such folder"):
        read_references(tmp_path / "none", (4, 4))
    with pytest.raises(InvalidContentError, match="holds no picture"):
        read_references(tmp_path, (4, 4))
    (tmp_path / "cut.png").write_bytes(b"\x89PNG\r\n")
    Image.new("RGB", (99, 1)).save(tmp_path / "long.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "good.png")
    with pytest.raises(InvalidContentError, match="2 of 3 pictures") as error:
        read_references(tmp_path, (4, 4))
    assert "cut.png" in str(error.value)
    assert "99×1" in str(error.value)


def test_true_references_are_the_drawings_of_the_captions_that_are_known() -> None:
    found = true_references(("noto", "twemoji"), ("fox", "a thing nobody drew"))
    assert found is not None
    assert found.captions == frozenset({"fox"})
    assert len(found.pixels) == 16
    fox = pictures.by_caption()["fox"]
    assert (found.pixels[8:] == pictures.variants("twemoji", fox, 8)).all()
    assert true_references((), ("fox",)) is None
    assert true_references(("noto",), ("a thing nobody drew",)) is None


# --- a row of a grid ---------------------------------------------------------------------------

CAPTIONS = ("fox", "a thing nobody drew")


@pytest.fixture(scope="module")
def of() -> Callable[..., Sample]:
    judges = Judges().on("emoji")
    yardstick = Yardstick(judges.embedded.judge, load_probe(), ("noto",), "noto", CAPTIONS)
    references = true_references(("noto",), CAPTIONS)

    def sample(shown: Pixels, teacher: Sample | None = None) -> Sample:
        return Sample(shown, CAPTIONS, yardstick, judges, references, teacher)

    return sample


def test_every_metric_of_the_teacher_itself_is_its_ideal(of: Callable[..., Sample]) -> None:
    fox = pictures.variants("noto", pictures.by_caption()["fox"], 32)
    of_pictures, of_cell = measure(of(fox))
    values = {**cell_means(of_pictures), **of_cell}
    for name, ideal in (("ssim", 1), ("psnr", np.inf), ("luma_shift", 0), ("contrast_ratio", 1),
                        ("teacher_distance", 0), ("cmmd_u", 0)):  # fmt: skip
        assert values[name] == pytest.approx(ideal, abs=1e-6)
    assert values.keys() == METRICS.keys()


def test_only_pictures_of_what_the_references_show_are_compared_with_them(
    of: Callable[..., Sample],
) -> None:
    fox = pictures.variants("noto", pictures.by_caption()["fox"], 8)
    _, of_cell = measure(of(np.concatenate([fox, noise(*fox.shape)])))
    assert of_cell["color_swd"] == pytest.approx(0, abs=1e-9)
    assert of_cell["texture_swd"] == 0
    sample = of(np.concatenate([fox, noise(*fox.shape)]))
    sample.references = References(fox)
    assert measure(sample)[1]["color_swd"] > 1
    sample.references = None
    assert np.isnan(measure(sample)[1]["color_swd"])


def test_what_was_not_chosen_stays_empty(of: Callable[..., Sample]) -> None:
    of_pictures, of_cell = measure(of(noise(4, 64, 64, 3)), ("ssim",))
    filled = {name for name, values in of_pictures.items() if np.isfinite(values).any()}
    assert filled == {"ssim", "prompt_score", "pair_distance"} == {"ssim", *DECIDING}
    assert np.isnan(list(of_cell.values())).all()


def test_black_and_tiny_pictures_are_measured(of: Callable[..., Sample]) -> None:
    teacher = of(noise(4, 64, 64, 3))
    black, _ = measure(of(np.zeros((4, 64, 64, 3), np.uint8), teacher))
    assert (black["contrast_ratio"] == 0).all()
    assert (black["clip_frac"] == 1).all()
    assert (black["luma_shift"] < -40).all()
    dot, _ = measure(of(noise(4, 1, 1, 3)), ("ssim", "psnr", "clip_frac", "contrast_ratio"))
    assert np.isnan(dot["ssim"]).all()
    assert np.isnan(dot["contrast_ratio"]).all()
    assert np.isnan(sharpness(noise(1, 1, 9, 3))).all()
    assert (dot["psnr"] == np.inf).all()
