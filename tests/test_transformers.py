"""Flux and SD3: both spellings are read, respelled exactly, and never taken for two models."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from commands import fails, run
from support import relative_error, whole_adapter
from test_readers import check_peft, without_weights
from torch import Tensor

from lcm_arith import dit
from lcm_arith.adapters import family_of, load
from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import IncompatibleError, InvalidContentError, UsageError
from lcm_arith.formats import dialects, writers
from lcm_arith.formats.keys import split
from lcm_arith.modules import candidates
from lcm_arith.projection import reproject
from lcm_arith.respelling import respelled
from lcm_arith.saving import save
from lcm_arith.vector import Source, TaskVector

# As diffusers' published configurations; in the order of dit.layers.
CONFIGS: Final[dict[str, list[dict[str, Any]]]] = {
    "flux": [{"guidance_embeds": True}],
    "sd3": [
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536},
        {"num_layers": 24, "num_attention_heads": 24, "caption_projection_dim": 1536,
         "dual_attention_layers": tuple(range(13)), "qk_norm": "rms_norm"},
        {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432,
         "qk_norm": "rms_norm"},
    ],
}  # fmt: skip
SIZES: Final = [(family, at) for family, configs in CONFIGS.items() for at in range(len(configs))]
ENCODER: Final = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
TOLERANCE: Final = 1e-6  # one product by a scale in float32


def transformer(family: str, **config: Any) -> Any:
    """diffusers' model on the meta device."""
    from diffusers import FluxTransformer2DModel, SD3Transformer2DModel

    kind: Any = FluxTransformer2DModel if family == "flux" else SD3Transformer2DModel
    with torch.device("meta"):
        return kind(**config)


def random_updates(shapes: dict[str, dit.Shape], scale: float = 1.0) -> dict[str, LowRankDelta]:
    """Ranks 2 and 3 in turn."""
    generator, deltas = torch.Generator().manual_seed(len(shapes)), {}
    for at, (module, (out, *inner)) in enumerate(shapes.items()):
        rank, ones = 2 + at % 2, (1,) * (len(inner) - 1)
        down = torch.randn(rank, *inner, generator=generator)
        up = torch.randn(out, rank, *ones, generator=generator)
        deltas[module] = LowRankDelta(down, up, scale)
    return deltas


def vector(deltas: dict[str, LowRankDelta]) -> TaskVector:
    return TaskVector(((1.0, Source(deltas, {"sha256": str(len(deltas))})),))


@cache
def updates(family: str, spelling: str, at: int = 0, blocks: int | None = None) -> TaskVector:
    """A random adapter of one published model; with ``blocks``, of only so many of each kind."""
    shapes = dit.spelled(dit.layers(family)[at], spelling)
    if blocks is not None:
        number = {m: re.search(r"blocks\.(\d+)", m) for m in shapes}
        shapes = {m: s for m, s in shapes.items() if not (n := number[m]) or int(n[1]) < blocks}
    return vector(random_updates({**shapes, ENCODER: (768, 768)}))


def close(one: TaskVector, other: TaskVector, tolerance: float = TOLERANCE) -> None:
    assert set(one) == set(other)
    assert max(relative_error(one[module], other[module]) for module in other) <= tolerance


@pytest.mark.parametrize(("family", "at"), SIZES)
def test_layers_are_those_that_diffusers_builds(family: str, at: int) -> None:
    model = transformer(family, **CONFIGS[family][at])
    built = {
        f"transformer.{path}": tuple(module.weight.shape)
        for path, module in model.named_modules()
        if isinstance(getattr(module, "weight", None), Tensor) and module.weight.ndim > 1
    }
    assert built == dit.spelled(dit.layers(family)[at], dit.DIFFUSERS)


def checkpoint(family: str, shapes: dict[str, dit.Shape]) -> dict[str, Tensor]:
    """A whole model in its own spelling, each weight one column with its rows' numbers."""
    made = {}
    for module, (out, *_) in shapes.items():
        path = module.removeprefix("transformer.")
        made[f"{path}.weight"] = torch.arange(out).float()[:, None]
        made[f"{path}.bias"] = torch.zeros(out)
        norms = ("query_norm", "key_norm")
        if path.endswith("_attn.qkv"):
            stem = path.removesuffix("qkv")
            made |= {f"{stem}norm.{norm}.scale": torch.zeros(1) for norm in norms}
        elif path.endswith("linear1"):
            stem = path.removesuffix("linear1")
            made |= {f"{stem}norm.{norm}.scale": torch.zeros(1) for norm in norms}
    return made if family == "flux" else {**made, "pos_embed": torch.zeros(1)}


@pytest.mark.parametrize(("family", "at"), SIZES)
def test_respelling_is_what_diffusers_makes_of_a_whole_model(family: str, at: int) -> None:
    """Its converters of checkpoints, row by row: names, order of the rows, exchanged halves."""
    from diffusers.loaders import single_file_utils

    shapes = dit.spelled(dit.layers(family)[at], dit.OWN)
    convert = getattr(single_file_utils, f"convert_{family}_transformer_checkpoint_to_diffusers")
    theirs = {
        f"transformer.{key.removesuffix('.weight')}": tensor.flatten()
        for key, tensor in convert(checkpoint(family, shapes)).items()
        if key.endswith(".weight") and ".norm_" not in key
    }
    rows = {}
    for module, (out, *inner) in shapes.items():
        ones = (1,) * (len(inner) - 1)
        rows[module] = LowRankDelta(torch.ones(1, *inner), torch.arange(out).reshape(-1, 1, *ones))
    ours = respelled(vector(rows), dit.DIFFUSERS)
    assert set(ours) == theirs.keys()
    assert all(torch.equal(ours[m].up.flatten().float(), theirs[m]) for m in theirs)


@pytest.mark.parametrize("spelling", [dit.OWN, dit.DIFFUSERS])
@pytest.mark.parametrize(("family", "at"), SIZES)
def test_there_and_back_nothing_changes(family: str, at: int, spelling: str) -> None:
    other = dit.OWN if spelling == dit.DIFFUSERS else dit.DIFFUSERS
    before = updates(family, spelling, at, blocks=2)
    there = respelled(before, other)
    assert dit.spellings_of(there).keys() == {other}
    close(respelled(there, spelling), before)


def test_what_was_taken_apart_and_put_together_has_its_old_rank() -> None:
    before = updates("flux", dit.OWN, blocks=1)
    back = respelled(respelled(before, dit.DIFFUSERS), dit.OWN)
    joined = "transformer.single_blocks.0.linear1"
    assert back.rank_of(joined) == 4 * before.rank_of(joined)
    close(reproject(back, 3), before, 1e-5)  # an SVD in float32


def test_parts_that_are_not_adapted_become_zeros_of_the_whole() -> None:
    adapted = updates("flux", dit.DIFFUSERS, blocks=1)
    some = {m: adapted[m] for m in adapted if m.endswith(("0.attn.to_q", "0.attn.to_v"))}
    whole = respelled(vector(some), dit.OWN)["transformer.double_blocks.0.img_attn.qkv"].dense()
    q, k, v = whole.chunk(3)
    parts = "transformer.transformer_blocks.0.attn"
    torch.testing.assert_close(q, some[f"{parts}.to_q"].dense())
    torch.testing.assert_close(v, some[f"{parts}.to_v"].dense())
    assert not k.any()


@pytest.mark.parametrize("spelling", [dit.OWN, dit.DIFFUSERS])
def test_diffusers_reads_our_kohya_file_of_flux(tmp_path: Path, spelling: str) -> None:
    """All 19 and 38 blocks through its own converter, of parts put together by us as well."""
    from diffusers import FluxPipeline

    tau = updates("flux", spelling)
    path = tmp_path / "kohya.safetensors"
    save(tau, path, form="kohya")
    kind: Any = FluxPipeline
    state: dict[str, Tensor] = kind.lora_state_dict(str(path))
    # Its converter forgets the component of the layers outside the blocks.
    named = {
        key if key.startswith(("transformer.", "text_encoder.")) else f"transformer.{key}": tensor
        for key, tensor in state.items()
    }
    theirs = vector(dict(dialects.parse(named, {}, "theirs").deltas))
    close(theirs, respelled(tau, dit.DIFFUSERS))


def test_peft_loads_our_folder_of_a_transformer(tmp_cwd: Path) -> None:
    from peft import PeftModel

    tau = updates("flux", dit.DIFFUSERS, blocks=1)
    tau = vector({m: tau[m] for m in tau if m != ENCODER})
    save(tau, "one.safetensors")
    run("convert", "one.safetensors", "--format", "peft", "-o", "folder")
    close(load("folder"), tau)
    model = without_weights(transformer("flux", guidance_embeds=True, num_layers=1,
                                        num_single_layers=1))  # fmt: skip
    loaded: Any = PeftModel.from_pretrained(model, "folder")
    check_peft({"transformer": loaded.base_model.model}, tau, "default")


@pytest.mark.parametrize("family", dit.TRANSFORMERS)
def test_diffusers_loads_our_file_of_a_transformer_whole(tmp_path: Path, family: str) -> None:
    from diffusers import FluxPipeline, StableDiffusion3Pipeline

    tau = updates(family, dit.OWN, blocks=2)
    save(tau, tmp_path / "ours.safetensors")
    kind: Any = FluxPipeline if family == "flux" else StableDiffusion3Pipeline
    state, header = kind.lora_state_dict(
        str(tmp_path / "ours.safetensors"), return_lora_metadata=True
    )
    config = CONFIGS[family][0] | {"num_layers": 3}
    few = {"num_single_layers": 2} if family == "flux" else {}
    model = without_weights(transformer(family, **config, **few))
    kind.load_lora_into_transformer(
        state, transformer=model, adapter_name="ours", metadata=header, low_cpu_mem_usage=True,
        **({"network_alphas": None} if family == "flux" else {}),
    )  # fmt: skip
    want = respelled(tau, dit.DIFFUSERS)
    check_peft({"transformer": model}, {m: want[m] for m in want if m != ENCODER}, "ours")


DOUBLE: Final = "transformer.double_blocks.3.img_attn.qkv"
Q: Final = "transformer.transformer_blocks.3.attn.to_q"


@pytest.mark.parametrize(
    ("key", "module"),
    [
        ("transformer.transformer_blocks.3.attn.to_q.lora_A.weight", Q),
        ("transformer.transformer_blocks.3.attn.to_q.lora_A.default.weight", Q),
        ("base_model.model.transformer_blocks.3.attn.to_q.lora_A.weight", Q),
        ("transformer.base_model.model.transformer_blocks.3.attn.to_q.lora_A.weight", Q),
        ("transformer_blocks.3.attn.to_q.lora_A.weight", Q),
        ("diffusion_model.transformer_blocks.3.attn.to_q.lora_down.weight", Q),
        ("lora_transformer_transformer_blocks_3_attn_to_q.lora_down.weight", Q),
        ("transformer.single_transformer_blocks.40.proj_mlp.lora_A.weight",
         "transformer.single_transformer_blocks.40.proj_mlp"),
        ("base_model.model.single_transformer_blocks.1.proj_out.lora_A.weight",
         "transformer.single_transformer_blocks.1.proj_out"),
        ("lora_unet_double_blocks_3_img_attn_qkv.lora_down.weight", DOUBLE),
        ("diffusion_model.double_blocks.3.img_attn.qkv.lora_down.weight", DOUBLE),
        ("diffusion_model.double_blocks.3.img_attn.qkv.lora_A.weight", DOUBLE),
        ("lora_unet_single_blocks_12_linear1.lora_down.weight",
         "transformer.single_blocks.12.linear1"),
        ("lora_unet_single_blocks_12_modulation_lin.lora_down.weight",
         "transformer.single_blocks.12.modulation.lin"),
        ("lora_unet_final_layer_adaLN_modulation_1.lora_down.weight",
         "transformer.final_layer.adaLN_modulation.1"),
        ("lora_unet_joint_blocks_3_context_block_attn_qkv.lora_down.weight",
         "transformer.joint_blocks.3.context_block.attn.qkv"),
        ("lora_unet_joint_blocks_3_x_block_adaLN_modulation_1.lora_down.weight",
         "transformer.joint_blocks.3.x_block.adaLN_modulation.1"),
        ("diffusion_model.joint_blocks.3.x_block.mlp.fc1.lora_down.weight",
         "transformer.joint_blocks.3.x_block.mlp.fc1"),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight", ENCODER),
    ],
)  # fmt: skip
def test_spellings_seen_in_real_files(key: str, module: str) -> None:
    assert split(key) == (module, "down")


@pytest.mark.parametrize(
    "stem",
    [
        "lora_unet_double_blocks_0_img_attn_q",
        "lora_unet_double_blocks_0_img_attn",
        "lora_unet_double_stream_modulation_img_lin",
        "lora_unet_single_blocks_x_linear1",
        "lora_unet_blocks_0_self_attn_q",
        "lora_te3_encoder_block_0_layer_0_SelfAttention_q",
        "diffusion_model.blocks.0.self_attn.q",
        "text_encoders.t5xxl.transformer.encoder.block.0.layer.0.SelfAttention.q",
    ],
)
def test_names_that_nothing_tells_are_listed_not_guessed(stem: str) -> None:
    known = "lora_unet_double_blocks_0_img_attn_qkv"
    tensors = {
        f"{name}.{part}": torch.ones(2, 2)
        for name in (known, stem)
        for part in ("lora_down.weight", "lora_up.weight")
    }
    with pytest.raises(InvalidContentError, match="2 of 4 keys map to no target module") as caught:
        dialects.parse(tensors, {}, "x")
    assert stem in caught.value.message


@pytest.mark.parametrize(("family", "at"), SIZES)
@pytest.mark.parametrize("form", writers.WRITERS)
def test_a_round_trip_loses_no_module_and_no_number(family: str, at: int, form: str) -> None:
    spelling = writers.dit_spelling(form)
    tau = updates(family, spelling, at, blocks=1)
    deltas = {m: 0.5 * tau[m] for m in tau if form != "peft" or m != ENCODER}
    if form == "kohya-sgm":
        with pytest.raises(UsageError, match=f"this one is {family}"):
            writers.spell(deltas, form, family)
        return
    back = dialects.parse(*writers.spell(deltas, form, family), form)
    close(vector(dict(back.deltas)), vector(deltas))
    wrong = dict(updates(family, dit.OWN if spelling == dit.DIFFUSERS else dit.DIFFUSERS, at, 1))
    del wrong[ENCODER]
    with pytest.raises(UsageError, match=r"own code|no name"):
        writers.spell(wrong, form, family)


@pytest.mark.parametrize("spelling", [dit.OWN, dit.DIFFUSERS])
@pytest.mark.parametrize(("family", "at"), SIZES)
def test_names_and_shapes_tell_the_family(family: str, at: int, spelling: str) -> None:
    shapes = dit.spelled(dit.layers(family)[at], spelling)
    assert [(c.family, c.coverage) for c in candidates(shapes)] == [(family, 1.0)]
    few = {m: s for m, s in shapes.items() if m.endswith(("attn.to_q", "attn.qkv"))}
    assert candidates(few)[0].family == family


def test_what_does_not_tell_the_family_is_a_tie_or_unknown() -> None:
    shared = candidates({"transformer.context_embedder": (1536, 4096)})
    assert [c.family for c in shared] == ["sd3"]
    assert {"sd15", "flux", "sd3"} <= {c.family for c in candidates({ENCODER: (768, 768)})}
    assert candidates({Q: (1152, 1152)}) == ()
    assert candidates({"transformer.blocks.0.attn1.to_q": (3072, 3072)}) == ()


@pytest.mark.parametrize("spelling", [dit.OWN, dit.DIFFUSERS])
@pytest.mark.parametrize("family", dit.TRANSFORMERS)
def test_the_commands_take_a_transformer(tmp_cwd: Path, family: str, spelling: str) -> None:
    form = "kohya" if spelling == dit.OWN else "diffusers"
    one = updates(family, spelling, blocks=1)
    other = vector({m: 3.0 * delta for m, delta in one.items()})
    save(one, "one.safetensors", form=form)
    save(other, "other.safetensors", form=form)
    told = json.loads(run("inspect", "one.safetensors", "--json").stdout)
    assert (told["dialect"], told["families"][0]["family"]) == (form, family)

    run("combine", "one.safetensors:0.5", "other.safetensors:-1", "--format", form)
    close(load("combined.safetensors"), -2.5 * one)
    terms = ("one.safetensors:0.5", "other.safetensors:-1")
    assert "relative error" in run("verify", "combined.safetensors", *terms).output
    run("negate", "one.safetensors", "-o", "negated.safetensors", "--format", form)
    close(load("negated.safetensors"), -one)
    run("reproject", "combined.safetensors", "--rank", "3", "--format", form)
    close(load("reprojected.safetensors"), -2.5 * one, 1e-5)  # an SVD in float32
    for to in ("comfy", "diffusers", "kohya"):
        call = ("convert", "one.safetensors", "--format", to, "-o", f"{to}.safetensors")
        assert json.loads(run(*call, "--json").stdout)["modules"] == len(
            respelled(one, writers.dit_spelling(to))
        )
        close(load(f"{to}.safetensors"), respelled(one, writers.dit_spelling(to)))
        run("verify", f"{to}.safetensors", "one.safetensors:1", "--tolerance", "1e-6")
        met = json.loads(run("interfere", "one.safetensors", f"{to}.safetensors", "--json").stdout)
        assert len(met["modules"]) == len(one)
        assert min(module["cosine"] for module in met["modules"]) > 0.999


def test_two_spellings_of_one_model_are_not_united(tmp_cwd: Path) -> None:
    """They would be disjoint halves, of which every program applies one."""
    own = updates("flux", dit.OWN, blocks=1)
    save(own, "kohya.safetensors", form="kohya")
    save(updates("flux", dit.DIFFUSERS, blocks=1), "peft.safetensors")
    code, told = fails("combine", "kohya.safetensors", "peft.safetensors")
    assert code == 6
    for word in ("kohya.safetensors and peft.safetensors", "double_blocks.0", "spelled in two ways",
                 "lcm-arith convert FILE --format diffusers"):  # fmt: skip
        assert word in told
    with pytest.raises(IncompatibleError, match="two ways"):
        save(own + load("peft.safetensors"), "sum.safetensors")
    mixed = {**own, **updates("flux", dit.DIFFUSERS, blocks=1)}
    tensors = {
        f"{m}.{part}.weight": t
        for m, d in mixed.items()
        for part, t in (("lora_A", d.down), ("lora_B", d.up))
    }
    with pytest.raises(InvalidContentError, match="two ways"):
        dialects.parse(tensors, {}, "x")

    run("convert", "kohya.safetensors", "--format", "diffusers", "-o", "same.safetensors")
    run("combine", "same.safetensors:1", "peft.safetensors:1")
    want = respelled(own, dit.DIFFUSERS) + load("peft.safetensors")
    close(load("combined.safetensors"), want)


def test_a_transformer_and_a_unet_are_not_combined(tmp_cwd: Path) -> None:
    """Not even where both adapt the same text encoder."""
    save(updates("flux", dit.OWN, blocks=1), "flux.safetensors", form="kohya")
    save(updates("sd3", dit.OWN, blocks=1), "sd3.safetensors", form="kohya")
    xl = whole_adapter("sdxl", ("attn2.to_k", "layers.0.self_attn.q_proj"))
    save(vector(xl), "xl.safetensors", form="kohya-sgm")
    save(vector(random_updates({Q: (640, 640)})), "unknown.safetensors")
    for names, told in (
        (("flux", "xl"), "flux.safetensors of flux, xl.safetensors of sdxl"),
        (("sd3", "flux"), "sd3.safetensors of sd3, flux.safetensors of flux"),
        (("xl", "unknown"), "unknown.safetensors of an unknown model"),
    ):
        code, message = fails("combine", *(f"{name}.safetensors" for name in names))
        assert code == 6
        assert told in message
    assert family_of(load("flux.safetensors")) == "flux"


def test_a_model_whose_other_spelling_is_not_known_keeps_its_own(tmp_cwd: Path) -> None:
    save(vector(random_updates({Q: (1152, 1152)})), "pixart.safetensors")
    assert fails("convert", "pixart.safetensors", "--format", "kohya")[0] == 2
    run("negate", "pixart.safetensors", "-o", "negated.safetensors")
    close(load("negated.safetensors"), -load("pixart.safetensors"))
