"""Training data: the cache, options, and the embedded model as base."""

import os
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from counting import Counting, picture, same, tensors, three_pictures
from torch import Tensor

from lcm_arith.bases import Base
from lcm_arith.data import encoding, sources, store, teacher
from lcm_arith.data.drawings import Captioned, embedded_pictures
from lcm_arith.data.options import OF_PROMPTS, DataOptions
from lcm_arith.data.prepare import prepare
from lcm_arith.data.sources import survey
from lcm_arith.embedded import pictures
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    OutputExistsError,
    UsageError,
)
from lcm_arith.families import embedded
from lcm_arith.sampling import decode, sample


@pytest.fixture
def base() -> Any:
    return Counting()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return three_pictures(tmp_path / "data")


# --- the cache -----------------------------------------------------------------------------------


def test_a_second_run_encodes_nothing_and_a_change_only_what_it_changes(
    base: Any, folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"

    def encoded(base: Any, **options: Any) -> tuple[int, int]:
        before = base.pictures, base.prompts
        prepare(base, folder, DataOptions(**options), cache=cache)
        return base.pictures - before[0], base.prompts - before[1]

    assert encoded(base) == (3, 3)
    assert encoded(base) == (0, 0)
    assert encoded(base, flip=True) == (3, 0)
    assert encoded(base, resolution=64) == (3, 0)
    assert encoded(base, cache_dtype="bfloat16") == (3, 3)
    assert encoded(base, clip_skip=1) == (0, 3)
    assert encoded(base, max_tokens=10) == (0, 3)
    assert encoded(base, repeats=2) == (0, 0)
    assert encoded(Counting(vae="other")) == (3, 0)
    assert encoded(Counting(text="other")) == (0, 3)
    (folder / "a.txt").write_text("another")
    assert encoded(base) == (0, 1)
    picture(77).save(folder / "b.png")
    assert encoded(base) == (1, 0)
    assert encoded(base) == (0, 0)


def test_a_cache_alone_is_a_source_that_gives_the_same_batches(
    folder: Path, tmp_path: Path
) -> None:
    base: Any = Counting("sdxl")
    cache = tmp_path / "cache"
    options = DataOptions(flip=True, repeats=2, trigger="zzz")
    first = prepare(base, folder, options, cache=cache)
    for path in sorted(folder.rglob("*.*")):
        path.unlink()
    base.encode = base.to_latents = base.uncond = None
    for source in (cache, next(cache.glob("set-*.json"))):
        again = prepare(base, source)
        assert again.origin == first.origin
        for index in range(3):
            one, two = first.batch(index, 2, 1), again.batch(index, 2, 1)
            assert torch.equal(one.z0, two.z0)
            assert same(dict(one.cond), dict(two.cond))
            assert one.captions == two.captions
    assert prepare(base, cache, options).pictures == 3
    with pytest.raises(UsageError, match="other values of resolution"):
        prepare(base, cache, DataOptions(resolution=64))
    with pytest.raises(UsageError, match="is a cache already"):
        prepare(base, cache, cache=tmp_path / "other")
    with pytest.raises(IncompatibleError, match="another vae than the base model's"):
        prepare(Counting("sdxl", vae="w"), cache)  # type: ignore[arg-type]
    next(cache.glob("shard-*")).unlink()
    with pytest.raises(InvalidContentError, match="14 of 14 tensors are not in the shards"):
        prepare(base, cache)


def test_two_sets_in_a_cache_must_be_told_apart(base: Any, folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    prepare(base, folder, cache=cache)
    prepare(base, folder / "more", cache=cache)
    assert base.pictures == 3
    with pytest.raises(UsageError, match="holds 2 training sets"):
        prepare(base, cache)


def test_a_killed_run_goes_on_where_it_stopped(
    base: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "SHARD_TENSORS", 2)
    monkeypatch.setattr(encoding, "a_pass", lambda *_: 1)
    cache = tmp_path / "cache"
    encode = base.to_latents

    def killed(shown: np.ndarray) -> Tensor:
        if base.pictures == 2:
            raise KeyboardInterrupt
        z0: Tensor = encode(shown)
        return z0

    base.to_latents = killed
    with pytest.raises(KeyboardInterrupt):
        prepare(base, folder, cache=cache)
    part = cache / ".shard-0.safetensors.x.part.safetensors"
    part.write_bytes(b"half")
    base.to_latents = encode
    data = prepare(base, folder, cache=cache)
    assert base.pictures == 3
    assert not part.exists()
    assert same(tensors(data), tensors(prepare(base, folder)))
    assert len(list(cache.glob("shard-*"))) > 2  # of bounded size


@pytest.mark.parametrize("damage", ["cut", "bit", "checksums"])
def test_a_damaged_shard_is_named_and_made_anew_once_it_is_deleted(
    base: Any, folder: Path, tmp_path: Path, damage: str
) -> None:
    cache = tmp_path / "cache"
    wanted = tensors(prepare(base, folder, cache=cache))
    shard = next(cache.glob("shard-*"))
    content = bytearray(shard.read_bytes())
    if damage == "cut":
        del content[-5:]
    elif damage == "bit":
        content[-5] ^= 1
    else:
        content = content.replace(b"crc32", b"crc64")
    shard.write_bytes(content)
    with pytest.raises(InvalidContentError, match=shard.name) as caught:
        tensors(prepare(base, folder, cache=cache))
    assert f"delete {shard.name}" in caught.value.hint
    shard.unlink()
    assert same(tensors(prepare(base, folder, cache=cache)), wanted)


def test_only_so_much_of_a_cache_is_kept_in_memory(
    base: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = tensors(prepare(base, folder))
    monkeypatch.setattr(store, "HELD_BYTES", 400)  # two latents of 3 × 4 × 4 floats
    data = prepare(base, folder, cache=tmp_path / "cache")
    assert same(tensors(data), wanted)
    assert sum(each.nbytes for each in data.store._held.values()) <= 400


@pytest.mark.parametrize(("dtype", "error"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_a_smaller_number_format_rounds_and_is_read_back_as_float32(
    base: Any, folder: Path, tmp_path: Path, dtype: str, error: float
) -> None:
    exact = prepare(base, folder).batch(0, 3, 0)
    rounded = prepare(base, folder, DataOptions(cache_dtype=dtype), cache=tmp_path / "c")
    drawn = rounded.batch(0, 3, 0)
    assert drawn.z0.dtype == drawn.cond["embeds"].dtype == torch.float32
    assert 0 < float(((drawn.z0 - exact.z0) / exact.z0).abs().max()) <= error


def test_a_value_too_large_for_the_number_format_is_refused() -> None:
    kept = store.Store(None, torch.float16)
    with pytest.raises(InvalidContentError, match=r"too large for torch\.float16"):
        kept.add("x", torch.tensor([70000.0]))


def test_a_folder_with_other_things_is_no_cache(base: Any, folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    with pytest.raises(OutputExistsError, match=r"holds other things \(a.png\)"):
        prepare(base, folder, cache=folder)
    assert sorted(folder.rglob("*")) == before


# --- options -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop": "left"}, "one of center, random"),
        ({"caption_missing": "no"}, "one of error, empty, skip"),
        ({"cache_dtype": "int8"}, "one of float32"),
        ({"repeats": 0}, "repeats 0: at least 1"),
        ({"repeats": 9999}, "repeats 9999: at most 1000"),
        ({"keep_tokens": 2}, "shuffles is 0"),
        ({"resolution": 100, "bucket_step": 64}, "resolution 100 px is no multiple"),
        ({"resolution": 36}, "a latent is 8 px wide"),
        ({"teacher_steps": 3}, "teacher_steps: without effect"),
    ],
)
def test_options_that_cannot_work_are_refused(
    base: Any, folder: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        prepare(base, folder, DataOptions(**options))
    assert base.pictures == 0


def test_pictures_have_buckets_of_64_from_512_px_on_and_are_square_below() -> None:
    assert DataOptions().shape(512) == (512, 64)
    assert DataOptions().shape(64) == (64, 64)
    assert DataOptions(resolution=1024).shape(512) == (1024, 64)
    assert DataOptions(bucket_step=512).shape(512) == (512, 512)


# --- with the embedded model ---------------------------------------------------------------------


@pytest.fixture
def real(pipeline: Any) -> Base:
    return Base(
        pipeline, "base", {"vae": "v", "text_encoder": "t"}, embedded().name, "sd", embedded().base
    )


def test_latents_decode_to_the_pictures(real: Base) -> None:
    shown = embedded_pictures(("noto",), "A", 1)
    few = Captioned(shown.pixels[:16], shown.captions[:16], shown.origin)
    data = prepare(real, few)
    assert [row.captions[0] for row in data.rows] == list(few.captions)
    back = decode(real.pipeline, torch.stack(list(map(data.z0, range(16)))))
    error = np.abs(back.astype(float) - few.pixels.astype(float)).mean() / 127.5
    assert error < 0.12  # the VAE is soft; a wrong scale or layout gives over 0.4
    assert data.origin["sets"] == ["noto"]


def test_prompts_without_pictures_get_the_latents_of_the_base_models_own_pictures(
    real: Base, tmp_path: Path
) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("cat\n\ndog\ncat\n")
    options = DataOptions(teacher_steps=2, per_prompt=2, teacher_seed=5)
    data = prepare(real, path, options, cache=tmp_path / "cache")
    assert [(row.name, row.captions) for row in data.rows] == [
        ("cat", ("cat",)),
        ("cat", ("cat",)),
        ("dog", ("dog",)),
        ("dog", ("dog",)),
    ]
    wanted = sample(
        real.pipeline,
        real.encode(["cat", "cat", "dog", "dog"]),
        real.uncond(),
        [5, 6, 7, 8],
        sampler="dpm++",
        steps=2,
        guidance=embedded().guidance,
    )
    latents = torch.stack(list(map(data.z0, range(4))))
    assert np.array_equal(decode(real.pipeline, latents), wanted)
    calls = []
    hook = real.unet.register_forward_hook(lambda *_: calls.append(1))
    prepare(real, path, options, cache=tmp_path / "cache")
    assert not calls
    prepare(real, path, replace(options, teacher_steps=1), cache=tmp_path / "cache")
    hook.remove()
    assert len(calls) == 1
    with pytest.raises(UsageError, match="flip: without effect"):
        prepare(real, path, DataOptions(flip=True))


def test_embedded_training_pictures_are_part_a_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "VARIANTS", 2)
    shown = embedded_pictures(("twemoji",), "A", 2)
    assert set(shown.captions) == {c.caption for c in pictures.concepts("A")}
    assert len(shown.pixels) == 2 * len(pictures.concepts("A"))
    found = survey("embedded:twemoji", DataOptions())
    assert [item.note.caption for item in found.items] == list(shown.captions)


def test_every_third_training_picture_can_be_captioned_by_a_tag() -> None:
    shown = embedded_pictures(("twemoji",), "A", 6, tagged=3)
    for at, thing in enumerate(pictures.concepts("A")):
        own = shown.captions[6 * at : 6 * at + 6]
        tags = thing.tags or (thing.caption,)
        assert own[1:3] + own[4:] == (thing.caption,) * 4
        assert own[::3] == (tags[0], tags[1 % len(tags)])


def test_names_that_are_not_utf8_and_hidden_files_do_no_harm(
    base: Any, folder: Path, tmp_path: Path
) -> None:
    (folder / "._a.png").write_bytes(b"of a Macintosh")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "x.png").write_bytes(b"x")
    (folder / "a.png").rename(folder / os.fsdecode(b"\xff.png"))
    (folder / "a.txt").rename(folder / os.fsdecode(b"\xff.txt"))
    prepare(base, folder, cache=tmp_path / "cache")
    data = prepare(base, tmp_path / "cache")
    assert [row.captions[0][-1] for row in data.rows] == ["b", "c", "a"]
    assert data.skipped == ()


CHANGES: dict[str, Any] = {
    "resolution": 64,
    "bucket_step": 8,
    "crop": "random",
    "flip": True,
    "caption_missing": "skip",
    "trigger": "zzz",
    "shuffles": 3,
    "keep_tokens": 1,
    "clip_skip": 1,
    "max_tokens": 10,
    "repeats": 2,
    "cache_dtype": "bfloat16",
    "per_prompt": 2,
    "teacher_sampler": "ddim",
    "teacher_steps": 3,
    "teacher_guidance": 2.0,
    "teacher_seed": 1,
}


@pytest.mark.parametrize("name", [field.name for field in fields(DataOptions)])
def test_every_option_changes_what_is_drawn(
    base: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def told(*given: Any, **how: Any) -> Tensor:
        of_all = [[len(repr(how)), seed, how["steps"], how["guidance"]] for seed in given[3]]
        return torch.tensor(of_all).float()[..., None, None]

    monkeypatch.setattr(teacher, "denoise", told)
    picture(200, (99, 32)).save(tmp_path / "a.png")
    picture(100, (99, 32)).save(tmp_path / "b.png")
    (tmp_path / "a.txt").write_text("x, y, z")
    (tmp_path / "prompts.txt").write_text("x, y\n")
    source = tmp_path / "prompts.txt" if name in OF_PROMPTS else tmp_path
    common = DataOptions() if name in OF_PROMPTS else DataOptions(caption_missing="empty")
    common = replace(common, shuffles=2) if name == "keep_tokens" else common

    def drawn(options: DataOptions) -> list[Any]:
        data = prepare(base, source, options)
        epoch = [data.batch(at, 9, seed=3) for at in range(data.batches(9))]
        values = [[b.z0, *b.cond.values()] for b in epoch]
        return [[t.shape, t.tolist()] for each in values for t in each] + [
            b.captions for b in epoch
        ]

    assert drawn(common) != drawn(replace(common, **{name: CHANGES[name]}))
