"""The drawing engine: exact, in any order, each thing once, resumed and extended."""

import json
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import random_vector
from tiny import pipeline as tiny_pipeline

from lcm_arith import bases
from lcm_arith.adapters import load
from lcm_arith.bases import load_base
from lcm_arith.budgets import Budget
from lcm_arith.combination import combine_terms
from lcm_arith.errors import NotFoundError, UsageError
from lcm_arith.evaluation.drawing import calibration, engine
from lcm_arith.evaluation.drawing.engine import Engine, chunks, units
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.mixing import mixed
from lcm_arith.evaluation.drawing.pngs import read_told
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.plans.rows import Context, Item, Mix, Row
from lcm_arith.fuse import LiveWeights
from lcm_arith.sampling import decode, denoise, rounded
from lcm_arith.saving import save
from lcm_arith.weights import parse_term

PROMPTS = ("fox", "red cat", "cat")
ITEMS = tuple((prompt, seed) for prompt in PROMPTS for seed in (0, 1))
ONE = Decimal(1)


@cache
def targets(kind: str) -> dict[str, tuple[int, ...]]:
    """Layers of every sort of a tiny pipeline, its text encoder left out."""
    state = tiny_pipeline(kind).unet.state_dict()
    ends = ("to_q.weight", "to_v.weight", "proj_in.weight", "conv1.weight", "ff.net.2.weight")
    return {
        f"unet.{name.removesuffix('.weight')}": tuple(values.shape)
        for name, values in state.items()
        if name.endswith(ends)
    }


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Loud styles and accelerations of both kinds, and a style with a text encoder's layer."""
    folder = tmp_path_factory.mktemp("vectors")
    for kind in ("sd15", "sdxl"):
        for seed, name in enumerate(("style", "accel")):
            tau = 3 * random_vector(3, 6.0, 10 * seed, targets(kind))
            save(tau, folder / f"{name}-{kind}.safetensors")
    speaking = {
        **targets("sd15"),
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj": (16, 16),
    }
    save(20 * random_vector(3, 6.0, 5, speaking), folder / "speaking.safetensors")
    return folder


Rows = Callable[..., list[Row]]


@pytest.fixture
def rows(vectors: Path, tiny_sd15: Path) -> Rows:
    """Makes rows: every λ1 with λ2 = 1, by some step counts."""

    def make(l1: Sequence[str], steps: Sequence[int] = (1, 2), **others: Any) -> list[Row]:
        context = Context(str(tiny_sd15), str(vectors / "style-sd15.safetensors"))
        accel = str(vectors / "accel-sd15.safetensors")
        row = Row("cell", ONE, ONE, "lcm", 1, 1.0, context, accel)
        return [
            replace(row, l1=Decimal(weight), steps=count, **others)
            for weight in l1
            for count in steps
        ]

    return make


@cache
def sources(dtype: str) -> Sources:
    """Shared: an engine leaves its base as it was."""
    return Sources(dtype=dtype)


def opened(folder: Path, dtype: str = "float32", **how: Any) -> Engine:
    return Engine(Store(folder, keys_of(sources(dtype))), sources(dtype), **how)


def made(
    folder: Path, rows: Sequence[Row], items: Sequence[Item] = ITEMS, dtype: str = "float32"
) -> Engine:
    drawn = opened(folder, dtype)
    drawn.render(rows, items, quiet)
    return drawn


def quiet(count: int) -> None:
    """No progress."""


def digests(drawn: Engine, rows: Sequence[Row], items: Sequence[Item] = ITEMS) -> list[list[str]]:
    return [drawn.store.sha256(row, items) for row in rows]


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {
        f"{part}.{name}": values.clone()
        for part in ("unet", "text_encoder")
        for name, values in getattr(pipeline, part).state_dict().items()
    }


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- exact ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_pictures_equal_those_of_set_adapters_one_at_a_time(
    request: pytest.FixtureRequest,
    vectors: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    import diffusers

    folder = request.getfixturevalue(f"tiny_{kind}")
    files = [vectors / f"{name}-{kind}.safetensors" for name in ("style", "accel")]
    context = Context(str(folder), str(files[0]))
    row = Row("cell", Decimal("0.8"), Decimal("1.1"), "lcm", 3, 1.0, context, str(files[1]))
    guided = replace(row, sampler="dpm++", guidance=3.0, steps=2)
    exact: list[np.ndarray] = []

    def kept(pixels: np.ndarray) -> np.ndarray:
        exact.append(pixels)
        return rounded(pixels)

    monkeypatch.setattr(engine, "rounded", kept)
    items = [("fox", 3), ("red cat", 3)]
    drawn = made(tmp_path, [row, guided], items)
    assert drawn.counters.unet_rows < drawn.counters.unet_rows_unshared
    theirs = load_base(folder).pipeline
    theirs.load_lora_weights(str(vectors), weight_name=files[0].name, adapter_name="style")
    theirs.load_lora_weights(str(vectors), weight_name=files[1].name, adapter_name="accel")
    theirs.set_adapters(["style", "accel"], [0.8, 1.1])
    expected = []
    for each in units([row, guided])[0].rows:
        options = {"timestep_spacing": "trailing"} if each.sampler == "dpm++" else {}
        name = "LCMScheduler" if each.sampler == "lcm" else "DPMSolverMultistepScheduler"
        scheduler = getattr(diffusers, name)
        theirs.scheduler = scheduler.from_config(theirs.scheduler.config, **options)
        expected += [
            theirs(
                prompt, num_inference_steps=each.steps, guidance_scale=each.guidance,
                generator=torch.Generator().manual_seed(seed), output_type="np",
            ).images[0]
            for prompt, seed in items
        ]  # fmt: skip
    # The sums of float32 in another order: weights fused or not, one row at once or several.
    assert float(np.abs(np.stack(exact) - np.stack(expected)).max()) <= 1e-5


@pytest.mark.parametrize(("kind", "dtype"), [("sdxl", "float16"), ("sd2v", "bfloat16")])
def test_other_kinds_of_base_are_drawn_in_other_number_formats(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, dtype: str
) -> None:
    context = Context(str(request.getfixturevalue(f"tiny_{kind}")), negative="cat")
    row = Row("base", Decimal(0), Decimal(0), "dpm++", 2, 3.0, context)
    drawn = made(tmp_path / "a", [row], ITEMS[:1], dtype=dtype)
    exact = made(tmp_path / "b", [row], ITEMS[:1])
    pixels = [each.store.pixels(row, ITEMS[:1]).astype(float) for each in (drawn, exact)]
    gap = float(np.abs(pixels[0] - pixels[1]).mean())
    # Grey levels; the network is random and deep, bfloat16 keeps 8 bits of a product.
    assert 0 < gap < {"float16": 1, "bfloat16": 8}[dtype]


def test_an_acceleration_is_sampled_on_the_grid_points_it_was_distilled_on(
    rows: Rows, vectors: Path, tmp_path: Path
) -> None:
    (row,) = rows(["0"], (3,))
    told = tmp_path / "told.safetensors"
    save(load(row.accel), told, about={"kind": "acceleration", "grid_points": 10})
    ten = replace(row, accel=str(told))
    assert [Sources().grid_points([name]) for name in (row.accel, str(told))] == [None, 10]
    drawn = made(tmp_path / "grid", [row, ten], ITEMS[:1])
    assert digests(drawn, [row], ITEMS[:1]) != digests(drawn, [ten], ITEMS[:1])
    as_style = replace(
        ten, context=replace(ten.context, style=str(told)), accel="none", l1=ten.l2, l2=Decimal(0)
    )
    alone = made(tmp_path / "alone", [as_style], ITEMS[:1])
    assert alone.store.key(as_style, ITEMS[0]) == drawn.store.key(ten, ITEMS[0])
    assert digests(alone, [as_style], ITEMS[:1]) == digests(drawn, [ten], ITEMS[:1])


# --- any order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_no_order_of_visits_changes_a_byte_of_pictures_or_base(
    rows: Rows, tmp_path: Path, dtype: str
) -> None:
    cells = rows([str(Decimal(n) / 10) for n in (0, 3, 11)], (1, 2))
    items = ITEMS[:1]
    base = sources(dtype).base(cells[0].context.base)
    before = weights(base.pipeline)
    whole, shuffled = made(tmp_path / "a", cells, items, dtype), opened(tmp_path / "b", dtype)
    visits = list(units(cells))
    random.Random(0).shuffle(visits)
    for unit in visits:
        shuffled.render(unit.rows, items, quiet)
    assert digests(whole, cells, items) == digests(shuffled, cells, items)
    assert same(before, weights(base.pipeline))


def test_fusing_and_unfusing_would_fail_that_test(vectors: Path, tiny_sd15: Path) -> None:
    """Why weights are rebuilt: PEFT unfuses with the scale of now, not the one that was fused."""
    theirs = load_base(tiny_sd15).pipeline
    before = {name: v for name, v in weights(theirs).items() if name.startswith("unet.")}
    theirs.load_lora_weights(
        str(vectors), weight_name="style-sd15.safetensors", adapter_name="style"
    )
    theirs.set_adapters(["style"], [0.8])
    theirs.fuse_lora()
    theirs.set_adapters(["style"], [0.4])
    theirs.unfuse_lora()
    theirs.unload_lora_weights()
    after = weights(theirs)
    drift = [float((after[name] - v).norm() / v.norm()) for name, v in before.items()]
    assert max(drift) > 0.01


# --- each thing once -----------------------------------------------------------------------------


def test_work_follows_the_formula(rows: Rows, tmp_path: Path) -> None:
    steps = (1, 2, 4)
    drawn = made(tmp_path, rows(["0.5", "1"], steps))
    k, p, s, t = 2, len(PROMPTS), 2, len(steps)
    count = drawn.counters
    assert (count.pipeline_loads, count.text_encodes, count.weight_rebuilds) == (1, p, k)
    assert count.unet_rows == k * p * s * (sum(steps) - t + 1)
    assert count.unet_rows_unshared == k * p * s * sum(steps)
    assert count.decodes == count.pictures == k * p * s * t
    assert 0 < count.efficiency < 1


def test_a_chunk_has_a_largest_size_and_the_first_step_is_shared_within(
    rows: Rows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "CHUNK", 2 * engine.MANY)
    drawn = made(tmp_path, rows(["0.5"], (1, 2, 4)), ITEMS[:2])
    pairs = [record.pairs for record in drawn.store.records.values()]
    assert sorted([row.steps for row, _ in each] for each in pairs) == [[1, 1, 2, 2], [4, 4]]
    assert drawn.counters.unet_rows == 2 * ((1 + 2 - 1) + 4)
    assert drawn.counters.text_encodes == 1
    again = made(tmp_path, rows(["0.5"], (1, 2, 4)), ITEMS[:2])
    assert again.counters.pictures == 0


def test_a_picture_says_how_it_was_made_and_not_where(rows: Rows, tmp_path: Path) -> None:
    (row,) = rows(["0.5"], (1,))
    drawn = made(tmp_path, [row], ITEMS[:1])
    told = read_told(drawn.store.picture_path(row, ITEMS[0]))
    assert told["key"] == drawn.store.key(row, ITEMS[0])
    assert told["loras"] == "<lora:style-sd15:0.5> <lora:accel-sd15:1>"
    assert not any(str(tmp_path.parent.parent) in str(value) for value in told.values())


def test_more_of_a_grid_draws_only_what_is_new(rows: Rows, tmp_path: Path) -> None:
    first = made(tmp_path, rows(["0.5"]), ITEMS[:2])
    kept = digests(first, rows(["0.5"]), ITEMS[:2])
    for cells, items, new in (
        (rows(["0.5"]), ITEMS[:2], 0),
        (rows(["0.5", "1"]), ITEMS[:2], 4),
        (rows(["0.5", "1"], (1, 2, 3)), ITEMS[:2], 4),
        (rows(["0.5", "1"], (1, 2, 3)), (*ITEMS[:2], ("fox", 9)), 6),
    ):
        assert made(tmp_path, cells, items).counters.pictures == new
    assert digests(made(tmp_path, []), rows(["0.5"]), ITEMS[:2]) == kept


@pytest.mark.parametrize("damage", ["cut picture", "no picture", "cut record"])
def test_what_is_damaged_is_made_again_with_its_chunk_to_the_byte(
    rows: Rows, tmp_path: Path, damage: str
) -> None:
    cells = rows(["0.5"])
    before = made(tmp_path, cells)
    kept, record = digests(before, cells), next(iter(before.store.records))
    path = before.store.picture_path(cells[0], ITEMS[0])
    if damage == "cut record":
        path = tmp_path / "chunks" / f"{record}.json"
    path.write_bytes(path.read_bytes()[:40])
    if damage == "no picture":
        path.unlink()
    again = made(tmp_path, cells)
    assert again.counters.pictures == len(cells) * len(ITEMS)
    assert digests(again, cells) == kept


def test_a_replay_of_the_records_gives_the_same_bytes(rows: Rows, tmp_path: Path) -> None:
    cells = rows(["0.5", "1"])
    drawn = made(tmp_path / "a", cells[:3])
    drawn.render(cells, ITEMS, quiet)
    again, late = opened(tmp_path / "b"), opened(tmp_path / "b").store
    for record in opened(tmp_path / "a").store.records.values():
        again.batches = {record.pairs[0][0].context.base: record.batch}
        again.make(record.pairs)
    assert digests(again, cells) == digests(drawn, cells)
    assert not late.has(cells[0], ITEMS[0])
    late.refresh()  # reads what another process committed meanwhile
    assert late.sha256(cells[0], ITEMS) == digests(drawn, cells[:1])[0]
    assert again.counters.unet_rows == drawn.counters.unet_rows


def test_chunks_hold_the_first_seed_of_every_prompt_then_the_second() -> None:
    items = [(prompt, seed) for prompt in "abc" for seed in (0, 1)]
    assert list(chunks(items[:-1], 2)) == [
        (("a", 0), ("b", 0)), (("c", 0), ("a", 1)), (("b", 1),),
    ]  # fmt: skip
    more = [*items, ("d", 0)]
    assert [len(chunk) for chunk in chunks(more, 16)] == [7]


# --- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "rank"), [("linear", None), ("linear", 2), ("ties", None), ("orthogonal", 3)]
)
def test_a_mix_is_what_combine_makes(vectors: Path, method: str, rank: int | None) -> None:
    style, accel = (str(vectors / f"{n}-sd15.safetensors") for n in ("style", "accel"))
    mix = Mix("", f"{style}:0.5+{accel}:2", accel, Decimal("0.8"), ONE, method, rank)
    made_of = [parse_term(text) for text in (f"{style}:0.4", f"{accel}:1.6", f"{accel}:1")]
    if method == "linear":
        made_of = [parse_term(text) for text in (f"{style}:0.4", f"{accel}:2.6")]
    expected = combine_terms(
        made_of, method=method, budget=None if rank is None else Budget("rank", rank)
    )
    found = mixed(mix, {style: load(style), accel: load(accel)}.__getitem__).vector
    assert set(found) == set(expected)
    for module in list(found)[:4]:
        # float32 sums in another order
        assert torch.allclose(found[module].dense(), expected[module].dense(), atol=1e-5)


def test_te_scales_the_text_encoder_and_prompts_are_encoded_once_a_state(
    rows: Rows, vectors: Path, tmp_path: Path
) -> None:
    context = replace(rows(["1"])[0].context, style=str(vectors / "speaking.safetensors"))
    cells = [
        replace(row, context=context, te=te, l2=l2)
        for row in rows(["1"], (1,))
        for te in (None, Decimal(0), Decimal("0.5"))
        for l2 in (ONE, Decimal("0.5"))
    ]
    drawn = made(tmp_path, cells, ITEMS[:2])
    # The acceleration says nothing to the text encoder: three states, whatever λ2 is.
    assert drawn.counters.text_encodes == 3
    assert len({state for state, _, _ in drawn._told}) == 1  # the last one
    assert drawn.counters.weight_rebuilds == len(cells)
    assert len({tuple(each) for each in digests(drawn, cells, ITEMS[:2])}) == len(cells)
    tau = mixed(cells[4].mixes[0], load).vector
    (text,) = (module for module in tau if module.startswith("text_encoder"))
    style = load(vectors / "speaking.safetensors")
    assert torch.allclose(tau[text].dense(), 0.5 * style[text].dense())


def test_a_weight_per_step_draws_each_step_with_its_own(rows: Rows, tmp_path: Path) -> None:
    (row,) = rows(["0.5"], (3,))
    schedule = (Decimal("1.5"), Decimal(0), Decimal(0))
    stepped = replace(row, l1_schedule=schedule)
    drawn = made(tmp_path, [stepped], ITEMS[:1])
    assert drawn.counters.weight_rebuilds == 2
    base = load_base(row.context.base)
    live = LiveWeights(base.pipeline)
    mixes = iter([Decimal("1.5"), Decimal(0), Decimal(0)])
    style, accel = load(row.context.style), load(row.accel)

    def model(z: Any, t: Any, condition: Any) -> Any:
        live.apply(float(next(mixes)) * style + accel)
        return base.unet(z, t, encoder_hidden_states=condition["embeds"]).sample

    z = denoise(
        base.pipeline, base.encode([ITEMS[0][0]]), base.uncond(), [ITEMS[0][1]],
        sampler="lcm", steps=3, guidance=1.0, model=model,
    )  # fmt: skip
    ours = drawn.store.pixels(stepped, ITEMS[:1]).astype(int)
    assert int(np.abs(ours - decode(base.pipeline, z)).max()) <= 1
    with pytest.raises(UsageError, match="does not fit 2 steps"):
        units([replace(stepped, steps=2)])


# --- names ---------------------------------------------------------------------------------------


def test_a_name_holds_all_that_changes_pixels_and_nothing_else(rows: Rows, tmp_path: Path) -> None:
    (row,) = rows(["0.5"], (2,))
    keys, item = keys_of(Sources()), ("fox", 0)
    moved = Path(row.context.style).rename(tmp_path / "moved.safetensors")
    elsewhere = replace(row, context=replace(row.context, style=str(moved)))
    key = keys.key(elsewhere, item)
    moved.rename(row.context.style)
    assert keys_of(Sources()).key(row, item) == key
    negative = replace(row.context, negative="blurry")
    alike = [
        replace(row, role="control"),
        replace(row, l1=Decimal("0.50")),
        replace(row, context=negative),  # not read without guidance
        replace(row, context=replace(row.context, edit="cat=>dog")),
    ]
    guided = replace(row, guidance=2.0)
    other = [
        replace(row, l1=ONE), replace(row, l2=Decimal("0.5")), replace(row, steps=3), guided,
        replace(row, sampler="tcd"), replace(row, method="ties"), replace(row, rank=2),
        replace(row, te=Decimal(0)), replace(guided, context=negative),
        replace(row, l1_schedule=(ONE, Decimal(0))),
        replace(row, context=replace(row.context, edit="fox=>dog")),
        replace(row, context=replace(row.context, base="emoji")),
        replace(row, accel=row.context.style),
    ]  # fmt: skip
    keys = keys_of(Sources())
    assert {keys.key(each, item) for each in (row, *alike)} == {key}
    names = [keys.key(each, item) for each in other]
    names += [keys.key(row, ("fox", 1)), keys.key(row, ("cat", 0))]
    names += [keys_of(Sources(), fast=True).key(row, item)]
    names += [keys_of(Sources(dtype="float16")).key(row, item)]
    assert len({key, *names}) == len(names) + 1


def test_a_base_is_known_by_what_its_pipeline_reads_and_by_nothing_beside(
    tiny_sd15: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_sd15, tmp_path / "base")
    digest = Sources().base_digest(str(folder))
    (folder / "grid" / "chunks").mkdir(parents=True)
    (folder / "unet" / "old").mkdir()
    for beside in ("note.txt", "grid/manifest.json", "grid/chunks/0.json", "unet/old/config.json"):
        (folder / beside).write_text("{}")
    assert Sources().base_digest(str(folder)) == digest
    read = ["model_index.json", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json"]
    for name in [*read, "unet/config.json", "vae/diffusion_pytorch_model.safetensors"]:
        before = (folder / name).read_bytes()
        (folder / name).write_bytes(before + b" ")
        assert Sources().base_digest(str(folder)) != digest, name
        (folder / name).write_bytes(before)
    assert Sources().base_digest(str(folder)) == digest


def test_a_hubs_base_is_known_by_all_that_its_folder_is_known_by(
    tiny_sdxl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_sdxl, tmp_path / "snapshot")
    monkeypatch.setattr(bases, "_downloaded", lambda name: folder)
    found = {Sources().base_digest("owner/name")}
    assert found == {Sources().base_digest(str(folder))}
    index = json.loads((folder / "model_index.json").read_text())
    changes = {
        "model_index.json": index | {"force_zeros_for_empty_prompt": False},
        "text_encoder/config.json": {"hidden_act": "gelu"},
        "tokenizer_2/tokenizer_config.json": {"model_max_length": 7},
    }
    for name, change in changes.items():
        told = json.loads((folder / name).read_text())
        assert told != told | change, name
        (folder / name).write_text(json.dumps(told | change))
        found.add(Sources().base_digest("owner/name"))
    assert len(found) == 1 + len(changes)


def test_weights_written_in_another_way_are_one_unit_and_one_picture(rows: Rows) -> None:
    (row,) = rows(["1"], (1,))
    style = row.context.style
    other = [
        replace(row, l1=Decimal(weight), context=replace(row.context, style=f"{style}:{own}"))
        for weight, own in (("0.5", "2"), ("2", "0.5"))
    ]
    assert len(units([row, *other])) == 1
    assert len({keys_of(Sources()).key(each, ITEMS[0]) for each in (row, *other)}) == 1


def test_without_weights_method_rank_and_vectors_are_nothing(rows: Rows) -> None:
    plain = [replace(r, l1=Decimal(0), l2=Decimal(0)) for r in rows(["0"], (1,))]
    odd = [replace(r, method="ties", rank=3, te=ONE, accel="none") for r in plain]
    assert len(units([*plain, *odd])) == 1
    assert len({keys_of(Sources()).key(r, ("fox", 0)) for r in (*plain, *odd)}) == 1


# --- what goes wrong -----------------------------------------------------------------------------


def test_nan_is_told_not_drawn(rows: Rows, tmp_path: Path) -> None:
    cells = rows(["1", "999999"], (1,))
    style = load(cells[0].context.style)
    loud = Sources(_vectors={cells[0].context.style: 1e30 * style})
    drawn = Engine(Store(tmp_path, keys_of(loud)), loud)
    drawn.render(cells[1:], ITEMS[:2], quiet)
    assert [p.status for p in drawn.store.pictures(cells[1], ITEMS[:2])] == ["nan"] * 2
    assert not list((tmp_path / "images").iterdir())
    assert Store(tmp_path, keys_of(loud)).has(cells[1], ITEMS[0])  # it is not tried again
    with pytest.raises(NotFoundError, match="could be drawn"):
        drawn.store.pixels(cells[1], ITEMS[:2])
    with pytest.raises(NotFoundError, match="are not there"):
        drawn.store.pixels(cells[0], ITEMS[:2])


def test_a_batch_that_does_not_fit_is_halved_and_the_chunk_drawn_whole(
    rows: Rows, tmp_path: Path
) -> None:
    drawn, cells = opened(tmp_path), rows(["0.5"])
    name = cells[0].context.base
    drawn.batches[name] = 8
    unet = drawn.sources.base(name).unet

    def refuse(_: Any, args: Any) -> None:
        if len(args[0]) > 2:
            raise torch.OutOfMemoryError

    hook = unet.register_forward_pre_hook(refuse)
    drawn.render(cells, ITEMS, quiet)
    hook.remove()
    assert drawn.batches == {name: 2}
    assert drawn.counters.pictures == len(cells) * len(ITEMS)


@pytest.mark.parametrize(("fits", "batch"), [(64, 16), (16, 16), (4, 4), (1, 1)])
def test_a_device_is_given_the_smallest_batch_that_is_as_fast_as_any(
    tiny_sd15: Path, monkeypatch: pytest.MonkeyPatch, fits: int, batch: int
) -> None:
    base = load_base(tiny_sd15)

    def seconds(pipeline: Any, told: Any, rows: int, *, fast: bool) -> float:
        if rows > fits:
            raise torch.OutOfMemoryError
        return {4: 4.0, 16: 8.0, 64: 31.0}[rows]

    assert calibration._seconds(base.pipeline, base.uncond(), 4, fast=False) > 0
    monkeypatch.setattr(calibration, "_seconds", seconds)
    assert calibration.calibrated(base.pipeline, base.uncond(), fast=False) == batch
