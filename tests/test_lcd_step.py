"""One step: who is called with what, and a UNet's loss and gradients against Algorithm 1."""

import copy
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from gaussian import FLOW, SD, ZERO_SNR, T
from literal import algorithm_1
from peft import LoraConfig
from torch import Tensor

from lcm_arith.condition import Condition, Model
from lcm_arith.families import LCM_TARGETS
from lcm_arith.lcd.lcf import finetuning_loss
from lcm_arith.lcd.schedule import Grid
from lcm_arith.lcd.solver import PREDICTIONS, SOLVERS
from lcm_arith.lcd.step import Batch, consistency_loss, noised, predicted

GRID = Grid.of(T, 50)


def tiny_unet(dtype: torch.dtype) -> Any:
    """A network of Stable Diffusion's kinds of layers with random weights."""
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
        cross_attention_dim=8, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).to(dtype)  # fmt: skip


def with_lora(unet: Any) -> list[Tensor]:
    """The parameters of a LoRA with alpha ≠ rank that is not zero any more."""
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_alpha=6, target_modules=list(LCM_TARGETS)))
    trained = [p for p in unet.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p.copy_(torch.randn(p.shape) * 0.1)
    return trained


def as_model(unet: Any) -> Model:
    def model(z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        out: Tensor = unet(z, t, encoder_hidden_states=cond["embeds"]).sample
        return out

    return model


def without_lora(unet: Any) -> Model:
    def model(z: Tensor, t: Tensor, cond: Condition) -> Tensor:
        unet.disable_adapters()
        out = as_model(unet)(z, t, cond)
        unet.enable_adapters()
        return out

    return model


def tiny_batch(dtype: torch.dtype = torch.float32) -> Batch:
    generator = torch.Generator().manual_seed(0)
    z0, noise = torch.randn(2, 3, 4, 8, 8, generator=generator).to(dtype)
    cond, uncond = torch.randn(2, 3, 5, 8, generator=generator).to(dtype)
    return Batch(z0, noise, torch.tensor([0, 24, 49]), {"embeds": cond}, {"embeds": uncond})


@pytest.mark.parametrize(
    ("prediction", "loss", "dtype", "tolerance"),
    [
        ("epsilon", "huber", torch.float64, 1e-10),
        ("v_prediction", "huber", torch.float64, 1e-10),
        ("epsilon", "l2", torch.float32, 1e-5),
        # Huber bends within 1e-3 of zero, where the 1e-6 that float32 leaves in f are a thousandth.
        ("epsilon", "huber", torch.float32, 1e-4),
    ],
)
def test_a_step_equals_algorithm_1_with_two_networks(
    prediction: str, loss: str, dtype: torch.dtype, tolerance: float
) -> None:
    """Loss and gradients; ours take 2B rows at once and guide before the solver's step."""
    schedule = {"epsilon": SD, "v_prediction": ZERO_SNR}[prediction]
    unet = tiny_unet(dtype)
    teacher = copy.deepcopy(unet)
    trained = with_lora(unet)
    batch, omega = tiny_batch(dtype), torch.tensor([0.0, 3.0, 7.5])
    literal = algorithm_1(
        unet, teacher, tables=(schedule.alpha_t, schedule.sigma_t), prediction=prediction,
        z0=batch.z0, noise=batch.noise, ends=(GRID.start[batch.index], GRID.end[batch.index]),
        prompts=(batch.cond["embeds"], batch.uncond["embeds"]), omega=omega, loss=loss,
    )  # fmt: skip
    theirs = torch.cat([g.flatten() for g in torch.autograd.grad(literal, trained)])
    for checkpointing in (False, True):
        if checkpointing:
            unet.train().enable_gradient_checkpointing()
        student = as_model(unet)
        got = consistency_loss(
            student, without_lora(unet), batch, schedule=schedule, grid=GRID, omega=omega,
            target=student, prediction=prediction, loss=loss,
        )  # fmt: skip
        ours = torch.cat([g.flatten() for g in torch.autograd.grad(got, trained)])
        assert float(got.detach()) == pytest.approx(float(literal.detach()), rel=tolerance)
        assert float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


class Recorder:
    """Networks that answer c · z and note who was called with what."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Tensor, Tensor, Condition]] = []
        self.weights = {
            name: torch.tensor(0.1, requires_grad=True) for name in ("teacher", "target", "student")
        }

    def named(self, name: str) -> Model:
        def model(z: Tensor, t: Tensor, cond: Condition) -> Tensor:
            assert all(len(values) == len(z) for values in (t, *cond.values()))
            self.calls.append((name, z, t, cond))
            return self.weights[name] * z

        return model


def recorded_step(batch: Batch, **options: Any) -> tuple[Recorder, Tensor]:
    seen = Recorder()
    loss = consistency_loss(
        seen.named("student"), seen.named("teacher"), batch, schedule=SD, grid=GRID,
        target=seen.named("target"), **{"omega": 1.5, **options},
    )  # fmt: skip
    return seen, loss


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_step_calls_teacher_target_and_student_in_this_order(solver: str) -> None:
    batch = tiny_batch()
    seen, loss = recorded_step(batch, solver=solver)
    passes = SOLVERS[solver].passes
    assert [name for name, *_ in seen.calls] == ["teacher"] * passes + ["target", "student"]
    start, end = ([19, 499, 999], [0, 479, 979])
    told = [t.tolist() for _, _, t, _ in seen.calls]
    assert told == [*[start * 2, end * 2][:passes], end, start]
    for _, z, _, cond in seen.calls[:passes]:
        assert torch.equal(z[:3], z[3:])
        assert torch.equal(
            cond["embeds"], torch.cat([batch.cond["embeds"], batch.uncond["embeds"]])
        )
    loss.backward()
    assert seen.weights["student"].grad is not None
    assert seen.weights["teacher"].grad is None is seen.weights["target"].grad


def test_all_of_a_condition_reaches_the_networks_and_only_the_teacher_sees_the_empty_one() -> None:
    plain = tiny_batch()
    ids = torch.tensor([[1365.0, 2048, 0, 0, 1024, 1024]]).expand(3, 6)
    cond, uncond = (
        {**each, "pooled": torch.full((3, 2), value), "time_ids": ids}
        for each, value in ((plain.cond, 1.0), (plain.uncond, 0.0))
    )
    seen, _ = recorded_step(Batch(plain.z0, plain.noise, plain.index, cond, uncond))
    (_, _, _, teacher), *others = seen.calls
    assert teacher["pooled"][:, 0].tolist() == [1.0] * 3 + [0.0] * 3
    assert torch.equal(teacher["time_ids"], torch.cat([ids, ids]))
    assert all(told == cond for _, _, _, told in others)


def test_an_omega_that_varies_is_told_to_student_and_target_never_to_the_teacher() -> None:
    omega = torch.tensor([1.0, 2.0, 3.0])
    seen, _ = recorded_step(tiny_batch(), omega=omega)
    (_, _, _, teacher), *others = seen.calls
    assert "omega" not in teacher
    assert all(cond["omega"] is omega for _, _, _, cond in others)
    fixed, _ = recorded_step(tiny_batch(), omega=2.0)
    assert not any("omega" in cond for *_, cond in fixed.calls)


def test_omegas_of_a_batch_are_each_pictures_own() -> None:
    batch, each = tiny_batch(), [0.0, 3.0, 7.5]
    _, together = recorded_step(batch, omega=torch.tensor(each))
    apart = [
        recorded_step(
            Batch(
                batch.z0[[i]], batch.noise[[i]], batch.index[[i]],
                {"embeds": batch.cond["embeds"][[i]]}, {"embeds": batch.uncond["embeds"][[i]]},
            ),
            omega=omega,
        )[1]
        for i, omega in enumerate(each)
    ]  # fmt: skip
    assert float(together.detach()) == pytest.approx(float(sum(apart).detach()) / 3, rel=1e-6)


def test_fine_tuning_calls_two_networks_on_one_noise_and_no_teacher() -> None:
    batch, seen, omega = tiny_batch(), Recorder(), torch.tensor([1.0, 2.0, 3.0])
    loss = finetuning_loss(
        seen.named("student"), Batch(batch.z0, batch.noise, batch.index, batch.cond),
        schedule=SD, grid=GRID, target=seen.named("target"), omega=omega,
    )  # fmt: skip
    (first, z_s, s, told), (second, z_t, t, told_too) = seen.calls
    assert (first, s.tolist()) == ("target", [0, 479, 979])
    assert (second, t.tolist()) == ("student", [19, 499, 999])
    assert torch.equal(z_s, SD.add_noise(batch.z0, batch.noise, s))
    assert torch.equal(z_t, SD.add_noise(batch.z0, batch.noise, t))
    assert told["omega"] is told_too["omega"] is omega
    loss.backward()
    assert seen.weights["target"].grad is None


def test_half_precision_latents_are_noised_in_single_precision() -> None:
    noise = torch.ones(50, 1, 1, 1, dtype=torch.bfloat16)
    cond = {"embeds": torch.zeros(50, 1, 1, dtype=torch.bfloat16)}
    batch = Batch(torch.zeros_like(noise), noise, torch.arange(50), cond, cond)
    seen, loss = recorded_step(batch)
    _, z, _, _ = seen.calls[-1]
    exactly = SD.sigma_t[GRID.start]
    assert float((z.flatten() / exactly - 1).abs().max()) < 1e-7  # float32
    assert loss.dtype == torch.float32


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_a_schedule_that_ends_in_pure_noise_trains(prediction: str, solver: str) -> None:
    seen, loss = recorded_step(tiny_batch(), prediction=prediction, solver=solver)
    loss.backward()
    assert bool(loss.isfinite())
    gradient = seen.weights["student"].grad
    assert gradient is not None
    assert bool(gradient.isfinite())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_goal_at_the_picture_is_the_solvers_state(prediction: str, solver: str) -> None:
    # In a flow sigma_t = 0 there, where ε of two parameterisations would be a division by 0.
    schedule, grid = (FLOW, Grid.of_flow(T, 50)) if prediction == "flow" else (SD, GRID)
    states: list[Tensor] = []

    def target(z: Tensor, t: Tensor, _: Condition) -> Tensor:
        states.append(z)
        return torch.full_like(z, 9.0)

    def half(z: Tensor, t: Tensor, _: Condition) -> Tensor:
        return torch.full_like(z, 0.5)

    batch = Batch(*torch.ones(2, 1, 1, dtype=torch.float64), torch.tensor([0]), {}, {})
    loss = consistency_loss(
        half, half, batch, schedule=schedule, grid=grid, omega=1.0, target=target,
        prediction=prediction, solver=solver, loss="l2",
    )  # fmt: skip
    z, start, _ = noised(batch, schedule, grid)
    f = predicted(half, PREDICTIONS[prediction], z, start, {})
    assert float(loss) == pytest.approx(float((f - states[0]).square()), rel=1e-12)
