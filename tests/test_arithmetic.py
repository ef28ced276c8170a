"""Values of the arithmetic against dense matrices multiplied out in float64."""

import math
from typing import Any

import pytest
import torch
from support import MODULES, dense, random_delta, random_vector

from lcm_arith import decomposition
from lcm_arith.decomposition import Factored
from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import IncompatibleError, InvalidContentError, UsageError
from lcm_arith.methods import METHODS, combined
from lcm_arith.projection import project, reproject, retained_energy
from lcm_arith.tall import Tall
from lcm_arith.vector import Source, TaskVector

# float32 factors: one rounding of each product, sums of at most 13 terms.
EXACT = 1e-6


def relative(actual: torch.Tensor, expected: torch.Tensor, size: float) -> float:
    return float((actual.double() - expected).norm()) / size


@pytest.mark.parametrize(("l1", "l2"), [(0.8, 1.0), (-0.5, 1.2), (1e-3, 1.0), (0.0, 1.0)])
def test_a_sum_equals_the_weighted_dense_sum(l1: float, l2: float) -> None:
    a, b = random_vector(4, 1.0, seed=1), random_vector(9, 27.0, seed=2)
    dense_a, dense_b = dense(a), dense(b)
    tau = l1 * a + l2 * b
    for module in MODULES:
        expected = l1 * dense_a[module] + l2 * dense_b[module]
        size = abs(l1) * dense_a[module].norm() + abs(l2) * dense_b[module].norm()
        assert relative(tau[module].dense(), expected, float(size)) < EXACT


def test_a_module_that_one_side_lacks_counts_as_zero() -> None:
    only = {"unet.conv_in": (128, 16, 3, 3)}
    a, b = random_vector(4, 8.0, seed=1), random_vector(2, 2.0, seed=3, modules=only)
    tau = 0.8 * a + 1.0 * b
    assert set(tau) == {*MODULES, "unet.conv_in"}
    assert torch.allclose(tau["unet.conv_in"].dense(), b["unet.conv_in"].dense())


@pytest.mark.parametrize("method", METHODS)
def test_a_linear_update_adds_to_that_of_a_1x1_convolution(method: str) -> None:
    """Files differ in which they hold for one layer; LyCORIS stores a convolution's flat."""
    module = "unet.down_blocks.0.attentions.0.proj_in"
    flat, kernel = random_delta((128, 128), 3, 1.0, 1), random_delta((128, 128, 1, 1), 4, 9.0, 2)
    a, b = (TaskVector(((1.0, Source({module: delta})),)) for delta in (flat, kernel))
    for tau in (a - 0.5 * b, b - 2.0 * a):
        assert (
            tau.shape_of(module) == tau[module].shape == tau.outline(module).shape == kernel.shape
        )
    expected = flat.dense(torch.float64) - 0.5 * kernel.dense(torch.float64).flatten(1)
    assert (
        relative((a - 0.5 * b)[module].dense().flatten(1), expected, float(expected.norm())) < EXACT
    )
    terms = (flat, -0.5 * kernel)
    one, other = combined(method, terms).delta, combined(method, (terms[0], terms[1].with_axes(2)))
    assert one.shape == kernel.shape
    assert torch.equal(one.dense().flatten(1), other.delta.dense())
    with pytest.raises(IncompatibleError, match="different shapes"):
        concatenate([flat, random_delta((128, 128, 3, 3), 2, 1.0, 3)])


def test_negation_undoes_addition_exactly() -> None:
    a, b = random_vector(4, 1.0, seed=1), random_vector(9, 27.0, seed=2)
    back = (a + b) - b
    assert [weight for weight, _ in back.terms] == [1.0]
    assert all(torch.equal(back[m].dense(), a[m].dense()) for m in MODULES)
    assert not (a - a)
    assert not 0.0 * a


def test_negation_changes_the_sign_and_nothing_else() -> None:
    a = random_vector(4, 1.0, seed=1)
    assert all(torch.equal((-a)[m].dense(), -(a[m].dense())) for m in MODULES)
    assert torch.equal((-a)["unet.down_blocks.0.resnets.0.conv1"].down, a[next(iter(MODULES))].down)


def test_addition_commutes_and_scaling_distributes() -> None:
    a, b = random_vector(4, 1.0, seed=1), random_vector(9, 27.0, seed=2)
    for module in MODULES:
        one, other = (a + b)[module].dense(), (b + a)[module].dense()
        assert torch.allclose(one, other, rtol=0, atol=1e-6)
        assert torch.allclose((3 * (a + b))[module].dense(), 3 * one, rtol=1e-5, atol=1e-6)


def test_equal_terms_are_collected_not_stacked() -> None:
    a = random_vector(4, 1.0, seed=1)
    twice = a + 0.5 * a
    assert [weight for weight, _ in twice.terms] == [1.5]
    assert all(twice[module].rank == 4 for module in twice)


def test_a_weight_that_is_no_number_is_refused() -> None:
    with pytest.raises(UsageError, match="nan"):
        math.nan * random_vector(4, 1.0, seed=1)


def test_scale_is_applied_once() -> None:
    delta = LowRankDelta(torch.eye(2), torch.eye(2), scale=0.25)
    assert torch.equal(delta.dense(), 0.25 * torch.eye(2))
    assert torch.equal(concatenate([delta]).dense(), 0.25 * torch.eye(2))
    assert concatenate([delta]).scale == 1.0


def test_shapes_that_do_not_match_are_refused() -> None:
    with pytest.raises(InvalidContentError, match="do not multiply"):
        LowRankDelta(torch.zeros(8, 320), torch.zeros(320, 16))
    one = random_vector(4, 4.0, seed=1, modules={"unet.conv_in": (128, 16, 3, 3)})
    other = random_vector(4, 4.0, seed=1, modules={"unet.conv_in": (320, 4, 3, 3)})
    with pytest.raises(IncompatibleError, match=r"unet\.conv_in"):
        (one + other)["unet.conv_in"]


@pytest.mark.parametrize("shape", list(MODULES.values()), ids=str)
@pytest.mark.parametrize("rank", [1, 5, 13])
def test_reprojection_equals_the_truncated_dense_svd(shape: tuple[int, ...], rank: int) -> None:
    delta = concatenate(
        [0.8 * random_delta(shape, 4, 1.0, seed=5), random_delta(shape, 9, 27.0, seed=6)]
    )
    matrix = delta.dense(torch.float64).flatten(1)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    expected = (u[:, :rank] * s[:rank]) @ vh[:rank]
    projected = project(delta, rank)
    assert projected.delta.rank == rank
    assert projected.delta.shape == delta.shape
    assert relative(projected.delta.dense().flatten(1), expected, float(matrix.norm())) < 1e-5
    # a float32 Gram matrix: a few units of 6e-8 in each singular value
    assert projected.kept == pytest.approx(float(s[:rank].square().sum()), rel=3e-6)
    assert projected.total == pytest.approx(float(matrix.square().sum()), rel=3e-6)


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0, 1e3, 1e5, 1e8])
def test_reprojection_is_the_best_however_dependent_the_columns_are(condition: float) -> None:
    """Columns that share a direction: by products while float32 allows it, by reflectors beyond."""
    draw = torch.Generator().manual_seed(int(condition))

    def dependent(rows: int) -> torch.Tensor:
        shared = torch.randn(rows, 1, generator=draw, dtype=torch.float64)
        own = torch.randn(rows, 24, generator=draw, dtype=torch.float64)
        return (shared + own / condition).float()

    delta = LowRankDelta(dependent(300).T.contiguous(), dependent(200))
    exact = delta.dense(torch.float64)
    kept, whole = project(delta, 3).delta.dense(torch.float64), exact.norm()
    best = torch.linalg.svdvals(exact)[3:].square().sum().sqrt()
    # the best truncation, up to what float32 factors cannot tell apart
    assert float((kept - exact).norm()) <= 1.001 * float(best) + 1e-6 * float(whole)
    fast = isinstance(Factored.of(delta).up, Tall)
    assert fast == (condition <= 10)


def test_a_result_has_rank_min_of_the_asked_and_its_own() -> None:
    tau = random_vector(4, 1.0, seed=1) + random_vector(9, 27.0, seed=2)
    assert {reproject(tau, 32)[m].rank for m in tau} == {13}
    assert {reproject(tau, 7)[m].rank for m in tau} == {7}
    narrow = random_vector(6, 6.0, seed=1, modules={"unet.x": (4, 100)})
    assert reproject(narrow, 32)["unet.x"].rank == 4


def test_reprojection_at_full_rank_is_the_identity() -> None:
    tau = 0.8 * random_vector(4, 1.0, seed=1) + random_vector(9, 27.0, seed=2)
    full = reproject(tau, 13)
    for module in tau:
        expected = tau[module].dense(torch.float64)
        assert relative(full[module].dense(), expected, float(expected.norm())) < EXACT
    assert retained_energy(full) == pytest.approx(1.0, abs=1e-12)


def test_an_update_of_no_higher_rank_passes_as_it_is() -> None:
    delta = 0.3 * random_delta((64, 48), 4, 4.0, seed=1)
    projected = project(delta, 6)
    assert torch.equal(projected.delta.down, delta.down)
    assert torch.equal(projected.delta.up, delta.up.float() * delta.scale)
    energy = float(delta.dense(torch.float64).square().sum())
    assert projected.kept == projected.total == pytest.approx(energy, rel=1e-6)


def test_cancelling_terms_are_factored_in_float64_and_others_are_not() -> None:
    a, b = random_delta((64, 48), 4, 4.0, seed=1), random_delta((64, 48), 4, 4.0, seed=2)
    assert Factored.of(concatenate([a, b])).core.dtype == torch.float32
    near = LowRankDelta(a.down, a.up * (1 + 1e-3))
    assert Factored.of(concatenate([a, -near])).core.dtype == torch.float64


def test_terms_that_nearly_cancel_keep_their_difference() -> None:
    # τ and a copy that differs in the sixth digit: float32 sums would return noise.
    a = random_delta((64, 48), 4, 4.0, seed=1)
    b = LowRankDelta(a.down, a.up * (1 + 1e-5))
    delta = concatenate([a, -b])
    exact = a.dense(torch.float64) - b.dense(torch.float64)
    got = project(delta, 4).delta.dense(torch.float64)
    assert float((got - exact).norm() / exact.norm()) < 1e-5


def test_nothing_is_computed_before_it_is_asked_for_nor_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import lcm_arith.projection as projection

    calls: list[int] = []
    real = projection.project

    def counted(delta: LowRankDelta, rank: int, device: str, known: Any) -> projection.Projected:
        calls.append(rank)
        return real(delta, rank, device, known)

    monkeypatch.setattr(projection, "project", counted)
    tau = reproject(0.8 * random_vector(4, 1.0, seed=1) + random_vector(9, 9.0, seed=2), 5)
    half = 0.5 * tau
    assert calls == []
    for _ in range(2):
        for module in half:
            half[module].dense()
    retained_energy(tau)
    assert len(calls) == len(MODULES)


@pytest.mark.parametrize("gap", [0.3, 1e-3, 1e-4])
def test_a_cut_between_close_singular_values_is_the_dense_one(
    monkeypatch: pytest.MonkeyPatch, gap: float
) -> None:
    generator = torch.Generator().manual_seed(3)
    u, v = (
        torch.linalg.qr(torch.randn(n, 12, generator=generator, dtype=torch.float64)).Q
        for n in (300, 200)
    )
    s = torch.tensor([2.0, 1.5, 1.2, 1.0, 0.9, 0.8, 0.7, 0.7 * (1 - gap), *[0.1] * 4]).double()
    mixed = torch.randn(12, 12, generator=generator, dtype=torch.float64)
    delta = LowRankDelta(
        (torch.linalg.inv(mixed) @ v.T).float(), (u * s @ mixed).float().contiguous()
    )
    left, values, right = torch.linalg.svd(delta.dense(torch.float64), full_matrices=False)
    want = (left[:, :7] * values[:7]) @ right[:7]

    def error() -> float:
        return float((project(delta, 7).delta.dense(torch.float64) - want).norm() / want.norm())

    assert error() < 1e-5
    monkeypatch.setattr(decomposition, "_BLUR", math.inf)  # float32 alone
    assert (error() < 1e-5) == (gap > 0.1)


def test_rank_zero_is_refused() -> None:
    with pytest.raises(UsageError, match="rank 0"):
        reproject(random_vector(4, 1.0, seed=1), 0)


def test_a_zero_update_reprojects_to_zero() -> None:
    zero = LowRankDelta(torch.zeros(3, 8), torch.zeros(5, 3))
    tau = reproject(TaskVector(((1.0, Source({"unet.x": zero})),)), 2)
    assert torch.equal(tau["unet.x"].dense(), torch.zeros(5, 8))
    assert retained_energy(tau) == 1.0


def test_a_device_that_is_not_there_is_refused() -> None:
    tau = random_vector(4, 1.0, seed=1)
    for device in ("cuda:99", "tpu", "cuda:x"):
        with pytest.raises(UsageError, match=device):
            reproject(tau, 2, device)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_up_to_rounding() -> None:
    tau = 0.8 * random_vector(4, 1.0, seed=1) + random_vector(9, 27.0, seed=2)
    here, there = reproject(tau, 7), reproject(tau, 7, "cuda")
    for module in tau:
        one, other = here[module].dense(torch.float64), there[module].dense(torch.float64)
        assert relative(other, one, float(one.norm())) < 1e-5
