"""METHODS on small cores give what their papers' formulas give on dense updates."""

from collections.abc import Callable, Sequence
from typing import Final

import pytest
import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import IncompatibleError, UsageError
from lcm_arith.methods import METHODS, apply
from lcm_arith.stack import Stack

Dense = Callable[[Sequence[Tensor], Sequence[int], int | None], Tensor]


def svd(matrix: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u[:, :count], s[:count], vh[:count]


def whole(ranks: Sequence[int], rank: int | None, like: Tensor) -> int:
    """min(Σr, out, in), or the asked rank where that is smaller."""
    most: int = min(sum(ranks), *like.shape)
    return most if rank is None else min(rank, most)


def truncated(matrix: Tensor, count: int) -> Tensor:
    u, s, vh = svd(matrix, count)
    product: Tensor = u @ torch.diag(s) @ vh
    return product


def isometry(matrix: Tensor) -> Tensor:
    """Polar factor by its definition, M (MᵀM)^(−1/2), for full column rank."""
    values, vectors = torch.linalg.eigh(matrix.T @ matrix)
    factor: Tensor = matrix @ vectors @ torch.diag(values.rsqrt()) @ vectors.T
    return factor


def dense_linear(deltas: Sequence[Tensor], ranks: Sequence[int], rank: int | None) -> Tensor:
    total = torch.stack(list(deltas)).sum(0)
    return truncated(total, whole(ranks, rank, total))


def dense_tsv_m(deltas: Sequence[Tensor], ranks: Sequence[int], rank: int | None) -> Tensor:
    us, ss, vs = [], [], []
    for delta, own in zip(deltas, ranks, strict=True):
        share = own if rank is None else max(1, rank * own // sum(ranks))
        u, s, vh = svd(delta, share)
        us.append(u)
        ss.append(s)
        vs.append(vh.T)
    u, v = isometry(torch.cat(us, 1)), isometry(torch.cat(vs, 1))
    return u @ torch.diag(torch.cat(ss)) @ v.T


def dense_iso_c(deltas: Sequence[Tensor], ranks: Sequence[int], rank: int | None) -> Tensor:
    total = torch.stack(list(deltas)).sum(0)
    u, s, vh = svd(total, whole(ranks, rank, total))
    return float(s.mean()) * u @ vh


def dense_iso_cts(deltas: Sequence[Tensor], ranks: Sequence[int], rank: int | None) -> Tensor:
    total = torch.stack(list(deltas)).sum(0)
    wanted = whole(ranks, rank, total)
    common = int(0.8 * wanted)
    own = (wanted - common) // len(deltas)
    u, s, vh = svd(total, common)
    us, ss, vs = [u], [s], [vh.T]
    for delta in deltas:
        rest = delta - u @ u.T @ delta
        u_own, s_own, vh_own = svd(rest, own)
        us.append(u_own)
        ss.append(s_own)
        vs.append(vh_own.T)
    value = float(torch.cat(ss).mean())
    return value * isometry(torch.cat(us, 1)) @ isometry(torch.cat(vs, 1)).T


def dense_cart(deltas: Sequence[Tensor], ranks: Sequence[int], rank: int | None) -> Tensor:
    total = torch.stack(list(deltas)).sum(0)
    kept = max(1, int(0.04 * whole(ranks, None, total)))
    result = total + sum(truncated(d - total / len(deltas), kept) for d in deltas)
    return truncated(result, whole(ranks, rank, total))


def dense_orthogonal(deltas: Sequence[Tensor], ranks: Sequence[int], rank: int | None) -> Tensor:
    *styles, accel = deltas
    u, s, _ = svd(accel, ranks[-1])
    shares = s.square().cumsum(0) / s.square().sum()
    u = u[:, : int((shares < 0.9).sum()) + 1]
    result = accel + sum((d - u @ u.T @ d for d in styles), torch.zeros_like(accel))
    return truncated(result, whole(ranks, rank, result))


ORACLES: Final[dict[str, Dense]] = {
    "linear": dense_linear,
    "tsv-m": dense_tsv_m,
    "iso-c": dense_iso_c,
    "iso-cts": dense_iso_cts,
    "cart": dense_cart,
    "orthogonal": dense_orthogonal,
}


def random_delta(
    rank: int, out: int = 40, width: int = 30, scale: float = 1.0, seed: int = 0
) -> LowRankDelta:
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, width, generator=generator)
    return LowRankDelta(down, torch.randn(out, rank, generator=generator), scale)


TERMS: Final = {
    "unequal ranks, one negative": (
        random_delta(4, scale=0.8, seed=1),
        random_delta(9, scale=-0.3, seed=2),
        random_delta(6, scale=1.0, seed=3),
    ),
    "one term": (random_delta(5, scale=0.7, seed=4),),
    "narrower than the ranks": (
        random_delta(6, 14, 10, seed=5),
        random_delta(3, 14, 10, -2.0, seed=6),
    ),
}


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(METHODS)


@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("terms", TERMS.values(), ids=list(TERMS))
@pytest.mark.parametrize("name", METHODS)
def test_on_the_cores_equals_the_dense_formula(
    name: str, terms: tuple[LowRankDelta, ...], rank: int | None
) -> None:
    dense = [term.dense(torch.float64) for term in terms]
    want = ORACLES[name](dense, [term.rank for term in terms], rank)
    stack = Stack.of(terms)
    u, s, v = METHODS[name].function(stack, rank)
    got = (stack.basis_up @ u * s) @ (stack.basis_down @ v).T
    # float64: a hundred roundings of 1e-16, and square roots of eigenvalues in the oracle
    assert float((got - want).norm() / want.norm()) < 1e-9
    written = apply(name, terms, rank).dense(torch.float64)
    assert float((written - want).norm() / want.norm()) < 1e-5  # factors rounded to float32
    if rank is not None:
        assert apply(name, terms, rank).rank <= rank


def test_a_convolution_keeps_its_kernel() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [
        LowRankDelta(
            torch.randn(r, 6, 3, 3, generator=generator),
            torch.randn(8, r, 1, 1, generator=generator),
        )
        for r in (2, 3)
    ]
    whole_sum = terms[0].dense() + terms[1].dense()
    got = apply("linear", terms)
    assert got.shape == (8, 6, 3, 3)
    torch.testing.assert_close(got.dense(), whole_sum, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_term_twice_and_a_zero_are_no_accident(name: str) -> None:
    term, nothing = random_delta(3, seed=7), random_delta(2, scale=0.0, seed=8)
    for terms in ((term, term), (term, nothing), (nothing, nothing)):
        found = apply(name, terms).dense()
        assert bool(found.isfinite().all())
        again = apply(name, terms).dense()
        assert torch.equal(found, again)


def test_tsv_m_of_one_term_twice_is_that_term() -> None:
    """[u, u] / √2 on both sides halves the doubled singular values."""
    term = random_delta(3, seed=7)
    twice = apply("tsv-m", (term, term)).dense()
    torch.testing.assert_close(twice, term.dense(), rtol=1e-4, atol=1e-4)


def test_wrong_names_and_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="tsvm") as caught:
        apply("tsvm", (random_delta(2),))
    assert "tsv-m" in caught.value.hint
    with pytest.raises(IncompatibleError, match="different shapes"):
        apply("linear", (random_delta(2), random_delta(2, out=41)))
