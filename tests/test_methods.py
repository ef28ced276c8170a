"""METHODS on small cores give what their papers' formulas give on dense updates."""

from collections.abc import Callable, Sequence
from typing import Any, Final

import pytest
import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta
from lcm_arith.elementwise import SPACES, How, generator
from lcm_arith.errors import IncompatibleError, UsageError
from lcm_arith.methods import METHODS, combined, rank_of
from lcm_arith.stack import Stack
from lcm_arith.tall import Tall

Dense = Callable[[Sequence[Tensor], Sequence[int], int | None], Tensor]


def apply(name: str, terms: Sequence[LowRankDelta], *rest: Any) -> LowRankDelta:
    return combined(name, terms, *rest).delta


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


def one_by_one(terms: Tensor, keep: Callable[[int, int], bool]) -> Tensor:
    """Each term without the numbers that ``keep(place, count)`` refuses, 0 being the smallest."""
    found = torch.zeros_like(terms)
    for kept, term in zip(found, terms, strict=True):
        for place, index in enumerate(by_size(term)):
            if keep(place, term.numel()):
                kept.view(-1)[index] = term.flatten()[index]
    return found


def by_size(term: Tensor) -> list[int]:
    numbers = term.flatten().abs().tolist()
    return sorted(range(len(numbers)), key=lambda index: numbers[index])


def elected(terms: Tensor) -> Tensor:
    result = torch.zeros_like(terms[0])
    for at in range(result.numel()):
        numbers = [float(term.flatten()[at]) for term in terms]
        total = sum(numbers)
        result.view(-1)[at] = sum(n for n in numbers if n * total > 0)
    return result


def largest(density: float) -> Callable[[int, int], bool]:
    return lambda place, count: place >= count - max(1, round(density * count))


def rule_dare(terms: Tensor, density: float, random: torch.Generator) -> Tensor:
    drawn = torch.rand(terms.shape, generator=random, dtype=terms.dtype)
    return torch.where(drawn < density, terms / density, 0.0).sum(0)


def rule_della(terms: Tensor, density: float, random: torch.Generator) -> Tensor:
    drawn = torch.rand(terms.shape, generator=random, dtype=terms.dtype)
    for term, luck in zip(terms, drawn, strict=True):
        for place, index in enumerate(by_size(term)):
            chance = min(1.0, density + 0.1 * (place / (term.numel() - 1) - 0.5))
            lucky = float(luck.flatten()[index]) < chance
            luck.view(-1)[index] = float(term.flatten()[index]) / chance if lucky else 0.0
    return elected(drawn)


def rule_breadcrumbs(terms: Tensor, density: float, _: torch.Generator) -> Tensor:
    def inside(place: int, count: int) -> bool:
        top = count - int(0.01 * count)
        return top - min(round(density * count), top) <= place < top

    return one_by_one(terms, inside).sum(0)


RULE_ORACLES: Final[dict[str, Callable[[Tensor, float, torch.Generator], Tensor]]] = {
    "magnitude": lambda terms, density, _: one_by_one(terms, largest(density)).sum(0),
    "ties": lambda terms, density, _: elected(one_by_one(terms, largest(density))),
    "dare": rule_dare,
    "della": rule_della,
    "breadcrumbs": rule_breadcrumbs,
}


def positive(basis: Tensor) -> Tensor:
    """Each column with the sign that makes its largest entry positive."""
    return torch.stack([c if c[c.abs().argmax()] > 0 else -c for c in basis.T], 1)


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
    assert set(ORACLES) | set(RULE_ORACLES) == set(METHODS)
    assert {name for name in METHODS if METHODS[name].function} == set(ORACLES)


@pytest.mark.parametrize("rank", [None, 7])
@pytest.mark.parametrize("terms", TERMS.values(), ids=list(TERMS))
@pytest.mark.parametrize("name", ORACLES)
def test_on_the_cores_equals_the_dense_formula(
    name: str, terms: tuple[LowRankDelta, ...], rank: int | None
) -> None:
    dense = [term.dense(torch.float64) for term in terms]
    want = ORACLES[name](dense, [term.rank for term in terms], rank)
    stack = Stack.of(terms)
    function = METHODS[name].function
    assert function is not None
    u, s, v = function(stack, rank)
    got = stack.basis_up.apply(u * s) @ stack.basis_down.apply(v).T
    # float64: a hundred roundings of 1e-16, and square roots of eigenvalues in the oracle
    assert float((got - want).norm() / want.norm()) < 1e-9
    written = apply(name, terms, rank).dense(torch.float64)
    assert float((written - want).norm() / want.norm()) < 1e-5  # factors rounded to float32
    made = combined(name, terms, rank)
    sides = (terms[0].shape[0], terms[0].shape[1])
    assert made.delta.rank == rank_of(name, [t.rank for t in terms], sides, rank, None)
    assert rank is None or made.delta.rank <= rank
    total = torch.stack(dense).sum(0)
    assert made.whole == pytest.approx(float(total.square().sum()), rel=1e-5)
    gap = float((want - total).square().sum())
    assert made.gap == pytest.approx(gap, rel=1e-4, abs=1e-9 * made.whole)


def test_a_small_gap_between_singular_values_does_not_turn_the_result() -> None:
    """Iso-C lifts what it keeps to one value: float32's R would be off by 1e-7 over the gap."""
    random = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(n, 5, generator=random))[0] for n in (64, 48))
    mix = torch.randn(5, 5, generator=random) / 2 + 1.5 * torch.eye(5)
    values = torch.tensor([8.0, 7.0, 6.0, 5.0, 4.9995])
    term = LowRankDelta(torch.linalg.inv(mix) @ v.T, u * values @ mix)
    assert isinstance(Stack.of([term], fast=True).basis_up, Tall)
    want = dense_iso_c([term.dense(torch.float64)], [5], 4)
    got = apply("iso-c", [term], 4).dense(torch.float64)
    assert float((got - want).norm() / want.norm()) < 1e-6  # float32 factors


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


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("terms", TERMS.values(), ids=list(TERMS))
@pytest.mark.parametrize("name", RULE_ORACLES)
def test_an_element_wise_rule_equals_its_words_in_its_basis(
    name: str, terms: tuple[LowRankDelta, ...], space: str
) -> None:
    dense = torch.stack([term.dense(torch.float64) for term in terms])
    count = min(sum(term.rank for term in terms), *dense[0].shape)
    u = positive(torch.linalg.svd(torch.cat(list(dense), 1))[0][:, :count])
    v = positive(torch.linalg.svd(torch.cat(list(dense), 0))[2][:count].T)
    oracle, random = RULE_ORACLES[name], generator(3, "unet.x")
    if space == "core":
        want = u @ oracle(u.T @ dense @ v, 0.4, random) @ v.T
    elif space == "knots":
        want = oracle(dense @ v, 0.4, random) @ v.T
    else:
        want = oracle(dense.float(), 0.4, random).double()
    rank = min(dense[0].shape) if space == "full" else None
    got = apply(name, terms, rank, How(0.4, space, 3), "unet.x")
    sides = (terms[0].shape[0], terms[0].shape[1])
    assert got.rank == rank_of(name, [t.rank for t in terms], sides, rank, How(0.4, space, 3))
    # float32 factors; in the weights' own coordinates float32 throughout
    assert float((got.dense(torch.float64) - want).norm() / want.norm()) < 1e-5
    assert torch.equal(apply(name, terms, rank, How(0.4, space, 3), "unet.x").up, got.up)
    if name in ("dare", "della"):
        other = apply(name, terms, rank, How(0.4, space, 3), "unet.y")
        assert not torch.equal(other.dense(), got.dense())


def test_the_weights_own_coordinates_lose_no_more_than_the_best_rank() -> None:
    terms = TERMS["unequal ranks, one negative"]
    dense = torch.stack([term.dense() for term in terms])
    whole_result = RULE_ORACLES["ties"](dense, 0.4, generator(0, ""))
    got = apply("ties", terms, 6, How(0.4, "full"), "")
    best = whole_result - truncated(whole_result, 6)
    # Halko et al.: with 16 directions to spare and four rounds next to nothing beyond the optimum
    assert float((got.dense() - whole_result).norm()) < 1.001 * float(best.norm())


def test_a_density_of_one_drops_nothing() -> None:
    terms = TERMS["unequal ranks, one negative"]
    want = torch.stack([term.dense(torch.float64) for term in terms]).sum(0)
    for name in ("magnitude", "dare"):
        for space in SPACES:
            got = apply(name, terms, 30, How(1.0, space), "").dense(torch.float64)
            assert float((got - want).norm() / want.norm()) < 1e-5


@pytest.mark.parametrize(
    "wrong", [{"density": 0.0}, {"density": 1.1}, {"density": float("nan")}, {"space": "kore"}]
)
def test_choices_that_make_no_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        How(**wrong)


def test_wrong_names_and_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match="tsvm") as caught:
        apply("tsvm", (random_delta(2),))
    assert "tsv-m" in caught.value.hint
    with pytest.raises(IncompatibleError, match="different shapes"):
        apply("linear", (random_delta(2), random_delta(2, out=41)))
