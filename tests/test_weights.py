"""λ by component, block and regular expression."""

from decimal import Decimal

import pytest
import torch

from lcm_arith.adapters import load
from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import UsageError
from lcm_arith.modules import sgm_path, table
from lcm_arith.vector import Source, TaskVector
from lcm_arith.weights import LBW, Weights, parse_term, weigh

UP: str = "unet.up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
TEXT: str = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"


def vector(*modules: str) -> TaskVector:
    generator = torch.Generator().manual_seed(0)
    deltas = {
        m: LowRankDelta(
            torch.randn(2, 3, generator=generator), torch.randn(4, 2, generator=generator)
        )
        for m in modules
    }
    return TaskVector(((1.0, Source(deltas)),))


@pytest.mark.parametrize(
    ("text", "name", "weights"),
    [
        ("style", "style", Weights(Decimal(1))),
        ("style:0.8", "style", Weights(Decimal("0.8"))),
        ("a:b:-0.3", "a:b", Weights(Decimal("-0.3"))),
        ("<lora:my style:0.8>", "my style", Weights(Decimal("0.8"))),
        (r"C:\x.safetensors", r"C:\x.safetensors", Weights(Decimal(1))),
        ("s:1,te=0.5,up.1=0", "s",
         Weights(Decimal(1), (("te", Decimal("0.5")), ("up.1", Decimal(0))))),
        ("s:1,/attn[12]/=2", "s", Weights(Decimal(1), (("/attn[12]/", Decimal(2)),))),
    ],
)  # fmt: skip
def test_terms_are_read_as_people_write_them(text: str, name: str, weights: Weights) -> None:
    term = parse_term(text)
    assert (term.name, term.weights) == (name, weights)


@pytest.mark.parametrize(
    "text",
    ["", ":0.8", "s:0.8,te", "s:0.8,te=x", "s:1e3", "s:0.8,/(/=1", "s:0.8,a b=1", "s:1:lbw=1,0"],
)
def test_other_terms_are_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_term(text)
    assert caught.value.exit_code == 2


def test_the_longest_match_wins_whatever_the_order() -> None:
    for order in (("up=2", "up.1=3", "unet=4", "te=5"), ("te=5", "unet=4", "up.1=3", "up=2")):
        weights = parse_term(f"s:1,{','.join(order)}").weights
        assert weights.of(UP) == 3
        assert weights.of("unet.up_blocks.0.resnets.0.conv1") == 2
        assert weights.of("unet.up_blocks.10.resnets.0.conv1") == 2  # not up.1
        assert weights.of("unet.conv_in") == 4
        assert weights.of(TEXT) == weights.of(TEXT.replace("encoder", "encoder_2", 1)) == 5
    assert parse_term("s:1,te2=5").weights.of(TEXT) == 1


def test_every_module_of_a_model_can_be_weighed_alone() -> None:
    for module in table("sdxl"):
        weights = parse_term(f"s:1,{module}=0.5").weights
        assert weights.of(module) == Decimal("0.5")
        other = next(m for m in table("sdxl") if not m.startswith(module))
        assert weights.of(other) == 1


def test_weighing_scales_each_module_and_leaves_out_zeros() -> None:
    tau = vector(UP, TEXT, "unet.mid_block.resnets.0.conv1")
    got = weigh(tau, parse_term("s:2,te=-0.5,mid=0").weights, "s")
    assert set(got) == {UP, TEXT}
    torch.testing.assert_close(got[UP].dense(), 2 * tau[UP].dense())
    torch.testing.assert_close(got[TEXT].dense(), -0.5 * tau[TEXT].dense())
    assert weigh(tau, parse_term("s:2").weights, "s").terms == (2.0 * tau).terms


def test_a_part_that_matches_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="te2 matches none of its 1 modules"):
        weigh(vector(UP), parse_term("s:1,te2=0").weights, "s")


def test_block_weights_are_refused_where_the_model_has_no_such_blocks() -> None:
    weights = parse_term(f"lcm:1:lbw={','.join(['1'] * 17)}").weights
    with pytest.raises(UsageError, match="blocks of Stable Diffusion"):
        weigh(load("lcm"), weights, "lcm")


@pytest.mark.parametrize("length", LBW)
def test_block_weights_reach_their_block_and_the_text_encoder(length: int) -> None:
    family = "sdxl" if length in (12, 20) else "sd15"
    listed = [Decimal(i + 2) for i in range(length)]
    weights = parse_term(f"s:1:lbw={','.join(map(str, listed))}").weights
    assert weights.of(TEXT) == 2
    seen = set()
    for module in table(family):
        if module.startswith("unet."):
            place = ".".join(sgm_path(module.removeprefix("unet.")).split(".")[:2])
            place = "middle_block" if place.startswith("middle") else place
            want = listed[1 + LBW[length].index(place)] if place in LBW[length] else Decimal(0)
            assert weights.of(module) == want
            seen.add(want)
    assert seen >= set(listed[1:])  # every entry does something
