"""DoRA: sums are exact, PEFT reads them, and nothing of them is dropped."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fails, run
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from safetensors.torch import load_file, save_file

from lcm_arith.adapters import load
from lcm_arith.checkpoints import fuse
from lcm_arith.combination import combine_terms
from lcm_arith.dora import as_dora
from lcm_arith.embedded import files
from lcm_arith.errors import IncompatibleError, InvalidContentError
from lcm_arith.fuse import LiveWeights
from lcm_arith.sampling import load_pipeline
from lcm_arith.saving import save
from lcm_arith.weights import parse_term

# Linear, conv 3×3, conv 1×1.
TARGETS = (
    "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
    "mid_block.resnets.0.conv1",
    "down_blocks.0.attentions.0.proj_in",
)
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def unet() -> Any:
    return load_pipeline(files.MODEL).unet


def trained(unet: Any, path: Path, seed: int, *, dora: bool = True) -> dict[str, torch.Tensor]:
    """A PEFT adapter with random factors and magnitudes; the weights that PEFT makes of it."""
    torch.manual_seed(seed)
    config = LoraConfig(
        r=3, lora_alpha=5, target_modules=list(TARGETS), use_dora=dora, init_lora_weights=False
    )
    model = inject_adapter_in_model(config, copy.deepcopy(unet))
    for name, parameter in model.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.3 * torch.randn_like(parameter)
    state = get_peft_model_state_dict(model)
    alphas = {f"unet.{t}.alpha": torch.tensor(5.0) for t in TARGETS}
    save_file({f"unet.{k}": v.contiguous() for k, v in state.items()} | alphas, path)
    merged = {}
    for target in TARGETS:
        layer: Any = model.get_submodule(target)
        layer.merge()
        merged[target] = layer.base_layer.weight.detach().clone()
    return merged


def wanted(unet: Any, parts: Mapping[float, Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """W + Σ λ (W'ᵢ − W), float64."""
    found = {}
    for target in TARGETS:
        weight = unet.get_submodule(target).weight.detach().double()
        found[target] = weight + sum(
            (value * (of[target].double() - weight) for value, of in parts.items()),
            torch.zeros_like(weight),
        )
    return found


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    """Float32 factors, norms and magnitudes: a few rounding steps of 6e-8."""
    assert float((one.detach().double() - other.double()).norm() / other.double().norm()) < 2e-6


def peft_weights(unet: Any, path: Path) -> dict[str, torch.Tensor]:
    """What PEFT makes of one of our files."""
    pipeline = load_pipeline(files.MODEL)
    pipeline.unet = copy.deepcopy(unet)
    pipeline.load_lora_weights(str(path), adapter_name="x")
    found = {}
    for target in TARGETS:
        layer = pipeline.unet.get_submodule(target)
        layer.merge()
        found[target] = layer.base_layer.weight.detach().clone()
    return found


def literal_weights(unet: Any, path: Path) -> dict[str, torch.Tensor]:
    """The paper's formula on kohya's keys, whose magnitudes diffusers leaves out with a warning."""
    tensors, found = load_file(path), {}
    for target in TARGETS:
        weight = unet.get_submodule(target).weight.detach().double()
        stem = f"lora_unet_{target.replace('.', '_')}"
        up, down = (tensors[f"{stem}.lora_{side}.weight"].double() for side in ("up", "down"))
        scale = float(tensors[f"{stem}.alpha"]) / len(down)
        whole = weight + scale * (up.flatten(1) @ down.flatten(1)).reshape(weight.shape)
        norms = whole.flatten(1).norm(dim=1).reshape(-1, *(1,) * (weight.ndim - 1))
        magnitude = tensors[f"{stem}.dora_scale"].double()
        assert magnitude.shape == norms.shape
        found[target] = magnitude * whole / norms
    return found


@pytest.fixture(scope="module")
def pair(unet: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    folder = tmp_path_factory.mktemp("dora")
    whole = [trained(unet, folder / f"{seed}.safetensors", seed) for seed in (1, 2)]
    whole.append(trained(unet, folder / "3.safetensors", 3, dora=False))
    return folder, whole


def test_a_dora_is_read_as_peft_reads_it(unet: Any, pair: tuple[Path, list[Any]]) -> None:
    folder, whole = pair
    tau = load(folder / "1.safetensors")
    pipeline = load_pipeline(files.MODEL)
    LiveWeights(pipeline).apply(tau)
    for target in TARGETS:
        close(pipeline.unet.get_submodule(target).weight, whole[0][target])


def test_a_sum_of_doras_and_a_lora_is_one_dora_that_peft_reads(
    unet: Any, pair: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    folder, whole = pair
    terms = [parse_term(f"{folder / f'{i}.safetensors'}:{w}") for i, w in
             ((1, "0.7"), (2, "-0.4"), (3, "0.5"))]  # fmt: skip
    tau = combine_terms(terms)
    want = wanted(unet, {0.7: whole[0], -0.4: whole[1], 0.5: whole[2]})
    for form, reader in (("diffusers", peft_weights), ("kohya", literal_weights)):
        path = tmp_path / f"{form}.safetensors"
        save(tau, path, form=form)
        made = reader(unet, path)
        again = load(path)
        assert set(again) == set(tau)
        pipeline = load_pipeline(files.MODEL)
        LiveWeights(pipeline).apply(again)
        for target in TARGETS:
            close(made[target], want[target])
            close(pipeline.unet.get_submodule(target).weight, want[target])


def test_a_dora_is_fused_into_a_whole_model(
    unet: Any, pair: tuple[Path, list[Any]], tmp_path: Path
) -> None:
    folder, whole = pair
    base = tmp_path / "base"
    pipeline = load_pipeline(files.MODEL)
    pipeline.unet = unet
    pipeline.save_pretrained(base)
    fuse(-0.5 * load(folder / "1.safetensors", base), base, tmp_path / "fused")
    after = load_file(tmp_path / "fused" / UNET)
    want = wanted(unet, {-0.5: whole[0]})
    for target in TARGETS:
        close(after[f"{target}.weight"], want[target])


def test_parts_of_a_dora_are_weighed_whole(unet: Any, pair: tuple[Path, list[Any]]) -> None:
    folder, whole = pair
    tau = combine_terms([parse_term(f"{folder / '1.safetensors'}:0.5,/to_q$/=2,mid=0")])
    pipeline = load_pipeline(files.MODEL)
    LiveWeights(pipeline).apply(tau)
    weights = {2.0: TARGETS[0], 0.0: TARGETS[1], 0.5: TARGETS[2]}
    for value, target in weights.items():
        want = wanted(unet, {value: whole[0]})[target]
        close(pipeline.unet.get_submodule(target).weight, want)


def test_what_a_dora_cannot_do_is_refused(
    pair: tuple[Path, list[Any]], tmp_path: Path, tmp_cwd: Path
) -> None:
    folder, _ = pair
    one = folder / "1.safetensors"
    tensors = load_file(one)
    stranger = {k.replace("attentions.0", "attentions.9"): t for k, t in tensors.items()}
    save_file(stranger, tmp_path / "stranger.safetensors")
    with pytest.raises(InvalidContentError, match="a DoRA, without") as caught:
        load(tmp_path / "stranger.safetensors")
    assert "--base MODEL" in str(caught.value.hint)
    with pytest.raises(IncompatibleError, match="missing in"):
        load(tmp_path / "stranger.safetensors", files.MODEL)
    key = f"unet.{TARGETS[0]}.lora_magnitude_vector"
    save_file({**tensors, key: torch.ones(3)}, tmp_path / "short.safetensors")
    with pytest.raises(InvalidContentError, match="3 magnitudes for 128 rows"):
        load(tmp_path / "short.safetensors")
    columns = {k: t for k, t in tensors.items() if k != key}
    columns[f"unet.{TARGETS[0]}.dora_scale"] = torch.ones(1, 128)
    save_file(columns, tmp_path / "columns.safetensors")
    with pytest.raises(InvalidContentError, match="by columns"):
        load(tmp_path / "columns.safetensors")
    for method in ("ties", "tsv-m"):
        assert fails("combine", f"{one}:1", "noto:1", "--method", method)[0] == 4
    code, message = fails("interfere", str(one), "noto")
    assert code == 4
    assert "DoRA" in message
    tau = load(one)
    (gain,) = (t for t in tau if t.endswith("to_q.gain"))
    stretch = float(tau[gain].dense()[0])
    with pytest.raises(InvalidContentError, match="whole row"):
        dict(as_dora((-1 / stretch) * tau))
    plain = load("noto")
    assert as_dora(plain) is plain


def test_the_commands_take_a_dora(pair: tuple[Path, list[Any]], tmp_cwd: Path) -> None:
    one = str(pair[0] / "1.safetensors")
    assert "DoRA (LoRA)" in run("inspect", one).output
    run("combine", f"{one}:0.8", "lcm:1", "--base", str(files.MODEL))
    assert "relative error" in run("verify", "combined.safetensors", f"{one}:0.8", "lcm:1").output
    run("reproject", "combined.safetensors", "--rank", "8")
    run("generate", "fox", "--vector", "reprojected.safetensors:1", "--steps", "1")
