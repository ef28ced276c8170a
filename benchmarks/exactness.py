"""How exact is the arithmetic, in every kind, dialect and method, and how exact are others?

    python benchmarks/exactness.py

Everything is held against dense float64 matrices by the formulas of ``_kinds.py`` and
``_methods.py``. One core, about 85 CPU seconds. Writes ``benchmarks/results/exactness.md``, which
begins with the goals that were missed.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from _cases import (
    KINDS,
    LAMBDAS,
    REFUSED,
    SHIPPED_KIND,
    Case,
    drawn,
    pairs,
    shipped,
    trios,
    write_base,
)
from _dialects import families, round_trips
from _kinds import base_weight, meaning
from _methods import DENSE
from _page import Section, page
from _peers import KOHYA, peft_sums, read, score
from torch import Tensor

from lcm_arith import adapters
from lcm_arith.budgets import Budget
from lcm_arith.combination import combine_terms
from lcm_arith.decomposition import Factored
from lcm_arith.delta import LowRankDelta
from lcm_arith.elementwise import SPACES, How
from lcm_arith.errors import LcmArithError
from lcm_arith.formats import writers
from lcm_arith.methods import METHODS
from lcm_arith.saving import save
from lcm_arith.stack import Stack
from lcm_arith.tall import Tall
from lcm_arith.vector import TaskVector
from lcm_arith.weights import Term, Weights, decimal

RESULTS: Final = Path(__file__).resolve().parent / "results"
SUM_GOAL, CORE_GOAL, FILE_GOAL, EXCESS_GOAL = 1e-6, 1e-9, 1e-5, 1e-6
FORMS: Final = tuple(writers.WRITERS)
ALL_CORES: Final = os.sched_getaffinity(0)
ONE_CORE: Final = {min(ALL_CORES)}
OURS: Final = "this package, the exact sum"


def combined(names: Sequence[str], weights: Sequence[float], **options: Any) -> TaskVector:
    """As the command makes it."""
    terms = [Term(n, Weights(decimal(str(w), ""))) for n, w in zip(names, weights, strict=True)]
    return combine_terms(terms, **options)


def gap(one: Tensor, other: Tensor) -> float:
    """‖one − other‖ / ‖other‖."""
    return float((one.flatten() - other.flatten()).norm() / other.norm())


def sums(folder: Path) -> Section:
    section = Section(
        "Sums",
        "Largest ‖what the written file means − Σ λᵢ ΔWᵢ‖ / Σ |λᵢ| ‖ΔWᵢ‖ of any target, read back "
        "by this package and by the plain formula, the worse of both. λ = 0.8, −0.5, 1.3; three "
        "float32 files named as kohya, kohya-sgm and comfy (rsLoRA: diffusers), of ranks 3, 8, 5 "
        "and alphas 8, 2.5, 3.25, each without three of seven targets. A DoRA's magnitudes are as "
        "long as the rows of W: rounding them to float32 costs 2.5e-8 ‖W‖, whoever writes them, "
        "and ‖W‖ is up to 23 times the updates here. "
        f"Goal {SUM_GOAL:g}; “refused”: an error and no file, where the dialect has no "
        "place for it.",
        ("kind", "targets", *FORMS),
    )
    base = write_base(folder)
    for kind in (*KINDS, SHIPPED_KIND):
        case = shipped() if kind == SHIPPED_KIND else drawn(kind, folder)
        tau, cells = combined(case.names, LAMBDAS, base=base), []
        for form in FORMS:
            error = sum_error(case, tau, folder / "sum.safetensors", form, base)
            right = (error is None) == ((kind, form) in REFUSED)
            worst = math.inf if not right else error or 0.0
            cell = section.held(worst, SUM_GOAL, f"{kind} as {form}")
            cells.append("refused" if right and error is None else cell)
        section.rows.append((kind, str(len(case.shapes)), *cells))
    return section


def sum_error(case: Case, tau: TaskVector, path: Path, form: str, base: Path) -> float | None:
    """Largest error over its bound of a written sum; None where writing it is refused."""
    path.unlink(missing_ok=True)
    try:
        save(tau, path, form=form)
    except LcmArithError:
        return math.inf if path.exists() else None
    back = adapters.load(path, base)
    literal = meaning(path, form, case.shapes, base=tau.base is not None)
    errors = []
    for target, shape in case.shapes.items():
        ours = back[target].dense(torch.float64).reshape(shape)
        if f"{target}.gain" in back:
            gain = back[f"{target}.gain"].dense(torch.float64)
            ours = ours + gain.reshape(-1, *(1,) * (len(shape) - 1)) * base_weight(shape)
        worst = max(float((own - case.truth[target]).norm()) for own in (ours, literal[target]))
        errors.append(worst / case.bound[target])
    return max(errors)


def peers(folder: Path) -> Section:
    asked, given = (0.8, 1.0), pairs(folder)
    section = Section(
        "Peers, asked for 0.8 · style + 1.0 · acceleration",
        "‖result − truth‖ / ‖truth‖ over all layers; then the weights by which the two updates fit "
        "the result best (least squares). Random factors on layers of SD1.5, and every fifth layer "
        "of the shipped ones. kohya is transcribed from its formulas, PEFT is called; “refuses”: "
        f"it wants equal ranks. Goal of the exact sum {SUM_GOAL:g}.",
        ("tool", *given),
    )
    columns: list[dict[str, str]] = []
    for pair, names in given.items():
        vectors = [read(Path(name)) for name in names]
        vectors = [{m: v[m] for m in list(v)[:: 5 if len(v) > 100 else 1]} for v in vectors]
        made: dict[str, Mapping[str, Tensor | None]] = {
            row: {m: rule([v[m] for v in vectors], asked) for m in vectors[0]}
            for row, rule in KOHYA.items()
        }
        made |= peft_sums(vectors, asked)
        most = max(len(next(iter(v.values())).down) for v in vectors)
        made[OURS] = written(combined(names, asked), folder)
        shorter = combined(names, asked, budget=Budget("rank", most))
        made["this package, `--rank` as PEFT's default"] = written(shorter, folder)
        scores = {row: score(found, vectors, asked) for row, found in made.items()}
        section.held(scores[OURS][0], SUM_GOAL, pair)
        columns.append({row: text for row, (_, text) in scores.items()})
    section.rows.extend((row, *(column[row] for column in columns)) for row in columns[0])
    return section


def written(tau: TaskVector, folder: Path) -> dict[str, Tensor]:
    """Module → what the file of a vector means, float64 and dense."""
    path = folder / "written.safetensors"
    save(tau, path, force=True)
    return meaning(path, "diffusers", {module: tuple(tau.shape_of(module)) for module in tau})


def methods(folder: Path) -> Section:
    section = Section(
        "Methods",
        "Largest relative distance of any layer to the formula on dense float64 updates: of the "
        f"float64 core (goal {CORE_GOAL:g}) and of the written float32 file (goal {FILE_GOAL:g}). "
        "λ = 0.8, −0.5, 1.3, without a rank and at rank 7; random ranks 4, 9, 6 and 40, 64, 50 "
        "(more than some layers have), some layers on one side only, and noto, twemoji and lcm as "
        "shipped. A rank cuts between two singular values: float32 turns what is kept by about "
        "1e-7 over their relative gap. The methods decompose in float64; `linear` at a rank is the "
        "re-projection, in float32, and in float64 where that gap is small "
        "(`Decomposition.sharp`). The bytes: two files made "
        "on one core with one thread, one on all cores with two, of the element-wise methods in "
        "all three spaces (`tests/test_methods.py` holds them to their words).",
        ("method", "core", "file", "bytes of three runs"),
    )
    given = trios(folder)
    for name, row in METHODS.items():
        gaps = [
            gaps_of(name, names, rank, folder)
            for names in given.values()
            for rank in ((None, 7) if row.function else ())
        ]
        cells = ["", ""]
        if gaps:
            core, file = (max(column) for column in zip(*gaps, strict=True))
            cells = [
                section.held(core, CORE_GOAL, f"core of {name}"),
                section.held(file, FILE_GOAL, f"file of {name}"),
            ]
        spaces = [None] if row.function else [How(space=space) for space in SPACES]
        same = all(equal_bytes(name, given["ranks 4, 9, 6"], how, folder) for how in spaces)
        section.held(0 if same else 1, 0, f"bytes of {name}")
        section.rows.append((name, *cells, "equal" if same else "DIFFERENT"))
    return section


def gaps_of(name: str, names: Sequence[str], rank: int | None, folder: Path) -> tuple[float, float]:
    """Largest relative distance to the dense formula: of the float64 core, of the file."""
    vectors = [read(Path(name)) for name in names]
    budget = None if rank is None else Budget("rank", rank)
    found, worst = written(combined(names, LAMBDAS, method=name, budget=budget), folder), (0.0, 0.0)
    for module in found:
        terms = [(w, v[module]) for w, v in zip(LAMBDAS, vectors, strict=True) if module in v]
        ranks = [len(own.down) for _, own in terms]
        own_name = "linear" if METHODS[name].pivot and module not in vectors[-1] else name
        kept = min(rank or sum(ranks), sum(ranks))
        want = DENSE[own_name]([w * own.dense() for w, own in terms], ranks, kept)
        scaled = [(own.down, own.up, w * own.alpha / len(own.down)) for w, own in terms]
        function, stack = METHODS[own_name].function, Stack.of([LowRankDelta(*t) for t in scaled])
        assert function is not None
        u, s, v = function(stack, rank)
        core = stack.basis_up.apply(u * s) @ stack.basis_down.apply(v).T
        worst = (max(worst[0], gap(core, want)), max(worst[1], gap(found[module], want)))
    return worst


def equal_bytes(name: str, names: Sequence[str], how: How | None, folder: Path) -> bool:
    """Whether a method gives one file whatever the number of cores and threads."""
    digests = set()
    for threads, cores in ((1, ONE_CORE), (1, ONE_CORE), (2, ALL_CORES)):
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(threads)
        tau = combined(names, LAMBDAS, method=name, how=how)
        digests.add(save(tau, folder / "bytes.safetensors", force=True))
    os.sched_setaffinity(0, ONE_CORE)
    torch.set_num_threads(1)
    return len(digests) == 1


def projections(folder: Path) -> Section:
    pair, asked = ("fluent-emoji", "lcm"), (0.8, 1.0)
    tau = combined(pair, asked)
    truth = written(tau, folder)
    spectra = {m: torch.linalg.svdvals(dense.flatten(1)) for m, dense in truth.items()}
    factored = [Factored.of(tau[module]) for module in tau]
    sides = [(side.up, side.down) for side in factored]
    fast = [f"{sum(isinstance(own[i], Tall) for own in sides) / len(sides):.0%}" for i in (0, 1)]
    double = sum(own.core.dtype == torch.float64 for own in factored)
    section = Section(
        "Re-projection of 0.8 · fluent-emoji + 1.0 · lcm",
        "What the written file loses of the sum over what the best approximation of that rank "
        "loses (Eckart and Young, dense float64 singular values), less one. "
        f"{len(sides)} layers of rank 80: {fast[0]} of the up factors and {fast[1]} of the down "
        "factors are decomposed by products (`lcm_arith.tall.Tall`), the others by reflectors; "
        f"{double} layers in float64. Goal {EXCESS_GOAL:g}.",
        ("rank", "layers cut", "largest excess", "mean excess", "error of the sum"),
    )
    for rank in (8, 16, 32):
        made = written(combined(pair, asked, budget=Budget("rank", rank)), folder)
        lost = {m: float((made[m] - truth[m]).norm()) for m in truth}
        best = {m: float(s[rank:].norm()) for m, s in spectra.items()}
        excess = [lost[m] / best[m] - 1 for m in truth]
        error = math.hypot(*lost.values()) / math.hypot(*(float(t.norm()) for t in truth.values()))
        largest = section.held(max(excess), EXCESS_GOAL, f"rank {rank}")
        mean = f"{sum(excess) / len(excess):.1e}"
        section.rows.append((str(rank), str(len(excess)), largest, mean, f"{error:.3f}"))
    return section


TABLES: Final = (sums, peers, methods, projections, round_trips, families)


def main() -> None:
    os.sched_setaffinity(0, ONE_CORE)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    began, sections = time.process_time(), []
    for table_of in TABLES:
        with tempfile.TemporaryDirectory() as folder:
            sections.append(table_of(Path(folder)))
        print(f"{table_of.__name__}: {time.process_time() - began:.0f} s", file=sys.stderr)
    text = page(
        "How exact the arithmetic is",
        "exactness.py",
        sections,
        time.process_time() - began,
        ("torch", "peft", "safetensors"),
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "exactness.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
