from functools import cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lcm_arith.embedded import files, pictures, probe
from lcm_arith.embedded.probe import Judge

SAMPLE = pictures.hash_order(pictures.concepts())[:24]
CAPTIONS = [concept.caption for concept in pictures.concepts()]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return probe.load_judge()


@cache
def fresh(name: str) -> pictures.Pixels:
    """Two variants of each sampled concept that neither probe nor ceilings have seen."""
    return np.concatenate([pictures.variants(name, concept, 2, seed=5) for concept in SAMPLE])


def test_real_pictures_rank_their_own_caption_first(judge: Judge) -> None:
    own = [CAPTIONS.index(concept.caption) for concept in SAMPLE for _ in range(2)]
    captions = judge.embed_captions(CAPTIONS)
    shares = {
        name: probe.own_caption_first(judge.embed_pictures(fresh(name)), captions, own).mean()
        for name in pictures.sets()
    }
    assert np.mean(list(shares.values())) >= 0.9  # usual: 0.95
    assert min(shares.values()) >= 0.8, shares  # 48 pictures a set: 0.03 is the standard error


def test_embeddings_are_unit_rows_in_float32(judge: Judge) -> None:
    for rows in (judge.embed_pictures(fresh("noto")), judge.embed_captions(CAPTIONS)):
        assert rows.dtype == np.float32
        assert rows.shape[1] == 128
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, atol=1e-6)


def test_embeddings_equal_the_models_own_forward_pass(judge: Judge) -> None:
    import torch

    shown = fresh("twemoji")[:3]
    tokens = judge.tokenizer(CAPTIONS[:3], padding="max_length", max_length=16, return_tensors="pt")
    pixels = torch.from_numpy(shown).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.inference_mode():
        output = judge.model(**tokens, pixel_values=pixels)
    # 1e-6: float32 over four layers, same operations in another batch
    np.testing.assert_allclose(judge.embed_pictures(shown), output.image_embeds, atol=1e-6)
    np.testing.assert_allclose(judge.embed_captions(CAPTIONS[:3]), output.text_embeds, atol=1e-6)


def test_chunks_do_not_change_embeddings(judge: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = judge.embed_pictures(fresh("noto"))
    monkeypatch.setattr(probe, "_CHUNK", 5)
    np.testing.assert_allclose(judge.embed_pictures(fresh("noto")), whole, atol=1e-5)
    assert judge.embed_pictures(fresh("noto")[:0]).shape == (0, 128)
    assert judge.embed_captions([]).shape == (0, 128)


def test_larger_pictures_are_brought_to_64_px_by_the_area_mean(judge: Judge) -> None:
    shown = fresh("noto")[:4]
    doubled = shown.repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_allclose(
        judge.embed_pictures(doubled), judge.embed_pictures(shown), atol=1e-5
    )
    assert judge.embed_pictures(shown[:, ::2, ::2]).shape == (4, 128)


def test_pictures_of_another_kind_are_refused(judge: Judge) -> None:
    with pytest.raises(ValueError, match=r"float32 \[2, 64, 64, 3\]"):
        judge.embed_pictures(np.zeros((2, 64, 64, 3), np.float32))
    with pytest.raises(ValueError, match=r"\[64, 64, 3\]"):
        judge.embed_pictures(np.zeros((64, 64, 3), np.uint8))


def test_loading_leaves_progress_bars_and_random_numbers_alone(
    capfd: pytest.CaptureFixture[str],
) -> None:
    import torch
    from transformers.utils import logging

    shown, state = logging.is_progress_bar_enabled(), torch.random.get_rng_state()
    probe.load_judge()
    assert logging.is_progress_bar_enabled() == shown
    assert torch.equal(torch.random.get_rng_state(), state)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert "Loading weights" not in captured.err


def test_the_probe_names_sets_far_above_chance(judge: Judge) -> None:
    shipped = probe.load_probe()
    assert shipped.names == tuple(pictures.sets())
    hits = [
        named == name
        for name in pictures.sets()
        for named in shipped.predict(judge.embed_pictures(fresh(name)))
    ]
    assert np.mean(hits) > 0.5  # chance is 1/6; fitted through the VAE, tried without it


def toy(count: int = 60) -> tuple[NDArray[np.float32], list[int]]:
    """Three separable caps on the sphere, by turns."""
    rng = np.random.default_rng(3)
    labels = [index % 3 for index in range(count)]
    rows = np.eye(3, 8)[labels] + 0.1 * rng.standard_normal((count, 8))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels


def test_fit_probe_recovers_separable_sets() -> None:
    rows, labels = toy()
    fitted = probe.fit_probe(rows[:30], labels[:30], "abc")
    assert fitted.predict(rows[30:]) == ["abc"[label] for label in labels[30:]]


@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_fit_probe_ends_where_the_gradient_is_zero(l2: float) -> None:
    rows, labels = toy()
    found = probe.fit_probe(rows, labels, "abc", l2=l2)
    squared = ((rows[:, None].astype(float) - rows[None]) ** 2).sum(axis=-1)
    logits = np.exp(-4.0 * squared) @ found.coefficients  # exp(8 (cos - 1)), written as Gaussian
    share = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = (np.eye(3)[labels] - share) / (len(labels) * l2)
    # 1e-8 is where L-BFGS stops; dividing by n l2 and by the kernel's root enlarges it
    np.testing.assert_allclose(found.coefficients, expected, atol=1e-4 * np.abs(expected).max())


def test_fit_probe_is_deterministic() -> None:
    rows, labels = toy()
    first, second = (probe.fit_probe(rows, labels, "abc") for _ in range(2))
    assert np.array_equal(first.coefficients, second.coefficients)


def test_a_saved_probe_loads_the_same(tmp_path: Path) -> None:
    rows, labels = toy()
    made = probe.fit_probe(rows, labels, ("one", "two", "three"))
    probe.save_probe(made, tmp_path / "probe.safetensors")
    loaded = probe.load_probe(tmp_path / "probe.safetensors")
    assert loaded.names == made.names
    assert np.array_equal(loaded.coefficients, made.coefficients)
    assert np.array_equal(loaded.support, made.support)


def test_fit_probe_refuses_data_that_do_not_fit() -> None:
    rows, labels = toy()
    with pytest.raises(ValueError, match="59 labels"):
        probe.fit_probe(rows, labels[:-1], "abc")
    with pytest.raises(ValueError, match=r"\[2\] are outside 0\.\.1"):
        probe.fit_probe(rows, labels, "ab")
    with pytest.raises(ValueError, match="l2 is 0"):
        probe.fit_probe(rows, labels, "abc", l2=0)


def test_own_caption_first_compares_with_every_caption() -> None:
    captions = np.eye(3, dtype=np.float32)
    shown = np.array([[0.9, 0.1, 0.0], [0.6, 0.0, 0.8]], dtype=np.float32)
    assert probe.own_caption_first(shown, captions, [0, 0]).tolist() == [True, False]


def test_pair_distance_is_to_the_nearest_true_picture() -> None:
    true = np.array([[1.0, 0.0], [0.0, 1.0]], dtype=np.float32)
    shown = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(probe.pair_distance(shown, true), [0.0, 0.2, 1.0], atol=1e-6)


def test_sharpness_is_the_mean_squared_step() -> None:
    stripes = np.zeros((2, 64, 64, 3), dtype=np.uint8)
    stripes[0, :, ::2] = 255  # every step across is 1, every step down is 0
    stripes[1] = 90
    assert probe.sharpness(stripes).tolist() == [0.5, 0.0]


def test_ceilings_cover_every_set_and_metric() -> None:
    found = files.ceilings()
    metrics = {"retrieval_top1", "style_accuracy", "pair_distance", "sharp_ratio"}
    for part in ("A", "B"):
        assert set(found[part]) == {*pictures.sets(), "mean", "base"}
        for entry in found[part].values():
            assert set(entry["real"]) == set(entry["vae"]) == metrics
            assert entry["real"]["retrieval_top1"] >= entry["vae"]["retrieval_top1"] - 0.03
        for way in ("real", "vae"):
            shares = [found[part][name][way]["retrieval_top1"] for name in pictures.sets()]
            assert found[part]["mean"][way]["retrieval_top1"] == pytest.approx(
                np.mean(shares), abs=1e-4
            )
