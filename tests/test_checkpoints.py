"""Whole models: vectors in their weights, and the vector between two."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from commands import fails, run
from safetensors.torch import load_file, save_file

from lcm_arith.adapters import load
from lcm_arith.checkpoints import extract, fuse, residual_of
from lcm_arith.delta import LowRankDelta
from lcm_arith.embedded import files
from lcm_arith.errors import IncompatibleError, InvalidContentError, NotFoundError
from lcm_arith.formats.layouts import Model
from lcm_arith.sampling import load_pipeline
from lcm_arith.saving import save
from lcm_arith.vector import Source, TaskVector

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_a_fused_weight_is_the_rounded_sum_and_the_rest_is_untouched(tmp_path: Path) -> None:
    tau, out = 0.8 * load("noto") + load("lcm"), tmp_path / "fused"
    made = fuse(tau, files.MODEL, out)
    before, after = load_file(files.MODEL / UNET), load_file(out / UNET)
    assert before.keys() == after.keys()
    assert made["modules"] == len(tau)
    for name, weight in before.items():
        module = f"unet.{name.removesuffix('.weight')}"
        if name.endswith(".weight") and module in tau:
            want = weight.double() + tau[module].dense(torch.float64)
            # half a unit in the last place of float16, and one of float32 before
            assert float((after[name].double() - want).abs().max()) <= 2**-11 * 1.01 * float(
                want.abs().max()
            )
        else:
            assert torch.equal(after[name], weight)
    same = files.MODEL / "vae" / "config.json"
    assert (out / "vae" / "config.json").read_bytes() == same.read_bytes()
    assert load_pipeline(out).unet.config.sample_size == 8


def test_what_was_fused_is_extracted_again(tmp_path: Path) -> None:
    tau, whole = load("twemoji"), tmp_path / "base32"
    shutil.copytree(files.MODEL, whole)
    save_file({k: t.float() for k, t in load_file(whole / UNET).items()}, whole / UNET)
    fuse(tau, whole, tmp_path / "fused")
    back = extract(whole, tmp_path / "fused", rank=16)
    assert set(back) == set(tau)
    # W + ΔW in float32 rounds at 1e-7 of W, and ΔW is about a hundredth of it
    assert residual_of(back) < 1e-3
    gap = sum(float((back[m].dense() - tau[m].dense()).square().sum()) for m in tau)
    assert gap < 1e-6 * sum(float(tau[m].dense().square().sum()) for m in tau)
    low = extract(whole, tmp_path / "fused", rank=4)
    again = extract(whole, tmp_path / "fused", rank=4)
    lost = total = best = 0.0
    for module in tau:
        delta = tau[module].dense().flatten(1)
        lost += float((low[module].dense().flatten(1) - delta).square().sum())
        best += float(torch.linalg.svdvals(delta)[4:].square().sum())
        total += float(delta.square().sum())
        assert torch.equal(low[module].up, again[module].up)
    assert lost <= 1.01 * best
    assert residual_of(low) == pytest.approx((lost / total) ** 0.5, rel=1e-2)


def test_what_an_adapter_cannot_hold_is_refused(tmp_path: Path) -> None:
    tuned = tmp_path / "tuned"
    shutil.copytree(files.MODEL, tuned)
    with pytest.raises(InvalidContentError, match="nothing to extract"):
        extract(files.MODEL, tuned, rank=4)
    tensors = load_file(tuned / UNET)
    tensors["conv_in.bias"] = tensors["conv_in.bias"] + 1
    save_file(tensors, tuned / UNET)
    with pytest.raises(InvalidContentError, match=r"unet\.conv_in\.bias .* readers .* reject"):
        save(extract(files.MODEL, tuned, rank=4), tmp_path / "x.safetensors")
    with pytest.raises(InvalidContentError, match="no matrix of a layer differs"):
        extract(files.MODEL, tuned, rank=4, lora_only=True)
    del tensors["conv_in.bias"]
    save_file(tensors, tuned / UNET)
    with pytest.raises(IncompatibleError):
        extract(files.MODEL, tuned, rank=4)
    (tuned / UNET).unlink()
    with pytest.raises(NotFoundError, match="unet"):
        Model.open(tuned)
    (tuned / "unet" / "x.safetensors.index.json").write_text("{}")
    with pytest.raises(InvalidContentError, match="several files"):
        Model.open(tuned)


def test_a_vector_that_does_not_fit_leaves_nothing_behind(tmp_path: Path) -> None:
    stranger = LowRankDelta(torch.ones(1, 3), torch.ones(5, 1))
    huge = 1e6 * load("noto")
    for tau, error in (
        (TaskVector(((1.0, Source({"unet.conv_in": stranger})),)), IncompatibleError),
        (huge, InvalidContentError),
    ):
        with pytest.raises(error):
            fuse(tau, files.MODEL, tmp_path / "out")
        assert list(tmp_path.iterdir()) == []


def test_integers_of_a_text_encoder_come_through(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(files.MODEL, base)
    path = base / "text_encoder" / "model.safetensors"
    ids = torch.arange(16)[None]
    save_file({**load_file(path), "text_model.embeddings.position_ids": ids}, path)
    name, delta = next(
        (n.removesuffix(".weight"), LowRankDelta(torch.ones(1, t.shape[1]), torch.ones(len(t), 1)))
        for n, t in load_file(path).items()
        if n.endswith("q_proj.weight")
    )
    fuse(TaskVector(((1.0, Source({f"text_encoder.{name}": delta})),)), base, tmp_path / "out")
    after = load_file(tmp_path / "out" / "text_encoder" / "model.safetensors")
    assert torch.equal(after["text_model.embeddings.position_ids"], ids)
    assert (tmp_path / "out" / UNET).read_bytes() == (base / UNET).read_bytes()


def test_the_two_commands_are_inverse_on_the_embedded_model(tmp_cwd: Path) -> None:
    run("fuse")
    assert fails("fuse")[0] == 3
    run("fuse", "fluent-emoji:0.8", "lcm:1", "--force")
    told = json.loads(run("extract", "--rank", "80", "--json").stdout)
    assert told["residual"] < 0.2  # float16 weights: what rounding adds has every rank
    assert "0.8 · fluent-emoji" in run("fuse", "-o", "other").output
