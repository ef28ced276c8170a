"""What ``--plan`` tells is what diffusers, PEFT and torch count on networks without weights."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache
from typing import Any, Final

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lcm_arith.architectures import UNETS, architecture, meta_unet
from lcm_arith.cli.plan_table import print_plan
from lcm_arith.errors import IncompatibleError, NotFoundError, UsageError
from lcm_arith.families import embedded, family
from lcm_arith.flops import passes
from lcm_arith.modules import EMBEDDED, FAMILIES, PUBLISHED
from lcm_arith.planning import plan
from lcm_arith.targets import SETS, resolve

# arXiv:2311.05556, Table 1, to the last parameter: the UNet, and LoRA of rank 64 on it.
TABLE_1: Final = {
    "sd15": (859_520_964, 67_252_224),
    "ssd1b": (1_331_334_404, 104_902_656),
    "sdxl": (2_567_463_684, 196_751_360),
}
# Counted by FlopCounterMode on diffusers' UNet with PEFT's adapter, meta device, rank 64, one
# picture of the family's size: base forward, student forward, student backward.
COUNTED: Final = {
    "sd15": (803_273_441_280, 897_594_433_536, 1_105_560_027_136),
    "sdxl": (6_761_236_398_080, 7_320_529_428_480, 8_571_761_868_800),
}


@cache
def unet(name: str) -> Any:
    return meta_unet(name)


def with_adapter(name: str, rank: int, targets: list[str] | str) -> Any:
    from peft import LoraConfig

    network = meta_unet(name)
    network.requires_grad_(False)
    with torch.device("meta"):
        network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=targets))
    return network


def trainable(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", TABLE_1)
def test_parameters_are_table_1s(name: str) -> None:
    told = plan(name, rank=64)
    assert (told.unet_parameters, told.trainable_parameters) == TABLE_1[name]


def test_parts_of_the_base_are_told_one_by_one() -> None:
    """CLIP-L, OpenCLIP-G and the VAE as transformers and diffusers build them."""
    small, large = plan("sd15"), plan("sdxl")
    assert small.text_encoder_parameters == 123_060_480
    assert large.text_encoder_parameters == 123_060_480 + 694_659_840
    assert small.vae_parameters == large.vae_parameters == 83_653_863
    assert large.total_parameters == 3_468_837_867


@pytest.mark.parametrize("name", FAMILIES)
def test_the_unet_has_the_parameters_that_diffusers_builds(name: str) -> None:
    assert plan(name).unet_parameters == sum(p.numel() for p in unet(name).parameters())


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("targets", SETS)
def test_trainable_parameters_follow_from_the_networks_own_layers(name: str, targets: str) -> None:
    """Linear layers and convolutions found by their class, and their sizes by their attributes."""
    wanted = tuple(f".{ending}" for ending in SETS[targets])
    count = 0
    for path, layer in unet(name).named_modules():
        if path.endswith(wanted) and isinstance(layer, nn.Linear):
            count += 8 * (layer.in_features + layer.out_features)
        elif path.endswith(wanted) and isinstance(layer, nn.Conv2d):
            height, width = layer.kernel_size
            count += 8 * (layer.in_channels * height * width + layer.out_channels)
    assert plan(name, rank=8, targets=targets).trainable_parameters == count


@pytest.mark.parametrize(
    ("targets", "figures"),
    [
        ("attn", {"sd15": 12_754_944, "ssd1b": 43_319_296, "sdxl": 92_897_280}),
        ("linear", {"sd15": 30_224_384, "ssd1b": 82_292_736, "sdxl": 172_503_040}),
        ("lcm", {"sd2": 67_776_512}),
    ],
)
def test_other_targets_have_their_known_figures(targets: str, figures: dict[str, int]) -> None:
    told = {n: plan(n, rank=64, targets=targets).trainable_parameters for n in figures}
    assert told == figures


@pytest.mark.parametrize(
    ("name", "rank", "targets"), [("sd15", 8, "attn"), ("sd15", 64, "attn"), (EMBEDDED, 8, "lcm")]
)
def test_peft_trains_as_many_parameters(name: str, rank: int, targets: str) -> None:
    network = with_adapter(name, rank, list(SETS[targets]))
    assert plan(name, rank=rank, targets=targets).trainable_parameters == trainable(network)


def test_a_student_that_is_told_omega_has_diffusers_parameters() -> None:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        student = UNet2DConditionModel(**UNETS["sd15"], time_cond_proj_dim=256)
    told = plan("sd15", mode="full")
    assert told.trainable_parameters == trainable(student)
    assert plan("sd15", mode="full", omega_dim=0).trainable_parameters == told.unet_parameters


# FLOPs ------------------------------------------------------------------------------------------


@cache
def small() -> Any:
    """Three levels; the first one without attention, as in SDXL."""
    from diffusers import UNet2DConditionModel
    from diffusers.models.attention_processor import AttnProcessor

    network = UNet2DConditionModel(
        block_out_channels=(8, 16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2, 1),
        attention_head_dim=4,
        norm_num_groups=4,
        cross_attention_dim=12,
        time_cond_proj_dim=6,
    )
    network.set_attn_processor(AttnProcessor())  # products that torch counts one by one
    return network


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    layers = {path: getattr(layer, "weight", None) for path, layer in network.named_modules()}
    return {path: tuple(w.shape) for path, w in layers.items() if w is not None}


def counted(network: Any) -> tuple[int, int]:
    """Forward and backward, by torch; 7 latents a side are halved unevenly."""
    z, t, c = torch.zeros(1, 4, 7, 7), torch.zeros(1), torch.zeros(1, 5, 12)
    with FlopCounterMode(display=False) as forward:
        output = network(z, t, c, timestep_cond=torch.zeros(1, 6)).sample
    with FlopCounterMode(display=False) as backward:
        output.sum().backward()
    return forward.get_total_flops(), backward.get_total_flops()


@pytest.mark.parametrize(
    "targets",
    [
        "lcm",
        "attn",
        "attn2.to_v",
        "re:up_blocks.*(attn1.to_q|conv_shortcut)",
        "conv_out,time_embedding.cond_proj",
    ],
)
def test_an_adapters_work_is_what_torch_counts(targets: str) -> None:
    from peft import LoraConfig

    network = copy.deepcopy(small()).requires_grad_(False)
    names = resolve(targets, shapes(network))
    work = passes(shapes(network), side=7, tokens=5, ranks=dict.fromkeys(names, 3))
    network.add_adapter(LoraConfig(r=3, target_modules=list(names)))
    assert (work.forward, work.backward) == counted(network)


def test_the_work_on_all_weights_is_what_torch_counts() -> None:
    work = passes(shapes(small()), side=7, tokens=5, whole=True)
    assert (work.forward, work.backward) == counted(copy.deepcopy(small()))


@pytest.mark.parametrize("layer", ["class_embedding.linear_1", "down_blocks.0.attentions.0.to_q"])
def test_work_of_a_layer_in_an_unknown_place_is_refused(layer: str) -> None:
    with pytest.raises(IncompatibleError, match=layer):
        passes({layer: (8, 8)}, side=8, tokens=16)


@pytest.mark.parametrize("name", COUNTED)
def test_the_work_of_real_families_is_what_torch_counted(name: str) -> None:
    flops = plan(name, rank=64).flops
    parts = ("base_forward", "student_forward", "student_backward")
    assert tuple(flops[part] for part in parts) == COUNTED[name]


def test_each_mode_runs_its_own_passes() -> None:
    """Two of the teacher and one for the target beside the student's; LCF has no teacher."""
    base, student, back = COUNTED["sdxl"]
    flops = {mode: plan("sdxl", mode=mode, rank=64).flops for mode in ("lora", "lcf", "finetune")}
    assert flops["lora"]["picture"] == 2 * base + 2 * student + back
    assert flops["lcf"]["picture"] == 2 * student + back
    assert flops["finetune"]["picture"] == student + back
    assert flops["lora"]["picture_checkpointed"] == 2 * base + 3 * student + back
    whole = plan("sdxl", mode="full").flops  # a layer has two products backward for one forward
    assert whole["picture"] == pytest.approx(6 * base, rel=0.01)  # less where no gradient is due


def test_a_step_is_as_many_pictures_as_are_accumulated() -> None:
    told = plan("sd15", batch=3, accumulation=5, gradient_checkpointing=True)
    assert told.flops_per_step == 15 * told.flops["picture_checkpointed"]


# Memory -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "gigabytes"),
    [
        ("sd15", {}, 2.80),
        ("sd15", {"optimizer": "adamw8bit"}, 2.39),
        ("sdxl", {}, 8.28),
        ("sdxl", {"optimizer": "adamw8bit"}, 7.10),
        ("sd15", {"mode": "full", "precision": "fp32"}, 20.63),  # six of the UNet
        ("sdxl", {"mode": "full", "precision": "fp32"}, 61.62),
    ],
)
def test_static_memory(name: str, options: dict[str, Any], gigabytes: float) -> None:
    memory = plan(name, **options).memory
    assert memory["total"] / 1e9 == pytest.approx(gigabytes, abs=0.005)
    assert memory["total"] == sum(size for part, size in memory.items() if part != "total")


def test_an_average_is_one_copy_of_what_is_trained() -> None:
    without, with_one = plan("sd15", ema=0.0).memory, plan("sd15", ema=0.95).memory
    assert with_one["total"] - without["total"] == with_one["average"] == with_one["trained"]


# Targets ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("endings", ["lcm", "to_out.0", "attn1.to_q,conv2"])
def test_targets_are_the_modules_that_peft_takes(endings: str) -> None:
    from peft.tuners.lora import LoraLayer

    names = resolve(endings, architecture(EMBEDDED).modules)
    for given in (list(SETS.get(endings, endings.split(","))), list(names)):
        modules = with_adapter(EMBEDDED, 1, given).named_modules()
        assert {path for path, layer in modules if isinstance(layer, LoraLayer)} == set(names)


def test_an_expression_matches_whole_names() -> None:
    modules = architecture("sd15").modules
    assert resolve("re:mid_block.*attn2\\.to_[kv]", modules) == tuple(
        f"mid_block.attentions.0.transformer_blocks.0.attn2.to_{x}" for x in "kv"
    )
    assert not set(resolve("re:.*", modules)) & {"conv_norm_out", "mid_block.resnets.0.norm1"}


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        ("attn,to_qq,conv9", "'to_qq', 'conv9'"),
        ("to_qq", "did you mean to_q"),
        ("atn", "did you mean attn"),
        ("o_q", "no layer of the model ends so"),
        ("norm1", "no layer of the model ends so"),  # no matrix
        ("attn,", "''"),
        ("", "sets are lcm, attn, linear"),
        ("re:to_q", "it has to match a whole name, such as conv_in"),
        ("re:(", "no regular expression"),
    ],
)
def test_targets_that_match_nothing_are_refused(targets: str, told: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(targets, architecture("sd15").modules)
    assert told in str(caught.value)


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_families_have_defaults(name: str) -> None:
    row = family(name)
    assert row.base is None
    assert row.acceleration.batch * row.acceleration.accumulation == 12
    assert row.resolution == 8 * unet(name).config.sample_size


def test_values_that_are_given_replace_the_familys() -> None:
    told = plan("sdxl", rank=None, steps=7, learning_rate=2e-5, resolution=512, config={"omega": 3})
    assert told.config.items() >= {
        "rank": 64, "alpha": 64, "steps": 7, "learning_rate": 2e-5, "resolution": 512,
        "omega": 3, "targets": "lcm", "grid_points": 50, "prediction": "epsilon",
    }.items()  # fmt: skip
    assert plan("sd2").config["prediction"] == "v_prediction"
    assert plan(EMBEDDED).config["omega"] == embedded().omega
    assert "omega" not in plan("sd15", mode="lcf").config
    assert "rank" not in plan("sd15", mode="full").config


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "half"},
        {"precision": "fp8"},
        {"optimizer": "sgd"},
        {"rank": 0},
        {"accumulation": 0},
        {"resolution": 500},
        {"resolution": 0},
        {"mode": "full", "rank": 8},
        {"mode": "full", "targets": "attn"},
    ],
)
def test_impossible_values_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        plan("sd15", **options)


def test_a_family_without_published_sizes_is_planned_by_its_own() -> None:
    with pytest.raises(NotFoundError, match="one of sd15, sd2, ssd1b, sdxl, sd, emoji"):
        plan("sd3")
    with pytest.raises(NotFoundError, match="no family whose configuration is known"):
        plan("sd")
    told = plan("sd", model=architecture(EMBEDDED), resolution=64)
    assert told.unet_parameters == plan(EMBEDDED).unet_parameters
    assert told.config["learning_rate"] == family("sd15").acceleration.learning_rate


def test_a_plan_waits_for_no_torch() -> None:
    code = "from lcm_arith.planning import plan; plan('sdxl'); import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "numpy"} & set(done.stdout.split())


def test_a_plan_is_printed_for_people_and_for_programs(capsys: pytest.CaptureFixture[str]) -> None:
    print_plan(plan("sdxl", rank=64), as_json=False)
    table = capsys.readouterr().out
    for shown in ("196,751,360", "2,567,463,684", "7.66%", "7.71 GiB", "36.74 TFLOP", "all 1,000"):
        assert shown in table
    print_plan(plan("sdxl", rank=64), as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told["trainable_parameters"], told["target_modules"]) == (196_751_360, 788)
    assert told["config"]["targets"] == "lcm"
