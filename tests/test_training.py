"""finetune and distill: the loss, the loop, and the file that comes out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lcm_arith.dataset import embedded_pictures, encode
from lcm_arith.finetune import finetune, noise_loss, snr_weight
from PIL import Image
from support import random_vector

from lcm_arith.adapters import facts, load, save
from lcm_arith.embedded import pictures
from lcm_arith.errors import (
    DivergedError,
    IncompatibleError,
    NotFoundError,
    VerificationError,
)
from lcm_arith.families import Training, embedded
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.make_vectors import Request, make_acceleration, make_style
from lcm_arith.training import (
    adapted,
    adapter_vector,
    add_adapter,
    fit,
    learning_rate_factor,
)

SMALL = Training(rank=2, steps=3, batch=2, learning_rate=1e-3)


def quiet(*_: object) -> None:
    """No progress."""


pytestmark = pytest.mark.usefixtures("small_batches")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    data.mkdir()
    for index, concept in enumerate(pictures.concepts("A")[:3]):
        picture = pictures.variants("noto", concept, 1)[0]
        Image.fromarray(picture).save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(concept.caption)
    return data


def test_weights_are_the_snr_between_floor_and_gamma_over_the_snr() -> None:
    schedule = Schedule(torch.tensor([0.9, 0.5, 0.1]), torch.tensor([0.1, 0.5, 0.9]))
    weights = snr_weight(schedule, torch.arange(3), floor=0.1, gamma=5.0)
    assert weights.tolist() == pytest.approx([5 / 81, 1.0, 8.1])


def test_noise_loss_is_zero_for_the_true_noise_and_weighted_else() -> None:
    schedule = Schedule(torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5]))
    z0, noise = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    t = torch.tensor([0, 1])

    def unet_that_says(value: float) -> Any:
        class Out:
            sample = torch.full_like(z0, value)

        return lambda *_, **__: Out()

    assert float(noise_loss(unet_that_says(1.0), schedule, z0, noise, t, z0)) == 0.0
    got = float(noise_loss(unet_that_says(3.0), schedule, z0, noise, t, z0))
    assert got == pytest.approx((5 / 81 + 1) / 2 * 4)


def test_learning_rate_warms_up_stays_and_falls_to_zero() -> None:
    factors = [learning_rate_factor(step, 100) for step in range(101)]
    assert factors[0] == pytest.approx(0.2)
    assert factors[5:50] == [1.0] * 45
    assert factors[75] == pytest.approx(0.5)
    assert factors[100] == 0.0


@pytest.mark.parametrize("kind", ["style", "acceleration"])
def test_a_trained_file_loads_whole_says_how_it_was_made_and_a_seed_gives_its_bytes(
    tmp_path: Path, folder: Path, kind: str
) -> None:
    def make(name: str, seed: int) -> dict[str, Any]:
        request = Request(tmp_path / name, folder, rank=2, steps=2, seed=seed)
        if kind == "style":
            return make_style(request, "unused", quiet)
        return make_acceleration(request, 1.0, quiet)

    first, again, other = (
        make("a.safetensors", 0),
        make("b.safetensors", 0),
        make("c.safetensors", 1),
    )
    assert first["sha256"] == again["sha256"] != other["sha256"]
    assert first["modules"] == 115  # every layer of the 14 kinds in the embedded UNet
    tau = load(tmp_path / "a.safetensors")
    assert {tau[module].rank for module in tau} == {2}
    assert any(float(tau[module].dense().abs().max()) > 0 for module in tau)
    told = facts(tau)  # how it was made
    assert (told["kind"], told["seed"], told["plan"]["steps"]) == (kind, 0, 2)
    assert told.get("omega") == ("1.0" if kind == "acceleration" else None)
    assert str(tmp_path) not in json.dumps(told)


def test_training_lowers_the_loss_on_its_pictures(fresh_pipeline: Callable[[], Any]) -> None:
    pipeline = fresh_pipeline()
    unet, schedule = pipeline.unet, Schedule.of_pipeline(pipeline)
    data = encode(pipeline, embedded_pictures(("fluent-emoji-high-contrast",), "A", 1))
    generator = torch.Generator().manual_seed(0)
    z0, c = data.draw(8, generator)
    noise, t = torch.randn(z0.shape, generator=generator), torch.full((8,), 400)
    add_adapter(unet, rank=4, targets=("to_q", "to_v", "conv1"), seed=0)
    losses: list[float] = []
    fit(unet, lambda _: noise_loss(unet, schedule, z0, noise, t, c),
        Training(rank=4, steps=12, batch=8, learning_rate=2e-3),
        lambda _, loss: losses.append(loss))  # fmt: skip
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("keep_empty", [True, False])
def test_without_a_caption_a_style_learns_nothing_where_the_empty_one_is_kept(
    fresh_pipeline: Callable[[], Any], keep_empty: bool
) -> None:
    pipeline = fresh_pipeline()
    data = encode(pipeline, embedded_pictures(("fluent-emoji-high-contrast",), "A", 1))
    tau, outcome = finetune(
        pipeline, data, SMALL, seed=0, on_step=quiet, caption_dropout=1.0, keep_empty=keep_empty
    )
    assert len(tau) == 115
    if keep_empty:  # its own answer, but for bfloat16 of weights that are merged and that are not
        assert max(outcome.losses) < 1e-3
    else:
        assert min(outcome.losses) > 1e-2


def test_a_training_goes_on_from_a_vector_with_room_for_more(
    fresh_pipeline: Callable[[], Any],
) -> None:
    start = load("twemoji")
    rank = max(start.rank_of(module) for module in start)
    unet = fresh_pipeline().unet
    add_adapter(unet, rank=rank + 3, targets=embedded().style.targets, seed=0, start=start)
    begun = adapter_vector(unet, {})
    assert {begun.rank_of(module) for module in begun} == {rank + 3}
    for module in start:  # the new directions add nothing yet; a product more in float32
        want = start[module].dense()
        assert float((begun[module].dense() - want).norm()) <= 1e-6 * float(want.norm())
        assert float(begun[module].down[-3:].abs().min()) > 0


@pytest.mark.parametrize(
    ("start", "rank", "told"),
    [
        (lambda: load("twemoji"), 2, "rank"),
        (lambda: random_vector(2, 2.0, seed=0), 4, "lacks"),
    ],
)
def test_a_vector_that_a_training_cannot_go_on_from_is_refused(
    fresh_pipeline: Callable[[], Any], start: Callable[[], Any], rank: int, told: str
) -> None:
    unet = fresh_pipeline().unet
    with pytest.raises(IncompatibleError, match=told):
        add_adapter(unet, rank=rank, targets=embedded().style.targets, seed=0, start=start())


def test_what_a_vector_went_on_from_stands_in_its_header(tmp_path: Path, folder: Path) -> None:
    first, second = (tmp_path / f"{name}.safetensors" for name in "ab")
    made = make_style(Request(first, folder, rank=2, steps=1), "unused", quiet)
    request = Request(second, folder, rank=2, steps=1, start=str(first), learning_rate=1e-4)
    told = make_style(request, "unused", quiet)
    assert told["start"]["terms"][0]["sha256"] == made["sha256"]
    assert told["plan"]["learning_rate"] == 1e-4
    assert told["sha256"] != made["sha256"]


def test_merged_weights_give_pefts_outputs_and_gradients(
    fresh_pipeline: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lcm_arith.training.adapter._MERGED_UP_TO", 10**9)  # for two pictures, too
    unet = fresh_pipeline().unet.eval()
    add_adapter(unet, rank=3, targets=("to_q", "conv1", "proj_in"), seed=0)
    trained = {name: p for name, p in unet.named_parameters() if p.requires_grad}
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in trained.values():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    z = torch.randn(2, 16, 8, 8, generator=generator)
    t, c = torch.tensor([10, 900]), torch.randn(2, 16, 128, generator=generator)
    found = []
    for call in (unet, adapted(unet)):
        out = call(z, t, encoder_hidden_states=c).sample
        out.square().mean().backward()
        gradients = {name: p.grad.clone() for name, p in trained.items()}
        unet.zero_grad(set_to_none=True)
        found.append((out.detach(), gradients))
    (out, gradients), (merged, merged_gradients) = found
    # float32 sums in another order, over about 30 layers
    torch.testing.assert_close(merged, out, rtol=1e-4, atol=1e-4)
    assert len(gradients) == 2 * (14 + 8 + 7)  # to_q, conv1, proj_in
    for name, gradient in gradients.items():
        torch.testing.assert_close(merged_gradients[name], gradient, rtol=1e-3, atol=1e-5)


def test_non_finite_steps_are_skipped_counted_and_end_the_training(
    fresh_pipeline: Callable[[], Any],
) -> None:
    unet = fresh_pipeline().unet
    add_adapter(unet, rank=1, targets=("to_q",), seed=0)
    weight = next(p for p in unet.parameters() if p.requires_grad)

    def loss_of(bad: set[int]) -> Callable[[int], torch.Tensor]:
        return lambda step: weight.sum() * (float("nan") if step in bad else 1.0)

    assert fit(unet, loss_of({1, 3}), SMALL_PLAN, quiet).skipped == 2
    assert bool(weight.isfinite().all())
    with pytest.raises(DivergedError, match="5 steps in a row") as caught:
        fit(unet, loss_of(set(range(99))), SMALL_PLAN, quiet)
    assert caught.value.exit_code == 8


SMALL_PLAN = Training(rank=1, steps=8, batch=1, learning_rate=1e-3)


def test_gradients_are_clipped(fresh_pipeline: Callable[[], Any]) -> None:
    unet = fresh_pipeline().unet
    add_adapter(unet, rank=1, targets=("to_q",), seed=0)
    trained = [p for p in unet.parameters() if p.requires_grad]
    norms: list[float] = []

    class Spy(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            norms.append(
                float(torch.stack([p.grad.norm() for p in trained if p.grad is not None]).norm())
            )
            return super().step(closure)

    original = torch.optim.AdamW
    torch.optim.AdamW = Spy  # type: ignore[misc]  # fit looks the class up when it runs
    try:
        fit(
            unet,
            lambda _: 1e4 * sum(p.square().sum() + p.sum() for p in trained),
            SMALL_PLAN,
            quiet,
        )
    finally:
        torch.optim.AdamW = original  # type: ignore[misc]
    assert max(norms) == pytest.approx(1.0, rel=1e-3)


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
        make_style(Request(tmp_path / "x.safetensors"), "notto", quiet)
