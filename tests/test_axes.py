"""Cells of every axis, and what is refused before anything heavy is loaded."""

from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from commands import fails
from safetensors.torch import save_file
from support import random_vector

from lcm_arith import bases, sampling
from lcm_arith.adapters import load
from lcm_arith.cli.grid_eval.run import AXES as TOLD
from lcm_arith.cli.output import print_grid
from lcm_arith.errors import InvalidContentError, LcmArithError, UsageError
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.measuring import cut_prompts
from lcm_arith.evaluation.plans.axes import AXES, check_text_encoders, make_cells, parse_axes
from lcm_arith.evaluation.plans.lists import parse_decimals
from lcm_arith.evaluation.plans.plan import make_grid, plain_cells
from lcm_arith.evaluation.plans.rows import Context, Row, keys
from lcm_arith.modules import EMBEDDED, table
from lcm_arith.saving import save

D = Decimal
PROMPTS = ("red fox", "cat")


def cells(*axes: str, **given: Any) -> tuple[Row, ...]:
    usual = {
        "style": None, "accel": None, "defaults": ("noto", "lcm"), "l1": "0.8", "l2": "1",
        "steps": "4", "prompts": PROMPTS,
    }  # fmt: skip
    return make_cells(axes=axes, **{**usual, **given})


@pytest.mark.parametrize("style", ["noto", "none"])
@pytest.mark.parametrize("accel", ["lcm", "none"])
def test_without_axes_the_cells_are_the_plain_ones(style: str, accel: str) -> None:
    l1, l2, steps = "0.6,0:1:0.5,0.6", "0.8,1", "1,2,4"
    decimals = parse_decimals(l1, ""), parse_decimals(l2, "")
    plain = plain_cells(style, accel, *decimals, (1, 2, 4))
    assert cells(style=style, accel=accel, l1=l1, l2=l2, steps=steps) == plain


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("guidance=1,2:3:0.5", [1.0, 2.0, 2.5, 3.0]),
        ("sampler=ddim,lcm", ["ddim", "lcm"]),
        ("method=linear,ties", ["linear", "ties"]),
        ("rank=none,32,16", [None, 32, 16]),
        ("te=none,0,0.50", [None, D("0"), D("0.5")]),
        ("accel=none, lcm", ["none", "lcm"]),
        ("style=none,noto,a+b:0.5", ["none", "noto", "a+b:0.5"]),
        ("style=a:0.5,te=0.2;b", ["a:0.5,te=0.2", "b"]),
        ("style=a:0.5,te=0.2;", ["a:0.5,te=0.2"]),
        ("base=emoji,embedded,owner/name", ["emoji", "owner/name"]),
        ("negative=none;bad, ugly", ["", "bad, ugly"]),
        ("edit=none,fox=>dog,red =>", ["", "fox=>dog", "red =>"]),
    ],
)
def test_an_axis_sets_its_field_to_each_value(axis: str, values: list[Any]) -> None:
    name = axis.partition("=")[0]
    made = cells(axis) if name != "negative" else cells(axis, "guidance=2")
    place = [cell.context if AXES[name].context else cell for cell in made]
    assert [getattr(each, name) for each in place] == values


def test_axes_multiply_and_those_of_one_context_stay_together() -> None:
    made = cells("sampler=lcm,ddim", "style=none,noto", l1="0.6,0.8", steps="1,2")
    assert [(c.context.style, c.sampler, str(c.l1), c.steps) for c in made] == [
        ("none", "lcm", "0", 1), ("none", "lcm", "0", 2),
        ("none", "ddim", "0", 1), ("none", "ddim", "0", 2),
        ("noto", "lcm", "0.6", 1), ("noto", "lcm", "0.6", 2),
        ("noto", "lcm", "0.8", 1), ("noto", "lcm", "0.8", 2),
        ("noto", "ddim", "0.6", 1), ("noto", "ddim", "0.6", 2),
        ("noto", "ddim", "0.8", 1), ("noto", "ddim", "0.8", 2),
    ]  # fmt: skip


def test_lambda_per_step_makes_cells_of_as_many_steps() -> None:
    made = cells(l1="0.8,1.2/1.0/0.6/0.6,2/1,1/1", l2="1,0.5/1.0", steps="1,2,4")
    assert [(str(c.l1), c.l1_schedule, str(c.l2), c.l2_schedule, c.steps) for c in made] == [
        ("0.8", (), "1", (), 1),
        ("0.8", (), "1", (), 2),
        ("0.8", (), "1", (), 4),
        ("0.8", (), "0.75", (D("0.5"), D("1")), 2),
        ("0.85", (D("1.2"), D("1"), D("0.6"), D("0.6")), "1", (), 4),
        ("1.5", (D("2"), D("1")), "1", (), 2),
        ("1.5", (D("2"), D("1")), "0.75", (D("0.5"), D("1")), 2),
        ("1", (), "1", (), 2),
        ("1", (), "0.75", (D("0.5"), D("1")), 2),
    ]
    assert [str(mix.l1) for mix in made[4].mixes] == ["1.2", "1", "0.6", "0.6"]


def test_what_is_idle_makes_no_cells_of_its_own() -> None:
    assert [c.l1_schedule for c in cells(style="none", l1="1/2,0.8", steps="2")] == [()]
    guided = cells("negative=none,bad", "guidance=1,2")
    assert [(c.guidance, c.context.negative) for c in guided] == [(1, ""), (2, ""), (2, "bad")]
    assert cells("guidance=0,0.5,1", "te=1,none,1.0") == cells()
    assert cells("negative=bad", "guidance=1,2")[1].context == Context(style="noto", negative="bad")


WRONG = [
    ("--axis sampler=lmc", "did you mean lcm?"),
    ("--axis samplr=lcm", "did you mean sampler?"),
    ("--axis method=tyes", "did you mean ties?"),
    ("--axis sampler", "not NAME=V1,V2"),
    ("--axis l1=0.8", "--l1 0.8"),
    ("--axis rank=8 --axis rank=4", "given twice"),
    ("--axis rank=8,,4", "none is to do without"),
    ("--axis guidance=", "value is empty"),
    ("--axis rank=0", "at least 1"),
    ("--axis rank=8.5", "at least 1"),
    ("--axis guidance=-1", "below 0"),
    ("--axis guidance=none", "'none' is not a number"),
    ("--axis te=half", "'half' is not a number"),
    ("--axis style=noto:heavy,2x", "noto:heavy"),
    ("--axis base=emojy", "no model 'emojy'"),
    ("--axis edit=fox", "is no FIND=>REPLACE"),
    ("--axis edit==>cat", "is no FIND=>REPLACE"),
    ("--axis edit=zebu=>gnu", "no prompt holds 'zebu'"),
    ("--axis negative=ugly", "no cell has guidance above 1"),
    ("--axis te=0,1", "changes a text encoder"),
    ("--l1 1/2/3", "λ of 3 steps, and --steps has 1, 2, 4"),
    ("--l2 0.8,1/x", "'x' is not a number"),
    ("--l1 1/2 --l2 1/2/3/4", "no cell"),
    ("--l1 0:999:1 --l2 0:999:1", "more than 100000"),
    ("noto --axis style=noto", "noto is given, too"),
    ("noto lcm --axis accel=lcm", "lcm is given, too"),
    ("--axis style=notto", "did you mean noto?"),
    ("--axis accel=lmc", "did you mean lcm?"),
    ("--axis style=fluent-emoji:1,te=0.5;", "te matches none of its"),
]


@pytest.mark.parametrize(("command", "told"), WRONG)
def test_what_cannot_be_is_told_before_a_model_is_loaded(
    command: str, told: str, tmp_cwd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(bases, "load_base", loaded)
    monkeypatch.setattr(sampling, "load_pipeline", loaded)
    code, message = fails("grid-eval", *command.split())
    assert code in (2, 3), message
    assert told in message
    assert not list(tmp_cwd.iterdir())


def checked(*axes: str, **given: Any) -> None:
    sources = Sources()
    grid = make_grid(
        cells=cells(*axes, **given), prompts=PROMPTS, seeds=1, family=sources.family,
        style_set=sources.style_set,
    )  # fmt: skip
    sources.check(grid.rows)


def test_more_steps_than_a_vector_has_grid_points_are_refused_before_a_model_is_loaded(
    tmp_path: Path,
) -> None:
    two = str(tmp_path / "two.safetensors")
    save(load("lcm"), two, about={"kind": "acceleration", "grid_points": 2})
    checked(accel=two, steps="1,2")
    checked("sampler=ddim", accel=two, steps="4")
    checked(accel=two, steps="4", l2="-1")  # taken away, it says nothing
    for weights in ("1", "0.5,1", "0.3/0/0/0"):
        with pytest.raises(UsageError, match="steps 4: lcm takes 1 to 2 steps"):
            checked(accel=two, steps="4", l2=weights)


def test_a_method_that_takes_no_dora_is_refused_before_a_model_is_loaded(tmp_path: Path) -> None:
    dora = str(tmp_path / "dora.safetensors")
    module = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    out, inner = table(EMBEDDED)[module]
    torch.manual_seed(0)
    parts = {
        "lora_A.weight": (2, inner),
        "lora_B.weight": (out, 2),
        "lora_magnitude_vector": (out,),
    }
    save_file({f"{module}.{end}": torch.rand(shape) for end, shape in parts.items()}, dora)
    checked("rank=none,1", style=dora, l1="0.5,1")
    checked("method=ties", style=dora, l1="0")
    with pytest.raises(InvalidContentError, match="ties: a DoRA stretches"):
        checked("method=linear,ties", style=dora)


def test_an_edit_may_not_leave_an_empty_prompt() -> None:
    with pytest.raises(UsageError, match="leaves nothing of a prompt"):
        cells("edit=cat=>")


def test_an_edit_may_not_make_two_prompts_one() -> None:
    prompts = ("red fox", "cat", "blue fox")
    with pytest.raises(UsageError, match="makes 'red fox' and 'blue fox' one prompt, 'blue fox'"):
        cells("edit=none,red=>blue", prompts=prompts)
    assert len(cells("edit=none,red=>green", prompts=prompts)) == 2


def test_te_needs_a_vector_that_changes_a_text_encoder() -> None:
    layer = {"text_encoder.text_model.encoder.layers.0.mlp.fc1": (8, 4)}
    vectors = {"noto": random_vector(2, 2.0, 1), "told": random_vector(2, 2.0, 1, layer)}
    vectors["lcm"] = vectors["noto"]
    check_text_encoders(cells("te=none"), vectors.__getitem__)
    check_text_encoders(cells("te=0,1", style="noto:0.5+told"), vectors.__getitem__)
    with pytest.raises(UsageError, match="none of lcm, noto changes a text encoder"):
        check_text_encoders(cells("te=0.5"), vectors.__getitem__)


def test_the_terminals_table_tells_cells_apart(capsys: pytest.CaptureFixture[str]) -> None:
    made = cells("rank=none,16", "negative=bad\x1b[2J", "guidance=2", l1="0.8,1.2/0.4", steps="2")
    measured = dict.fromkeys(("prompt_score", "style_accuracy", "pair_distance"), 0.25)
    lines = [{**keys(cell), "nfe": 4, "retrieval_top1": None, **measured} for cell in made]
    margin = {**lines[0], "role": "teacher", "negative": ""}
    print_grid(SimpleNamespace(cells=pd.DataFrame([margin, *lines])))  # type: ignore[arg-type]
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    words = [line.split() for line in shown.splitlines()]
    assert words[0][-2:] == ["distance", "rank"]  # all cells have one negative prompt
    assert [(line[1], line[-1]) for line in words[2:]] == [
        ("0.8", "0.25"), ("1.2/0.4", "0.25"), ("0.8", "16"), ("1.2/0.4", "16"),
    ]  # fmt: skip


def test_the_command_tells_the_axes_that_there_are() -> None:
    assert tuple(AXES) == TOLD
    for name in AXES:
        with pytest.raises(LcmArithError, match=f"--axis {name}"):
            parse_axes([f"{name}="])


def test_what_an_edit_or_a_negative_makes_too_long_is_told() -> None:
    long = " and ".join(["fox"] * 60)
    axes = (f"edit=none;fox=>{long}", f"negative=none;{long}", "guidance=2")
    made = cells(*axes, style="noto")
    grid = make_grid(
        cells=made, prompts=PROMPTS, seeds=1, family=Sources().family, style_set=lambda _: None
    )
    assert cut_prompts(grid, Sources()) == [long, f"red {long}"]


def test_a_label_names_the_negative_prompt_and_the_edit() -> None:
    (row,) = cells("negative=blurry;", "edit=fox=>dog", "guidance=2")
    assert row.label.splitlines()[1:] == ["s=2", "negative blurry", "edit fox=>dog"]
    teacher = replace(row, role="teacher", context=replace(row.context, negative="x" * 30))
    assert teacher.label.splitlines()[2] == f"negative {'x' * 23}…"
