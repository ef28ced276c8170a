"""Metrics of pixels alone: each against a closed form, a plain loop, or a law."""

import itertools
from math import exp, lcm, log10

import numpy as np
import pytest
from numpy.typing import NDArray

from lcm_arith.embedded import pictures
from lcm_arith.errors import InvalidContentError
from lcm_arith.evaluation.judging import pixels, wasserstein
from lcm_arith.evaluation.judging.pixels import Light, defects, lab, lightness
from lcm_arith.evaluation.judging.references import References
from lcm_arith.evaluation.judging.wasserstein import (
    PATCH,
    Texture,
    colour_distance,
    colour_profile,
    directions,
    patches,
    pyramid,
    sorted_distance,
)

Pixels = NDArray[np.uint8]


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def plain(value: int, side: int = 16) -> Pixels:
    return np.full((1, side, side, 3), value, np.uint8)


def drawn(name: str = "noto", seed: int = 0, count: int = 6) -> Pixels:
    some = pictures.hash_order(pictures.concepts())[:count]
    return np.concatenate([pictures.variants(name, concept, 2, seed=seed) for concept in some])


# --- to the teacher's picture ------------------------------------------------------------------


def plain_ssim(a: Pixels, b: Pixels) -> float:
    """Wang and others 2004, eq. 13, window by window, of one channel."""
    at = range(11)
    window = np.array(
        [[exp(-((i - 5) ** 2 + (j - 5) ** 2) / (2 * 1.5**2)) for j in at] for i in at]
    )
    window /= window.sum()
    found = []
    for top, left in itertools.product(range(a.shape[0] - 10), range(a.shape[1] - 10)):
        x, y = (p[top : top + 11, left : left + 11] / 255 for p in (a, b))
        mx, my = (window * x).sum(), (window * y).sum()
        vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
        cov = (window * (x - mx) * (y - my)).sum()
        found.append(
            (2 * mx * my + 1e-4) * (2 * cov + 9e-4)
            / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
        )  # fmt: skip
    return float(np.mean(found))


def test_ssim_equals_its_definition_window_by_window() -> None:
    first = noise(2, 14, 13, 3)
    second = np.stack([first[0] // 2 + 40, noise(14, 13, 3, seed=1)])
    loops = [
        np.mean([plain_ssim(a[..., c], b[..., c]) for c in range(3)])
        for a, b in zip(first, second, strict=True)
    ]
    # float64 on both sides, in another order
    assert pixels.ssim(first, second) == pytest.approx(loops, abs=1e-12)


def test_ssim_is_one_of_itself_symmetric_and_closed_of_plain_pictures() -> None:
    a, b = drawn(), drawn("twemoji")
    assert pixels.ssim(a, a) == pytest.approx(1, abs=1e-12)
    assert pixels.ssim(a, b) == pytest.approx(pixels.ssim(b, a), abs=1e-12)
    x, y = 51 / 255, 204 / 255
    expected = (2 * x * y + 1e-4) / (x * x + y * y + 1e-4)
    assert pixels.ssim(plain(51), plain(204)) == pytest.approx(expected, abs=1e-12)
    assert pixels.ssim(plain(0), plain(0)) == pytest.approx(1)
    assert pixels.ssim(plain(9, side=11), plain(9, side=11)) == pytest.approx(1)
    assert np.isnan(pixels.ssim(plain(9, side=10), plain(9, side=10))).all()


def test_psnr_is_that_of_the_mean_squared_difference_and_infinite_of_itself() -> None:
    a = np.concatenate([plain(100), plain(0), plain(7)])
    b = np.concatenate([plain(110), plain(255), plain(7)])
    b[0, 0, 0] = 100  # one pixel of 256 is equal
    expected = [10 * log10(255**2 / (100 * 255 / 256)), 0, np.inf]
    assert pixels.psnr(a, b) == pytest.approx(expected)


def test_lab_has_the_published_values_of_srgb_colours() -> None:
    colours = np.array(
        [[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255], [119, 119, 119]],
        np.uint8,
    )
    # Lindbloom's CIE colour calculator, sRGB, D65; he uses a finer matrix: 0.05
    expected = [
        [100, 0, 0],
        [0, 0, 0],
        [53.2408, 80.0925, 67.2032],
        [87.7347, -86.1827, 83.1793],
        [32.2970, 79.1875, -107.8602],
        [50.0344, 0, 0],
    ]
    assert lab(colours) == pytest.approx(np.array(expected), abs=0.05)
    greys = lab(np.repeat([[50], [10]], 3, axis=1).astype(np.uint8))[:, 0]
    cubic = 116 * ((50 / 255 + 0.055) / 1.055) ** (2.4 / 3) - 16
    straight = (29 / 3) ** 3 * (10 / 255 / 12.92)
    assert greys == pytest.approx([cubic, straight])
    picture = noise(2, 5, 4, 3)
    assert lightness(picture) == pytest.approx(lab(picture)[..., 0], abs=1e-10)


def light_of(pictures: np.ndarray) -> Light:
    return Light.of(lightness(pictures))


def test_a_lighter_picture_has_a_positive_shift_of_its_mean_light_of() -> None:
    light, dark = light_of(plain(255)), light_of(plain(0))
    assert pixels.luma_shift(light, dark) == pytest.approx(100)
    assert pixels.luma_shift(dark, light) == pytest.approx(-100)
    halves = np.concatenate([plain(255), plain(0)], axis=2)
    assert pixels.luma_shift(light_of(halves), light_of(np.repeat(plain(0), 2, axis=2))) == (
        pytest.approx(50)
    )


def test_contrast_is_a_ratio_of_spreads_and_undefined_of_a_plain_teacher() -> None:
    rng = np.random.default_rng(0)
    light = rng.uniform(0, 50, (2, 6, 5))
    assert pixels.contrast_ratio(Light.of(2 * light + 3), Light.of(light)) == pytest.approx(2)
    halves = np.concatenate([plain(255), plain(0)], axis=2)
    inner = np.concatenate([plain(119), plain(0)], axis=2)
    ratio = pixels.contrast_ratio(light_of(inner), light_of(halves))
    assert ratio == pytest.approx(0.500344, abs=1e-3)
    assert np.isnan(pixels.contrast_ratio(light_of(halves), light_of(halves * 0 + 7))).all()
    assert pixels.contrast_ratio(light_of(halves * 0), light_of(halves)) == 0


def test_a_pixel_is_clipped_if_one_of_its_channels_is() -> None:
    picture = np.array([[[[0, 9, 9], [9, 255, 9], [1, 254, 9], [255, 255, 255]]]], np.uint8)
    assert pixels.clip_frac(picture) == pytest.approx(0.75)


def test_pictures_of_unequal_size_are_not_compared_pixel_by_pixel() -> None:
    for compare in (pixels.ssim, pixels.psnr):
        with pytest.raises(InvalidContentError, match=r"\[1, 16, 16, 3\].*\[1, 12, 12, 3\]"):
            compare(plain(1), plain(1, side=12))


# --- defects -----------------------------------------------------------------------------------


def test_defects_are_told_apart() -> None:
    speckled = plain(200)
    speckled[:, ::2] += 3  # a deviation of 1.5 levels
    pure = np.zeros((1, 16, 16, 3), np.uint8)
    pure[:, :8, :, 0] = 255
    line_art = np.zeros((1, 16, 16, 3), np.uint8)
    line_art[:, :8] = 255
    for picture, defect in (
        (plain(0), "nan"),
        (plain(255), "flat"),
        (speckled, "flat"),
        (pure, "saturated"),
        (line_art, "ok"),
        (noise(1, 16, 16, 3), "ok"),
        (plain(0, side=1), "nan"),
        (plain(9, side=1), "flat"),
    ):
        assert defects(picture).tolist() == [defect]


def test_true_pictures_have_no_defect_and_overdriven_ones_do() -> None:
    for name in pictures.sets():
        assert set(defects(drawn(name, count=30)).tolist()) == {"ok"}
    overdriven = np.clip((drawn(count=30).astype(float) - 128) * 8 + 128, 0, 255).astype(np.uint8)
    assert (defects(overdriven) == "saturated").mean() > 0.6  # measured 0.8 on all drawings


# --- sliced Wasserstein ------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "m"), [(4, 4), (3, 5), (1, 7), (6, 4)])
def test_wasserstein_of_unequal_samples_equals_that_of_their_repeats(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    a, b = (np.sort(rng.normal(size=(3, k)), axis=1) for k in (n, m))
    both = lcm(n, m)
    expected = np.abs(a.repeat(both // n, axis=1) - b.repeat(both // m, axis=1)).mean(axis=1)
    got = sorted_distance(a.astype(np.float32), b.astype(np.float32))
    assert got == pytest.approx(expected, abs=1e-6)


def test_directions_are_fixed_unit_vectors() -> None:
    assert np.linalg.norm(directions(3), axis=1) == pytest.approx(1)
    first = np.array([1.76405235, 0.40015721, 0.97873798])  # numpy's frozen stream of seed 0
    assert directions(3)[0] == pytest.approx(first / np.linalg.norm(first), abs=1e-8)


def test_colour_distance_equals_that_of_sorted_pixels() -> None:
    a, b = drawn("noto", count=1), drawn("twemoji", count=1)
    slices = directions(3)
    x, y = (np.sort(slices @ lab(p).reshape(-1, 3).T, axis=1) for p in (a, b))
    got = colour_distance(colour_profile(a), colour_profile(b))
    # Rounding to 0.25 moves no distance by more than 0.25, and a mean of 64 by far less.
    assert got == pytest.approx(np.abs(x - y).mean(), abs=0.02)


def test_colours_know_neither_place_nor_number_of_pixels() -> None:
    a = drawn(count=1)
    mixed = np.random.default_rng(0).permutation(a.reshape(-1, 3)).reshape(a.shape)
    wide = np.concatenate([mixed, a], axis=2)
    for other in (a, mixed, wide, a[:, ::-1]):
        assert colour_distance(colour_profile(a), colour_profile(other)) == pytest.approx(
            0, abs=1e-12
        )


def test_a_shift_of_all_colours_costs_its_length_along_each_direction() -> None:
    got = colour_distance(colour_profile(plain(0, 1)), colour_profile(plain(255, 1)))
    assert got == pytest.approx(100 * np.abs(directions(3)[:, 0]).mean(), abs=0.25)
    assert 45 < got < 55  # about half of 100


def test_no_colour_is_beyond_reach() -> None:
    cube = np.array(list(itertools.product((0, 51, 102, 153, 204, 255), repeat=3)), np.uint8)
    assert np.linalg.norm(lab(cube), axis=1).max() < wasserstein._REACH


def test_a_pyramid_adds_up_to_its_picture() -> None:
    picture = drawn(count=1)[0]
    levels = pyramid(picture)
    assert [level.shape[0] for level in levels] == [64, 32, 16]
    whole = levels[-1]
    for level in reversed(levels[:-1]):
        spread = np.zeros_like(level)
        spread[::2, ::2] = 4 * whole
        whole = level + wasserstein._blurred(spread)
    assert whole == pytest.approx(picture.astype(float), abs=1e-3)  # float32
    constant = pyramid(plain(90, side=32)[0])
    assert np.abs(constant[0]).max() < 1e-3
    assert constant[1] == pytest.approx(90, abs=1e-3)


def test_texture_distance_equals_plain_loops_over_patches() -> None:
    first, second = noise(2, 9, 9, 3), noise(2, 9, 9, 3, seed=1) // 3
    samples = []
    for batch in (first, second):
        rows = [
            p[top : top + PATCH, left : left + PATCH].astype(float)
            for p in batch
            for top, left in itertools.product(range(3), range(3))
        ]
        samples.append(np.stack(rows))  # [18, 7, 7, 3], one level
    mean, deviation = samples[1].mean(axis=(0, 1, 2)), samples[1].std(axis=(0, 1, 2))
    x, y = (((s - mean) / deviation).reshape(len(s), -1) for s in samples)
    loops = [
        np.mean([abs(p - q) for p, q in zip(sorted(x @ way), sorted(y @ way), strict=True)])
        for way in directions(3 * PATCH**2)
    ]
    assert Texture(second).distance(first) == pytest.approx(np.mean(loops), rel=1e-5)  # float32


def test_blur_moves_texture_away_and_another_style_farther() -> None:
    true = Texture(drawn())
    assert true.distance(drawn()) == 0
    soft = np.stack([wasserstein._blurred(p.astype(np.float32)) for p in drawn()])
    softer = np.stack([wasserstein._blurred(p) for p in soft])
    near, far = (true.distance(p.round().astype(np.uint8)) for p in (soft, softer))
    line_art = true.distance(drawn("fluent-emoji-high-contrast"))
    assert 0 < near < far < line_art


def test_distances_tell_a_style_from_others() -> None:
    for name in ("noto", "fluent-emoji-high-contrast"):
        mine = References(drawn(name))
        for distance in (mine.colour_distance, mine.texture_distance):
            to = {other: distance(drawn(other, seed=3)) for other in pictures.style_sets()}
            assert min(to, key=lambda other: to[other]) == name


def test_pictures_too_small_for_patches_have_no_texture() -> None:
    assert patches(plain(9, side=6)) == []
    assert np.isnan(Texture(plain(9, side=6)).distance(plain(9, side=6)))
    assert Texture(plain(9, side=7)).distance(plain(9, side=7)) == 0
