"""What the proof accepts is what diffusers computes, for every module, scale and spelling."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support import random_vector
from torch import Tensor

from lcm_arith.adapters import load
from lcm_arith.bases import Base, load_base
from lcm_arith.delta import LowRankDelta
from lcm_arith.embedded import files
from lcm_arith.errors import VerificationError
from lcm_arith.fuse import LiveWeights
from lcm_arith.modules import with_text_model
from lcm_arith.network import network
from lcm_arith.proof import prove_loads, without_weights
from lcm_arith.saving import save
from lcm_arith.targets import LCM_TARGETS
from lcm_arith.vector import Source, TaskVector

TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


def every_module(base: Base) -> TaskVector:
    """A vector of all layers that tools adapt, of ranks 1 to 3."""
    generator = torch.Generator().manual_seed(0)
    deltas: dict[str, LowRankDelta] = {}
    for component, model in base.pipeline.components.items():
        if not component.startswith(("unet", "text_encoder")):
            continue
        for name, layer in model.named_modules():
            if name.endswith((*LCM_TARGETS, *TEXT_TARGETS)) and hasattr(layer, "weight"):
                (out, *inner), rank = layer.weight.shape, 1 + len(deltas) % 3
                down = 0.1 * torch.randn(rank, *inner, generator=generator)
                up = torch.randn(out, rank, *[1] * (len(inner) - 1), generator=generator)
                module = with_text_model(f"{component}.{name}")
                deltas[module] = LowRankDelta(down, up, 0.7)
    return TaskVector(((1.0, Source(deltas, {"operation": "test"})),))


def halve_alphas(path: Path) -> None:
    """Now alpha is not the rank: in tensors of its own, or in the header."""
    tensors = load_file(path)
    with safe_open(path, "pt") as opened:
        metadata = {key: value for key, value in opened.metadata().items() if "lora_" in key}
    for key in tensors:
        if key.endswith(".alpha"):
            tensors[key] = tensors[key] / 2
    config = json.loads(metadata.get("lora_adapter_metadata", "{}"))
    for key, value in config.items():
        if key.endswith("lora_alpha"):
            config[key] = value / 2
        elif key.endswith("alpha_pattern"):
            config[key] = {pattern: alpha / 2 for pattern, alpha in value.items()}
    save_file(tensors, path, {"lora_adapter_metadata": json.dumps(config)} if config else None)


@torch.no_grad()
def outputs(base: Base) -> list[Tensor]:
    """What UNet and text encoders compute, in float64."""
    for model in base.pipeline.components.values():
        if isinstance(model, torch.nn.Module):
            model.double()
    told = dict(base.encode(["a red fox"]))
    if "pooled" in told:
        told["time_ids"] = torch.full((1, 6), 64.0)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    heard = network(base.unet)(z, torch.tensor([500]), told)
    return [heard, *(values for name, values in told.items() if name != "time_ids")]


@pytest.mark.parametrize(
    ("kind", "form"), [("sd15", "kohya"), ("sdxl", "kohya"), ("sdxl", "diffusers")]
)
def test_what_diffusers_loads_computes_what_our_merged_weights_do(
    request: pytest.FixtureRequest, tmp_path: Path, kind: str, form: str
) -> None:
    base, path = load_base(request.getfixturevalue(f"tiny_{kind}")), tmp_path / "x.safetensors"
    before = every_module(base)
    save(before, path, form=form)
    halve_alphas(path)
    tau, plain, live = load(path), outputs(base), LiveWeights(base.pipeline)
    module = next(iter(before))
    torch.testing.assert_close(tau[module].dense(), before[module].dense() / 2)
    live.apply(tau)
    ours = outputs(base)
    live.apply(TaskVector())
    base.pipeline.load_lora_weights(tmp_path, weight_name=path.name)
    prove_loads(path, base)
    assert set(tau) == set(before)
    for own, other, without in zip(ours, outputs(base), plain, strict=True):
        # W + ΔW is rounded to float32 before the outputs are computed in float64.
        torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(own, without, rtol=1e-2)


def test_the_proof_fails_where_diffusers_reads_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.safetensors"
    save(random_vector(4, 1.0, seed=1), path)
    prove_loads(path, files.MODEL)

    def misreading(own: Any) -> Any:
        pipeline = without_weights(own)
        real = pipeline.load_lora_weights

        def load_lora_weights(*arguments: Any, **options: Any) -> None:
            real(*arguments, **options)
            pipeline.unet.get_submodule("down_blocks.0.resnets.0.conv1").scaling["proof"] = 0.25

        pipeline.load_lora_weights = load_lora_weights
        return pipeline

    monkeypatch.setattr("lcm_arith.proof.without_weights", misreading)
    with pytest.raises(VerificationError, match="1 with other values"):
        prove_loads(path, files.MODEL)


def test_the_proof_fails_where_the_base_lacks_a_module(tiny_sd15: Path, tmp_path: Path) -> None:
    path, component = tmp_path / "x.safetensors", "unet.down_blocks"
    modules = ("0.attentions.0.proj_in", "7.attentions.0.proj_in")
    down, up = torch.ones(1, 8, 1, 1), torch.ones(8, 1, 1, 1)
    save_file(
        {
            f"{component}.{module}.lora_{side}.weight": values.clone()
            for module in modules
            for side, values in (("A", down), ("B", up))
        },
        path,
    )
    with pytest.raises(VerificationError, match=r"1 modules missing|does not load"):
        prove_loads(path, tiny_sd15)
