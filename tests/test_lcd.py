"""The symbols of Algorithm 1, each against its formula or diffusers."""

import copy
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from gaussian import BETAS, CASES, FLOW, OMEGA, SD, ZERO_SNR, T, exact, output
from torch import Tensor, nn

from lcm_arith.errors import UsageError
from lcm_arith.lcd.boundary import consistency, scalings
from lcm_arith.lcd.ema import Average
from lcm_arith.lcd.guidance import check_omega, guided, omega_embedding
from lcm_arith.lcd.loss import HUBER_C, LOSSES, pseudo_huber
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import PREDICTIONS, SOLVERS, Level

SPELLED = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
GRID = Grid.of(T, 50)


def states(*names: str) -> list[Tensor]:
    """A random ``[50, 4]`` in float64 for each name."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(50, 4, generator=generator, dtype=torch.float64) for _ in names]


def levels(name: str, like: Tensor) -> tuple[Level, Level]:
    """Start and end of every solver step of a parameterisation's case."""
    case = CASES[name]
    return case.schedule.at(case.grid.start, like), case.schedule.at(case.grid.end, like)


def off(one: Tensor, other: Tensor) -> float:
    return float((one - other).detach().abs().max())


@pytest.mark.parametrize("name", PREDICTIONS)
def test_an_output_means_the_picture_and_the_noise_that_it_was_made_of(name: str) -> None:
    (z,) = states("z")
    at, row = levels(name, z)[0], PREDICTIONS[name]
    x0, eps = exact(z, at, 1.1)
    out = output(name, x0, eps, at)
    # ε's x₀ is a division by alpha_t: 15 times the rounding at t = 999.
    assert off(row.x0(out, z, at), x0) < 1e-12
    assert off(row.eps(out, z, at), eps) < 1e-12


@pytest.mark.parametrize("name", PREDICTIONS)
def test_guiding_the_output_equals_guiding_the_increment(name: str) -> None:
    # (1 + ω) Ψ(c) − ω Ψ(∅) of Algorithm 1.
    z, cond, uncond = states("z", "c", "∅")
    start, end = levels(name, z)

    def stepped(out: Tensor) -> Tensor:
        return SOLVERS["ddim"].step(lambda *_: out, PREDICTIONS[name], z, start, end)

    wanted = z + (1 + OMEGA) * (stepped(cond) - z) - OMEGA * (stepped(uncond) - z)
    # The increments of noise prediction from t = 999 are up to 100: 1e-12 of that.
    assert off(stepped(guided(cond, uncond, OMEGA)), wanted) < 1e-12 * float(wanted.abs().max())


def test_ddim_is_psi_as_the_paper_prints_it() -> None:
    z, eps = states("z", "ε")
    start, end = levels("epsilon", z)
    (_, a_t, s_t), (_, a_s, s_s) = start, end
    psi = a_s / a_t * z - s_s * (s_t * a_s / (a_t * s_s) - 1) * eps - z
    got = SOLVERS["ddim"].step(lambda *_: eps, PREDICTIONS["epsilon"], z, start, end)
    assert off(got, z + psi) < 1e-12


def test_ddim_of_a_flow_is_eulers_step() -> None:
    z, out = states("z", "v")
    start, end = levels("flow", z)
    got = SOLVERS["ddim"].step(lambda *_: out, PREDICTIONS["flow"], z, start, end)
    assert off(got, z + (end.sigma_t - start.sigma_t) * out) < 1e-12


def test_dpm_2s_is_the_papers_update_in_log_signal_to_noise() -> None:
    """Algorithm 1 of arXiv:2211.01095 with r = 1; the network is any function of z and t."""
    (z,) = states("z")
    start, end = levels("epsilon", z)

    def network(z: Tensor, at: Level) -> Tensor:
        return torch.sin(z + at.t[:, None] / 500)

    def x0(z: Tensor, at: Level) -> Tensor:
        return (z - at.sigma_t * network(z, at)) / at.alpha_t

    h = (end.alpha_t / end.sigma_t).log() - (start.alpha_t / start.sigma_t).log()
    first = x0(z, start)
    u = end.sigma_t / start.sigma_t * z - end.alpha_t * torch.expm1(-h) * first
    d = (1 - 1 / 2) * first + 1 / 2 * x0(u, end)
    wanted = end.sigma_t / start.sigma_t * z - end.alpha_t * torch.expm1(-h) * d
    got = SOLVERS["dpm++2s"].step(network, PREDICTIONS["epsilon"], z, start, end)
    assert off(got, wanted) < 1e-12


def test_an_omega_for_each_picture_is_that_omega() -> None:
    cond, uncond = states("c", "∅")
    omega = torch.linspace(0, 15, 50)
    wanted = [guided(c, u, float(w)) for c, u, w in zip(cond, uncond, omega, strict=True)]
    assert torch.equal(guided(cond, uncond, omega), torch.stack(wanted))


@pytest.mark.parametrize("wrong", [-0.1, float("nan"), float("inf"), (5.0, 3.0), (-1.0, 3.0)])
def test_an_omega_that_cannot_be_is_refused(wrong: Any) -> None:
    check_omega(0.0)
    check_omega((3.0, 15.0))
    with pytest.raises(UsageError, match="omega"):
        check_omega(wrong)


@pytest.mark.parametrize("dim", [256, 5])
def test_a_student_is_told_omega_as_diffusers_pipelines_do(dim: int) -> None:
    omega = torch.tensor([0.0, 7.5, 14.25])
    theirs = diffusers.LatentConsistencyModelPipeline.get_guidance_scale_embedding
    assert torch.equal(omega_embedding(omega, dim), theirs(None, omega, dim))


def test_boundary_scalings_are_exact_at_zero_and_the_samplers_elsewhere() -> None:
    z = torch.zeros(1, 1, dtype=torch.float64)
    c_skip, c_out = scalings(torch.tensor([0]), z)
    assert float(c_skip) == 1.0
    assert float(c_out) == 0.0
    sampler: Any = LCMScheduler(**SPELLED)
    for t in (19, 259, 999):
        theirs = sampler.get_scalings_for_boundary_condition_discrete(t)
        ours = [float(x) for x in scalings(torch.tensor([t]), z)]
        assert ours == pytest.approx([float(x) for x in theirs], rel=1e-6)


def test_f_is_the_identity_at_the_boundary() -> None:
    z, x0 = states("z", "x₀")
    assert torch.equal(consistency(x0, z, torch.zeros(50, dtype=torch.long)), z)


def test_the_grid_is_the_samplers() -> None:
    sampler: Any = LCMScheduler(**SPELLED)
    for steps in (1, 2, 4, 8):
        sampler.set_timesteps(steps)
        assert set(sampler.timesteps.tolist()) <= set(GRID.start.tolist())
    assert GRID.start.tolist()[:2] == [19, 39]
    assert int(GRID.start[-1]) == 999
    assert GRID.end.tolist()[:3] == [0, 19, 39]


def test_a_stride_goes_back_whole_grid_points_and_ends_at_zero() -> None:
    grid = Grid.of(T, 50, 3)
    assert torch.equal(grid.start, GRID.start)
    assert grid.end[:3].tolist() == [0, 0, 0]
    assert torch.equal(grid.start[3:] - grid.end[3:], torch.full((47,), 60))


def test_the_grid_of_a_flow_begins_at_pure_noise() -> None:
    grid = Grid.of_flow(T, 50)
    assert (grid.start.tolist()[:2], grid.end.tolist()[:2]) == ([20, 40], [0, 20])
    assert float(FLOW.sigma_t[grid.start[-1]]) == 1.0


def test_the_literal_rule_starts_anywhere_and_goes_k_timesteps_back() -> None:
    grid = Grid.every(T, 20)
    assert grid.start.tolist() == list(range(20, T))
    assert grid.end.tolist() == list(range(T - 20))
    assert len(grid) == T - 20


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Grid.of(T, 0), "grid points"),
        (lambda: Grid.of_flow(T, 1001), "grid points"),
        (lambda: Grid.of(T, 50, 0), "stride"),
        (lambda: Grid.of(T, 50, 51), "stride"),
        (lambda: Grid.every(T, 0), "skipping interval"),
        (lambda: Grid.every(T, T), "skipping interval"),
    ],
)
def test_a_grid_that_cannot_be_is_refused(make: Any, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        make()


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("of", ["DDIMScheduler", "EulerDiscreteScheduler", "PNDMScheduler"])
def test_a_schedule_is_the_schedulers(of: str, zero: bool, betas: str) -> None:
    config = {**SPELLED, "beta_schedule": betas, "rescale_betas_zero_snr": zero}
    scheduler = getattr(diffusers, of).from_config(config)
    ours = Schedule.of_scheduler(scheduler)
    knows = of != "PNDMScheduler"  # it takes no notice of the option
    theirs = DDIMScheduler.from_config(config) if zero and not knows else scheduler
    # Theirs is a product of 1000 factors in float32; Euler's last is 2⁻²⁴ in place of 0.
    assert off(ours.alpha_t.square(), theirs.alphas_cumprod.double()) < 2e-6
    assert (float(ours.alpha_t[-1]) == 0) is zero
    assert off(ours.alpha_t.square() + ours.sigma_t.square(), torch.ones(T)) < 1e-15


def test_trained_betas_are_the_schedule_and_no_betas_are_refused() -> None:
    scheduler = DDIMScheduler(trained_betas=BETAS.tolist())
    assert off(Schedule.of_scheduler(scheduler).alpha_t, SD.alpha_t) < 1e-15
    with pytest.raises(UsageError, match="FlowMatchEulerDiscreteScheduler"):
        Schedule.of_scheduler(diffusers.FlowMatchEulerDiscreteScheduler())


def test_zero_terminal_snr_keeps_the_first_signal_and_ends_in_none() -> None:
    assert float(ZERO_SNR.alpha_t[0]) == pytest.approx(float(SD.alpha_t[0]), rel=1e-15)
    assert float(ZERO_SNR.alpha_t[-1]) == 0.0
    assert float(ZERO_SNR.sigma_t[-1]) == 1.0


def test_noise_cannot_be_predicted_where_there_is_nothing_else() -> None:
    for prediction in ("v_prediction", "sample"):
        ZERO_SNR.check(prediction)
    SD.check("epsilon")
    with pytest.raises(UsageError, match="zero terminal SNR") as told:
        ZERO_SNR.check("epsilon")
    assert "v_prediction" in told.value.hint
    with pytest.raises(UsageError, match="'score'"):
        SD.check("score")


def test_a_level_is_float32_or_as_wide_as_its_latents() -> None:
    t, wide = GRID.start, SD.sigma_t[GRID.start]
    for dtype, told in ((torch.bfloat16, torch.float32), (torch.float64, torch.float64)):
        level = SD.at(t, torch.zeros(50, 4, dtype=dtype))
        assert level.sigma_t.dtype == told
        assert float((level.sigma_t[:, 0] / wide - 1).abs().max()) < 1e-7
    half = (1 - SD.alpha_t[t].square().bfloat16()).sqrt()
    assert float((half / wide - 1).abs().max()) > 0.01  # why it is not computed in bf16


def test_noising_equals_the_scheduler() -> None:
    z0, noise = (x[:4, :, None, None].float() for x in states("z₀", "ε"))
    t = torch.tensor([0, 19, 500, 999])
    theirs: Any = DDIMScheduler(**SPELLED)
    assert off(SD.add_noise(z0, noise, t), theirs.add_noise(z0, noise, t)) < 1e-6  # float32


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far() -> None:
    x, zero = torch.tensor([1e-5], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert float(pseudo_huber(x, zero)) == pytest.approx(1e-10 / (2 * HUBER_C), rel=1e-3)
    assert float(pseudo_huber(x * 1e8, zero)) == pytest.approx(1e3 - HUBER_C, rel=1e-6)


@pytest.mark.parametrize(("name", "wanted"), [("huber", 1.499), ("l2", 2.5)])
def test_a_loss_is_the_mean_over_elements_in_float32_or_wider(name: str, wanted: float) -> None:
    one = torch.tensor([[1.0, 2.0]])
    loss = LOSSES[name](one.bfloat16(), torch.zeros(1, 2).bfloat16())
    assert loss.dtype == torch.float32
    assert float(loss) == pytest.approx(wanted, rel=1e-6)  # (√(1 + c²) + √(4 + c²)) / 2 − c; 5 / 2
    assert LOSSES[name](one.double(), one.double()).dtype == torch.float64


def test_a_target_averages_parameters_and_copies_buffers() -> None:
    student = nn.BatchNorm1d(2, dtype=torch.float64)
    target = copy.deepcopy(student)
    average = Average.of_modules(target, student, 0.95)
    wanted = student.weight.detach().clone()
    for step in range(3):
        with torch.no_grad():
            student.weight.add_(torch.tensor([0.5, -step]))
            student.get_buffer("running_mean").fill_(step)
        average.update()
        wanted = 0.95 * wanted + 0.05 * student.weight.detach()
    assert off(target.weight, wanted) < 1e-15
    assert target.get_buffer("running_mean").tolist() == [2.0, 2.0]
    average.begin()
    assert torch.equal(target.weight, student.weight)


def test_an_average_of_tensors_of_another_adapter_keeps_its_own_precision() -> None:
    source, target = [torch.ones(2, dtype=torch.bfloat16)], [torch.zeros(2)]
    Average(target, source, 0.75).update()
    assert target[0].tolist() == [0.25, 0.25]


def test_an_average_that_cannot_be_is_refused() -> None:
    for decay in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="ema decay"):
            Average([], [], decay)
    with pytest.raises(ValueError, match="shorter"):
        Average([torch.zeros(1)], [], 0.5)
    with pytest.raises(ValueError, match=r"\[1\], \[2\]"):
        Average([torch.zeros(1)], [torch.zeros(2)], 0.5)
