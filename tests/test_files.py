"""Adapter files: what is written is what others read, and bad ones are refused."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import MODULES, dense, random_vector

from lcm_arith.adapters import facts, load
from lcm_arith.combination import combine
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    LcmArithError,
    NotFoundError,
    OutputExistsError,
    StorageError,
)
from lcm_arith.formats import container, dialects, writers
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.projection import reproject
from lcm_arith.saving import save
from lcm_arith.vector import TaskVector


def unet_output(pipeline: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    z, c = (torch.randn(s, generator=generator) for s in ((2, 16, 8, 8), (2, 16, 128)))
    with torch.no_grad():
        out: torch.Tensor = pipeline.unet(z, torch.tensor([999, 259]), c).sample
    return out


def test_combined_file_holds_the_weighted_sum_on_every_module(tmp_path: Path) -> None:
    out = tmp_path / "c.safetensors"
    save(combine("fluent-emoji", "lcm", l1=0.8, l2=1.0), out)
    style, accel, both = dense(load("fluent-emoji")), dense(load("lcm")), load(out)
    assert set(both) == set(style) | set(accel)
    for module in both:
        a, b = style[module], accel[module]
        size = 0.8 * a.norm() + b.norm()
        # float32 factors: each entry of up is rounded once.
        assert float((both[module].dense(torch.float64) - (0.8 * a + b)).norm() / size) < 1e-6


def test_combined_file_acts_as_both_adapters_together(
    tmp_path: Path, fresh_pipeline: Callable[[], Any]
) -> None:
    out = tmp_path / "c.safetensors"
    save(combine("fluent-emoji", "lcm", l1=0.8, l2=1.0), out)
    one, two = fresh_pipeline(), fresh_pipeline()
    plain = unet_output(one)
    one.load_lora_weights(tmp_path, weight_name=out.name)
    for name in ("fluent-emoji", "lcm"):
        from lcm_arith.embedded import files

        two.load_lora_weights(files.VECTORS, weight_name=f"{name}.safetensors",
                              adapter_name=name.replace("-", "_"))  # fmt: skip
    two.set_adapters(["fluent_emoji", "lcm"], [0.8, 1.0])
    assert float((unet_output(one) - plain).abs().max()) > 0.01
    assert torch.allclose(unet_output(one), unet_output(two), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mixed", [False, True], ids=["one rank", "mixed ranks"])
def test_diffusers_reads_alpha_other_than_rank_as_meant(
    tmp_path: Path, fresh_pipeline: Callable[[], Any], mixed: bool
) -> None:
    tau = random_vector(4, 1.0, seed=1)
    if mixed:
        tau = tau + random_vector(9, 27.0, seed=2, modules=dict([next(iter(MODULES.items()))]))
    save(tau, tmp_path / "x.safetensors")
    pipeline = fresh_pipeline()
    weights = {m: pipeline.unet.get_submodule(m[5:]).weight.clone() for m in tau}
    pipeline.load_lora_weights(tmp_path, weight_name="x.safetensors")
    pipeline.fuse_lora()
    pipeline.unload_lora_weights()
    for module, before in weights.items():
        change = pipeline.unet.get_submodule(module[5:]).weight - before
        assert torch.allclose(change, tau[module].dense(), rtol=0, atol=1e-6)


def test_alpha_is_written_for_every_module(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save(random_vector(4, 1.0, 1) + random_vector(9, 9.0, 2, {"unet.conv_in": (8, 4, 3, 3)}), path)
    with safe_open(path, framework="pt") as file:
        config = json.loads(file.metadata()["lora_adapter_metadata"])
    assert config["unet.r"] == config["unet.lora_alpha"] == 4
    assert config["unet.rank_pattern"] == config["unet.alpha_pattern"] == {"^conv_in": 9}
    assert set(config["unet.target_modules"]) == {m[5:] for m in MODULES} | {"conv_in"}


def test_reading_honours_alpha_in_header_and_in_tensors(tmp_path: Path) -> None:
    module, path = "unet.down_blocks.0.resnets.0.conv1", tmp_path / "x.safetensors"
    a, b = torch.randn(4, 8, 3, 3), torch.randn(6, 4, 1, 1)
    tensors = {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    header = {"unet.lora_alpha": 8, "unet.r": 4, "unet.alpha_pattern": {"resnets.0.conv1": 2}}
    product = b.flatten(1) @ a.flatten(1)
    cases: list[tuple[dict[str, torch.Tensor], dict[str, str], float]] = [
        (tensors, {}, 1.0),
        (tensors, {"lora_adapter_metadata": json.dumps(header)}, 0.5),
        ({**tensors, f"{module}.alpha": torch.tensor(1.0)}, {}, 0.25),
    ]
    for content, metadata, scale in cases:
        save_file(content, path, metadata=metadata)
        got = load(path)[module].dense().flatten(1)
        assert torch.allclose(got, scale * product, rtol=1e-5, atol=1e-6)


def test_same_content_gives_the_same_bytes_and_round_trips(tmp_path: Path) -> None:
    tau = reproject(0.8 * random_vector(4, 1.0, 1) + random_vector(9, 9.0, 2), 6)
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    assert save(tau, first) == save(tau, second)
    assert first.read_bytes() == second.read_bytes()
    back = load(first)
    assert all(torch.equal(back[m].dense(), tau[m].dense()) for m in tau)
    assert load_file(first).keys() == SafeFile.open(first).keys()


def test_provenance_keeps_the_weights_as_decimal_strings(tmp_path: Path) -> None:
    out = tmp_path / "c.safetensors"
    save(combine("noto", "lcm", l1=0.8, l2=1.0, rank=8), out, about={"kind": "combined"})
    told = facts(load(out))
    assert told["kind"] == "combined"
    assert [term["weight"] for term in told["terms"][0]["of"]["terms"]] == ["0.8", "1.0"]
    assert told["terms"][0]["rank"] == 8
    assert "path" not in json.dumps(told)


def broken(name: str, good: Path, folder: Path) -> Path:
    """A file that is wrong in the named way."""
    path = folder / f"{name}.safetensors"
    tensors = load_file(good)
    key = next(k for k in tensors if k.endswith("lora_B.weight"))
    if name == "cut":
        path.write_bytes(good.read_bytes()[:-100])
    elif name == "text":
        path.write_text("no adapter")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "nan":
        tensors[key] = tensors[key] * float("nan")
        save_file(tensors, path)
    elif name == "half":
        del tensors[key]
        save_file(tensors, path)
    elif name == "no-adapter":
        save_file({"conv.weight": torch.zeros(3)}, path)
    elif name == "unknown-key":
        save_file({**tensors, "unet.conv_in.hada_w1_a": torch.zeros(3)}, path)
    elif name == "two-ranks":
        tensors[key] = torch.zeros(tensors[key].shape[0], 77, *tensors[key].shape[2:])
        save_file(tensors, path)
    return path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cut", "not a readable safetensors"),
        ("text", "not a readable safetensors"),
        ("empty", "not a readable safetensors"),
        ("nan", "NaN"),
        ("half", "has down, lacks up"),
        ("no-adapter", "not an adapter"),
        ("unknown-key", "hada_w1_a"),
        ("two-ranks", "do not multiply"),
    ],
)
def test_a_broken_file_is_refused_by_name_and_reason(
    tmp_path: Path, name: str, message: str
) -> None:
    good = tmp_path / "good.safetensors"
    save(random_vector(4, 1.0, seed=1), good)
    path = broken(name, good, tmp_path)
    with pytest.raises(InvalidContentError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 4


def test_a_missing_vector_names_what_is_shipped() -> None:
    with pytest.raises(NotFoundError, match=r"did you mean noto\?.*twemoji") as caught:
        load("notto")
    assert caught.value.exit_code == 3


def test_an_existing_file_is_kept_without_force(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("mine")
    with pytest.raises(OutputExistsError):
        save(random_vector(4, 1.0, seed=1), path)
    assert path.read_text() == "mine"
    save(random_vector(4, 1.0, seed=1), path, force=True)
    assert len(load(path)) == len(MODULES)


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_kept_without_force(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, links: bool
) -> None:
    path, tau = tmp_path / "x.safetensors", random_vector(4, 1.0, seed=1)
    flushed: list[str] = []
    fsync, linked = os.fsync, os.link

    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")  # as on FAT

    def record(descriptor: int) -> None:
        flushed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "link", linked if links else refuse)
    monkeypatch.setattr(os, "fsync", record)

    def appear(_: Path) -> None:
        path.write_text("mine")

    with pytest.raises(OutputExistsError, match="appeared"):
        save(tau, path, prove=appear)
    assert path.read_text() == "mine"
    save(tau, path, prove=appear, force=True)
    assert len(load(path)) == len(MODULES)
    path.unlink()
    flushed.clear()
    save(tau, path)
    assert len(load(path)) == len(MODULES)
    assert [flushed[0].endswith(".part.safetensors"), *flushed[1:]] == [True, str(tmp_path)]
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_nlink == 1


def test_a_failed_write_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        save(random_vector(4, 1.0, seed=1), tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_an_empty_or_overflowing_vector_is_not_written(tmp_path: Path) -> None:
    for tau, dtype in (
        (TaskVector(), torch.float32),
        (1e14 * random_vector(4, 1.0, 1), torch.float16),  # in whichever factor
    ):
        with pytest.raises(InvalidContentError):
            save(tau, tmp_path / "x.safetensors", dtype=dtype)
    assert list(tmp_path.iterdir()) == []


def test_vectors_of_two_architectures_do_not_combine(tmp_path: Path) -> None:
    other = tmp_path / "sd15.safetensors"
    shapes = {"unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q": (320, 320)}
    save(random_vector(4, 4.0, 1, shapes), other)
    with pytest.raises(IncompatibleError, match="another architecture") as caught:
        combine(str(other), "lcm", l1=0.8, l2=1.0)
    assert caught.value.exit_code == 6


MODULE = "unet.down_blocks.0.resnets.0.conv1"


@pytest.mark.parametrize(
    "config",
    [
        '{"unet.alpha_pattern": ["conv1"]}',
        '{"unet.alpha_pattern": {"(": 1}}',
        '{"unet.alpha_pattern": {"(a+)+b": 1}}',
        '{"unet.alpha_pattern": {"conv1": "x"}}',
        '{"unet.lora_alpha": null}',
        '{"unet.lora_alpha": [1]}',
        '{"unet.lora_alpha": NaN}',
        '{"unet.lora_alpha": true}',
        "[" * 100_000,
        "[]",
        "{",
    ],
)
def test_a_hostile_header_is_refused(tmp_path: Path, config: str) -> None:
    path = tmp_path / "x.safetensors"
    tensors, _ = writers.spell(random_vector(4, 1.0, seed=1))
    save_file(tensors, path, metadata={"lora_adapter_metadata": config})
    with pytest.raises(InvalidContentError, match=r"x\.safetensors"):
        load(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {f"{MODULE}.alpha": torch.ones(2)},
        {
            f"{MODULE}.lora_A.weight": torch.zeros(0, 128, 3, 3),
            f"{MODULE}.lora_B.weight": torch.zeros(128, 0, 1, 1),
        },
        {f"{MODULE}.lora_A.weight": torch.ones(4, 128, 3, 3, dtype=torch.int32)},
        {f"{MODULE}.lora_A.weight": torch.ones(4, 128, 3, 3, dtype=torch.bool)},
        {f"{MODULE}.lora_A.weight": torch.ones(4, 128, 3, 3).to(torch.float8_e4m3fn)},
    ],
    ids=["two alphas", "rank 0", "int", "bool", "float8"],
)
def test_hostile_tensors_are_refused(tmp_path: Path, wrong: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "x.safetensors"
    tensors, metadata = writers.spell(random_vector(4, 1.0, seed=1))
    save_file({**tensors, **wrong}, path, metadata=metadata)
    with pytest.raises(InvalidContentError, match="conv1"):
        load(path)


def test_shipped_vectors_were_trained_in_full() -> None:
    from lcm_arith.embedded import files

    assert files.vector_names() == (
        "fluent-emoji", "fluent-emoji-high-contrast", "lcm", "noto", "twemoji",
    )  # fmt: skip
    for name in files.vector_names():
        told = facts(load(name))
        assert told["plan"]["steps"] >= 400
        assert told["data"]["part"] == "A"
        assert told["kind"] == ("acceleration" if name == "lcm" else "style")
        assert told.get("style") == (None if name == "lcm" else name)


def test_every_error_has_an_exit_code_of_the_design() -> None:
    def leaves(cls: type[LcmArithError]) -> list[type[LcmArithError]]:
        below = cls.__subclasses__()
        return [leaf for sub in below for leaf in leaves(sub)] if below else [cls]

    assert {cls.exit_code for cls in leaves(LcmArithError)} <= {2, 3, 4, 5, 6, 7, 8, 130}


def test_parse_and_spell_are_inverse() -> None:
    tau = random_vector(4, 1.0, seed=1)
    tensors, metadata = writers.spell(tau)
    back = dialects.parse(tensors, metadata, "x").deltas
    assert all(torch.allclose(back[m].dense(), tau[m].dense(), atol=1e-7) for m in tau)


def test_a_large_file_is_read_module_by_module_and_must_not_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lcm_arith import adapters
    from lcm_arith.formats.preflight import SafeFile

    path, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    kept = 0.5 * random_vector(4, 1.0, seed=1)
    save(kept, path)
    whole = load(path)
    monkeypatch.setattr(adapters, "KEPT", 0)
    read: list[str] = []
    real = SafeFile.__getitem__

    def counted(self: SafeFile, name: str) -> torch.Tensor:
        read.append(name)
        return real(self, name)

    monkeypatch.setattr(SafeFile, "__getitem__", counted)
    large = load(path)
    assert {m: large.rank_of(m) for m in large} == {m: whole.rank_of(m) for m in whole}
    assert {m: large.shape_of(m) for m in large} == {m: whole.shape_of(m) for m in whole}
    assert read == []
    assert all(torch.equal(large[m].dense(), whole[m].dense()) for m in whole)
    assert len(read) == 2 * len(whole)
    save(2.0 * large, out)
    save(2.0 * kept, path, force=True)
    with pytest.raises(InvalidContentError, match="changed"):
        _ = large[next(iter(large))]


def test_the_same_bytes_on_any_number_of_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tau = reproject(random_vector(4, 1.0, seed=1) + random_vector(9, 9.0, seed=2), 6)
    written = []
    for cores in (1, 2, 5):
        monkeypatch.setattr("os.sched_getaffinity", lambda _, n=cores: set(range(n)))
        save(tau, tmp_path / "x.safetensors", force=True)
        written.append((tmp_path / "x.safetensors").read_bytes())
    assert written[0] == written[1] == written[2]


def test_a_saved_projection_keeps_no_module_in_memory(tmp_path: Path) -> None:
    from lcm_arith.projection import LazyProjection

    tau = reproject(random_vector(4, 1.0, seed=1) + random_vector(9, 9.0, seed=2), 6)
    save(tau, tmp_path / "x.safetensors")
    lazy = tau.terms[0][1].deltas
    assert isinstance(lazy, LazyProjection)
    assert not lazy._done
    energies = [lazy.energies(module) for module in lazy]
    assert all(0 < kept < total for kept, total in energies)
    assert not lazy._done  # they were noted on the way


def test_numbers_that_arrive_otherwise_than_announced_are_not_written(tmp_path: Path) -> None:
    from lcm_arith.errors import VerificationError

    path, layout = tmp_path / "x.safetensors", {"a": torch.empty(2, device="meta")}
    for tensors in ([("a", torch.ones(3))], [("a", torch.ones(2).double())], []):
        with pytest.raises(VerificationError):
            container.write_tensors(path, layout, tensors, {})
    assert list(tmp_path.iterdir()) == []
