import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from lcm_arith.embedded import files, pictures
from lcm_arith.embedded.pictures import Variation, draw_variation, drawing, render, variants
from lcm_arith.registry import shipped

CONCEPTS = pictures.concepts()
DRAWS = 20_000  # a share of 0.5 then has a standard error of 0.0035


@pytest.fixture(scope="module")
def drawn() -> list[Variation]:
    rng = np.random.default_rng(7)
    return [draw_variation(rng) for _ in range(DRAWS)]


@pytest.fixture
def hand_made() -> pictures.Pixels:
    """Every level of alpha and of colour somewhere, nothing symmetric."""
    return np.random.default_rng(0).integers(0, 256, (64, 64, 4), dtype=np.uint8)


def test_every_shipped_file_is_in_the_manifest_with_its_sha256() -> None:
    assert files.verify_manifest() == []
    assert "emoji-sd/unet/diffusion_pytorch_model.safetensors" in files.manifest()


def test_the_shipped_vectors_records_are_what_their_files_say_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = (files.VECTORS / shipped.RECORDS).read_bytes()
    assert json.loads(stored).keys() == set(files.vector_names())
    monkeypatch.setattr(files, "VECTORS", tmp_path)
    for name in json.loads(stored):
        (tmp_path / f"{name}.safetensors").symlink_to(
            files.ROOT / "vectors" / f"{name}.safetensors"
        )
    shipped.write()  # what tools/build_embedded.py manifest does
    assert (tmp_path / shipped.RECORDS).read_bytes() == stored


def test_verify_names_missing_changed_and_unlisted_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "ROOT", tmp_path)
    for name in ("kept.txt", "changed.txt", "missing.txt", "code.py"):
        (tmp_path / name).write_text(name)
    files.write_manifest()
    (tmp_path / "missing.txt").unlink()
    (tmp_path / "changed.txt").write_text("other")
    (tmp_path / "new.txt").write_text("new")
    problems = files.verify_manifest()
    assert [problem.split(":")[0] for problem in problems] == [
        "missing.txt",
        "changed.txt",
        "new.txt",
    ]
    assert hashlib.sha256(b"other").hexdigest() in problems[1]


def test_all_embedded_files_together_stay_below_60_mb() -> None:
    size = sum(path.stat().st_size for path in files.ROOT.rglob("*") if path.is_file())
    assert size < 60e6


def test_configs_name_no_folder_of_the_build() -> None:
    for path in (*files.MODEL.rglob("*.json"), *files.JUDGE.rglob("*.json")):
        assert "_name_or_path" not in path.read_text(encoding="utf-8"), path


def test_defaults_name_the_pair_and_the_teacher() -> None:
    told = dict(files.defaults())
    assert told["omega"] == told["guidance"] - 1
    assert {told["style"], told["accel"]} <= set(files.vector_names())
    assert told["teacher_steps"] == 25


def test_an_unknown_vector_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="no-such-vector"):
        files.vector_path("no-such-vector")


def test_seven_tenths_of_the_concepts_are_in_part_a() -> None:
    share = len(pictures.concepts("A")) / len(CONCEPTS)
    assert len(CONCEPTS) >= 160
    assert share == pytest.approx(0.7, abs=0.1)  # 0.036 is the standard error of 160 draws
    assert set(pictures.concepts("A")).isdisjoint(pictures.concepts("B"))
    assert len(pictures.concepts("A")) + len(pictures.concepts("B")) == len(CONCEPTS)


def test_the_part_is_the_hash_of_the_hexcode() -> None:
    for concept in CONCEPTS:
        last_digit = int.from_bytes(hashlib.sha256(concept.hexcode.encode()).digest()) % 10
        assert concept.part == ("B" if last_digit >= 7 else "A"), concept


def test_captions_are_unique_and_found() -> None:
    assert len(pictures.by_caption()) == len(CONCEPTS)
    assert pictures.by_caption()["red apple"].hexcode == "1F34E"


def test_concepts_keep_the_order_of_the_file() -> None:
    rows = json.loads((files.DATA / "concepts.json").read_text(encoding="utf-8"))
    assert [concept.hexcode for concept in CONCEPTS] == [row["hexcode"] for row in rows]


def test_hash_order_depends_on_the_hexcodes_alone() -> None:
    mixed = pictures.hash_order(CONCEPTS)
    assert mixed == pictures.hash_order(reversed(CONCEPTS))
    assert sorted(mixed, key=CONCEPTS.index) == list(CONCEPTS)
    keys = [hashlib.sha256(f"order:{concept.hexcode}".encode()).hexdigest() for concept in mixed]
    assert keys == sorted(keys)


@pytest.mark.parametrize("name", pictures.sets())
def test_every_concept_has_a_drawing_with_its_own_transparency(name: str) -> None:
    for concept in CONCEPTS:
        tile = drawing(name, concept)
        alpha = tile[..., 3]
        assert tile.shape == (64, 64, 4)
        assert tile.dtype == np.uint8
        assert 0.03 < (alpha > 128).mean() < 0.97, concept  # neither empty nor a full box
        assert not tile[alpha == 0].any(), concept


def test_no_two_sets_share_a_drawing() -> None:
    for concept in CONCEPTS:
        tiles = {drawing(name, concept).tobytes() for name in pictures.sets()}
        assert len(tiles) == len(pictures.sets()), concept


def test_line_art_is_black_on_white_paper() -> None:
    tiles = np.stack([drawing("fluent-emoji-high-contrast", concept) for concept in CONCEPTS])
    solid = tiles[tiles[..., 3] == 255][:, :3]
    assert np.array_equal(solid.min(axis=1), solid.max(axis=1))  # grey only
    assert np.isin(solid[:, 0], (0, 255)).mean() > 0.85  # the rest smooths edges
    faces = drawing("fluent-emoji-high-contrast", pictures.by_caption()["panda"])
    assert faces[32, 20:44].min() == 0
    assert (faces[..., :3].min(axis=-1) == 255).any()


def test_drawings_cannot_be_changed_by_their_users() -> None:
    with pytest.raises(ValueError, match="read-only"):
        drawing("noto", CONCEPTS[0])[0, 0, 0] = 1


def test_shares_of_the_variations_are_the_stated_ones(drawn: list[Variation]) -> None:
    def share(values: list[bool]) -> float:
        return sum(values) / len(values)

    near = pytest.approx  # 0.015 is four standard errors of 0.5
    small = [v for v in drawn if v.size == 48]
    coloured = [v for v in drawn if v.background != (255, 255, 255)]
    assert share([v.mirrored for v in drawn]) == near(0.5, abs=0.015)
    assert share([v.size == 64 for v in drawn]) == near(0.25, abs=0.015)
    assert share([v.background == (255, 255, 255) for v in drawn]) == near(0.3, abs=0.015)
    for place in ((x, y) for x in (0, 8, 16) for y in (0, 8, 16)):
        assert share([v.offset == place for v in small]) == near(1 / 9, abs=0.015)
    for colour in pictures.BACKGROUNDS:
        assert share([v.background == colour for v in coloured]) == near(1 / 7, abs=0.015)
    assert {v.offset for v in drawn if v.size == 64} == {(0, 0)}


def test_variants_are_the_same_in_any_order_and_number() -> None:
    first, second = CONCEPTS[3], CONCEPTS[90]
    alone = variants("noto", first, 6)
    variants("twemoji", second, 3)
    assert np.array_equal(variants("noto", first, 6), alone)
    assert np.array_equal(variants("noto", first, 2), alone[:2])
    assert variants("noto", first, 0).shape == (0, 64, 64, 3)


def test_another_seed_gives_fresh_variants() -> None:
    old, new = (variants("noto", CONCEPTS[3], 24, seed=seed) for seed in (0, 1))
    assert not np.array_equal(old, new)


def test_a_variants_seed_is_the_hash_of_set_hexcode_and_seed() -> None:
    concept = CONCEPTS[5]
    digest = hashlib.sha256(f"twemoji/{concept.hexcode}/2".encode()).digest()
    rng = np.random.default_rng(int.from_bytes(digest))
    expected = [render(drawing("twemoji", concept), draw_variation(rng)) for _ in range(3)]
    assert np.array_equal(variants("twemoji", concept, 3, seed=2), np.stack(expected))


@pytest.mark.parametrize("background", [(255, 255, 255), (70, 80, 110)])
def test_full_size_is_alpha_compositing_rounded_to_nearest(
    hand_made: pictures.Pixels, background: tuple[int, int, int]
) -> None:
    alpha = hand_made[..., 3:].astype(float) / 255
    exact = hand_made[..., :3] * alpha + np.array(background) * (1 - alpha)
    picture = render(hand_made, Variation(False, 64, (0, 0), background))
    assert picture.dtype == np.uint8
    assert np.array_equal(picture, np.floor(exact + 0.5))


@pytest.mark.parametrize(("size", "offset"), [(64, (0, 0)), (48, (8, 8))])
def test_mirrored_is_the_flip(
    hand_made: pictures.Pixels, size: int, offset: tuple[int, int]
) -> None:
    plain = render(hand_made, Variation(False, size, offset, (155, 200, 255)))
    mirrored = render(hand_made, Variation(True, size, offset, (155, 200, 255)))
    assert np.array_equal(mirrored, plain[:, ::-1])  # 8 px is the centre, so the place stays


def test_a_small_drawing_lies_at_its_offset_and_nowhere_else(hand_made: pictures.Pixels) -> None:
    colour = (202, 255, 191)
    corner = render(hand_made, Variation(False, 48, (0, 0), colour))
    moved = render(hand_made, Variation(False, 48, (16, 8), colour))  # x, then y
    assert np.array_equal(moved[8:56, 16:64], corner[:48, :48])
    assert (moved[:8] == colour).all()
    assert (moved[56:] == colour).all()
    assert (moved[:, :16] == colour).all()


def test_hidden_colours_do_not_bleed_when_a_drawing_shrinks() -> None:
    source = np.zeros((64, 64, 4), dtype=np.uint8)
    source[...] = (0, 255, 0, 0)  # transparent green
    source[:, :32] = (200, 0, 0, 255)
    picture = render(source, Variation(False, 48, (0, 0), (255, 255, 255)))
    assert (picture[..., 1] >= picture[..., 2]).all()
    assert np.abs(picture[..., 1].astype(int) - picture[..., 2]).max() <= 2  # no green edge


@pytest.mark.parametrize(
    ("size", "offset", "background"),
    [
        (32, (0, 0), (0, 0, 0)),
        (64, (8, 0), (0, 0, 0)),
        (48, (4, 0), (0, 0, 0)),
        (48, (0, 0), (0, 0, 256)),
    ],
)
def test_impossible_variations_are_refused(
    size: int, offset: tuple[int, int], background: tuple[int, int, int]
) -> None:
    with pytest.raises(ValueError, match=r"size|offset|background"):
        Variation(False, size, offset, background)


def test_unknown_sets_parts_and_concepts_are_refused() -> None:
    stranger = pictures.Concept("0000", "nothing", (), "A")
    with pytest.raises(ValueError, match="no-such-set"):
        drawing("no-such-set", CONCEPTS[0])
    with pytest.raises(ValueError, match="not shipped"):
        drawing("noto", stranger)
    with pytest.raises(ValueError, match="'C'"):
        pictures.concepts("C")
    with pytest.raises(ValueError, match="-1"):
        variants("noto", CONCEPTS[0], -1)
    with pytest.raises(ValueError, match="float64"):
        render(np.zeros((64, 64, 4)), Variation(False, 64, (0, 0), (0, 0, 0)))  # type: ignore[arg-type]


def test_the_notice_names_every_package_and_licence() -> None:
    text = (files.DATA / "NOTICE.md").read_text(encoding="utf-8")
    for entry in pictures.sets().values():
        package, version = entry.source.split()
        assert f"`{package}` {version} | {entry.licence}" in text
