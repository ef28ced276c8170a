"""Every dialect is read into canonical modules and written from them, with nothing lost."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from support import relative_error, whole_adapter
from torch import Tensor

from lcm_arith.adapters import load
from lcm_arith.architectures import architecture, meta_parts, meta_unet
from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import InvalidContentError, NotFoundError, UsageError
from lcm_arith.formats import dialects, writers
from lcm_arith.formats.keys import canonical, split
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.modules import (
    FAMILIES,
    PUBLISHED,
    candidates,
    kohya_name,
    sgm_names,
    table,
    weight_shapes,
)
from lcm_arith.targets import LCM_TARGETS

SHARED: Final = Path(__file__).resolve().parents[2] / "shared" / "adapters"
TARGETS: Final = {"sd15": (278, 67.25), "sd2": (278, 67.78), "ssd1b": (423, 104.90),
                  "sdxl": (788, 196.75)}  # fmt: skip


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("family", PUBLISHED)
def test_tables_have_the_papers_modules_and_parameters(family: str) -> None:
    """arXiv:2311.05556, Table 1: 67.5, 105 and 197 million parameters at rank 64."""
    deltas = {m: d for m, d in whole_adapter(family, LCM_TARGETS).items() if m.startswith("unet.")}
    count, millions = TARGETS[family]
    assert len(deltas) == count
    size = sum(64 * (d.up.numel() + d.down.numel()) for d in deltas.values())
    assert size / 1e6 == pytest.approx(millions, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("family", PUBLISHED)
def test_tables_are_what_diffusers_and_transformers_build(family: str) -> None:
    import build_tables

    parts = meta_parts(family)
    made = build_tables.table(parts)
    assert {m: tuple(shape) for m, shape in made.items()} == dict(table(family))
    assert list(made) == list(table(family))  # the walk that numbers cloneofsimo's modules
    assert build_tables.parameters(parts) == architecture(family).parameters


@pytest.mark.parametrize("family", FAMILIES)
def test_every_spelling_of_every_module_is_read(family: str) -> None:
    for module in table(family):
        for encoders in (1, 2):
            assert canonical(kohya_name(module, text_encoders=encoders)) == module
        path = module.split(".", 1)[1]
        for stem in (module, f"unet.base_model.model.{path}", f"base_model.model.{path}"):
            if module.startswith("unet."):
                assert canonical(stem) == module
    if family in PUBLISHED:
        names = sgm_names(family)
        assert len(set(names.values())) == len(names)
        for module, path in names.items():
            assert canonical(f"diffusion_model.{path}") == module
            assert canonical(f"lora_unet_{path.replace('.', '_')}") == module


@pytest.mark.parametrize("name", writers.WRITERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_round_trip_loses_no_module_and_no_number(family: str, name: str) -> None:
    deltas = whole_adapter(family, LCM_TARGETS, (2,))
    if name == "peft":
        deltas = {m: d for m, d in deltas.items() if m.startswith("unet.")}
    scaled = {m: d * (0.5 + i % 3) for i, (m, d) in enumerate(deltas.items())}
    if family not in PUBLISHED and name in ("kohya-sgm", "comfy"):
        with pytest.raises(UsageError, match="block names"):
            writers.spell(scaled, name, family)
        return
    tensors, metadata = writers.spell(scaled, name, family)
    back = dialects.parse(tensors, metadata, name)
    assert back.deltas.keys() == scaled.keys()
    # one product by the scale in float32
    assert max(relative_error(back.deltas[m], scaled[m]) for m in scaled) <= 1e-6


@pytest.mark.parametrize(
    "key",
    [
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.default.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora.down.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_linear_layer.down.weight",
        "unet.base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "lora_unet_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q_lora_down.weight",
        "lora_unet_input_blocks_1_1_transformer_blocks_0_attn1_to_q.lora_down.weight",
        "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "unet:0:down",
    ],
)
def test_spellings_seen_in_real_files(key: str) -> None:
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    assert split(key) == (module, "down")


def test_old_attention_processors_name_the_output_layer_without_its_number() -> None:
    key = "mid_block.attentions.0.transformer_blocks.0.attn2.processor.to_out_lora.up.weight"
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0"
    assert split(key) == (module, "up")


MODULE: Final = "unet.down_blocks.0.resnets.0.conv1"
LINEAR: Final = "unet.down_blocks.0.resnets.0.time_emb_proj"


def one(module: str, parts: Mapping[str, Tensor]) -> LowRankDelta:
    return dialects.parse({f"{module}.{k}": t for k, t in parts.items()}, {}, "x").deltas[module]


def close(delta: LowRankDelta, want: Tensor) -> None:
    got = delta.dense(torch.float64)
    assert got.shape == want.shape
    assert float((got - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize("tucker", [False, True])
def test_loha_is_the_product_of_two_products(tucker: bool) -> None:
    random = generator()
    a = [torch.randn(5, 3, generator=random).double() for _ in range(2)]  # [out, r]
    alpha = torch.tensor(6.0)
    if not tucker:
        b = [torch.randn(3, 4, generator=random).double() for _ in range(2)]  # [r, in]
        parts = {"hada_w1_a": a[0], "hada_w1_b": b[0], "hada_w2_a": a[1], "hada_w2_b": b[1]}
        close(one(LINEAR, {**parts, "alpha": alpha}), 2 * (a[0] @ b[0]) * (a[1] @ b[1]))
        return
    b = [torch.randn(3, 4, generator=random).double() for _ in range(2)]
    t = [torch.randn(3, 3, 2, 2, generator=random).double() for _ in range(2)]
    whole = [torch.einsum("ijkl,pi,jr->prkl", t[i], a[i], b[i]) for i in range(2)]
    parts = {f"hada_w{i + 1}_a": a[i].T for i in range(2)}
    parts |= {f"hada_w{i + 1}_b": b[i] for i in range(2)}
    parts |= {f"hada_t{i + 1}": t[i] for i in range(2)}
    close(one(MODULE, {**parts, "alpha": alpha}), 2 * whole[0] * whole[1])


@pytest.mark.parametrize("first", ["full", "factored"])
@pytest.mark.parametrize("second", ["full", "factored", "convolution", "tucker"])
def test_lokr_is_the_kronecker_product(first: str, second: str) -> None:
    random = generator()

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random).double()

    parts: dict[str, Tensor] = {"alpha": torch.tensor(6.0)}
    w1, rank = draw(2, 3), None
    if first == "full":
        parts["lokr_w1"] = w1
    else:
        parts |= {"lokr_w1_a": draw(2, 3), "lokr_w1_b": draw(3, 3)}
        w1, rank = parts["lokr_w1_a"] @ parts["lokr_w1_b"], 3
    kernel = () if second in ("full", "factored") else (3, 3)
    if second in ("full", "convolution"):
        w2 = parts["lokr_w2"] = draw(5, 4, *kernel)
    elif second == "factored":
        parts |= {"lokr_w2_a": draw(5, 2), "lokr_w2_b": draw(2, 4)}
        w2, rank = parts["lokr_w2_a"] @ parts["lokr_w2_b"], 2
    else:
        parts |= {"lokr_t2": draw(2, 2, 3, 3), "lokr_w2_a": draw(2, 5), "lokr_w2_b": draw(2, 4)}
        t2, a, b = (parts[f"lokr_{name}"] for name in ("t2", "w2_a", "w2_b"))
        w2, rank = torch.einsum("ijkl,ip,jr->prkl", t2, a, b).contiguous(), 2
    want = torch.kron(w1[:, :, None, None], w2) if kernel else torch.kron(w1, w2)
    close(one(MODULE if kernel else LINEAR, parts), want * (6.0 / rank if rank else 1.0))


def test_cp_locon_is_a_convolution_through_three() -> None:
    random = generator()
    up, down = torch.randn(5, 2, 1, 1, generator=random), torch.randn(3, 4, 1, 1, generator=random)
    mid = torch.randn(2, 3, 3, 3, generator=random)
    want = torch.einsum("or,rskl,si->oikl", up[..., 0, 0], mid, down[..., 0, 0]).double()
    parts = {"lora_up.weight": up, "lora_down.weight": down, "lora_mid.weight": mid}
    close(one(MODULE, {**parts, "alpha": torch.tensor(6.0)}), 2 * want)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 2, 3, 3), (40, 2, 3, 3)])
def test_a_full_difference_is_itself(shape: tuple[int, ...]) -> None:
    weight = torch.randn(*shape, generator=generator())
    delta = one(MODULE if len(shape) == 4 else LINEAR, {"diff": weight})
    close(delta, weight.double())
    assert delta.rank == min(shape[0], math.prod(shape[1:]))


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (("unet.a.lora_A.weight", "unet.a.lora_B.weight", "what.is.this"), "what.is.this"),
        (("unet.a.oft_blocks",), "OFT"),
        (("unet.a.lora_B.bias",), "lora_bias"),
        (("unet.a.a1.weight",), "GLoRA"),
        (("unet.a.on_input",), "IA3"),
        (("unet.a.lora_A.weight", "unet.a.lora_B.weight", "<s1>"), "textual inversion"),
        (("unet.a.lora_A.weight", "unet.a.lora_B.weight", "unet.a.dora_scale"), "DoRA"),
        (("unet.a.lora_A.weight",), "lacks up"),
        (("unet.a.lokr_w1",), "lacks lokr_w2"),
        (("unet.a.alpha",), "only alpha"),
        (("unet.a.diff_b",), "one list of numbers"),
        (("unet.a.lora_A.weight", "unet.a.lora_down.weight", "unet.a.lora_B.weight"), "two names"),
        ((), "0 of 0 keys"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(keys: tuple[str, ...], told: str) -> None:
    tensors = {key: torch.ones(2, 2) for key in keys}
    with pytest.raises(InvalidContentError) as caught:
        dialects.parse(tensors, {}, "file.safetensors")
    assert told in str(caught.value)
    assert "file.safetensors" in caught.value.message


@pytest.mark.parametrize("family", PUBLISHED)
def test_diffusers_understands_our_kohya_names(family: str) -> None:
    """An independent reader: diffusers' own converters, as its pipelines call them."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    deltas = whole_adapter(family, (*LCM_TARGETS, "q_proj", "out_proj"))
    xl = family in ("ssd1b", "sdxl")
    pipeline: Any = StableDiffusionXLPipeline if xl else StableDiffusionPipeline
    for name in ("kohya", "kohya-sgm")[: 2 if xl else 1]:
        tensors, _ = writers.spell(deltas, name, family)
        config = meta_unet(family).config
        state, alphas = pipeline.lora_state_dict(tensors, unet_config=config)[:2]
        theirs = dialects.parse(state, {}, "diffusers").deltas
        assert theirs.keys() == deltas.keys()
        assert set(alphas.values()) == {1.0}
        assert max(relative_error(theirs[m], deltas[m]) for m in deltas) == 0.0


@pytest.mark.parametrize(
    ("name", "modules", "text"),
    [("analog_svd_rank4", 192, 48), ("lora_disney", 192, 48), ("catundchat_sd15", 128, 0)],
)
def test_real_adapters_are_read_whole(name: str, modules: int, text: int) -> None:
    path = SHARED / f"{name}.safetensors"
    if not path.exists():
        pytest.skip("the real adapters are not at hand")
    file = SafeFile.open(path)
    tensors, metadata = dict(file), file.metadata
    words = [key for key in tensors if key.startswith("<")]
    if words:
        with pytest.raises(InvalidContentError, match="textual inversion"):
            dialects.parse(tensors, metadata, name)
    found = dialects.parse({k: t for k, t in tensors.items() if k not in words}, metadata, name)
    assert (len(found.deltas), found.without_alpha) == (modules, modules)
    assert sum(m.startswith("text_encoder.") for m in found.deltas) == text
    shapes = {m: tuple(d.shape) for m, d in found.deltas.items()}
    assert [c.family for c in candidates(shapes)] == ["sd15"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    "endings", [LCM_TARGETS, ("to_q", "to_k", "to_v", "to_out.0"), ("attn2.to_k",)]
)
def test_shapes_tell_the_family(family: str, endings: tuple[str, ...]) -> None:
    found = candidates({m: tuple(d.shape) for m, d in whole_adapter(family, endings).items()})
    assert found[0].family == family
    assert found[0].coverage == 1.0
    assert {c.family for c in found} <= {family, "sdxl" if family == "ssd1b" else family}


@pytest.mark.parametrize(("family", "axes"), [("sd15", 4), ("sd2", 2), ("sdxl", 2)])
@pytest.mark.parametrize("given", [2, 4])
def test_a_layer_has_the_axes_that_its_model_loads(family: str, axes: int, given: int) -> None:
    """``proj_in`` is a 1×1 convolution in SD1.5 and linear elsewhere; files have either."""
    deltas = whole_adapter(family, ("proj_in", "attn2.to_k", "conv_shortcut"))
    wrong = {m: d if m.endswith("to_k") else d.with_axes(given) for m, d in deltas.items()}
    found = dialects.parse(*writers.spell(wrong, "kohya", family), "x")
    for module, delta in deltas.items():
        assert found.deltas[module].shape == found.outlines[module].shape == delta.shape
        assert torch.equal(found.deltas[module].dense(), delta.dense())
    assert {d.down.ndim for m, d in found.deltas.items() if m.endswith("proj_in")} == {axes}


def test_where_families_differ_a_layer_keeps_the_axes_of_its_file() -> None:
    deltas = {m: d for m, d in whole_adapter("sd15", ("proj_in",)).items() if "down_blocks.0" in m}
    for axes in (2, 4):
        given = {m: d.with_axes(axes) for m, d in deltas.items()}
        found = dialects.parse(*writers.spell(given, "kohya", "sd15"), "x").deltas
        assert {d.down.ndim for d in found.values()} == {axes}


def test_what_shapes_cannot_tell_is_a_tie() -> None:
    shapes = {m: tuple(d.shape) for m, d in whole_adapter("sd15", ("attn1.to_q",)).items()}
    assert {(c.family, c.coverage) for c in candidates(shapes)} == {("sd15", 1.0), ("sd2", 1.0)}


def test_the_embedded_table_is_its_own_files() -> None:
    from lcm_arith.embedded import files

    assert dict(table("emoji")) == weight_shapes(files.MODEL)


def test_a_folder_that_peft_wrote_is_read_with_its_ranks_and_alphas(
    tmp_path: Path, fresh_pipeline: Callable[[], Any]
) -> None:
    from peft import LoraConfig, get_peft_model

    unet = fresh_pipeline().unet
    config = LoraConfig(
        r=3,
        lora_alpha=5,
        target_modules=["to_q", "conv1"],
        alpha_pattern={"conv1": 2},
        rank_pattern={"conv1": 4},
        use_rslora=True,
        init_lora_weights=False,
    )
    model: Any = get_peft_model(unet, config)
    model.save_pretrained(str(tmp_path / "mine"))
    tau = load(tmp_path / "mine")
    layers = {n: m for n, m in model.base_model.model.named_modules() if hasattr(m, "lora_A")}
    assert set(tau) == {f"unet.{name}" for name in layers}
    for name, layer in layers.items():
        want = layer.get_delta_weight("default").detach()
        assert float((tau[f"unet.{name}"].dense() - want).norm() / want.norm()) < 1e-6


@pytest.mark.parametrize(
    ("text", "error", "told"),
    [
        (None, NotFoundError, "adapter_config.json"),
        ("{", InvalidContentError, "not JSON"),
        ("[1]", InvalidContentError, "not an object"),
        ('{"peft_type": "LOHA"}', InvalidContentError, "LOHA"),
        ('{"modules_to_save": ["x"]}', InvalidContentError, "modules_to_save"),
        ('{"r": "' + "x" * 2**20 + '"}', InvalidContentError, "1 MiB"),
    ],
)
def test_a_folder_that_is_no_adapter_says_why(
    tmp_path: Path, text: str | None, error: type[Exception], told: str
) -> None:
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    if text is not None:
        (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(error, match=told):
        load(tmp_path)
