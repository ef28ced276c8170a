"""``distill`` and ``finetune`` as users meet them: files, figures, exit codes."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from commands import fails, files_in, made_up, run, verb
from PIL import Image
from support import random_vector
from test_docs import ROOT, shell_commands
from tiny import pipeline, single_file

from lcm_arith import durable, make_vectors
from lcm_arith.adapters import facts, load
from lcm_arith.bases import load_base
from lcm_arith.modules import with_text_model
from lcm_arith.saving import save
from lcm_arith.training.request import Watching

SHORT = ("--steps", "2", "--batch", "2", "--rank", "2", "--validate-every", "0")


@pytest.fixture
def here(tmp_cwd: Path) -> Path:
    """The current folder, with three captioned pictures in ``art``."""
    Path("art").mkdir()
    for number in range(3):
        values = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(values).save(f"art/{number}.png")
        Path(f"art/{number}.txt").write_text(f"a red fox, {number}")
    return tmp_cwd


def trained(command: str, base: Path, *more: str) -> Any:
    given = [] if "--data" in more else ["--data", "art"]
    return json.loads(run(command, "--base", str(base), *given, *SHORT, *more, "--json").stdout)


def placed_by_diffusers(base: Path, kind: str, *files: str) -> list[dict[str, torch.Tensor]]:
    """Of each file: module → ΔW, as ``load_lora_weights`` puts it into a fresh pipeline."""
    from peft.tuners.lora import LoraLayer

    name = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    pipe = getattr(diffusers, name).from_pretrained(base)
    for file in files:
        pipe.load_lora_weights(".", weight_name=file, adapter_name=file[0])
    layers: dict[str, Any] = {
        with_text_model(f"{part}.{name}"): layer
        for part, model in pipe.components.items()
        if isinstance(model, torch.nn.Module)
        for name, layer in model.named_modules()
        if isinstance(layer, LoraLayer)
    }
    return [
        {m: layer.get_delta_weight(f[0]) for m, layer in layers.items() if f[0] in layer.lora_A}
        for f in files
    ]


# --- end to end -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_pictures_become_a_vector_that_loads_whole_in_two_spellings(
    here: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    base: Path = request.getfixturevalue(f"tiny_{kind}")
    told = trained(
        "distill", base, "--alpha", "5", "--learning-rate", "0.01", "-o", "a.safetensors"
    )
    known = facts(load("a.safetensors"))
    assert known["base"] == told["base"] == load_base(base).digest
    assert (known["omega"], known["grid_points"], known["sampler"]) == ("7.5", 50, "lcm")
    plan = known["plan"]
    assert (plan["rank"], plan["alpha"], plan["steps"]) == (2, 5.0, 2)
    run("convert", "a.safetensors", "--format", "kohya", "-o", "k.safetensors")
    accel = load("a.safetensors")
    for placed in placed_by_diffusers(base, kind, "a.safetensors", "k.safetensors"):
        assert placed.keys() == set(accel.modules)
        for module, delta in placed.items():  # float32, another order of the products
            assert torch.allclose(delta, accel[module].dense(), rtol=1e-5, atol=1e-8)
    assert max(float(accel[module].dense().abs().max()) for module in accel) > 0


def test_a_style_of_both_networks_is_named_and_added_to_an_acceleration(
    here: Path, tiny_sd15: Path
) -> None:
    module = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    accel = random_vector(2, 3.0, 0, {module: (8, 8)})
    save(accel, "a.safetensors")
    extra = ("--text-encoder", "--with-accel", "a.safetensors", "--timesteps", "style-friendly")
    told = trained("finetune", tiny_sd15, *extra, "--name", "mine")
    assert (told["name"], told["accel"]["terms"][0]["weight"]) == ("mine", "1.0")
    assert verb("show", "mine")["said"]["kind"] == {"value": "style", "source": "header"}
    style = load("mine")
    assert {m.partition(".")[0] for m in style} == {"unet", "text_encoder"}
    run("combine", "mine", "a.safetensors", "--l1", "0.8", "--l2", "1.0", "-o", "both.safetensors")
    both = load("both.safetensors")
    assert both.modules == style.modules
    expected = 0.8 * style[module].dense() + accel[module].dense()
    assert torch.allclose(both[module].dense(), expected, atol=1e-6)
    told = json.loads(run("inspect", "mine", "--json").stdout)
    assert told["kinds"] == {"LoRA": len(style)}


def test_v_prediction_is_distilled_where_the_last_timestep_has_no_signal(
    here: Path, tiny_zsnr: Path
) -> None:
    told = trained("distill", tiny_zsnr)
    assert told["prediction"] == "v_prediction"
    assert 0 < told["final_loss"] < 10


def test_a_single_file_and_prompts_without_pictures_will_do(here: Path) -> None:
    pipe = pipeline("sd15", layers_per_block=2)
    single_file(pipe, here / "model.safetensors")
    pipe.save_pretrained(here / "folder")
    Path("prompts.txt").write_text("a red fox\na cat\n")
    extra = ("--config", "folder", "--data", "prompts.txt", "--teacher-steps", "2")
    told = trained("distill", Path("model.safetensors"), *extra, "--per-prompt", "2")
    assert (told["pictures"], told["data"]["source"]) == (4, "prompts")


def test_a_training_leaves_metrics_errors_sheets_and_vectors_on_the_way(
    here: Path, tiny_sd15: Path
) -> None:
    Path("prompts.txt").write_text("fox\n")
    result = run(
        "distill", "--base", str(tiny_sd15), "--data", "art", *SHORT[:-2], "--validate-every", "2",
        "--validate-steps", "1", "--validate-prompts", "prompts.txt", "--save-every", "1",
    )  # fmt: skip
    run_folder = Path("acceleration-run")
    assert {path.name for path in run_folder.iterdir()} == {
        ".lock", "cache", "errors.csv", "metrics.csv", "step-000001.safetensors", "step-000002.png",
        "step-000002.safetensors",
    }  # fmt: skip
    with Image.open(run_folder / "step-000002.png") as sheet:
        assert sheet.size == (4 + 68, 18 + 4 + 86)  # one prompt, one column: a tile of 64 px, a gap
    assert len((run_folder / "metrics.csv").read_text().splitlines()) == 3
    assert len((run_folder / "errors.csv").read_text().splitlines()) == 1 + 2 * 5
    halfway = load(run_folder / "step-000001.safetensors")
    assert halfway.modules == load("acceleration.safetensors").modules
    assert "guidance scale 8.5" in result.stderr
    assert "train" in result.stderr
    assert "proven" in result.stdout
    code, message = fails("distill", "--base", "nowhere", "--data", "art")
    assert (code, "acceleration.safetensors" in message) == (3, True)


def test_the_cache_is_made_alone_and_found_by_the_training(here: Path, tiny_sd15: Path) -> None:
    asked = ("distill", "--base", str(tiny_sd15), "--cache", "kept")
    told = json.loads(run(*asked, "--data", "art", "--cache-only", "--json").stdout)
    assert (told["pictures"], told["captions"], told["path"]) == (3, 3, "kept")
    before = files_in(Path("kept"))
    told = trained("distill", tiny_sd15, "--cache", "kept")
    assert told["pictures"] == 3
    assert files_in(Path("kept")) == before
    assert fails("distill", "--cache-only")[0] == 2  # nowhere to keep the embedded pictures


def test_the_commands_of_the_page_do_what_it_says(
    here: Path, monkeypatch: pytest.MonkeyPatch, tiny_sd15: Path
) -> None:
    """On a tiny model and a step each; what it says of the embedded model reaches the library."""
    Path("art").rename("my-pictures")
    Path("my-prompts.txt").write_text("a red fox\n")
    Path("my-model").symlink_to(tiny_sd15)
    seen: list[str] = []

    def short(make: Any) -> Any:
        def do(request: Any, *given: Any, **named: Any) -> Any:
            seen.append(f"{make.__name__} {request.base or 'embedded'}")
            if request.base is None:
                return made_up(request)
            plan = {"steps": 1, "batch": 2, "rank": 2}
            asked = replace(request, plan=plan, watching=Watching(every=0))
            return make(asked, *given, **named)

        return do

    for name in ("make_acceleration", "make_style"):
        monkeypatch.setattr(make_vectors, name, short(getattr(make_vectors, name)))
    for line in shell_commands((ROOT / "docs" / "distillation.md").read_text("utf-8"), "lcm-arith"):
        run(*line)
    assert seen.count("make_acceleration my-model/") == 2
    assert seen.count("make_style my-model/") == 1
    assert len(seen) == 7
    run("verify", "fast-style.safetensors")


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "told", "command"),
    [
        (4, "no picture", "distill --data empty"),
        (4, "no picture", "finetune --data broken --caption-missing empty"),
        (3, "nowhere", "distill --data nowhere"),
        (3, "nowhere", "finetune --with-accel nowhere.safetensors --data art"),
        (3, "nowhere", "distill --validate-prompts nowhere.txt"),
        (2, "omega", "distill --omega -1"),
        (2, "two numbers", "distill --omega-range 5"),
        (2, "exclude", "distill --omega 1 --omega-range 1,2"),
        (2, "rank 0", "distill --rank 0"),
        (2, "learning rate", "finetune --learning-rate 0"),
        (2, "target decay", "distill --target-decay 1"),
        (2, "anchor", "distill --anchor 1"),
        (2, "only lcf", "distill --accel lcm"),
        (2, "--accel", "distill --mode lcf"),
        (2, "omega: without effect", "distill --mode lcf --accel lcm --omega 3"),
        (2, "solver: without effect", "distill --mode lcf --accel lcm --solver ddim"),
        (2, "save_every: without effect", "distill --mode full --save-every 5"),
        (2, "registry keeps vectors", "distill --mode full --name x"),
        (2, "--family: only --plan", "distill --family sdxl"),
        (2, "exclude", "distill --plan --cache-only"),
        (2, "a base tells", "distill --plan --base art --family sdxl"),
        (2, "--compile on cpu", "distill --device cpu --compile"),
        (2, "device", "distill --device tpu9"),
        (2, "unknown", "finetune --data art --report-to nobody"),
        (2, "no caption is dropped", "finetune --learn-empty --caption-dropout 0"),
        (2, "sheets", "distill --validate-every 0 --validate-steps 4"),
        (2, "numbers with commas", "distill --validate-steps many"),
        (2, "caption dropout", "finetune --caption-dropout 2"),
        (2, "SNR", "finetune --snr-floor 9"),
        (2, "shuffles", "distill --keep-tokens 1"),
    ],
)
def test_what_cannot_be_is_said_before_a_model_is_loaded(
    here: Path, monkeypatch: pytest.MonkeyPatch, code: int, told: str, command: str
) -> None:
    Path("empty").mkdir()
    Path("broken").mkdir()
    Path("broken/x.png").write_bytes(b"no picture")
    monkeypatch.setattr("lcm_arith.training.ground.load_base", None)
    before = files_in(here)
    found, message = fails(*command.split())
    assert (found, told in message) == (code, True), message
    assert files_in(here) == before


def test_a_vector_of_another_family_is_refused_before_the_data_is_read(
    here: Path, tiny_sd15: Path
) -> None:
    common = ("--base", str(tiny_sd15), "--data", "art")
    for wrong in (
        ("finetune", "--with-accel", "lcm"),
        ("distill", "--from", "lcm"),
        ("distill", "--mode", "lcf", "--accel", "lcm"),
    ):
        code, message = fails(*wrong, *common)
        assert (code, "do not fit the base model" in message) == (6, True), message
    assert not list(here.glob("*-run"))


# --- plans ------------------------------------------------------------------------------------


def planned(*arguments: str) -> Any:
    return json.loads(run("distill", "--plan", *arguments, "--json").stdout)


@pytest.mark.parametrize(
    ("family", "trainable", "unet"),
    [
        ("sd15", 67_252_224, 859_520_964),
        ("ssd1b", 104_902_656, 1_331_334_404),
        ("sdxl", 196_751_360, 2_567_463_684),
    ],
)
def test_the_plans_figures_are_table_1s(family: str, trainable: int, unet: int) -> None:
    told = planned("--family", family, "--rank", "64")
    assert (told["family"], told["rank"]) == (family, 64)
    assert (told["trainable_parameters"], told["unet_parameters"]) == (trainable, unet)
    assert {"text_encoder_parameters", "vae_parameters", "schema_version"} <= told.keys()


def test_a_plan_of_a_command_waits_for_no_torch() -> None:
    code = "import sys, atexit; atexit.register(lambda: print(*sys.modules, file=sys.stderr)); \
from lcm_arith.cli.main import main; sys.argv[1:] = 'distill --plan --family sdxl'.split(); main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "diffusers", "numpy", "peft"} & set(done.stderr.split())


def test_a_plan_obeys_what_is_asked() -> None:
    plain = planned("--family", "sd15")
    work = plain["flops"]
    base, forward = work["base_forward"], work["student_forward"]
    back = work["student_backward"]
    for more, passes in (
        ("--solver dpm++2s", 4 * base + 2 * forward + back),
        ("--mode lcf", 2 * forward + back),
        ("--mode lcf --anchor 0.5", 2 * base + 4 * forward + 2 * back),
    ):
        assert planned("--family", "sd15", *more.split())["flops"]["picture"] == passes
    half = planned("--family", "sd15", "--batch", "3", "--accumulation", "2", "--steps", "7")
    assert half["flops_per_step"] * 2 == plain["flops_per_step"]
    assert half["config"]["steps"] == 7
    attn = planned("--family", "sd15", "--targets", "attn")
    assert attn["trainable_parameters"] == 12_754_944
    averaged = planned("--family", "sd15", "--target-decay", "0.9")["memory"]["average"]
    assert averaged == 4 * plain["trainable_parameters"]
    assert not plain["config"]["gradient_checkpointing"]
    assert planned("--family", "sdxl")["config"]["gradient_checkpointing"]
    assert not planned("--family", "sdxl", "--gradient-checkpointing", "off")["config"][
        "gradient_checkpointing"
    ]


def test_a_cache_made_before_is_data_like_any_other(here: Path, tiny_sdxl: Path) -> None:
    model = ("--base", str(tiny_sdxl))
    told = run("finetune", *model, "--data", "art", "--cache", "kept", "--cache-only", "--json")
    assert json.loads(told.stdout)["path"] == "kept"
    shutil.rmtree("art")
    short = ("--steps", "1", "--batch", "2", "--rank", "2", "--validate-every", "0")
    made = run("finetune", *model, "--data", "kept", *short, "--json", "-o", "x.safetensors")
    assert json.loads(made.stdout)["pictures"] == json.loads(told.stdout)["pictures"]


def test_a_base_of_half_precision_is_shown_and_few_grid_points_are_enough(
    here: Path, tiny_sd15: Path
) -> None:
    """Sheets and errors are of a bfloat16 base; two grid points make two ranges of timesteps."""
    run(
        "distill", "--base", str(tiny_sd15), "--data", "art", "--precision", "bf16", "--steps", "1",
        "--batch", "2", "--rank", "2", "--grid-points", "2", "--stride", "1",
        "--validate-every", "1", "--validate-steps", "1",
    )  # fmt: skip
    run_folder = Path("acceleration-run")
    assert (run_folder / "step-000001.png").is_file()
    assert len((run_folder / "errors.csv").read_text().splitlines()) == 1 + 2 * 2


def test_a_second_training_in_the_same_folder_is_refused(here: Path, tiny_sd15: Path) -> None:
    Path("acceleration-run").mkdir()
    with durable.held(Path("acceleration-run/.lock"), "busy"):
        code, told = fails("distill", "--base", str(tiny_sd15), "--data", "art", "--steps", "1")
    assert code == 3
    assert "another training runs in this folder" in told
