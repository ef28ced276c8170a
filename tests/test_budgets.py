"""Budgets of a re-projection keep what they promise, and no more than they must."""

import itertools
import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support import whole_adapter
from torch import Tensor

from lcm_arith import methods, projection
from lcm_arith.budgets import BUDGETS, Budget
from lcm_arith.combination import combine_terms
from lcm_arith.decomposition import Factored
from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import UsageError
from lcm_arith.projection import reproject, retained_energy, spectrum
from lcm_arith.saving import save
from lcm_arith.vector import Source, TaskVector
from lcm_arith.weights import parse_term

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


def test_what_is_reserved_is_not_spent() -> None:
    for reserved in (0, 700, 1400):
        ranks = Budget("size", 3 / 1024, reserved=reserved).ranks(SPECTRA, COSTS)
        assert numbers(ranks) * 4 <= 3 * 1024 - reserved
    with pytest.raises(UsageError, match=r"takes 0\.00 MiB"):
        Budget("size", 2 / 1024, reserved=1500).ranks(SPECTRA, COSTS)


@pytest.mark.parametrize("form", ["diffusers", "kohya"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_file_is_no_larger_than_asked(tmp_path: Path, form: str, dtype: torch.dtype) -> None:
    """Many small modules of unequal ranks, so that the header is a good part of the file."""
    names = ("attn1.to_q", "attn2.to_k", "ff.net.2")
    some = dict(itertools.islice(whole_adapter("sd15", names, (6, 9)).items(), 40))
    tau = TaskVector(((0.7, Source(some, {"sha256": "x"})),))
    path = tmp_path / "x.safetensors"
    for share in (0.6, 0.7):
        mib = share * 2.7 * dtype.itemsize / 4
        small = reproject(tau, Budget("size", mib, dtype.itemsize))
        save(small, path, dtype=dtype, form=form, about={"words": "x" * 9999}, force=True)
        one_rank = max(d.shape[0] + d.down[0].numel() for d in some.values()) * dtype.itemsize
        assert mib * 2**20 - 2 * one_rank < path.stat().st_size <= mib * 2**20


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of decompositions and combinations as they are done, in any thread."""
    done: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def call(*given: Any, **options: Any) -> Any:
            done.append(name)
            return real(*given, **options)

        return call

    monkeypatch.setattr(Factored, "of", counted("of", Factored.of))
    monkeypatch.setattr(methods, "combined", counted("combined", methods.combined))
    return done


@pytest.mark.parametrize("budget", [Budget("energy", 0.9), Budget("max_error", 0.3),
                                    Budget("size", 2.0)])  # fmt: skip
def test_a_rank_found_by_a_budget_costs_one_decomposition(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, budget: Budget
) -> None:
    tau = combine_terms([parse_term("noto:0.8"), parse_term("lcm:1")])
    small = reproject(tau, budget)
    kept = retained_energy(small)
    assert calls == ["of"] * len(tau)
    calls.clear()
    monkeypatch.setattr(projection, "KEPT", 0)  # no room: again for the cut, the same numbers
    again = reproject(tau, budget)
    assert retained_energy(again) == kept
    assert calls == ["of"] * (2 * len(tau))
    for module in small:
        assert torch.equal(small[module].up, again[module].up)
        assert torch.equal(small[module].down, again[module].down)


@pytest.mark.parametrize("method", ["tsv-m", "ties"])
def test_a_method_within_a_budget_combines_once(calls: list[str], method: str) -> None:
    terms = [parse_term("noto:0.8,down=0,mid=0"), parse_term("lcm:1,down=0,mid=0")]
    made = combine_terms(terms, method=method, budget=Budget("energy", 0.9))
    retained_energy(made)
    assert Counter(calls) == {"of": len(made), "combined": len(made)}
    assert len(made) > 9
