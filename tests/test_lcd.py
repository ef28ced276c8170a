"""Algorithm 1 against closed forms.

Oracle (Gaussian data): coordinates z₀ ~ N(m, s²), so the exact network, the guided solver step and
the fixed point of distillation are known in closed form.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from torch import Tensor

from lcm_arith.errors import UsageError
from lcm_arith.families import LCM_TARGETS
from lcm_arith.lcd.boundary import consistency, scalings
from lcm_arith.lcd.guidance import guided
from lcm_arith.lcd.loss import HUBER_C, pseudo_huber
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.lcd.solver import ddim_step, predicted_x0
from lcm_arith.lcd.step import Batch, consistency_loss
from lcm_arith.training import adapter_off, add_adapter

SD = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
OMEGA, SPREAD, M_C, M_0 = 7.5, 0.4, 1.1, 0.3
M_OMEGA = M_C + OMEGA * (M_C - M_0)


def scheduler(of: Any) -> Any:
    """A diffusers scheduler of Stable Diffusion's noise schedule."""
    return of(**SD)


def wide_schedule() -> Schedule:
    bars = scheduler(DDIMScheduler).alphas_cumprod.double()
    return Schedule(bars.sqrt(), (1 - bars).sqrt())


SCHEDULE, GRID = wide_schedule(), Grid.of(1000, 50)


def variance(t: Tensor) -> Tensor:
    """V_t² = α_t² s² + σ_t²."""
    return (SCHEDULE.alpha_t[t] * SPREAD) ** 2 + SCHEDULE.sigma_t[t] ** 2


def exact_epsilon(z: Tensor, t: Tensor, mean: Tensor) -> Tensor:
    alpha_t, sigma_t = SCHEDULE.at(t, z)
    return sigma_t * (z - alpha_t * mean) / variance(t).reshape(-1, 1)


def exact_teacher(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
    """The network of data N(c, s²): the condition is the mean itself."""
    return exact_epsilon(z, t, c)


def gain(t: Tensor, s: Tensor) -> Tensor:
    """g(t, s) = (α_s α_t s² + σ_s σ_t) / V_t²."""
    a, b = SCHEDULE.alpha_t, SCHEDULE.sigma_t
    return (a[s] * a[t] * SPREAD**2 + b[s] * b[t]) / variance(t)


def fixed_point(z: Tensor, index: Tensor, grid: Grid = GRID) -> Tensor:
    """f_k(z) = α_0 m_ω + G_k (z − α_{t_k} m_ω), G_k = ∏ g(t_i, s_i)."""
    total = torch.cumprod(gain(grid.start, grid.end), 0)[index].reshape(-1, 1)
    alpha_t = SCHEDULE.alpha_t[grid.start[index]].reshape(-1, 1)
    return SCHEDULE.alpha_t[0] * M_OMEGA + total * (z - alpha_t * M_OMEGA)


@dataclass
class OracleStudent:
    """The network whose consistency function is the fixed point, plus what we perturb it by."""

    shift: Tensor  # [K], added to f

    def __call__(self, z: Tensor, t: Tensor, _: Tensor) -> Tensor:
        index = torch.searchsorted(GRID.start, t)
        c_skip, c_out = scalings(t, z)
        wanted = fixed_point(z, index) + self.shift[index].reshape(-1, 1)
        x0 = (wanted - c_skip * z) / c_out.clamp(min=1e-300)
        alpha_t, sigma_t = SCHEDULE.at(t, z)
        return torch.where(c_out > 0, (z - alpha_t * x0) / sigma_t, torch.zeros_like(z))


def oracle_batch(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(50).repeat(20)
    noise, unit = (torch.randn(1000, 4, generator=generator, dtype=torch.float64) for _ in "ab")
    c = torch.full((1000, 1), M_C, dtype=torch.float64)
    return Batch(M_C + SPREAD * unit, noise, index, c, torch.full_like(c, M_0))


def oracle_loss(shift: Tensor, omega: float = OMEGA) -> Tensor:
    student = OracleStudent(shift)
    return consistency_loss(
        student, exact_teacher, oracle_batch(), schedule=SCHEDULE, grid=GRID, omega=omega,
        target=student,
    )  # fmt: skip


def test_loss_and_gradient_vanish_at_the_gaussian_fixed_point() -> None:
    shift = torch.zeros(50, dtype=torch.float64, requires_grad=True)
    loss = oracle_loss(shift)
    (gradient,) = torch.autograd.grad(loss, shift)
    # float64; huber near zero is d²/2c, so 1e-12 errors vanish.
    assert float(loss.detach()) < 1e-15
    assert float(gradient.abs().max()) < 1e-8


@pytest.mark.parametrize("where", [0, 24, 49])
def test_a_perturbed_fixed_point_fails(where: int) -> None:
    shift = torch.zeros(50, dtype=torch.float64)
    shift[where] = 0.01
    shift.requires_grad_()
    loss = oracle_loss(shift)
    (gradient,) = torch.autograd.grad(loss, shift)
    assert float(loss.detach()) > 1e-6
    assert float(gradient[where]) > 1e-4


def test_the_fixed_point_of_another_omega_fails() -> None:
    assert float(oracle_loss(torch.zeros(50, dtype=torch.float64), omega=OMEGA + 0.1)) > 1e-4


def test_a_target_that_is_the_teachers_own_guess_fails() -> None:
    # The rule of a well-known trainer: target = the teacher's one-step x₀ at ẑ.
    student = OracleStudent(torch.zeros(50, dtype=torch.float64))
    loss = consistency_loss(
        student, exact_teacher, oracle_batch(), schedule=SCHEDULE, grid=GRID, omega=OMEGA,
        target=exact_teacher,
    )  # fmt: skip
    assert float(loss) > 0.01


def test_training_from_the_teacher_reaches_the_fixed_point() -> None:
    """Algorithm 1 on a grid of 10 with 20 scalars, ε_θ = ε* + a_k z + b_k, begun at the teacher."""
    grid = Grid.of(1000, 10)
    coefficients = torch.zeros(2, 10, dtype=torch.float64, requires_grad=True)

    def student(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        a, b = coefficients[:, torch.searchsorted(grid.start, t), None]
        out: Tensor = exact_teacher(z, t, c) + a * z + b
        return out

    optimizer = torch.optim.Adam([coefficients], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 1500)
    generator = torch.Generator().manual_seed(0)
    index = torch.arange(10).repeat(12)
    c = torch.full((120, 1), M_C, dtype=torch.float64)
    for _ in range(1500):
        noise, unit = torch.randn(2, 120, 4, generator=generator, dtype=torch.float64)
        batch = Batch(M_C + SPREAD * unit, noise, index, c, torch.full_like(c, M_0))
        loss = consistency_loss(
            student, exact_teacher, batch, schedule=SCHEDULE, grid=grid, omega=OMEGA, target=student
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    t = grid.start[index]
    z = SCHEDULE.add_noise(batch.z0, batch.noise, t)
    with torch.no_grad():
        f = consistency(predicted_x0(student(z, t, c), z, *SCHEDULE.at(t, z)), z, t)
    teacher = predicted_x0(exact_teacher(z, t, c), z, *SCHEDULE.at(t, z))
    wanted = fixed_point(z, index, grid)
    assert float((teacher - wanted).abs().mean()) > 1.0  # where it started
    assert float((f - wanted).abs().mean()) < 0.05  # what 1,500 steps leave of it


def test_a_stride_goes_back_whole_grid_points_and_ends_at_zero() -> None:
    grid = Grid.of(1000, 50, 3)
    assert torch.equal(grid.start, GRID.start)
    assert grid.end[:3].tolist() == [0, 0, 0]
    assert torch.equal(grid.start[3:] - grid.end[3:], torch.full((47,), 60))
    for wrong in (0, 51):
        with pytest.raises(UsageError, match="stride"):
            Grid.of(1000, 50, wrong)


def test_guided_solver_step_equals_the_closed_form() -> None:
    z = torch.linspace(-2, 2, 50, dtype=torch.float64)[:, None]
    t, s = GRID.start, GRID.end
    mean_c, mean_0 = torch.full_like(z, M_C), torch.full_like(z, M_0)
    epsilon = guided(exact_epsilon(z, t, mean_c), exact_epsilon(z, t, mean_0), OMEGA)
    got = ddim_step(epsilon, z, SCHEDULE.at(t, z), SCHEDULE.at(s, z))
    alpha_t, alpha_s = SCHEDULE.at(t, z)[0], SCHEDULE.at(s, z)[0]
    wanted = alpha_s * M_OMEGA + gain(t, s).reshape(-1, 1) * (z - alpha_t * M_OMEGA)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-12)


def test_guiding_the_output_equals_guiding_the_increment() -> None:
    # (1+ω)Ψ(c) − ωΨ(∅) of Algorithm 1, Ψ written as the paper does.
    torch.manual_seed(0)
    z, e_c, e_0 = torch.randn(3, 50, 4, dtype=torch.float64)
    at_t, at_s = SCHEDULE.at(GRID.start, z), SCHEDULE.at(GRID.end, z)
    (a_t, s_t), (a_s, s_s) = at_t, at_s

    def psi(e: Tensor) -> Tensor:
        out: Tensor = a_s / a_t * z - s_s * (s_t * a_s / (a_t * s_s) - 1) * e - z
        return out

    wanted = z + (1 + OMEGA) * psi(e_c) - OMEGA * psi(e_0)
    assert torch.allclose(ddim_step(guided(e_c, e_0, OMEGA), z, at_t, at_s), wanted, atol=1e-12)


def test_boundary_scalings_are_exact_at_zero_and_the_samplers_elsewhere() -> None:
    z = torch.zeros(1, 1, dtype=torch.float64)
    c_skip, c_out = scalings(torch.tensor([0]), z)
    assert float(c_skip) == 1.0
    assert float(c_out) == 0.0
    sampler = scheduler(LCMScheduler)
    for t in (19, 259, 999):
        theirs = sampler.get_scalings_for_boundary_condition_discrete(t)
        ours = scalings(torch.tensor([t]), z)
        assert all(
            float(o) == pytest.approx(float(x), rel=1e-6) for o, x in zip(ours, theirs, strict=True)
        )


def test_f_is_the_identity_at_the_boundary() -> None:
    z, x0 = torch.randn(2, 3, 4)
    assert torch.equal(consistency(x0, z, torch.zeros(3, dtype=torch.long)), z)


def test_the_grid_is_the_samplers() -> None:
    sampler = scheduler(LCMScheduler)
    for steps in (1, 2, 4, 8):
        sampler.set_timesteps(steps)
        assert set(sampler.timesteps.tolist()) <= set(GRID.start.tolist())
    assert GRID.start.tolist()[:2] == [19, 39]
    assert int(GRID.start[-1]) == 999
    assert GRID.end.tolist()[:3] == [0, 19, 39]


def test_schedule_keeps_the_noise_level_in_single_precision() -> None:
    bars = scheduler(DDIMScheduler).alphas_cumprod
    ours = Schedule.from_betas(bars)
    exact = (1 - bars.double()).sqrt()
    assert float(((ours.sigma_t - exact) / exact).abs().max()) < 1e-6
    half = (1 - bars.bfloat16()).sqrt()
    assert float(((half - exact) / exact).abs().max()) > 0.01  # why it is not computed in bf16


def test_noising_equals_the_scheduler() -> None:
    torch.manual_seed(0)
    z0, noise = torch.randn(2, 4, 3, 8, 8)
    t = torch.tensor([0, 19, 500, 999])
    theirs = scheduler(DDIMScheduler)
    ours = Schedule.from_betas(theirs.alphas_cumprod).add_noise(z0, noise, t)
    assert torch.allclose(ours, theirs.add_noise(z0, noise, t), atol=1e-6)


def test_pseudo_huber_is_quadratic_near_zero_and_linear_far() -> None:
    x, zero = torch.tensor([1e-5], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert float(pseudo_huber(x, zero)) == pytest.approx(1e-10 / (2 * HUBER_C), rel=1e-3)
    assert float(pseudo_huber(x * 1e8, zero)) == pytest.approx(1e3 - HUBER_C, rel=1e-6)


def tiny_batch(generator: torch.Generator) -> Batch:
    z0, noise = (torch.randn(3, 16, 8, 8, generator=generator) for _ in "ab")
    cond = torch.randn(3, 16, 128, generator=generator)
    uncond = torch.randn(1, 16, 128, generator=generator).expand_as(cond)
    return Batch(z0, noise, torch.tensor([0, 24, 49]), cond, uncond)


def test_a_step_equals_a_literal_two_network_algorithm_1(
    fresh_pipeline: Callable[[], Any],
) -> None:
    """Loss and every LoRA gradient, against two separate UNets and Algorithm 1 as printed."""
    pipeline, other = fresh_pipeline(), fresh_pipeline()
    unet, teacher = pipeline.unet, other.unet
    schedule = Schedule.of_pipeline(pipeline)
    add_adapter(unet, rank=4, targets=LCM_TARGETS, seed=0)
    generator = torch.Generator().manual_seed(1)
    trained = [p for p in unet.parameters() if p.requires_grad]
    with torch.no_grad():
        for p in trained:
            p.add_(0.02 * torch.randn(p.shape, generator=generator))
    batch, omega = tiny_batch(generator), 1.5

    def student(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        out: Tensor = unet(z, t, encoder_hidden_states=c).sample
        return out

    def off(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with adapter_off(unet):
            return student(z, t, c)

    loss = consistency_loss(
        student, off, batch, schedule=schedule, grid=GRID, omega=omega, target=student
    )
    ours = torch.autograd.grad(loss, trained)

    t, s = GRID.start[batch.index], GRID.end[batch.index]
    a_t, s_t = (x[t].reshape(-1, 1, 1, 1) for x in (schedule.alpha_t, schedule.sigma_t))
    a_s, s_s = (x[s].reshape(-1, 1, 1, 1) for x in (schedule.alpha_t, schedule.sigma_t))
    z = a_t * batch.z0 + s_t * batch.noise
    with torch.no_grad():
        psi = []
        for c in (batch.cond, batch.uncond):
            e = teacher(z, t, encoder_hidden_states=c).sample
            psi.append(a_s * (z - s_t * e) / a_t + s_s * e - z)
        z_hat = z + (1 + omega) * psi[0] - omega * psi[1]
        e = student(z_hat, s, batch.cond)
        tau = (10.0 * s).reshape(-1, 1, 1, 1)
        goal = (
            0.25 / (tau**2 + 0.25) * z_hat + tau / (tau**2 + 0.25) ** 0.5 * (z_hat - s_s * e) / a_s
        )
    tau = (10.0 * t).reshape(-1, 1, 1, 1)
    x0 = (z - s_t * student(z, t, batch.cond)) / a_t
    f = 0.25 / (tau**2 + 0.25) * z + tau / (tau**2 + 0.25) ** 0.5 * x0
    literal = (((f - goal) ** 2 + 1e-6).sqrt() - 1e-3).mean()
    theirs = torch.autograd.grad(literal, trained)
    # float32 through two UNets in another batch composition; gradients are relative to the largest.
    assert float(loss) == pytest.approx(float(literal), rel=1e-5)
    largest = max(float(g.abs().max()) for g in theirs)
    assert (
        max(float((a - b).abs().max()) for a, b in zip(ours, theirs, strict=True)) < 1e-4 * largest
    )


def test_a_step_costs_three_calls_and_one_resident_base(fresh_pipeline: Callable[[], Any]) -> None:
    pipeline = fresh_pipeline()
    unet, schedule = pipeline.unet, Schedule.of_pipeline(pipeline)
    base = {p.data_ptr() for p in unet.parameters()}
    add_adapter(unet, rank=4, targets=LCM_TARGETS, seed=0)
    assert base <= {p.data_ptr() for p in unet.parameters()} or len(base) == sum(
        1 for p in unet.parameters() if not p.requires_grad
    )
    rows: list[int] = []
    unet.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))

    def student(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        out: Tensor = unet(z, t, encoder_hidden_states=c).sample
        return out

    def teacher(z: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with adapter_off(unet):
            return student(z, t, c)

    batch = tiny_batch(torch.Generator().manual_seed(0))
    loss = consistency_loss(
        student, teacher, batch, schedule=schedule, grid=GRID, omega=1.0, target=student
    )
    loss.backward()
    assert rows == [6, 3, 3]  # teacher 2B, target B, student B
    trained = [p for p in unet.parameters() if p.grad is not None]
    assert trained
    assert all(p.requires_grad for p in trained)
    assert not any(p.requires_grad for n, p in unet.named_parameters() if "lora_" not in n)


def test_adapter_off_is_the_base_to_the_bit(fresh_pipeline: Callable[[], Any]) -> None:
    pipeline = fresh_pipeline()
    unet = pipeline.unet
    generator = torch.Generator().manual_seed(0)
    z, c = (
        torch.randn(2, 16, 8, 8, generator=generator),
        torch.randn(2, 16, 128, generator=generator),
    )
    t = torch.tensor([999, 19])
    add_adapter(unet, rank=4, targets=LCM_TARGETS, seed=0)
    with torch.no_grad():
        for p in unet.parameters():
            if p.requires_grad:
                p.add_(0.05)
        with adapter_off(unet):
            off = unet(z, t, encoder_hidden_states=c).sample
        on = unet(z, t, encoder_hidden_states=c).sample
        unet.delete_adapters("default")
        base = unet(z, t, encoder_hidden_states=c).sample
    assert torch.equal(off, base)
    assert not torch.allclose(on, base, atol=1e-3)
