"""Single-file models: diffusers' own converters find what we wrote where we wrote it."""

import json
from pathlib import Path

import pytest
import torch
from commands import fails, run
from diffusers.loaders import single_file_utils as diffusers_reader
from safetensors.torch import load_file, save_file

from lcm_arith import modules
from lcm_arith.adapters import load
from lcm_arith.checkpoints import difference, extract, fuse, residual_of
from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import IncompatibleError, InvalidContentError, UsageError
from lcm_arith.formats import layouts
from lcm_arith.formats.layouts import Model
from lcm_arith.vector import Source, TaskVector

FAMILIES = ("sd15", "sd2", "sdxl")
Tensors = dict[str, torch.Tensor]
_TABLES = {family: modules.table(family) for family in FAMILIES}


def small(family: str) -> dict[str, tuple[int, ...]]:
    """The family's modules, every width a fortieth: its UNet's widths stay apart by family."""
    return {
        module: (*(max(1, n // 40) for n in shape[:2]), *shape[2:])
        for module, shape in _TABLES[family].items()
    }


@pytest.fixture(autouse=True)
def _small_families(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {family: small(family) for family in FAMILIES}
    monkeypatch.setattr(layouts, "PUBLISHED", FAMILIES)
    monkeypatch.setattr(layouts, "table", lambda family: shapes.get(family, {}))


def has_bias(module: str) -> bool:
    leaf = module.rpartition(".")[2]
    return leaf not in ("to_q", "to_k", "to_v", "text_projection") and "embeddings." not in module


def diffusers_names(tensors: Tensors, family: str) -> Tensors:
    """Canonical name → tensor, by diffusers' converters."""
    config: dict[str, object] = {"layers_per_block": 2}
    if family == "sdxl":
        config["addition_embed_type"] = "text_time"
    parts = {"unet": diffusers_reader.convert_ldm_unet_checkpoint(tensors, config)}
    if family != "sd2":
        parts["text_encoder"] = diffusers_reader.convert_ldm_clip_checkpoint(tensors)
    prefix = {"sd2": "cond_stage_model.model.", "sdxl": "conditioner.embedders.1.model."}
    if family in prefix:
        encoder = "text_encoder" if family == "sd2" else "text_encoder_2"
        model = torch.nn.Module()
        width = small(family)[f"{encoder}.text_model.final_layer_norm"][0]
        model.config = type("C", (), {"hidden_size": width})()
        parts[encoder] = diffusers_reader.convert_open_clip_checkpoint(
            model, tensors, prefix[family]
        )
    return {f"{part}.{name}": tensor for part, own in parts.items() for name, tensor in own.items()}


def stability_file(family: str, path: Path, seed: int = 0) -> Tensors:
    """A model as people share it, written with names of ours."""
    draw = torch.Generator().manual_seed(seed)
    tensors: Tensors = {}
    stacked: dict[str, Tensors] = {}
    for module, shape in small(family).items():
        for part, size in (("weight", shape), ("bias", shape[:1])):
            if part == "bias" and not has_bias(module):
                continue
            values = torch.randn(size, generator=draw)
            component, inner = module.split(".", 1)
            prefix, open_clip = layouts._TEXT[family].get(component, ("", False))
            if component == "unet":
                key = f"model.diffusion_model.{modules.sgm_names(family)[module]}.{part}"
            elif not open_clip:
                key = f"{prefix}{inner}.{part}"
            elif inner == "text_projection":
                key, values = f"{prefix}text_projection", values.T.contiguous()
            elif inner.endswith("position_embedding"):
                key = f"{prefix}positional_embedding"
            elif inner.endswith(("q_proj", "k_proj", "v_proj")):
                layer = inner.split(".")[3]
                key = f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{part}"
                stacked.setdefault(key, {})[inner[-6]] = values
                continue
            else:
                names = {
                    "self_attn.out_proj": "attn.out_proj", "mlp.fc1": "mlp.c_fc",
                    "mlp.fc2": "mlp.c_proj", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
                    "text_model.encoder.layers": "transformer.resblocks",
                    "text_model.final_layer_norm": "ln_final",
                    "text_model.embeddings.token_embedding": "token_embedding",
                }  # fmt: skip
                for ours, theirs in names.items():
                    inner = inner.replace(ours, theirs)
                key = f"{prefix}{inner}.{part}"
            tensors[key] = values
    tensors |= {key: torch.cat([own[n] for n in "qkv"]) for key, own in stacked.items()}
    tensors["first_stage_model.decoder.conv_in.weight"] = torch.ones(2, 2)
    save_file(tensors, path)
    return tensors


def vector_for(family: str) -> TaskVector:
    """Rank 1 on every weight and a shift of every bias."""
    draw = torch.Generator().manual_seed(7)
    deltas = {}
    for module, shape in small(family).items():
        wide = (*shape, 1)[:2] if len(shape) < 4 else shape
        deltas[module] = LowRankDelta(
            torch.randn((1, *wide[1:]), generator=draw),
            torch.randn((shape[0], 1, *(1 for _ in wide[2:])), generator=draw),
        )
        if has_bias(module):
            values = torch.randn(shape[0], 1, generator=draw)
            deltas[f"{module}.bias"] = LowRankDelta(torch.ones(1, 1), values)
    return TaskVector(((1.0, Source(deltas)),))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_weight_and_bias_of_a_single_file_gets_its_update(
    family: str, tmp_path: Path
) -> None:
    tensors = stability_file(family, tmp_path / "base.safetensors")
    tau = vector_for(family)
    made = fuse(tau, tmp_path / "base.safetensors", tmp_path / "out.safetensors")
    after = load_file(tmp_path / "out.safetensors")
    assert after.keys() == tensors.keys()
    before, named = diffusers_names(tensors, family), diffusers_names(after, family)
    seen = set()
    for name, tensor in named.items():
        target = name.removesuffix(".weight")
        seen.add(target)
        # float32: one product and one sum, half a unit in the last place each
        change = tau[target].dense().reshape(tensor.shape)
        torch.testing.assert_close(tensor, before[name] + change, rtol=1e-6, atol=1e-6)
    assert seen == set(tau)
    assert made["modules"] == len(tau)
    untouched = "first_stage_model.decoder.conv_in.weight"
    assert torch.equal(after[untouched], tensors[untouched])


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_what_was_fused_into_a_file_is_extracted_again(family: str, tmp_path: Path) -> None:
    base, tuned = tmp_path / "base.safetensors", tmp_path / "tuned.safetensors"
    stability_file(family, base)
    tau = vector_for(family)
    layers = [m for m in tau if ".embeddings." not in m]
    kept = TaskVector(((1.0, Source({m: tau[m] for m in layers})),))
    fuse(kept, base, tuned)
    back = extract(base, tuned, rank=1)
    assert set(back) == set(layers)
    assert residual_of(back) < 1e-3  # √(1 − kept), of sums that are right to 1e-7
    for module in layers[::7]:
        torch.testing.assert_close(back[module].dense(), tau[module].dense(), rtol=0, atol=1e-4)
    alone = extract(base, tuned, rank=1, lora_only=True)
    assert set(alone) == {m for m in layers if not modules.is_vector(m)}
    left = sum(float(tau[m].dense().square().sum()) for m in set(layers) - set(alone))
    whole = sum(float(tau[m].dense().square().sum()) for m in layers)
    assert residual_of(alone) == pytest.approx((left / whole) ** 0.5, rel=1e-3)
    fuse(tau, base, tmp_path / "all.safetensors")
    with pytest.raises(InvalidContentError, match="embeddings of tokens"):
        extract(base, tmp_path / "all.safetensors", rank=1)


def test_add_difference_is_a_plus_weight_times_b_minus_c(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.safetensors" for name in "abc"]
    a, b, c = (stability_file("sd15", path, seed) for seed, path in enumerate(paths))
    fuse(0.7 * difference(paths[2], paths[1]), paths[0], tmp_path / "out.safetensors")
    after = load_file(tmp_path / "out.safetensors")
    for key, tensor in after.items():
        torch.testing.assert_close(tensor, a[key] + 0.7 * (b[key] - c[key]), rtol=0, atol=1e-5)


def test_a_file_that_is_no_such_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = stability_file("sd15", path)
    with pytest.raises(UsageError, match="safetensors"):
        fuse(vector_for("sd15"), path, tmp_path / "out")
    with pytest.raises(IncompatibleError):
        fuse(vector_for("sd2"), path, tmp_path / "out.safetensors")
    del tensors["model.diffusion_model.middle_block.1.proj_in.weight"]
    save_file(tensors, path)
    with pytest.raises(InvalidContentError, match="no whole model"):
        Model.open(path)
    assert [p.name for p in tmp_path.iterdir()] == ["m.safetensors"]


def test_biases_and_norms_travel_in_the_formats_that_hold_them(tmp_cwd: Path) -> None:
    draw = torch.Generator().manual_seed(3)
    shift, gain = (torch.randn(320, generator=draw) for _ in range(2))
    down, up = torch.randn(2, 320, generator=draw), torch.randn(320, 2, generator=draw)
    stem = "lora_unet_down_blocks_0_attentions_0"
    save_file(
        {
            f"{stem}_norm.w_norm": gain,
            f"{stem}_norm.b_norm": shift,
            f"{stem}_transformer_blocks_0_attn1_to_out_0.diff_b": shift.clone(),
            f"{stem}_transformer_blocks_0_attn1_to_out_0.lora_down.weight": down,
            f"{stem}_transformer_blocks_0_attn1_to_out_0.lora_up.weight": up,
        },
        "norms.safetensors",
    )
    tau = load("norms.safetensors")
    at = "unet.down_blocks.0.attentions.0"
    assert set(tau) == {
        f"{at}.norm",
        f"{at}.norm.bias",
        f"{at}.transformer_blocks.0.attn1.to_out.0",
        f"{at}.transformer_blocks.0.attn1.to_out.0.bias",
    }
    told = json.loads(run("inspect", "norms.safetensors", "--json").stdout)
    assert {row["family"] for row in told["families"]} == {"sd15", "sd2"}
    assert fails("combine", "norms.safetensors:0.5", "norms.safetensors:0.25")[0] == 4
    run("combine", "norms.safetensors:0.5", "--format", "kohya", "-o", "half.safetensors")
    half = load_file("half.safetensors")
    assert torch.equal(half[f"{stem}_norm.w_norm"], gain * 0.5)
    assert torch.equal(half[f"{stem}_transformer_blocks_0_attn1_to_out_0.diff_b"], shift * 0.5)
