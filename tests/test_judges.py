"""Judges from local folders: beside plain transformers, and by hand; each picture embedded once."""

from __future__ import annotations

import json
import os
import shutil
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from tiny_judges import head, save_head, tiny_clip, tiny_dino

from lcm_arith.embedded import pictures
from lcm_arith.embedded.probe import load_probe
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    LcmArithError,
    NotFoundError,
    UsageError,
)
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.judging import mmd
from lcm_arith.evaluation.judging.embedders import (
    load_aesthetic,
    load_clip,
    load_dino,
    load_pickscore,
)
from lcm_arith.evaluation.judging.embeddings import BATCH, Embeddings
from lcm_arith.evaluation.judging.judges import Judges, load_judges
from lcm_arith.evaluation.judging.metrics import METRICS, measure
from lcm_arith.evaluation.judging.preprocessing import read_preprocessing
from lcm_arith.evaluation.judging.references import References, true_references
from lcm_arith.evaluation.judging.required import empty, expected, require
from lcm_arith.evaluation.judging.sample import Sample
from lcm_arith.evaluation.judging.yardstick import Yardstick
from lcm_arith.evaluation.plans.lists import parse_decimals
from lcm_arith.evaluation.plans.plan import Grid, make_grid, plain_cells
from lcm_arith.evaluation.plans.rows import Context

Pixels = NDArray[np.uint8]
TEXTS = ("a red fox", "cat", "a very long caption of a fox and a cat in a red forest " * 3)


def noise(*shape: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def blocks(count: int) -> Pixels:
    """Pictures of 40 × 48 px in large blocks of colour."""
    return noise(count, 4, 4, 3, seed=1).repeat(10, axis=1).repeat(12, axis=2)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    here = tmp_path_factory.mktemp("judges")
    return {"clip": tiny_clip(here / "clip"), "dino": tiny_dino(here / "dino")}


@pytest.fixture(scope="module")
def judges(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Judges:
    aesthetic = save_head(tmp_path_factory.mktemp("head") / "head.safetensors")
    return load_judges(
        clip=folders["clip"], dino=folders["dino"], pickscore=folders["clip"], aesthetic=aesthetic
    )


# --- beside plain transformers -----------------------------------------------------------------

SIZES = ((64, 64), (50, 71), (71, 50), (33, 20), (32, 32))


@pytest.mark.parametrize("size", SIZES)
def test_pictures_are_prepared_as_transformers_does(
    size: tuple[int, int], folders: dict[str, Path]
) -> None:
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    shown = noise(2, *size, 3)
    for name, cls in (("clip", CLIPImageProcessorPil), ("dino", BitImageProcessorPil)):
        plain: Any = cls.from_pretrained(folders[name], local_files_only=True)
        wanted = plain(list(shown), return_tensors="np", input_data_format="channels_last")
        got = read_preprocessing(folders[name])(shown)
        # float32 of values up to 3, in another order of operations
        np.testing.assert_allclose(got, wanted["pixel_values"], atol=1e-6)


def test_older_and_square_sizes_are_understood(folders: dict[str, Path], tmp_path: Path) -> None:
    told = json.loads((folders["clip"] / "preprocessor_config.json").read_text())
    for changes, size in (
        ({"size": 32, "crop_size": 32}, (32, 32)),
        ({"size": 24, "do_center_crop": False}, (24, 24)),
        ({"size": {"height": 20, "width": 30}, "do_center_crop": False}, (20, 30)),
        ({"do_resize": False, "do_center_crop": False}, (50, 70)),
    ):
        (tmp_path / "processor_config.json").write_text(
            json.dumps({"image_processor": {**told, **changes}})
        )
        assert read_preprocessing(tmp_path)(noise(1, 50, 70, 3)).shape == (1, 3, *size)


def test_clip_cosines_equal_plain_transformers(folders: dict[str, Path]) -> None:
    from transformers import CLIPModel, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    plain: Any = CLIPModel.from_pretrained(folders["clip"], local_files_only=True)
    processor: Any = CLIPImageProcessorPil.from_pretrained(folders["clip"])
    tokens = CLIPTokenizer.from_pretrained(folders["clip"])(
        list(TEXTS), padding=True, truncation=True, max_length=77, return_tensors="pt"
    )
    shown = blocks(3)
    with torch.inference_mode():
        values = processor(list(shown), return_tensors="pt", input_data_format="channels_last")
        output = plain(**tokens, **values)
    ours = load_clip(folders["clip"])
    cosines = ours.embed_pictures(shown) @ ours.embed_captions(TEXTS).T
    wanted = (output.image_embeds @ output.text_embeds.T).numpy()
    assert wanted.std() > 0.05  # the towers are heard
    np.testing.assert_allclose(cosines, wanted, atol=1e-6)  # float32, other batches
    np.testing.assert_allclose(ours.scale * cosines, output.logits_per_image, atol=2e-5)


def test_dino_rows_are_the_normalised_class_tokens(folders: dict[str, Path]) -> None:
    from transformers import Dinov2Model

    plain: Any = Dinov2Model.from_pretrained(folders["dino"], local_files_only=True)
    shown = blocks(3)
    values = torch.from_numpy(read_preprocessing(folders["dino"])(shown))
    with torch.inference_mode():
        wanted = torch.nn.functional.normalize(plain(values).pooler_output, dim=-1)
    np.testing.assert_allclose(load_dino(folders["dino"]).embed_pictures(shown), wanted, atol=1e-6)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_aesthetic_head_is_five_layers_with_nothing_between(
    suffix: str, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).normal(size=(4, 12)).astype(np.float32)
    tensors, x = head(), torch.from_numpy(rows).double()
    for at in (0, 2, 4, 6, 7):
        x = torch.nn.functional.linear(
            x, tensors[f"layers.{at}.weight"].double(), tensors[f"layers.{at}.bias"].double()
        )
    found = load_aesthetic(save_head(tmp_path / f"head{suffix}"))
    assert found.width == 12
    np.testing.assert_allclose(found.score(rows), x[:, 0], rtol=1e-12)


# --- each picture once -------------------------------------------------------------------------


def counted(model: Any) -> list[int]:
    """Grows by the batch of each pass of a picture tower."""
    batches: list[int] = []
    tower = getattr(model, "vision_model", model)
    tower.register_forward_pre_hook(
        lambda _, args, kwargs: batches.append(len(kwargs["pixel_values"])), with_kwargs=True
    )
    return batches


def test_a_picture_is_embedded_once_and_kept(folders: dict[str, Path], tmp_path: Path) -> None:
    shown = noise(11, 64, 64, 3)
    clip, dino = load_clip(folders["clip"]), load_dino(folders["dino"])
    passes = counted(clip.model)
    store = Embeddings(tmp_path / "embeddings")
    first = store.of_pictures(clip, shown)
    texts = store.of_captions(clip, TEXTS)
    assert passes == [BATCH, BATCH]
    assert (store.of_pictures(clip, shown[[3, 3, 0]]) == first[[3, 3, 0]]).all()
    again = Embeddings(tmp_path / "embeddings")
    assert (again.of_pictures(clip, shown[::-1]) == first[::-1]).all()
    assert (again.of_captions(clip, TEXTS[::-1]) == texts[::-1]).all()
    assert len(passes) == 2
    more = again.of_pictures(clip, np.concatenate([noise(1, 64, 64, 3, seed=9), shown]))
    assert len(passes) == 3
    assert (more[1:] == first).all()
    assert again.of_pictures(dino, shown).shape == (11, 16)


def test_a_damaged_file_is_absent_and_made_again_to_the_bit(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    shown, clip = noise(BATCH + 3, 64, 64, 3), load_clip(folders["clip"])
    whole = Embeddings().of_pictures(clip, shown)
    Embeddings(tmp_path).of_pictures(clip, shown[2:5])  # an earlier grid, with fewer pictures
    (kept,) = tmp_path.glob("*/*.npy")
    for damage in (kept.read_bytes()[:-1], b"", kept.read_bytes()):
        kept.write_bytes(damage)
        for extra in set(tmp_path.glob("*/*.npy")) - {kept}:
            extra.unlink()
        assert (Embeddings(tmp_path).of_pictures(clip, shown) == whole).all()


# --- by hand -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Colours:
    """Embeds a picture as its mean colour, and a caption as its letters."""

    name: str = "colours"
    digest: str = "c0"
    scale: float = 100.0

    def embed_pictures(self, pixels: Pixels) -> NDArray[np.float32]:
        return self._unit(pixels.mean(axis=(1, 2)))

    def embed_captions(self, captions: Any) -> NDArray[np.float32]:
        return self._unit(np.array([[text.count(x) + 1 for x in "aeo"] for text in captions]))

    @staticmethod
    def _unit(rows: Any) -> NDArray[np.float32]:
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


CAPTIONS = ("a gate", "noon on the moon", "banana")
SEEDS = 3


def painted(seed: int, count: int = len(CAPTIONS) * SEEDS) -> Pixels:
    colours = np.random.default_rng(seed).integers(1, 256, (count, 1, 1, 3), dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(colours, (count, 12, 12, 3)))


@pytest.fixture(scope="module")
def of(judges: Judges) -> Callable[..., Sample]:
    model = Colours()
    mine = replace(
        judges, clip=model, dino=model, pickscore=model, aesthetic=None, embeddings=Embeddings()
    )
    yardstick = Yardstick(mine.embedded.judge, load_probe(), (), None, CAPTIONS)

    def sample(shown: Pixels, *others: Any, **named: Any) -> Sample:
        return Sample(shown, CAPTIONS, yardstick, mine, *others, **named)

    return sample


def test_style_metrics_equal_their_definitions(of: Callable[..., Sample]) -> None:
    model, held = Colours(), References(painted(1, 6))
    plain = of(painted(2), held)
    styled = of(painted(3), held, unstyled=lambda: plain.style_cos)
    r = model.embed_pictures(held.pixels).astype(float)
    mean = sum(r) / np.linalg.norm(sum(r))
    own, other = (
        [float(row @ mean) for row in model.embed_pictures(s.pixels)] for s in (styled, plain)
    )
    gain = [a - b for a, b in zip(own, other, strict=True)]
    assert styled.style_cos == pytest.approx(own, abs=1e-6)  # float32 rows
    assert styled.style_gain == pytest.approx(gain, abs=1e-6)
    assert (plain.style_gain == 0).all()
    nearest = [max(float(row @ each) for each in r) for row in model.embed_pictures(styled.pixels)]
    assert styled.ref_nn_cos == pytest.approx(nearest, abs=1e-6)
    assert np.isnan(of(painted(3), References(painted(1, 4))).style_cos).all()
    assert np.isnan(of(painted(3)).ref_nn_cos).all()


def test_references_of_several_shipped_sets_are_no_style(judges: Judges) -> None:
    fox = pictures.variants("noto", pictures.by_caption()["fox"], 2)
    captions = ("fox", "a thing nobody drew")
    for sets, style_set, some in ((("noto",), "noto", True), (("noto", "twemoji"), None, False)):
        yardstick = Yardstick(judges.embedded.judge, load_probe(), (), style_set, captions)
        held = true_references(sets, captions)
        shown = np.concatenate([fox, fox])
        found = Sample(shown, captions, yardstick, judges.on("emoji"), held).style_cos
        assert np.isfinite(found).tolist() == [some, some, False, False]


def test_likeness_to_the_teacher_equals_its_definition(of: Callable[..., Sample]) -> None:
    teacher = of(painted(4))
    sample = of(painted(5), teacher=teacher)
    x, y = (Colours().embed_pictures(s.pixels).astype(float) for s in (sample, teacher))
    for at in range(len(x)):
        group = range(at // SEEDS * SEEDS, at // SEEDS * SEEDS + SEEDS)
        between = np.mean([y[i] @ y[j] for i in group for j in group if i != j])
        cosine = x[at] @ y[at]
        assert sample.teacher_dino[at] == pytest.approx(cosine, abs=1e-6)
        assert sample.teacher_rel[at] == pytest.approx((cosine - between) / (1 - between), abs=1e-5)
        assert sample.teacher_distance[at] == pytest.approx(1 - cosine, abs=1e-6)
    assert teacher.teacher_rel == pytest.approx(1, abs=1e-5)
    same = of(painted(4, 1).repeat(len(CAPTIONS) * SEEDS, axis=0))
    assert np.isnan(same.teacher_rel).all()  # all seeds give one picture
    assert np.isnan(of(painted(4, len(CAPTIONS))).teacher_rel).all()  # one seed


def test_captions_of_ones_own_compete_with_one_another(of: Callable[..., Sample]) -> None:
    sample = of(painted(6))
    cosines = Colours().embed_pictures(sample.pixels) @ Colours().embed_captions(CAPTIONS).T
    own = np.arange(len(cosines)) // SEEDS
    assert sample.retrieval_top1.tolist() == (cosines.argmax(axis=1) == own).tolist()
    assert 0 < sample.retrieval_top1.mean() < 1
    score = cosines[np.arange(len(own)), own]
    assert sample.prompt_score == pytest.approx(score, abs=1e-6)
    assert sample.pickscore == pytest.approx(100 * score, abs=1e-4)
    alone = Sample(painted(6, 2), CAPTIONS[:1], sample.yardstick, sample.judges)
    assert np.isnan(alone.retrieval_top1).all()


def test_cmmd_is_of_the_stored_embeddings_and_tells_its_n(judges: Judges) -> None:
    yardstick = Yardstick(judges.embedded.judge, load_probe(), (), None, CAPTIONS)
    few, some = (
        [Sample(noise(n, 40, 40, 3, seed=k), CAPTIONS, yardstick, judges) for k in (1, 2)]
        for n in (30, 33)
    )
    for first, teacher in (few, some):
        first.teacher = teacher
    assert judges.clip is not None
    x, y = (judges.clip.embed_pictures(s.pixels) for s in some)
    assert some[0].cmmd_u == pytest.approx(mmd.cmmd_u(x, y), abs=1e-6)  # float32 rows
    assert some[0].cmmd_n == 33
    assert np.isnan([few[0].cmmd_u, few[0].cmmd_n]).all()


def test_every_metric_of_a_judge_is_measured_or_empty(judges: Judges) -> None:
    yardstick = Yardstick(judges.embedded.judge, load_probe(), (), None, CAPTIONS)
    by = {m.name: m.judge for m in METRICS.values() if m.judge not in ("", "embedded")}
    held = References(painted(1, 6))
    for mine in (judges, Judges(judges.embedded)):
        sample = Sample(painted(7), CAPTIONS, yardstick, mine.on("a-folder"), held)
        of_pictures, of_cell = measure(sample, by)
        values: dict[str, Any] = {**of_pictures, **of_cell}
        some = {name for name in by if np.isfinite(values[name]).any()}
        assert some == (by.keys() - {"cmmd_u", "cmmd_n"} if mine is judges else set())


# --- known before anything is drawn ------------------------------------------------------------


def planned(base: str = "emoji", style: str = "noto", **changes: Any) -> Grid:
    weights = parse_decimals("0,0.8", ""), parse_decimals("1", "")
    rows = plain_cells(style, "lcm", *weights, (1, 2))
    cells = [replace(row, context=Context(base, style)) for row in rows]
    values: dict[str, Any] = {"prompts": ("fox", "cactus"), "seeds": 2, **changes}
    sets = {"noto": "noto"} if base == "emoji" else {}
    return make_grid(cells=cells, family=Sources().family, style_set=sets.get, **values)


def test_pictures_without_the_style_are_the_cells_of_no_weight_or_the_base() -> None:
    grid = planned()
    setting = grid.only
    plain, styled = ([row for row in grid.cells if bool(row.l1) == some] for some in (False, True))
    assert [grid.unstyled(row) for row in styled] == plain == [grid.unstyled(row) for row in plain]
    assert grid.unstyled(setting.teacher) == grid.unstyled(setting.base) == setting.base
    alone = replace(grid, cells=tuple(styled))
    assert {alone.unstyled(row) for row in styled} == {setting.base}


def test_what_cannot_be_measured_is_said_once_and_refused_where_required(judges: Judges) -> None:
    none = Judges(judges.embedded)
    assert list(empty(expected(METRICS), planned(), none, {})) == []
    (line,) = empty(expected(METRICS), planned("some/base"), none, {})
    assert line == (
        "prompt_score, retrieval_top1, teacher_distance of noto on some/base: needs --clip DIR"
    )
    assert list(empty(expected(METRICS), planned("some/base"), judges, {})) == []
    (line,) = empty(expected(("ssim", "teacher_dino")), planned(), none, {})
    assert line == "teacher_dino of noto on emoji: needs --dino DIR"
    few = {"emoji": References(painted(1, 4))}
    for grid, text, held, said in (
        (planned(), "teacher_dino", {}, "--dino DIR"),
        (planned(), "ssim,pickscore", {}, "--pickscore DIR"),
        (planned(), "aesthetic", {}, "--aesthetic FILE"),
        (planned("x/y"), "prompt_score", {}, "--clip DIR"),
        (planned("x/y"), "pair_distance", {}, "of which pictures ship"),
        (planned(prompts=("mine",)), "diversity", {}, "of which pictures ship"),
        (planned("x/y"), "color_swd", {}, "--style-refs DIR"),
        (planned(style="none"), "style_cos", {}, "--style-refs DIR"),
        (planned(style="none"), "style_accuracy", {}, "a shipped set"),
        (planned(), "style_gain", few, "which has 4"),
        (planned(prompts=("mine",)), "style_gain", {}, "--style-refs DIR"),
        (planned(prompts=("mine",)), "retrieval_top1", {}, "another prompt"),
        (planned(seeds=1), "diversity", {}, "--seeds 2"),
        (planned(), "cmmd_u", {}, "32 pictures"),
    ):  # fmt: skip
        with pytest.raises(UsageError, match="--require-metric") as error:
            require(text.split(","), grid, none, held)
        assert said in str(error.value)
        assert error.value.exit_code == 2
    require(("style_gain", "prompt_score"), planned(), none, {})
    require(("teacher_rel", "aesthetic", "pickscore"), planned(), judges, {})


# --- wrong inputs ------------------------------------------------------------------------------


def rewrite(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def retell(name: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        told = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**told, **changes}))

    return change


PROCESSOR = "preprocessor_config.json"
WRONG: dict[str, tuple[Callable[[Path], object], type[LcmArithError], str]] = {
    "gone": (shutil.rmtree, NotFoundError, "hf download"),
    "no config": (lambda d: (d / "config.json").unlink(), InvalidContentError, "config.json"),
    "no JSON": (
        lambda d: (d / "config.json").write_text("{"), InvalidContentError, "config.json",
    ),
    "another": (retell("config.json", model_type="siglip"), IncompatibleError, "is a siglip"),
    "no tokenizer": (
        lambda d: (d / "tokenizer.json").unlink(), InvalidContentError, "has no tokenizer",
    ),
    "no processor": (lambda d: (d / PROCESSOR).unlink(), InvalidContentError, "has no preproc"),
    "odd size": (retell(PROCESSOR, size="large"), InvalidContentError, "cannot be understood"),
    "padded": (retell(PROCESSOR, do_pad=True), IncompatibleError, "padded"),
    "large crop": (retell(PROCESSOR, crop_size=99), IncompatibleError, "padded"),
    "pickle": (
        lambda d: (d / "model.safetensors").rename(d / "pytorch_model.bin"),
        InvalidContentError, "no model.safetensors",
    ),
    "cut": (
        lambda d: os.truncate(d / "model.safetensors", 5000), InvalidContentError, "model.safe",
    ),
    "a layer short": (
        lambda d: rewrite(d, lambda t: t.pop("visual_projection.weight")),
        InvalidContentError, "visual_projection.weight",
    ),
    "NaN": (
        lambda d: rewrite(d, lambda t: t["visual_projection.weight"].fill_(float("nan"))),
        InvalidContentError, "NaN",
    ),
    "misshapen": (
        lambda d: rewrite(d, lambda t: t.update({"logit_scale": torch.ones(2)})),
        InvalidContentError, "cannot be loaded",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_no_whole_clip_is_refused(
    name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    break_it, kind, said = WRONG[name]
    folder = tmp_path / "clip"
    shutil.copytree(folders["clip"], folder)
    break_it(folder)
    with pytest.raises(kind) as error:
        load_clip(folder)
    assert said in str(error.value)
    assert str(folder) in str(error.value)


def test_a_model_in_the_wrong_place_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(IncompatibleError, match=r"--dino .*is a clip"):
        load_dino(folders["clip"])
    with pytest.raises(IncompatibleError, match=r"--pickscore .*is a dinov2"):
        load_pickscore(folders["dino"])
    fits, wide = (save_head(tmp_path / f"{n}.safetensors", n) for n in (12, 768))
    with pytest.raises(UsageError, match="no --clip"):
        load_judges(aesthetic=fits)
    with pytest.raises(IncompatibleError, match=r"768 numbers .* gives 12"):
        load_judges(clip=folders["clip"], aesthetic=wide)
    with pytest.raises(NotFoundError, match="no such file"):
        load_aesthetic(tmp_path / "none.pth")
    for change in ({"layers.3.weight": torch.ones(1, 1)}, {"layers.7.bias": torch.ones(2)}):
        save_file({**head(), **change}, tmp_path / "odd.safetensors")
        with pytest.raises(InvalidContentError, match="--aesthetic"):
            load_aesthetic(tmp_path / "odd.safetensors")


def test_nothing_is_asked_of_a_hub(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def refuse(*address: Any, **_: Any) -> None:
        asked.append(address)
        raise OSError("the network is off")

    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    for offline in ("0", "1"):
        monkeypatch.setenv("HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline == "1")
        began = time.process_time()
        found = load_judges(clip=folders["clip"], dino=folders["dino"])
        assert found.digests().keys() == {"embedded", "clip", "dino"}
        for load in (load_clip, load_dino, load_pickscore):
            with pytest.raises(NotFoundError, match="no such folder"):
                load(Path("openai/clip-vit-large-patch14"))
        assert time.process_time() - began < 1
    assert asked == []
