"""Programs that are not ours understand our files whole: diffusers, PEFT and LyCORIS.

Their models here have no weights: every parameter is one zero, expanded to its shape.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from commands import fails, run
from peft import PeftModel
from support import relative_error, whole_adapter
from torch import Tensor, nn
from torch.nn import functional

from lcm_arith.adapters import load
from lcm_arith.architectures import meta_parts
from lcm_arith.delta import LowRankDelta
from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError
from lcm_arith.formats import dialects, writers
from lcm_arith.formats.diffusers import ADAPTER_METADATA
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.modules import ending, kohya_name, with_text_model
from lcm_arith.sampling import load_pipeline
from lcm_arith.saving import save
from lcm_arith.targets import LCM_TARGETS
from lcm_arith.vector import Source, TaskVector

TEXT: Final = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
RANKS: Final = (2, 2, 2, 4, 2, 2, 3)  # few others: of kohya files diffusers is slow above 512
COUNTS: Final = {"sd15": (278, 72), "sdxl": (788, 72 + 192)}
# One product by a scale in float32, in the file or in the reader.
TOLERANCE: Final = 1e-6


@cache
def vector(family: str, endings: tuple[str, ...] = (*LCM_TARGETS, *TEXT)) -> TaskVector:
    return TaskVector(((1.0, Source(whole_adapter(family, endings, RANKS), {"sha256": family})),))


def without_weights(model: nn.Module) -> Any:
    """A model of the meta device with zeros that take no memory."""
    for module in model.modules():
        for name, weight in module.named_parameters(recurse=False):
            setattr(module, name, nn.Parameter(zeros_like(weight), requires_grad=False))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, zeros_like(buffer))
    return model


def zeros_like(tensor: Tensor) -> Tensor:
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape)


def components(family: str) -> dict[str, Any]:
    """UNet and text encoders by name, without weights."""
    parts = meta_parts(family)
    del parts["vae"]
    return {name: without_weights(part) for name, part in parts.items()}


def layers(parts: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Canonical module → PEFT's layer, of all that were placed."""
    from peft.tuners.lora import LoraLayer

    for component, part in parts.items():
        for name, layer in part.named_modules():
            if isinstance(layer, LoraLayer):
                yield with_text_model(f"{component}.{name}"), layer


def check_peft(parts: Mapping[str, Any], tau: Mapping[str, LowRankDelta], name: str) -> None:
    """Every module was placed, no other, and each with our ΔW."""
    placed = dict(layers(parts))
    assert placed.keys() == set(tau)
    kinds = set()
    for module, layer in placed.items():
        down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
        theirs = LowRankDelta(down.detach(), up.detach(), layer.scaling[name])
        assert relative_error(theirs, tau[module]) <= TOLERANCE, module
        if ending(module) not in kinds:  # dense, as PEFT multiplies it out, once a kind of layer
            kinds.add(ending(module))
            dense, ours = layer.get_delta_weight(name).detach(), tau[module].dense()
            assert dense.shape == ours.shape
            assert float((dense - ours).norm() / ours.norm()) <= TOLERANCE, module


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("sd15", "diffusers"),
        ("sd15", "kohya"),
        ("sdxl", "diffusers"),
        ("sdxl", "kohya-sgm"),
    ],
)
def test_diffusers_loads_our_file_whole(tmp_path: Path, family: str, form: str) -> None:
    """As its pipelines do: state dict, alphas and header → UNet and text encoders."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    tau, parts = vector(family), components(family)
    unet, text = COUNTS[family]
    assert sum(module.startswith("unet.") for module in tau) == unet
    assert len(tau) == unet + text
    save(tau, tmp_path / "ours.safetensors", form=form)

    pipeline: Any = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    state, alphas, header = pipeline.lora_state_dict(
        str(tmp_path / "ours.safetensors"), unet_config=parts["unet"].config,
        return_lora_metadata=True,
    )  # fmt: skip
    assert len(state) == 2 * len(tau)
    assert len(alphas or {}) == (0 if form == "diffusers" else len(tau))
    options = {"adapter_name": "ours", "metadata": header, "low_cpu_mem_usage": True}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*(?:did not match|unexpected|missing)")
        pipeline.load_lora_into_unet(state, alphas, parts["unet"], **options)
        for name in parts.keys() - {"unet"}:
            pipeline.load_lora_into_text_encoder(state, alphas, parts[name], prefix=name, **options)
    check_peft(parts, tau, "ours")


def test_peft_loads_our_file_into_a_model_of_its_own(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict

    tau = vector("sd15", LCM_TARGETS)
    path = tmp_path / "adapter_model.safetensors"
    save(tau, path, form="peft")
    said = json.loads(SafeFile.open(path).metadata[ADAPTER_METADATA])
    config = LoraConfig(**{key.removeprefix("unet."): value for key, value in said.items()})
    model = get_peft_model(components("sd15")["unet"], config)
    result: Any = set_peft_model_state_dict(model, load_peft_weights(str(tmp_path), device="cpu"))
    assert not result.unexpected_keys
    assert not [key for key in result.missing_keys if "lora_" in key]
    check_peft({"unet": model.base_model.model}, tau, "default")


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_lycoris_reads_our_kohya_file_whole(tmp_path: Path, family: str) -> None:
    from lycoris import LycorisNetwork, create_lycoris_from_weights

    tau, parts = vector(family), components(family)
    save(tau, tmp_path / "ours.safetensors", form="kohya")
    encoders = len(parts) - 1
    names = {kohya_name(module, text_encoders=encoders): module for module in tau}
    found: dict[str, Any] = {}
    for component, part in parts.items():
        prefix = kohya_name(f"{component}.", text_encoders=encoders).removesuffix("_")
        if component != "unet" and not hasattr(part, "text_model"):
            part = nn.ModuleDict({"text_model": part})  # as LyCORIS' programs know the encoder
        LycorisNetwork.apply_preset({"lora_prefix": prefix})
        try:
            network, _ = create_lycoris_from_weights(1.0, tmp_path / "ours.safetensors", part)
        finally:
            LycorisNetwork.apply_preset({"lora_prefix": "lycoris"})
        found |= {names[own.lora_name]: own for own in network.loras}
    assert found.keys() == set(tau)
    kinds = set()
    for module, own in found.items():
        down, up = own.lora_down.weight.detach(), own.lora_up.weight.detach()
        assert relative_error(LowRankDelta(down, up, own.scale), tau[module]) <= TOLERANCE, module
        if ending(module) not in kinds:
            kinds.add(ending(module))
            dense, ours = own.get_diff_weight()[0].detach(), tau[module].dense()
            assert float((dense - ours).norm() / ours.norm()) <= TOLERANCE, module


@pytest.mark.parametrize("layer", ["linear", "pointwise", "convolution"])
@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("locon", {}),
        ("locon", {"use_tucker": True}),
        ("loha", {}),
        ("loha", {"use_tucker": True}),
        ("lokr", {"factor": 4}),
        ("lokr", {"factor": 4, "decompose_both": True}),
        ("lokr", {"factor": 4, "use_tucker": True}),
        ("full", {}),
    ],
)
def test_what_lycoris_writes_is_read_as_lycoris_means_it(
    kind: str, options: dict[str, Any], layer: str
) -> None:
    """Its layer's own forward pass is the reference; ours has the shape that a model loads."""
    from lycoris.wrapper import network_module_dict

    random = torch.Generator().manual_seed(0)
    base: nn.Linear | nn.Conv2d = nn.Linear(1280, 320, bias=False)
    module, size = "unet.down_blocks.0.resnets.0.time_emb_proj", [5, 1280]
    apply: Callable[[Tensor, Tensor], Tensor] = functional.linear
    if layer == "convolution":
        base = nn.Conv2d(320, 320, 3, bias=False)
        module, size = "unet.down_blocks.0.resnets.0.conv1", [1, 320, 5, 5]
        apply = functional.conv2d
    elif layer == "pointwise":
        base = nn.Conv2d(320, 640, 1, bias=False)
        module, size = "unet.down_blocks.1.resnets.0.conv_shortcut", [1, 320, 5, 5]
        apply = functional.conv2d
    x = torch.randn(size, generator=random)
    nn.init.zeros_(base.weight)
    own = network_module_dict[kind](kohya_name(module), base, 1.0, 3, 2.0, **options)
    for parameter in own.parameters():
        nn.init.normal_(parameter, generator=random)
    written: dict[str, Tensor] = own.custom_state_dict()
    tensors = {f"{kohya_name(module)}.{part}": t.detach() for part, t in written.items()}
    delta = dialects.parse(tensors, {}, kind).deltas[module]
    assert delta.shape == base.weight.shape
    theirs = own(x).detach()  # its get_diff_weight takes the scale of LoHa and LoKr twice (4.1.3)
    error = float((apply(x, delta.dense()) - theirs).norm() / theirs.norm())
    assert error <= 1e-5  # float32 products of up to four factors


@cache
def there_and_read(
    form: str, endings: tuple[str, ...]
) -> tuple[Mapping[str, LowRankDelta], Mapping[str, LowRankDelta]]:
    """An adapter of SD1.5, and what is read of it in a dialect."""
    plain = whole_adapter("sd15", endings, RANKS)
    before = {m: d * (0.5 + i % 3) for i, (m, d) in enumerate(plain.items())}
    return before, dialects.parse(*writers.spell(before, form, "sd15"), form).deltas


@pytest.mark.parametrize("second", writers.WRITERS)
@pytest.mark.parametrize("first", writers.WRITERS)
def test_from_any_dialect_to_any_other_nothing_is_lost(first: str, second: str) -> None:
    """LoRA and LoCon (3×3, 1×1, with stride), mixed ranks, scales other than 1."""
    endings = LCM_TARGETS if "peft" in (first, second) else (*LCM_TARGETS, *TEXT)
    before, there = there_and_read(first, endings)
    back = dialects.parse(*writers.spell(there, second, "sd15"), second)
    assert back.deltas.keys() == before.keys()
    assert back.kinds == {"LoRA": len(before)}
    assert max(relative_error(back.deltas[m], before[m]) for m in before) <= TOLERANCE


@pytest.mark.parametrize("form", writers.WRITERS)
def test_no_dialect_leaves_out_what_it_cannot_hold(form: str) -> None:
    """A PEFT file is of one component; Stability's names are those of Stable Diffusion."""
    deltas = whole_adapter("sdxl", ("q_proj", "attn1.to_q"))
    if form == "peft":
        with pytest.raises(InvalidContentError, match=r"44 modules outside the UNet"):
            writers.spell(deltas, form, "sdxl")
    else:
        assert len(writers.spell(deltas, form, "sdxl")[0]) % len(deltas) == 0


def test_alpha_is_one_for_all_modules_and_exact_in_half_precision(tmp_path: Path) -> None:
    """Diffusers loses alphas that differ; bfloat16 has no 257."""
    ranks = (257, 300)
    tau = TaskVector(((1.0, Source(whole_adapter("sd15", ("attn2.to_k",), ranks))),))
    save(tau, tmp_path / "half.safetensors", form="kohya", dtype=torch.bfloat16)
    tensors = SafeFile.open(tmp_path / "half.safetensors")
    assert {float(t) for key, t in tensors.items() if key.endswith(".alpha")} == {257.0}
    back = load(tmp_path / "half.safetensors")
    assert {back.rank_of(module) for module in back} == set(ranks)
    # bfloat16 keeps 8 bits of each factor
    assert max(relative_error(back[m], tau[m]) for m in tau) <= 2**-7


FLAT: Final = "encoder.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    "stem",
    [
        f"text_encoder.{FLAT}",
        f"text_encoder.text_model.{FLAT}",
        f"base_model.model.{FLAT}",
        f"base_model.model.text_model.{FLAT}",
        f"lora_te_{FLAT.replace('.', '_')}",
        f"lora_te1_text_model_{FLAT.replace('.', '_')}",
    ],
)
def test_a_text_encoder_is_one_model_whether_transformers_names_text_model_or_not(
    stem: str,
) -> None:
    parts = {"lora_down.weight": torch.ones(2, 768), "lora_up.weight": torch.ones(768, 2)}
    if "." in stem:
        parts = {"lora_A.weight": torch.ones(2, 768), "lora_B.weight": torch.ones(768, 2)}
    header = json.dumps({"text_encoder.alpha_pattern": {f"^{FLAT}": 1.0}})
    found = dialects.parse(
        {f"{stem}.{part}": t for part, t in parts.items()}, {ADAPTER_METADATA: header}, "x"
    )
    (delta,) = found.deltas.values()
    assert list(found.deltas) == [f"text_encoder.text_model.{FLAT}"]
    assert delta.scale == 0.5


def test_what_diffusers_saves_of_a_text_encoder_is_read(tmp_path: Path) -> None:
    from diffusers import StableDiffusionPipeline
    from peft import LoraConfig, get_peft_model_state_dict

    encoder = components("sd15")["text_encoder"]
    encoder.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["q_proj"]), "x")
    for layer in encoder.modules():
        if hasattr(layer, "lora_B"):
            nn.init.normal_(layer.lora_B["x"].weight)
    state: Any = get_peft_model_state_dict(encoder, adapter_name="x")
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, text_encoder_lora_layers=state, weight_name="theirs.safetensors",
        text_encoder_lora_adapter_metadata=encoder.peft_config["x"].to_dict(),
    )  # fmt: skip
    check_peft({"text_encoder": encoder}, load(tmp_path / "theirs.safetensors"), "x")


def test_our_peft_folder_is_what_peft_loads(tmp_cwd: Path) -> None:
    run("combine", "noto:0.8", "lcm:-0.5,mid=0", "-o", "sum.safetensors")
    run("convert", "sum.safetensors", "-o", "folder", "--format", "peft")
    assert sorted(path.name for path in Path("folder").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors",
    ]  # fmt: skip
    tau = load("sum.safetensors")
    unet: Any = load_pipeline(files.MODEL).unet
    before = {m: unet.get_submodule(m.removeprefix("unet.")).weight.clone() for m in tau}
    merged: Any = PeftModel.from_pretrained(unet, "folder").merge_and_unload()
    for module, weight in before.items():
        after = merged.get_submodule(module.removeprefix("unet.")).weight
        # W + ΔW in float32, of which W is the larger part
        torch.testing.assert_close(after - weight, tau[module].dense(), rtol=0, atol=2e-6)
    back = load("folder")
    assert set(back) == set(tau)
    assert {m: tau[m].rank for m in tau} == {m: back[m].rank for m in back}
    assert len({tau[m].rank for m in tau}) > 1
    assert fails("convert", "sum.safetensors", "-o", "folder", "--format", "peft")[0] == 3
    run("convert", "lcm", "-o", "folder", "--format", "peft", "--force")
    lcm = load("lcm")
    assert {d.rank for d in load("folder").values()} == {lcm[m].rank for m in lcm}
