"""Training data: sources, captions, shapes, and batches."""

import io
import json
import re
import struct
import tarfile
import zlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting import Counting, picture, same, tensors, three_pictures
from PIL import Image
from torch import Tensor

from lcm_arith.data import pixels
from lcm_arith.data.captions import forms
from lcm_arith.data.options import DataOptions
from lcm_arith.data.prepare import prepare
from lcm_arith.data.sources import survey
from lcm_arith.errors import (
    InvalidContentError,
    LcmArithError,
    NotFoundError,
    UsageError,
)


@pytest.fixture
def base() -> Any:
    return Counting()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_pictures(tmp_path / "data")


def test_a_folder_is_read_with_all_below_it_and_each_picture_keeps_its_caption(
    base: Any, folder: Path
) -> None:
    data = prepare(base, folder)
    assert [(row.name, row.captions) for row in data.rows] == [
        ("a.png", ("caption a",)),
        ("b.png", ("caption b",)),
        ("more/c.png", ("caption c",)),
    ]
    drawn = data.batch(0, 3, seed=0)
    for z0, embeds, caption in zip(drawn.z0, drawn.cond["embeds"], drawn.captions, strict=True):
        at = "abc".index(caption[-1])
        wanted = base.to_latents(np.asarray(picture(100 + 50 * at))[None])[0]
        assert torch.equal(z0, wanted)
        assert torch.equal(embeds, base.encode([caption])["embeds"][0])
    assert torch.equal(data.uncond(drawn.cond)["embeds"], torch.zeros(3, 1, 4))
    assert (data.pictures, data.skipped, data.origin["pictures"]) == (3, (), 3)


def test_an_epoch_shows_each_picture_as_often_as_its_repeats_and_one_bucket_a_batch(
    base: Any, tmp_path: Path
) -> None:
    sizes = [(32, 32)] * 5 + [(64, 16)] * 3
    for at, size in enumerate(sizes):
        picture(100 + at, size).save(tmp_path / f"{at}.png")
    rows = [{"file_name": f"{at}.png", "text": str(at)} for at in range(8)]
    rows[7]["repeats"] = "3"
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    data = prepare(base, tmp_path, DataOptions(bucket_step=16))
    assert data.batches(4) == 2 + 2  # 5 squares, 5 wide ones with the repeats
    epochs = []
    for epoch in range(3):
        drawn = [data.batch(4 * epoch + at, 4, seed=7) for at in range(4)]
        assert sorted(len(each.captions) for each in drawn) == [1, 1, 4, 4]
        assert all({c > "4" for c in each.captions} in ({True}, {False}) for each in drawn)
        epochs.append([caption for each in drawn for caption in each.captions])
        assert Counter(epochs[-1]) == Counter("01234567777"[:8] + "77")
    assert epochs[0] != epochs[1] != epochs[2]
    again = prepare(base, tmp_path, DataOptions(bucket_step=16))
    assert again.batch(9, 4, seed=7).captions == data.batch(9, 4, seed=7).captions
    assert data.batch(9, 4, seed=-8).captions != data.batch(9, 4, seed=7).captions


def test_three_pictures_make_a_batch_of_three_when_four_are_asked_for(
    base: Any, folder: Path
) -> None:
    data = prepare(base, folder)
    assert data.batches(4) == 1
    assert sorted(data.batch(5, 4, seed=0).captions) == ["caption a", "caption b", "caption c"]
    with pytest.raises(UsageError, match="at least 1"):
        data.batch(0, 0, seed=0)


def test_flipped_pictures_and_shuffled_captions_are_all_drawn_about_equally_often(
    base: Any, folder: Path
) -> None:
    (folder / "a.txt").write_text("x, y, z")
    options = DataOptions(flip=True, shuffles=4, keep_tokens=1, trigger="zzz")
    data = prepare(base, folder, options)
    assert (base.pictures, base.prompts) == (6, len(data.embeds))
    seen: Counter[tuple[str, bool]] = Counter()
    for index in range(400):
        drawn = data.batch(index, 3, seed=0)
        for caption, z0 in zip(drawn.captions, drawn.z0, strict=True):
            if "x" in caption:
                seen[caption, bool(z0[0, 0, 0] < z0[0, 0, -1])] += 1
    orders = data.rows[0].captions
    assert {caption for caption, _ in seen} == set(orders)
    assert len(orders) > 1
    for share in (
        Counter(text for (text, _), n in seen.items() for _ in range(n)).values(),
        Counter(flipped for (_, flipped), n in seen.items() for _ in range(n)).values(),
    ):
        assert min(share) > 0.7 * 400 / len(share)  # a fair die is off by 5 %, 3.3 σ is 17 %


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (DataOptions(), {"b, c,d"}),
        (DataOptions(trigger="zzz"), {"zzz, b, c,d"}),
        (DataOptions(shuffles=99, keep_tokens=2), {"b, c, d"}),
        (DataOptions(shuffles=99, keep_tokens=2, trigger="z"), {"z, b, c, d", "z, b, d, c"}),
        (DataOptions(shuffles=99, keep_tokens=1), {"b, c, d", "b, d, c"}),
    ],
)
def test_a_caption_is_shown_in_these_forms(options: DataOptions, wanted: set[str]) -> None:
    assert set(forms("b, c,d", options)) == wanted


def test_how_captions_are_read_reaches_the_text_encoder_and_long_ones_are_counted(
    base: Any, folder: Path
) -> None:
    (folder / "a.txt").write_text("one two three four five six")
    data = prepare(base, folder, DataOptions(clip_skip=2, max_tokens=10))
    assert data.batch(0, 3, seed=0).cond["embeds"][:, 0, 2:].tolist() == [[2, 10]] * 3
    assert data.uncond({"embeds": torch.zeros(1, 1, 4)})["embeds"].tolist() == [[[0, 0, 2, 10]]]
    assert data.origin["cut_captions"] == 0
    assert prepare(base, folder).origin["cut_captions"] == 1


@pytest.mark.parametrize(
    ("resolution", "step", "wanted"),
    [
        (64, 64, [(64, 64)]),
        (
            512,
            128,
            [(256, 1024), (384, 640), (512, 512), (640, 384), (1024, 256)],
        ),
    ],
)
def test_buckets_have_about_the_area_and_sides_of_whole_steps(
    resolution: int, step: int, wanted: list[tuple[int, int]]
) -> None:
    assert list(pixels.buckets(resolution, step)) == wanted


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((600, 800), (448, 576)),  # 0.75 is nearer to 0.78 than to 0.6
        ((800, 600), (576, 448)),
        ((500, 510), (512, 512)),
        ((100, 1600), (256, 1024)),
        ((5000, 2000), (768, 320)),  # 2.5: 2.4 rather than 4 or 1.67
    ],
)
def test_a_picture_goes_to_the_bucket_of_the_nearest_ratio_of_its_sides(
    size: pixels.Size, wanted: pixels.Size
) -> None:
    how = pixels.cut(size, pixels.buckets(512, 64))
    assert how.target == wanted
    scale = max(wanted[0] / size[0], wanted[1] / size[1])
    assert how.enlarged == (scale > 1)
    assert any(big == side for big, side in zip(how.resized, wanted, strict=True))


def test_sdxl_buckets_are_the_published_ones_where_both_exist() -> None:
    """Appendix I of arXiv:2307.01952 lists sides from 512 to 2048; ours stay within the area."""
    ours = set(pixels.buckets(1024, 64))
    assert {(1024, 1024), (512, 2048), (832, 1216), (1152, 896), (768, 1344)} <= ours
    assert all(h * w <= 1024**2 and h % 64 == w % 64 == 0 for h, w in ours)


def test_a_crop_covers_its_bucket_and_keeps_the_picture_upright_and_undistorted() -> None:
    """The resized picture as a whole, cropped afterwards, is the reference."""
    shown = Image.fromarray(np.random.default_rng(0).integers(0, 255, (90, 150, 3), np.uint8))
    shown = shown.resize((300, 180), Image.Resampling.BICUBIC)
    for where in ((0.5, 0.5), (0.0, 1.0), (0.25, 0.9)):
        how = pixels.cut((180, 300), ((64, 64),), where)
        assert (how.resized, how.target) == ((64, 107), (64, 64))
        whole = np.asarray(shown.resize((107, 64), Image.Resampling.LANCZOS))
        wanted = whole[how.top : how.top + 64, how.left : how.left + 64]
        error = np.abs(pixels.render(shown, how).astype(int) - wanted)
        assert error.max() <= 2  # Pillow rounds a fractional box once more
        assert how.left == int(where[1] * 43)


def test_a_turned_photograph_is_seen_upright() -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90° clockwise
    picture(200, (40, 20)).save(file, "jpeg", exif=exif, quality=100)
    opened = pixels.opened(file.getvalue())
    assert pixels.upright_size(opened) == (40, 20)
    seen = pixels.render(opened, pixels.cut((40, 20), ((40, 20),)))
    assert seen.shape == (40, 20, 3)
    assert int(seen[2, 10, 0]) > int(seen[-2, 10, 0]) + 100  # its left end is on top now


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "I;16", "CMYK", "1"])
def test_pictures_of_every_mode_become_colours_on_white(mode: str) -> None:
    made = {
        "RGBA": lambda: Image.new("RGBA", (8, 8), (10, 10, 10, 0)),
        "LA": lambda: Image.new("LA", (8, 8), (10, 0)),
        "P": lambda: Image.new("RGBA", (8, 8), (10, 10, 10, 0)).quantize(2),
        "L": lambda: Image.new("L", (8, 8), 255),
        "I;16": lambda: Image.fromarray(np.full((8, 8), 65535, np.uint16)),
        "CMYK": lambda: Image.new("CMYK", (8, 8), (0, 0, 0, 0)),
        "1": lambda: Image.new("1", (8, 8), 1),
    }[mode]()
    assert made.mode == mode
    assert set(np.asarray(pixels.on_white(made)).flatten()) == {255}


def test_sdxl_is_told_height_first_and_the_crop_of_a_mirrored_picture_mirrored(
    tmp_path: Path,
) -> None:
    picture(200, (2048, 1365)).save(tmp_path / "a.png", compress_level=0)
    (tmp_path / "a.txt").write_text("a")
    base: Any = Counting("sdxl")
    data = prepare(base, tmp_path, DataOptions(flip=True, crop="random", resolution=64))
    how = pixels.cut((1365, 2048), ((64, 64),))
    assert how.resized == (64, 96)
    plain, mirrored = data.rows[0].time_ids
    assert plain[3] + mirrored[3] == 96 - 64
    assert plain[3] != mirrored[3]
    seen = {tuple(data.batch(at, 1, 0).cond["time_ids"][0].tolist()) for at in range(20)}
    assert seen == {(1365, 2048, 0, plain[3], 64, 64), (1365, 2048, 0, mirrored[3], 64, 64)}
    drawn = data.batch(0, 1, 0)
    assert drawn.cond["time_ids"].dtype == torch.float32
    assert drawn.cond["pooled"].shape == (1, 2)
    nothing = data.uncond(drawn.cond)
    assert torch.equal(nothing["time_ids"], drawn.cond["time_ids"])
    assert not nothing["pooled"].any()


def test_a_random_crop_depends_on_the_picture_alone(base: Any, tmp_path: Path) -> None:
    for name, colour in (("a", 200), ("b", 100)):
        picture(colour, (640, 32)).resize((400, 32)).save(tmp_path / f"{name}.png")
    options = DataOptions(crop="random", caption_missing="empty")
    first = prepare(base, tmp_path, options)
    (tmp_path / "a.png").rename(tmp_path / "c.png")
    again = prepare(base, tmp_path, options)
    assert [r.time_ids for r in first.rows] == [r.time_ids for r in reversed(again.rows)]
    assert first.rows[0].time_ids != first.rows[1].time_ids


# --- captions that are missing or broken ---------------------------------------------------------


def test_pictures_without_caption_are_listed_left_out_or_shown_without(
    base: Any, folder: Path
) -> None:
    (folder / "a.txt").unlink()
    (folder / "b.txt").write_text(" \n")
    with pytest.raises(InvalidContentError, match=r"2 of 3 pictures lack.*\n  a.png\n  b.png"):
        prepare(base, folder)
    assert base.pictures == 0
    data = prepare(base, folder, DataOptions(caption_missing="skip"))
    assert [row.name for row in data.rows] == ["more/c.png"]
    assert data.skipped == ("a.png: lacks a caption", "b.png: lacks a caption")
    data = prepare(base, folder, DataOptions(caption_missing="empty", trigger="zzz"))
    assert [row.captions for row in data.rows] == [("zzz",), ("zzz",), ("zzz, caption c",)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a.txt": b"caf\xe9"}, r"a\.txt: is not UTF-8 \(byte 3\)"),
        ({"metadata.jsonl": b'{"file_name": "a.png"'}, "line 1: is not JSON"),
        ({"metadata.jsonl": b'{"text": "x"}'}, "line 1: has no file_name"),
        ({"metadata.jsonl": b'{"file_name": "a.png", "text": 3}'}, "line 1: caption 3"),
        ({"metadata.csv": b"file_name,text,repeats\na.png,x,-1"}, "line 2.*repeats '-1'"),
        ({"metadata.jsonl": b'{"file_name": "a.png"}\n{"file_name": "a.png"}'}, "line 2.*twice"),
        ({"metadata.csv": b"file,text\na.png,x\n"}, "its columns are file, text"),
        ({"metadata.csv": b"file_name,text\na.png,x\na.png,y\n"}, "line 3: a.png is there twice"),
        ({"metadata.csv": b"\xff\xfe"}, "metadata.csv: is not UTF-8"),
        ({"metadata.csv": b"file_name,text\n", "metadata.jsonl": b""}, "keep one of them"),
    ],
)
def test_captions_that_cannot_be_read_name_file_and_line(
    base: Any, folder: Path, files: dict[str, bytes], message: str
) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with pytest.raises(InvalidContentError) as caught:
        prepare(base, folder)
    assert re.search(message, str(caught.value))
    assert base.pictures == 0


def test_metadata_goes_before_files_beside_and_rows_without_picture_are_told(
    base: Any, folder: Path
) -> None:
    (folder / "metadata.csv").write_text(
        'file_name,prompt,extra\na.png,"one, two",7\n./more/c.png,,\nnowhere.png,x,\n../b.png,y,\n',
        encoding="utf-8-sig",
    )
    data = prepare(base, folder, DataOptions(caption_missing="empty"))
    assert [row.captions[0] for row in data.rows] == ["one, two", "caption b", ""]
    assert data.skipped == (
        "../b.png: is in the metadata, but not there",
        "nowhere.png: is in the metadata, but not there",
    )


# --- pictures that cannot be used ----------------------------------------------------------------


def test_pictures_that_cannot_be_used_are_skipped_with_their_reason(
    base: Any, folder: Path
) -> None:
    file = io.BytesIO()
    picture(200, (600, 600)).save(file, "jpeg")
    (folder / "cut.jpg").write_bytes(file.getvalue()[:3000])
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.webp").write_bytes(b"<html>")
    picture(9, (1, 5000)).save(folder / "thin.png")
    head = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    chunks = (b"\x89PNG\r\n\x1a\n", b"\0\0\0\r", head, struct.pack(">I", zlib.crc32(head)))
    (folder / "huge.png").write_bytes(b"".join(chunks) + b"\0\0\0\0IDAT" + bytes(4))
    data = prepare(base, folder, DataOptions(caption_missing="empty"))
    told = dict(line.split(": ", 1) for line in data.skipped)
    assert sorted(told) == ["cut.jpg", "empty.png", "huge.png", "text.webp", "thin.png"]
    assert "truncated" in told["cut.jpg"]
    assert "no picture that Pillow knows" in told["empty.png"]
    assert "0x" not in told["text.webp"]
    assert "1×5000 px, one side is more than 16 times" in told["thin.png"]
    assert "decompression bomb" in told["huge.png"]
    assert (data.pictures, data.origin["skipped"], base.pictures) == (3, 5, 3)


@pytest.mark.filterwarnings("error")
def test_a_large_picture_and_a_damaged_orientation_are_used_quietly(
    base: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 900)  # a.png has 1024; from 1800 on: refused
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\xff\0\0\0\x06\0\0\0"
    picture(200, (40, 20)).save(folder / "b.jpg", exif=exif)
    data = prepare(base, folder)
    assert [row.name for row in data.rows] == ["a.png", "b.jpg", "b.png", "more/c.png"]


def test_a_folder_without_a_picture_that_can_be_used_says_so_before_a_model_is_needed(
    tmp_path: Path,
) -> None:
    with pytest.raises(InvalidContentError, match="there is none") as caught:
        survey(tmp_path, DataOptions())
    assert caught.value.exit_code == 4
    for name in "abcdefg":
        (tmp_path / f"{name}.jpg").write_bytes(b"\xff\xd8\xff")
        (tmp_path / f"{name}.txt").write_text("x")
    with pytest.raises(InvalidContentError, match=r"a\.jpg: is no picture(.|\n)*and 2 more"):
        survey(tmp_path, DataOptions())


@pytest.mark.parametrize("raises", [False, True])
def test_a_picture_of_which_the_vae_makes_nan_is_named(
    base: Any, folder: Path, raises: bool
) -> None:
    encode = base.to_latents

    def broken(shown: np.ndarray) -> Tensor:
        bad = torch.from_numpy(shown.max((1, 2, 3)) == 200)  # c.png alone is so light
        if raises and bad.any():
            raise InvalidContentError("NaN or infinity", hint="as the base model says it")
        z0: Tensor = encode(shown)
        z0[bad] = float("nan")
        return z0

    base.to_latents = broken
    with pytest.raises(InvalidContentError, match=r"more/c\.png: .*NaN"):
        prepare(base, folder)


# --- sources -------------------------------------------------------------------------------------


def archive(path: Path, folder: Path, names: Sequence[str], **more: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in names:
            tar.add(folder / name, f"./{name}")
        for name, content in more.items():
            member = tarfile.TarInfo(name.replace("__", "."))
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_archives_and_a_folder_of_the_same_pictures_give_the_same_tensors(
    base: Any, folder: Path, tmp_path: Path
) -> None:
    names = ["b.png", "b.txt", "more/c.png", "more/c.txt"]
    archive(tmp_path / "set-008.tar", folder, names)
    caption = json.dumps({"caption": "caption a", "width": 3}).encode()
    archive(tmp_path / "set-010.tar", folder, ["a.png"], a__json=caption)
    archive(tmp_path / "set-009.tar", folder, ["b.png", "b.txt"])  # again, in a later shard
    wanted = tensors(prepare(base, folder))
    for pattern in ("set-{008..010}.tar", "set-*.tar"):
        data = prepare(base, str(tmp_path / pattern))
        assert same(tensors(data), wanted)
        assert (data.pictures, data.origin["source"]) == (4, "tar")
    assert {row.name for row in data.rows} >= {"set-008.tar:more/c.png", "set-010.tar:a.png"}


def test_what_is_odd_in_an_archive_is_told_and_nothing_is_extracted(
    base: Any, folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder / "a.png", "../../evil.png")
        tar.add(folder / "a.txt", "../../evil.txt")
        tar.add(folder / "b.png", "b.png")
        tar.add(folder / "a.png", "b.png")
        tar.add(folder / "b.txt", "b.txt")
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = sorted(tmp_path.rglob("*"))
    data = prepare(base, path)
    assert data.skipped == (
        "b.png: is there twice, the last one is taken",
        "link.png: is a link or a device",
    )
    assert [row.name for row in data.rows] == ["../../evil.png", "b.png"]
    assert data.rows[0].latents == data.rows[1].latents  # the last b.png is a.png
    assert sorted(tmp_path.rglob("*")) == before
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(
        InvalidContentError, match=r"x\.tar: is no tar archive or is cut|no picture"
    ):
        prepare(base, path)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("nowhere", NotFoundError, "possible is a folder of pictures"),
        ("x-{00..12}.tar", NotFoundError, r"13 of 13 are not there(.|\n)*x-04.tar(.|\n)*8 more"),
        ("x-{0..999}-{0..999}.tar", UsageError, "names 1000000 files"),
        ("embedded:notto", NotFoundError, "notto: no embedded picture set"),
        ("bad.tar", InvalidContentError, "no tar archive"),
        ("blank.txt", InvalidContentError, "holds no prompt"),
        ("latin.txt", InvalidContentError, "is not UTF-8"),
        ("set-0.json", InvalidContentError, "is no training set"),
    ],
)
def test_a_source_that_cannot_be_used_says_why(
    base: Any, tmp_cwd: Path, source: str, error: type[LcmArithError], message: str
) -> None:
    (tmp_cwd / "bad.tar").write_bytes(b"PK" * 999)
    (tmp_cwd / "blank.txt").write_text("\n \n")
    (tmp_cwd / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_cwd / "set-0.json").write_text("[]")
    with pytest.raises(error) as caught:
        prepare(base, source)
    assert re.search(message, str(caught.value))
