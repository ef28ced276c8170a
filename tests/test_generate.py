"""Pictures of prompts: λ per step, negative prompts, and what a vector's file says."""

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import tiny
import torch
from commands import fails, run
from PIL import Image
from support import random_vector

from lcm_arith.adapters import load
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.evaluation.drawing.engine import Engine
from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.pngs import read_told
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.generating.pictures import make_pixels
from lcm_arith.evaluation.generating.wishes import Wish, header_notes
from lcm_arith.evaluation.plans.axes import make_cells
from lcm_arith.fuse import LiveWeights
from lcm_arith.saving import save
from lcm_arith.vector import TaskVector

PROMPTS = ("red fox", "cat")
LAYER = "text_encoder.text_model.encoder.layers.0"
TAUS = {
    "a": random_vector(
        2, 60.0, 1, {"unet.conv_in": (8, 4, 3, 3), f"{LAYER}.mlp.fc1": (tiny.WIDTH * 2, tiny.WIDTH)}
    ),
    "b": random_vector(3, 60.0, 2, {"unet.conv_in": (8, 4, 3, 3)}),
}


def wish(*vectors: str, **more: Any) -> Wish:
    named = tuple((text.split(":")[0], text.split(":")[1]) for text in vectors)
    usual: dict[str, Any] = {
        "sampler": "lcm", "steps": 3, "guidance": 1.0, "seed": 5, "negative": "",
        "grid_points": None, "headers": {},
    }  # fmt: skip
    return Wish(PROMPTS, named, **{**usual, **more})


def drawn(pipeline: Any, asked: Wish) -> np.ndarray:
    return make_pixels(pipeline, asked, TAUS, lambda done, total: None)


@pytest.fixture
def pipeline() -> Any:
    made = tiny.pipeline("sd15")
    made.set_progress_bar_config(disable=True)
    return made


@pytest.mark.parametrize("sampler", ["lcm", "dpm++"])
def test_lambda_per_step_equals_a_literal_loop(pipeline: Any, sampler: str) -> None:
    """Before each step the weights are W₀ + Σ λ·ΔW in plain products, embeddings those of then."""
    asked = wish("a:1.5/-0.5/0", "b:0.25", sampler=sampler, guidance=2.0, negative="cat")
    ours = drawn(pipeline, asked)
    lambdas = [{"a": 1.5, "b": 0.25}, {"a": -0.5, "b": 0.25}, {"a": 0.0, "b": 0.25}]
    fresh = tiny.pipeline("sd15")
    weights = {
        "unet.conv_in": fresh.unet.conv_in.weight,
        f"{LAYER}.mlp.fc1": fresh.text_encoder.get_parameter("encoder.layers.0.mlp.fc1.weight")
        if not hasattr(fresh.text_encoder, "text_model")
        else fresh.text_encoder.get_parameter("text_model.encoder.layers.0.mlp.fc1.weight"),
    }
    pristine = {module: weight.detach().clone() for module, weight in weights.items()}
    cls = {"lcm": diffusers.LCMScheduler, "dpm++": diffusers.DPMSolverMultistepScheduler}[sampler]
    spacing = {} if sampler == "lcm" else {"timestep_spacing": "trailing"}
    scheduler = cls.from_config(fresh.scheduler.config, **spacing)
    scheduler.set_timesteps(3)
    generators = [torch.Generator().manual_seed(5) for _ in PROMPTS]
    z = torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators])
    with torch.no_grad():
        for t, mix in zip(scheduler.timesteps, lambdas, strict=True):
            for module, weight in weights.items():
                deltas = [mix[n] * tau[module].dense() for n, tau in TAUS.items() if module in tau]
                weight.copy_(pristine[module] + torch.stack(deltas).sum(0).reshape(weight.shape))
            cond, uncond = fresh.encode_prompt(
                list(PROMPTS), "cpu", 1, True, negative_prompt=["cat"] * 2
            )
            e_cond = fresh.unet(z, t, cond).sample
            e_uncond = fresh.unet(z, t, uncond).sample
            out = e_uncond + 2.0 * (e_cond - e_uncond)
            extra = {"generator": generators} if sampler == "lcm" else {}
            z = scheduler.step(out, t, z, **extra).prev_sample
        shown = fresh.vae.decode(z / fresh.vae.config.scaling_factor).sample / 2 + 0.5
    theirs = (shown.clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255).round()
    # One grey level: the same float32 sums in another order may round apart.
    assert int(np.abs(ours.astype(int) - theirs.astype(int)).max()) <= 1
    for part in ("a:1.5", "a:-0.5", "a:0"):
        assert np.abs(drawn(pipeline, wish(part, "b:0.25", sampler=sampler)) - ours).max() > 1


def test_a_constant_schedule_is_the_plain_weight_and_rebuilds_once(
    pipeline: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = drawn(pipeline, wish("a:0.8", "b:1"))
    rebuilt: list[Any] = []
    apply = LiveWeights.apply

    def counted(live: LiveWeights, tau: TaskVector) -> None:
        rebuilt.append(tau)
        apply(live, tau)

    monkeypatch.setattr(LiveWeights, "apply", counted)
    assert np.array_equal(drawn(pipeline, wish("a:0.8/0.8/0.8", "b:1")), plain)
    assert len(rebuilt) == 1
    assert not np.array_equal(drawn(pipeline, wish("a:0.8/0.8/0", "b:1/1/1")), plain)
    assert len(rebuilt) == 3


def test_a_negative_prompt_is_diffusers(pipeline: Any) -> None:
    ours = drawn(pipeline, wish(sampler="dpm++", guidance=3.0, negative="red fox"))
    pipeline.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, timestep_spacing="trailing"
    )
    theirs = pipeline(
        list(PROMPTS), negative_prompt=["red fox"] * 2, num_inference_steps=3, guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(5) for _ in PROMPTS], output_type="np",
    ).images  # fmt: skip
    # One grey level, as above.
    assert np.abs(ours - (theirs * 255).round()).max() <= 1


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("--vector noto:1/2/3 --steps 4", "noto:1/2/3 has 3 weights for 4 steps"),
        ("--vector noto:1/2/3 --vector lcm:1/2", "lcm:1/2 has 2 weights for 3 steps"),
        ("--vector noto:1/x", "'x' is not a number"),
        ("--vector noto:1//2", "'' is not a number"),
        ("--vector lcm --negative tail", "guidance 1 does not use it"),
    ],
)
def test_what_would_be_idle_or_does_not_fit_is_refused(
    command: str, told: str, tmp_cwd: Path
) -> None:
    code, message = fails("generate", "fox", *command.split())
    assert (code, told in message) == (2, True), message
    assert not list(tmp_cwd.iterdir())


def resolved(*vectors: str, **options: Any) -> Wish:
    usual = {"sampler": None, "steps": None, "guidance": None, "seed": 0}
    return Wish.resolve(["fox"], vectors, **{**usual, **options})


def test_an_acceleration_vectors_file_tells_how_it_is_sampled(tmp_cwd: Path) -> None:
    about = {"kind": "acceleration", "sampler": "ddim", "grid_points": 40, "omega": "7.5"}
    save(random_vector(2, 1.0, 1), "k40.safetensors", about=about)
    save(random_vector(2, 1.0, 1), "k50.safetensors", about={**about, "grid_points": 50})
    save(random_vector(2, 1.0, 1), "odd.safetensors", about={**about, "grid_points": "many"})
    save(random_vector(2, 1.0, 1), "zero.safetensors", about={**about, "grid_points": 0})
    asked = resolved("k40.safetensors")
    assert (asked.sampler, asked.grid_points, asked.guidance) == ("ddim", 40, 1.0)
    assert header_notes(asked) == [
        "the file of k40.safetensors says: sampler ddim, 40 grid points, distilled with guidance "
        "ω = 7.5"
    ]
    assert resolved("k40.safetensors", sampler="lcm").sampler == "lcm"
    for name, method in (("sum", "linear"), ("ties", "ties")):
        terms = ("noto:0.8", "k40.safetensors:0.5,mid=1")
        run("combine", *terms, "--method", method, "--rank", "2", "-o", f"{name}.safetensors")
        assert resolved(f"{name}.safetensors").grid_points == 40
    both = resolved("k40.safetensors", "k50.safetensors")
    assert both.grid_points is None
    assert "different numbers of grid points" in header_notes(both)[-1]
    for name, said in (("odd", "'many'"), ("zero", "0")):
        with pytest.raises(InvalidContentError, match=f"says grid_points {said}"):
            resolved(f"{name}.safetensors")


def test_the_sampler_is_told_the_grid_points(pipeline: Any) -> None:
    plain = drawn(pipeline, wish())
    assert np.array_equal(drawn(pipeline, wish(grid_points=50)), plain)
    assert not np.array_equal(drawn(pipeline, wish(grid_points=7)), plain)
    with pytest.raises(UsageError, match="lcm takes 1 to 2 steps"):
        drawn(pipeline, wish(grid_points=2))


def test_a_grids_picture_is_that_of_generate(tmp_cwd: Path) -> None:
    """λ of both vectors step by step, so two steps, and 7 grid points that a vector asks for."""
    about = {"kind": "acceleration", "grid_points": 7}
    save(load("lcm"), "k7.safetensors", about=about)
    vectors = ("--vector", "noto:1.20/0.5", "--vector", "k7.safetensors:0.8/1")
    told = json.loads(run("generate", "fox", *vectors, "--json").stdout)
    said = read_told(Path(told["pictures"][0]))
    assert (told["steps"], told["vectors"][0]) == (2, ["noto", "1.2/0.5"])
    assert (said["vector_1"], said["steps"], said["prompt"]) == ("noto:1.2/0.5", 2, "fox")
    (row,) = make_cells(
        style="noto", accel="k7.safetensors", defaults=("", ""), l1="1.2/0.5", l2="0.8/1", steps="2"
    )
    sources = Sources()
    store = Store(Path("grid"), keys_of(sources))
    Engine(store, sources).render([row], [("fox", 0)], lambda rows: None)
    theirs = Image.open(told["pictures"][0])
    assert np.array_equal(store.pixels(row, [("fox", 0)])[0], np.asarray(theirs))
    assert sources.grid_points([row.accel]) == 7
