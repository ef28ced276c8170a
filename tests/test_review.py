"""Cases that a review found wrong, each with what is right."""

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fails, run
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support import random_delta
from test_cli_arithmetic import gap
from test_dora import TARGETS, trained

from lcm_arith import adapters, dit, rounding
from lcm_arith.adapters import load
from lcm_arith.analysis import distance
from lcm_arith.checkpoints import extract
from lcm_arith.combination import combine_terms
from lcm_arith.delta import LowRankDelta
from lcm_arith.dora import as_dora, decomposed
from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.formats.layouts import Model
from lcm_arith.formats.preflight import KEPT, SafeFile
from lcm_arith.formats.writers import dit_spelling
from lcm_arith.fuse import LiveWeights
from lcm_arith.methods import combined
from lcm_arith.projection import reproject, retained_energy
from lcm_arith.respelling import respelled
from lcm_arith.sampling import load_pipeline
from lcm_arith.saving import save
from lcm_arith.vector import Source, TaskVector
from lcm_arith.weights import parse_term

UNET = "unet/diffusion_pytorch_model.safetensors"


def test_add_difference_adds_nothing_else(tmp_cwd: Path) -> None:
    run("fuse", "noto:1", "lcm:0", "-o", "b")
    run("fuse", "--plus", "b", "--minus", str(files.MODEL), "--times", "0.5", "-o", "half")
    a, b, half = (load_file(Path(p) / UNET) for p in (files.MODEL, "b", "half"))
    for name, tensor in half.items():
        want = a[name].float() + 0.5 * (b[name].float() - a[name].float())
        assert torch.equal(tensor, want.to(tensor.dtype))
    assert fails("fuse", "--times", "0.5", "-o", "x")[0] == 2


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_factors_that_hold_a_part_of_the_base_are_refused(start: str, tmp_path: Path) -> None:
    model: Any = torch.nn.Sequential(torch.nn.Linear(8, 8))
    config = LoraConfig(r=2, target_modules=["0"], init_lora_weights=start)  # type: ignore[arg-type]
    get_peft_model(model, config).save_pretrained(str(tmp_path))
    with pytest.raises(InvalidContentError, match=start):
        load(tmp_path)


def test_force_replaces_a_folder_of_its_kind_alone(tmp_cwd: Path) -> None:
    Path("mine").mkdir()
    Path("mine/other.txt").write_text("x")
    for command in (("fuse",), ("convert", "--format", "peft")):
        code, message = fails(*command, "-o", "mine", "--force")
        assert code == 3
        assert "would delete them" in message
    assert Path("mine/other.txt").read_text() == "x"


def test_weights_under_another_name_are_not_passed_over(tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(files.MODEL, base)
    whole = base / "unet" / "diffusion_pytorch_model.safetensors"
    shutil.copy(whole, base / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(InvalidContentError, match="fp16"):
        Model.open(base)


def test_models_are_compared_both_ways_but_for_what_nobody_reads(tmp_path: Path) -> None:
    base, tuned = tmp_path / "base", tmp_path / "tuned"
    shutil.copytree(files.MODEL, base)
    shutil.copytree(files.MODEL, tuned)
    weights = load_file(tuned / UNET)
    weights["conv_in.weight"] = weights["conv_in.weight"] * 1.5
    text = load_file(base / "text_encoder" / "model.safetensors")
    ids = {"embeddings.position_ids": torch.arange(16)[None]}
    save_file(text | ids, base / "text_encoder" / "model.safetensors")
    save_file(weights, tuned / UNET)
    assert list(extract(base, tuned, rank=2)) == ["unet.conv_in"]
    save_file(weights | {"time_embedding.extra": torch.ones(3)}, tuned / UNET)
    with pytest.raises(InvalidContentError, match="extra"):
        extract(base, tuned, rank=2)
    save_file({**weights, "conv_in.weight": weights["conv_in.weight"] * torch.nan}, tuned / UNET)
    with pytest.raises(InvalidContentError, match="NaN"):
        extract(base, tuned, rank=2)


def test_an_empty_tensor_marks_a_checkpoint_and_is_no_adapter(tmp_path: Path) -> None:
    save_file({"v_pred": torch.empty(0), "w": torch.ones(2)}, tmp_path / "x.safetensors")
    assert SafeFile.open(tmp_path / "x.safetensors", checkpoint=True)["v_pred"].numel() == 0
    with pytest.raises(InvalidContentError, match="v_pred"):
        SafeFile.open(tmp_path / "x.safetensors")


def test_a_doras_gains_are_no_part_of_its_budget(tmp_path: Path) -> None:
    unet = load_pipeline(files.MODEL).unet
    trained(unet, tmp_path / "d.safetensors", 1)
    tau = combine_terms([parse_term(f"{tmp_path / 'd.safetensors'}:1"), parse_term("noto:1")])
    cut = reproject(tau, 2)
    energy = retained_energy(cut)
    layers = [m for m in tau if not m.endswith(".gain")]
    lost = sum(float((tau[m].dense() - cut[m].dense()).square().sum()) for m in layers)
    whole = sum(float(tau[m].dense().square().sum()) for m in layers)
    assert energy == pytest.approx(1 - lost / whole, abs=1e-5)
    # ‖file − sum‖ is that of the weights, not of the gains
    pipelines = [load_pipeline(files.MODEL) for _ in range(2)]
    for pipeline, vector in zip(pipelines, (tau, cut), strict=True):
        LiveWeights(pipeline).apply(vector)
    apart = sum(
        float((a.detach() - b.detach()).square().sum())
        for a, b in zip(*(p.unet.parameters() for p in pipelines), strict=True)
    )
    assert distance(cut, tau)[0] == pytest.approx(apart**0.5, rel=1e-2)  # float16 weights
    with pytest.raises(UsageError, match="DoRA"):
        combine_terms([parse_term(f"{tmp_path / 'd.safetensors'}:1")], policy="norm")
    save(tau, tmp_path / "half.safetensors", dtype=torch.float16)
    kept = load_file(tmp_path / "half.safetensors")[f"unet.{TARGETS[0]}.lora_magnitude_vector"]
    assert kept.dtype == torch.float32
    assert torch.equal(kept, as_dora(tau)[f"unet.{TARGETS[0]}.magnitude"].dense().flatten())


def test_one_vector_through_an_element_wise_method(tmp_cwd: Path) -> None:
    for method in ("ties", "dare"):
        run("combine", "noto:1", "--method", method, "--density", "1", "--force")
        assert gap("combined.safetensors", load("noto")) < 1e-5


def test_verify_knows_a_policy_and_survives_odd_records(tmp_cwd: Path) -> None:
    run("combine", "noto:0.5,up=0.8", "lcm:1", "--policy", "energy")
    assert json.loads(run("verify", "combined.safetensors", "--json").stdout)["error"] < 1e-5
    tensors = load_file("combined.safetensors")
    for record in (
        '{"terms":[1]}', '{"terms":5}', '{"terms":[{"name":"noto"}]}', '{"terms":[{"of":3}]}',
        '{"terms":[{"weight":"x","name":"noto"}]}', '{"terms":[{"weight":"1","name":["noto"]}]}',
        '{"terms":' + "9" * 5000 + "}",
    ):  # fmt: skip
        save_file(tensors, "odd.safetensors", metadata={"lcm_arith": record})
        assert fails("verify", "odd.safetensors")[0] in (2, 3, 4), record
    for alpha in ("9" * 5000, "1" + "0" * 400):
        header = f'{{"unet.lora_alpha": {alpha}}}'
        save_file(tensors, "odd.safetensors", metadata={"lora_adapter_metadata": header})
        assert fails("inspect", "odd.safetensors")[0] == 4


def test_iso_cts_gives_a_rank_of_one(tmp_cwd: Path) -> None:
    told = json.loads(run("combine", "noto:1", "lcm:1", "--method", "iso-cts", "--rank", "1",
                          "--json").stdout)  # fmt: skip
    assert told["rank_max"] == 1
    one, other = (random_delta((8, 1), 1, 1.0, seed) for seed in (1, 2))
    made = combined("iso-cts", (one, other)).delta  # of biases, which have rank 1
    assert made.rank == 1


def test_comfy_names_what_comfyui_finds(tmp_cwd: Path) -> None:
    layer = "text_model.encoder.layers.3.mlp.fc1"
    norm = "unet.down_blocks.0.attentions.0.norm.bias"
    deltas = {
        f"text_encoder.{layer}": random_delta((4096, 1024), 2, 2.0, 1),
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k": random_delta(
            (320, 1024), 2, 2.0, 2
        ),
        norm: random_delta((320, 1), 1, 1.0, 3),
    }
    save(TaskVector(((1.0, Source(deltas)),)), "sd2.safetensors", form="comfy")
    keys = load_file("sd2.safetensors")
    assert f"text_encoders.clip_h.transformer.{layer}.lora_up.weight" in keys
    assert "diffusion_model.input_blocks.1.1.norm.diff_b" in keys
    assert set(load("sd2.safetensors")) == set(deltas)


def test_options_that_change_nothing_are_refused(tmp_cwd: Path) -> None:
    for command in (
        ("combine", "--device", "bogus"),
        ("combine", "--device", "cuda:9", "--method", "tsv-m", "--rank", "4"),
        ("interfere", "none", "lcm"),
    ):
        assert fails(*command)[0] == 2


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("spectrum noto none --l2 0.5", "--l2 0.5: weighs no vector"),
        ("combine noto none --l2 0.5", "--l2 0.5: weighs none"),
        ("spectrum none lcm --l1 0,1", "--l1 0,1: weighs no vector"),
        ("spectrum noto lcm --l1=", "'' is not a number"),
        ("combine noto lcm --l1=", "'' is not a number"),
        ("combine noto lcm --l2=", "'' is not a number"),
        ("combine noto lcm --base BASE", "no adapter here is a DoRA"),
        ("reproject lcm --base BASE", "no adapter here is a DoRA"),
        ("convert lcm --base BASE", "no adapter here is a DoRA"),
        ("negate lcm --base BASE", "no adapter here is a DoRA"),
        ("inspect lcm --base BASE", "no adapter here is a DoRA"),
        (f"verify {files.vector_path('lcm')} lcm:1 --base BASE", "no adapter here is a DoRA"),
        ("fuse noto:1 --base BASE -o BASE/fused", "lies in the model"),
        ("fuse noto:1 --base BASE -o BASE/unet --force", "lies in the model"),
    ],
)
def test_what_cannot_be_meant_is_said(tmp_cwd: Path, command: str, said: str) -> None:
    code, message = fails(*command.replace("BASE", str(files.MODEL)).split())
    assert code == 2
    assert said in message
    assert not list(tmp_cwd.iterdir())
    assert not (files.MODEL / "fused").exists()


def test_a_base_is_taken_where_a_dora_weighs_nothing(tmp_cwd: Path) -> None:
    trained(load_pipeline(files.MODEL).unet, tmp_cwd / "d.safetensors", 1)
    base = ("--base", str(files.MODEL))
    run("combine", "d.safetensors:0", "noto:1", *base)
    run("verify", "combined.safetensors", "d.safetensors:0", "noto:1", *base)
    for command in ("inspect", "negate", "convert", "reproject"):
        run(command, "d.safetensors", *base)


def test_a_pickled_base_is_refused_with_what_converts_it(tmp_cwd: Path) -> None:
    torch.save({"state_dict": {"w": torch.ones(2)}}, "sd.ckpt")
    code, message = fails("fuse", "noto:1", "--base", "sd.ckpt", "-o", "x.safetensors")
    assert code == 4
    assert "is a pickle" in message
    assert "from_single_file('sd.ckpt').save_pretrained('sd')" in message


def test_add_difference_reads_a_tensor_twice_at_most(
    tmp_cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once to know whether it differs, once to write it."""
    run("fuse", "noto:1", "lcm:0", "-o", "b")
    reads: list[tuple[Path, str]] = []
    read = SafeFile.__getitem__

    def counted(file: SafeFile, name: str) -> torch.Tensor:
        reads.append((file.path, name))
        return read(file, name)

    monkeypatch.setattr(SafeFile, "__getitem__", counted)
    plus, base = "b", str(files.MODEL)
    run("fuse", "--plus", plus, "--minus", base, "--base", "b", "--times", "0.5", "-o", "half")
    times = Counter(at for at in reads if at[0] == files.MODEL / UNET)
    assert len(times) > 200
    assert max(times.values()) == 2
    # b is the base, too, whose tensors are read to be written
    assert max(Counter(at for at in reads if at[0] == Path("b") / UNET).values()) == 3


def test_a_doras_weights_are_normed_twice_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once for the factors, once for the magnitudes; the gains of both are kept."""
    trained(load_pipeline(files.MODEL).unet, tmp_path / "d.safetensors", 1)
    done: list[int] = []
    real = decomposed

    def counted(*given: Any) -> Any:
        done.append(1)
        return real(*given)

    monkeypatch.setattr("lcm_arith.formats.dialects.decomposed", counted)
    times = {}
    for kept in (KEPT, 0):  # in memory; read when asked for
        monkeypatch.setattr(adapters, "KEPT", kept)
        tau = load(tmp_path / "d.safetensors")
        save(tau, tmp_path / f"{kept}.safetensors")
        times[kept] = len(done)
        done.clear()
    assert list(times.values()) == [len(TARGETS), 2 * len(TARGETS)]
    one, other = (load_file(tmp_path / f"{kept}.safetensors") for kept in times)
    assert all(torch.equal(one[name], other[name]) for name in one)


SPELLED = dit.spelled(dit.layers("flux")[0], dit.DIFFUSERS)


def joint_attention(rank: int) -> TaskVector:
    """Query, key and value of a block of Flux, which are one layer in the publisher's code."""
    parts = ("to_q", "to_k", "to_v")
    modules = [f"transformer.transformer_blocks.0.attn.{part}" for part in parts]
    deltas = {m: random_delta(SPELLED[m], rank, 2.0 * rank, seed) for seed, m in enumerate(modules)}
    return TaskVector(((1.0, Source(deltas)),))


@pytest.mark.parametrize("command", ["combine", "reproject", "cart"])
@pytest.mark.parametrize(("given", "asked"), [("diffusers", "kohya"), ("kohya", "diffusers")])
def test_a_transformers_budget_holds_for_what_is_written(
    tmp_cwd: Path, command: str, given: str, asked: str
) -> None:
    tau = joint_attention(6)
    save(tau, "x.safetensors", form=given)
    calls = {"combine": ("combine", "x.safetensors:0.5"), "reproject": ("reproject",),
             "cart": ("combine", "x.safetensors:0.5", "--method", "cart")}  # fmt: skip
    call = (*calls[command], *(("x.safetensors",) if command == "reproject" else ()))
    options = ("--format", asked, "-o", "y.safetensors", "--force", "--json")
    told = json.loads(run(*call, "--rank", "4", *options).stdout)
    assert (told["rank_min"], told["rank_max"]) == (4, 4)
    found = load("y.safetensors")
    assert {found.rank_of(module) for module in found} == {4}
    weight, truth = 1.0 if command == "reproject" else 0.5, respelled(tau, dit_spelling(asked))
    for module in found:  # what the best approximation of that rank loses, and no more
        whole, own = truth[module], TaskVector(((1.0, Source({module: found[module]})),))
        bases = [torch.linalg.qr(f.double(), mode="r").R for f in (whole.up, whole.down.T)]
        tail = torch.linalg.svdvals(bases[0] @ bases[1].T)[4:] * abs(whole.scale) * weight
        lost, _ = distance(own, TaskVector(((weight, Source({module: whole})),)))
        assert lost == pytest.approx(float(tail.norm()), rel=1e-5)
    told = json.loads(run(*call, "--size", "0.35", *options).stdout)
    assert Path("y.safetensors").stat().st_size <= 0.35 * 2**20
    assert told["bytes"] > 0.25 * 2**20
    assert 0 < told["retained_energy"] < 1


def test_tiny_up_factors_keep_their_digits_in_float16(tmp_cwd: Path) -> None:
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    plain = random_delta((192, 128), 8, 8.0, 1)
    for scale in (2.0**-20, 1e6):  # subnormal; too large
        deltas = {module: LowRankDelta(plain.down, plain.up * scale)}
        for form in ("diffusers", "kohya"):
            tau = TaskVector(((1.0, Source(deltas)),))
            written = save(tau, "x.safetensors", dtype=torch.float16, force=True, form=form)
            want, got = tau[module].dense(torch.float64), load("x.safetensors")[module]
            error = float((got.dense(torch.float64) - want).norm() / want.norm())
            assert error < 4e-4  # 11 bits of both factors
            assert written.rounding == pytest.approx(error, rel=0.25)  # 16 random inputs
    down, up = rounding.balanced(plain.down, plain.up * 2.0**-20, torch.float16)
    assert torch.equal(up @ down, plain.up * 2.0**-20 @ plain.down)
    assert rounding.balanced(plain.down, plain.up, torch.float16)[1] is plain.up
    tiny = plain.up * 2.0**-20
    assert rounding.balanced(plain.down, tiny, torch.bfloat16)[1] is tiny


@pytest.mark.parametrize(("dtype", "usual"), [("float16", 4e-4), ("bfloat16", 4e-3)])
def test_what_rounding_costs_is_said_where_it_is_much(
    tmp_cwd: Path, dtype: str, usual: float
) -> None:
    told = json.loads(run("convert", "lcm", "--dtype", dtype, "--json").stdout)
    assert 0 <= told["rounding_error"] < usual
    save(load("lcm"), "same.safetensors")  # of whose difference little is left beside its factors
    call = ("combine", "same.safetensors:1", "lcm:-0.9", "--dtype", dtype, "--force")
    shown = run(*call).output
    told = json.loads(run(*call, "--json").stdout)
    lost, whole = distance(load("combined.safetensors"), 0.1 * load("lcm"))
    assert lost / whole > {"float16": 1e-3, "bfloat16": 1e-2}[dtype]
    assert told["rounding_error"] == pytest.approx(lost / whole, rel=0.1)
    assert f"rounding to {dtype} loses {told['rounding_error']:.2g} of the norm" in shown
    plain = json.loads(run("convert", "lcm", "--json", "--force").stdout)
    assert plain["rounding_error"] is None
    assert "rounding" not in run("convert", "lcm", "--dtype", dtype, "--force").output


def test_a_text_encoder_and_a_unet_of_one_family_combine(tmp_cwd: Path) -> None:
    parts = {
        "text": ("text_encoder.text_model.encoder.layers.0.mlp.fc1", (3072, 768)),
        "unet": ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k", (320, 768)),
    }
    for seed, (name, (module, shape)) in enumerate(parts.items()):
        delta = random_delta(shape, 2, 2.0, seed)
        save(TaskVector(((1.0, Source({module: delta})),)), f"{name}.safetensors")
    run("combine", "text.safetensors:1", "unet.safetensors:1")
    assert set(load("combined.safetensors")) == {module for module, _ in parts.values()}
