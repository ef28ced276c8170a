"""What distill and finetune compute: who is called how often, and what comes out."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lessons import Noise, condition, spied
from PIL import Image
from support import random_vector
from test_adapter import CPU, PLAN, SCHEDULE, lesson_of, one_base, shapes_of, unet_of
from torch import Tensor, nn

from lcm_arith.adapters import facts, load
from lcm_arith.bases import load_base
from lcm_arith.embedded import pictures
from lcm_arith.errors import NotFoundError, UsageError, VerificationError
from lcm_arith.make_vectors import make_acceleration, make_style
from lcm_arith.saving import save
from lcm_arith.targets import LCM_TARGETS
from lcm_arith.training.distillation import Distillation, distillation
from lcm_arith.training.loop import Run, fit
from lcm_arith.training.numbers import FULL
from lcm_arith.training.plan import Training
from lcm_arith.training.request import Machine, Request, Watching
from lcm_arith.training.roles import three_networks

NEVER = Watching(every=0)


def quiet(*_: object) -> None:
    """No progress."""


# --- who is called ----------------------------------------------------------------------------


def passes(unet: Any, loss: Callable[[int], Tensor]) -> list[int]:
    """Rows of each call of the UNet while a loss is computed and gone back through."""
    rows: list[int] = []
    hook = unet.register_forward_pre_hook(lambda _, given: rows.append(len(given[0])))
    try:
        loss(0).backward()
    finally:
        hook.remove()
    return rows


@pytest.mark.parametrize(
    ("how", "calls"),
    [
        ({}, [("teacher", 4), ("target", 2), ("student", 2)]),
        ({"solver": "dpm++2s"}, [("teacher", 4)] * 2 + [("target", 2), ("student", 2)]),
        ({"mode": "lcf"}, [("target", 2), ("student", 2)]),
        (
            {"mode": "lcf", "anchor": 0.5},
            [("target", 2), ("student", 2), ("teacher", 4), ("target", 2), ("student", 2)],
        ),
    ],
)
def test_a_step_of_two_pictures_takes_these_passes_and_no_more(
    how: dict[str, Any], calls: list[tuple[str, int]]
) -> None:
    unet = unet_of()
    heard: list[tuple[str, int, Tensor]] = []
    lesson = lesson_of(spied(one_base(unet), heard), Distillation(omega=7.5, **how))
    assert passes(unet, lesson.loss) == [rows for _, rows in calls]
    assert [(role, rows) for role, rows, _ in heard] == calls


@pytest.mark.parametrize("decay", [0.0, 0.9])
def test_the_base_is_resident_once_and_stays_as_it_is(decay: float) -> None:
    others = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]  # of other tests
    unet = unet_of()
    places = {p.data_ptr(): p.detach().clone() for p in unet.parameters()}
    roles = one_base(unet, decay=decay)
    plan = Training(rank=3, steps=2, batch=2, learning_rate=1e-2)
    lesson = lesson_of(roles, Distillation(omega=7.5, target_decay=decay))
    fit(lesson.model, lesson.loss, plan, quiet, run=Run(averages=lesson.averages))
    base = {n: p for n, p in unet.named_parameters() if ".lora_" not in n}
    assert {p.data_ptr() for p in base.values()} == places.keys()
    assert all(torch.equal(p, places[p.data_ptr()]) for p in base.values())
    gc.collect()
    alive = [x for x in gc.get_objects() if type(x) in (Tensor, nn.Parameter)]
    own = [*base.values(), *places.values()]  # the test's copy is known
    before = {id(x) for x in others}
    large = [p for p in base.values() if p.ndim > 1]
    extra = [
        x for x in alive
        if id(x) not in before
        and not any(x is known for known in own)
        and any(x.shape == p.shape and torch.equal(x, p) for p in large)
    ]  # fmt: skip
    assert not extra


# --- full-weight distillation -----------------------------------------------------------------


def test_a_student_of_all_weights_begins_as_its_teacher_and_is_told_omega() -> None:
    unet = unet_of()
    roles = three_networks(unet, FULL, decay=0.9)
    generator = torch.Generator().manual_seed(0)
    z, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([9, 900])
    told = condition("sd15", 2, generator)
    omega = torch.tensor([2.0, 8.0])
    with torch.no_grad():
        teacher = roles.teacher(z, t, told)
        for model in (roles.student, roles.target):
            # another attention kernel, over about 20 layers
            torch.testing.assert_close(
                model(z, t, {**told, "omega": omega}), teacher, rtol=1e-4, atol=1e-4
            )
        roles.trained.get_parameter("time_embedding.cond_proj.weight").normal_()
        low, high = (roles.student(z, t, {**told, "omega": omega * s}) for s in (1.0, 0.1))
    assert float((low - high).abs().max()) > 1e-3


def test_the_target_of_all_weights_is_their_average_and_the_teacher_stays() -> None:
    unet = unet_of()
    before = [p.detach().clone() for p in unet.parameters()]
    roles = three_networks(unet, FULL, decay=0.8)
    own, its = (dict(net.named_parameters()) for net in (roles.written, roles.trained))
    mean = {name: p.detach().clone() for name, p in its.items()}

    def follow(_: Any) -> None:
        for name, p in its.items():
            mean[name].mul_(0.8).add_(0.2 * p.detach())

    how = Distillation(omega=(2.0, 8.0), mode="full", target_decay=0.8)
    lesson = distillation(
        roles, Noise(), PLAN, how, schedule=SCHEDULE, prediction="epsilon", seed=0, device=CPU
    )
    plan = Training(rank=1, steps=2, batch=2, learning_rate=1e-3, rate="constant")
    fit(lesson.model, lesson.loss, plan, follow, run=Run(averages=lesson.averages))
    for name, p in own.items():
        torch.testing.assert_close(p.detach(), mean[name], rtol=1e-5, atol=1e-7)
    assert float(its["time_embedding.cond_proj.weight"].detach().abs().max()) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, unet.parameters(), strict=True))


def test_what_was_asked_of_the_base_holds_for_the_network_that_is_trained() -> None:
    unet = unet_of()
    plain: Any = three_networks(unet, FULL, decay=0.9).trained
    assert not plain.is_gradient_checkpointing
    assert plain._compiled_call_impl is None
    unet.enable_gradient_checkpointing()
    unet.compile()
    roles: Any = three_networks(unet, FULL, decay=0.9)
    assert roles.trained.is_gradient_checkpointing
    assert None not in (roles.trained._compiled_call_impl, roles.written._compiled_call_impl)


# --- from pictures to a file ------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures with captions."""
    data = tmp_path_factory.mktemp("pictures")
    for index, concept in enumerate(pictures.concepts("A")[:3]):
        picture = pictures.variants("noto", concept, 1)[0]
        Image.fromarray(picture).save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(concept.caption)
    return data


def request(out: Path, base: Path, data: Path, plan: dict[str, Any], **more: Any) -> Request:
    sizes = {"steps": 2, "batch": 2, "accumulation": 1, **plan}
    return Request(
        out=out, run=out.with_suffix(".run"), base=base, data=data, plan=sizes,
        machine=Machine("cpu", "fp32"), watching=NEVER, **more,
    )  # fmt: skip


def test_a_model_is_written_of_the_average_and_loads_with_omega(
    tmp_path: Path, tiny_sd2v: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import diffusers

    from lcm_arith import make_vectors

    made: list[Any] = []

    def spy(*given: Any, **named: Any) -> Any:
        made.append(three_networks(*given, **named))
        return made[-1]

    monkeypatch.setattr(make_vectors, "three_networks", spy)
    out = tmp_path / "model"
    told = make_acceleration(
        request(out, tiny_sd2v, folder, {"learning_rate": 1e-2}), quiet, variant={"mode": "full"}
    )
    assert (told["kind"], told["target_decay"]) == ("model", 0.95)
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(out, safety_checker=None)
    average, student = (net.state_dict() for net in (made[0].written, made[0].trained))
    written = pipeline.unet.state_dict()
    assert written.keys() == average.keys()
    assert all(torch.equal(written[name], average[name]) for name in average)
    assert not all(torch.equal(written[name], student[name]) for name in student)
    assert pipeline.unet.config.time_cond_proj_dim == 256
    assert type(pipeline.scheduler).__name__ == "LCMScheduler"
    picture = pipeline("x", num_inference_steps=1, guidance_scale=5.0, output_type="pt").images
    assert picture.shape == (1, 3, 64, 64)


@pytest.mark.parametrize("wrong", ["rank", "alpha", "targets", "ema"])
def test_options_without_effect_on_all_weights_are_refused(tmp_path: Path, wrong: str) -> None:
    plan = {wrong: {"targets": "attn", "ema": 0.5}.get(wrong, 2)}
    with pytest.raises(UsageError, match=f"^{wrong}: without effect"):
        make_acceleration(
            request(tmp_path / "m", tmp_path, tmp_path, plan), quiet, variant={"mode": "full"}
        )


def test_a_style_of_unet_and_text_encoders_is_trained_and_proven(
    tmp_path: Path, tiny_sdxl: Path, folder: Path
) -> None:
    out = tmp_path / "x.safetensors"
    plan = {"rank": 2, "alpha": 3.0, "learning_rate": 1e-2, "targets": "attn"}
    told = make_style(request(out, tiny_sdxl, folder, plan), "x", quiet, text_encoder=True)
    tau = load(out)
    moved = {m.partition(".")[0] for m in tau if float(tau[m].dense().abs().max()) > 0}
    assert moved == {"unet", "text_encoder", "text_encoder_2"}
    assert facts(tau)["plan"]["alpha"] == 3.0
    # three layers of six projections in each encoder
    assert sum(m.startswith("text_encoder.") for m in tau) == 18
    assert sum(m.startswith("text_encoder_2.") for m in tau) == 18
    assert told["modules"] == len(tau)


@pytest.mark.parametrize("frozen", [True, False])
def test_lcf_goes_on_from_an_acceleration_or_learns_a_style_beside_it(
    tmp_path: Path, tiny_sd15: Path, folder: Path, frozen: bool
) -> None:
    unet = load_base(tiny_sd15).unet
    accel = random_vector(2, 3.0, 0, shapes_of(unet, LCM_TARGETS))
    save(accel, tmp_path / "accel.safetensors")
    out = tmp_path / "x.safetensors"
    plan = {"rank": 2, "learning_rate": 1e-4, **({"targets": "attn"} if frozen else {})}
    told = make_acceleration(
        request(out, tiny_sd15, folder, plan), quiet, variant={"mode": "lcf", "anchor": 0.1},
        accel=str(tmp_path / "accel.safetensors"), freeze_accel=frozen,
    )  # fmt: skip
    tau = load(out)
    assert facts(tau)["kind"] == told["kind"] == ("style" if frozen else "acceleration")
    assert told["modules"] == len(tau)
    near = [float((tau[m].dense() - accel[m].dense()).norm()) for m in tau]
    size = [float(accel[m].dense().norm()) for m in tau]
    if frozen:  # a small update of its own layers
        assert len(tau) < len(accel)
        assert all(float(tau[m].dense().norm()) < 0.1 * s for m, s in zip(tau, size, strict=True))
    else:
        assert tau.modules == accel.modules
        assert all(0 < d < 0.1 * s for d, s in zip(near, size, strict=True))


@pytest.mark.parametrize("kind", ["style", "acceleration"])
def test_a_seed_gives_a_files_bytes_and_the_file_says_how_it_was_made(
    tmp_path: Path, tiny_sd15: Path, folder: Path, kind: str
) -> None:
    def make(name: str, seed: int) -> dict[str, Any]:
        asked = request(
            tmp_path / name,
            tiny_sd15,
            folder,
            {"rank": 2, "targets": "attn"},
            seed=seed,
            cache=tmp_path / "cache",
        )
        if kind == "style":
            return make_style(asked, "x", quiet)
        return make_acceleration(asked, quiet, variant={"omega": 1.0})

    first, other = make("a.safetensors", 0), make("c.safetensors", 1)
    if kind == "style":  # of the other test_resume.py tells
        assert first["sha256"] == make("b.safetensors", 0)["sha256"]
    assert first["sha256"] != other["sha256"]
    tau = load(tmp_path / "a.safetensors")
    assert first["modules"] == len(tau)
    assert any(float(tau[module].dense().abs().max()) > 0 for module in tau)
    told = facts(tau)
    assert (told["kind"], told["seed"], told["plan"]["steps"]) == (kind, 0, 2)
    assert told.get("omega") == ("1.0" if kind == "acceleration" else None)
    assert str(tmp_path) not in json.dumps(told)


def test_what_a_vector_went_on_from_stands_in_its_header(
    tmp_path: Path, tiny_sd15: Path, folder: Path
) -> None:
    first, second = (tmp_path / f"{name}.safetensors" for name in "ab")
    made = make_style(
        request(first, tiny_sd15, folder, {"rank": 2, "steps": 1, "targets": "attn"}), "x", quiet
    )
    asked = request(
        second, tiny_sd15, folder, {"rank": 3, "steps": 1, "targets": "attn"}, start=str(first)
    )
    told = make_style(asked, "x", quiet)
    assert told["start"]["terms"][0]["sha256"] == made["sha256"] != told["sha256"]


def test_a_failed_proof_keeps_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_text("mine")

    def refuse(_: Path) -> None:
        raise VerificationError("no")

    with pytest.raises(VerificationError):
        save(random_vector(4, 1.0, seed=1), path, force=True, prove=refuse)
    assert path.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [path]


def test_unknown_style_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="notto"):
        make_style(Request(out=tmp_path / "x.safetensors", run=tmp_path / "run"), "notto", quiet)
