"""Budgets of a re-projection keep what they promise, and no more than they must."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from lcm_arith.budgets import BUDGETS, Budget
from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import UsageError
from lcm_arith.projection import reproject, retained_energy, spectrum
from lcm_arith.vector import Source, TaskVector

SPECTRA = {
    "wide": torch.tensor([3.0, 2.0, 1.0, 0.5], dtype=torch.float64),
    "narrow": torch.tensor([2.5, 0.4], dtype=torch.float64),
    "flat": torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64),
}
COSTS = {"wide": 100, "narrow": 20, "flat": 40}


def energy(ranks: dict[str, int]) -> float:
    return float(sum(SPECTRA[m][:r].square().sum() for m, r in ranks.items()))


def numbers(ranks: dict[str, int]) -> int:
    return sum(COSTS[m] * r for m, r in ranks.items())


TOTAL = energy({m: len(s) for m, s in SPECTRA.items()})
ALL = [
    dict(zip(SPECTRA, ranks, strict=True))
    for ranks in itertools.product(*(range(1, len(s) + 1) for s in SPECTRA.values()))
]


@pytest.mark.parametrize("share", [0.5, 0.8, 0.95, 0.999, 1.0])
def test_energy_is_kept_and_one_step_less_would_not_keep_it(share: float) -> None:
    for kind, value in (("energy", share), ("max_error", math.sqrt(1 - share))):
        if value == 0:
            continue
        ranks = Budget(kind, value).ranks(SPECTRA, COSTS)
        assert energy(ranks) >= share * TOTAL * (1 - 1e-12)
        fewer = [{**ranks, m: r - 1} for m, r in ranks.items() if r > 1]
        worst = min(fewer, key=lambda r: TOTAL - energy(r), default=None)
        if worst:  # taking back the least worthy value breaks the promise
            least = min(
                fewer, key=lambda r: (energy(ranks) - energy(r)) / (numbers(ranks) - numbers(r))
            )
            assert energy(least) < share * TOTAL


@pytest.mark.parametrize("kib", [0.65, 0.8, 1.0, 1.5, 3.0])
def test_size_holds_and_no_other_choice_of_that_worth_keeps_more(kib: float) -> None:
    ranks = Budget("size", kib / 1024, itemsize=4).ranks(SPECTRA, COSTS)
    assert numbers(ranks) * 4 <= kib * 1024
    smaller = [r for r in ALL if numbers(r) <= numbers(ranks)]
    assert energy(ranks) == pytest.approx(max(map(energy, smaller)))


def test_size_below_rank_one_everywhere_is_refused() -> None:
    with pytest.raises(UsageError, match="rank 1 in 3 modules"):
        Budget("size", 0.0006).ranks(SPECTRA, COSTS)


@pytest.mark.parametrize(
    ("kind", "value", "wide"),
    [("sv_ratio", 4.0, 3), ("sv_ratio", 3.0, 2), ("sv_fro", 0.95, 2), ("sv_fro", 0.99, 3),
     ("sv_cumulative", 0.75, 2), ("sv_cumulative", 0.95, 4), ("rank", 2, 2), ("rank", 9, 4)],
)  # fmt: skip
def test_kohyas_rules_without_its_rank_too_many(kind: str, value: float, wide: int) -> None:
    """σ = 3, 2, 1, ½: above 3/4 are three; √(13/14.25) = 0.955; 5/6.5 = 0.77."""
    assert Budget(kind, value).ranks(SPECTRA, COSTS)["wide"] == wide


@pytest.mark.parametrize(
    ("kind", "value"),
    [("rank", 0), ("energy", 0), ("energy", 1.1), ("max_error", 0), ("size", -1), ("sv_ratio", 1),
     ("banana", 1)],
)  # fmt: skip
def test_impossible_budgets_are_refused(kind: str, value: float) -> None:
    with pytest.raises(UsageError):
        Budget(kind, value)


def dense_values(matrix: Tensor) -> Tensor:
    values: Tensor = torch.linalg.svdvals(matrix.flatten(1))
    return values


@pytest.mark.parametrize("budget", [b for b in BUDGETS if b != "size"])
def test_a_budget_of_a_whole_vector_is_the_dense_truncation(budget: str) -> None:
    generator, deltas = torch.Generator().manual_seed(0), {}
    for index, (out, width) in enumerate(((30, 20), (8, 40))):
        deltas[f"unet.m{index}"] = LowRankDelta(
            torch.randn(6, width, generator=generator),
            torch.randn(out, 6, generator=generator),
            0.5,
        )
    tau = TaskVector(((1.0, Source(deltas)),))
    for module in tau:
        want = dense_values(tau[module].dense(torch.float64))[:6]
        torch.testing.assert_close(spectrum(tau[module]), want, rtol=1e-6, atol=1e-6)
    value = {"rank": 3, "sv_ratio": 2.0, "max_error": 0.4}.get(budget, 0.8)
    small = reproject(tau, Budget(budget, value))
    lost = total = 0.0
    for module in tau:
        values = dense_values(tau[module].dense(torch.float64))
        rank = small[module].rank
        lost += float(values[rank:].square().sum())
        total += float(values.square().sum())
        u, s, vh = torch.linalg.svd(tau[module].dense(torch.float64), full_matrices=False)
        want = (u[:, :rank] * s[:rank]) @ vh[:rank]
        torch.testing.assert_close(small[module].dense(torch.float64), want, rtol=1e-4, atol=1e-4)
    assert retained_energy(small) == pytest.approx(1 - lost / total, rel=1e-6)
    if budget in ("energy", "max_error"):
        assert lost / total <= (0.2 if budget == "energy" else 0.16) + 1e-9
