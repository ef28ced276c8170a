"""Combinations of combinations, made again from what their records say."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Final

import torch
from faults import Tally, timed
from stores import adapters, lite

from lcm_arith.budgets import Budget
from lcm_arith.combination import combine_terms
from lcm_arith.elementwise import SPACES, How
from lcm_arith.methods import METHODS
from lcm_arith.registry import adding, rebuilding
from lcm_arith.registry.store import Registry
from lcm_arith.saving import save
from lcm_arith.weights import parse_term

_WEIGHTS: Final = ("0.8", "1", "-0.35", "1.25", "0.5,mid=0.25", "-0.1,down.0=1")
_BUDGETS: Final = (None, None, ("rank", 3), ("energy", 0.95), ("max_error", 0.1), ("size", 9000))
_FORMS: Final = ("diffusers", "kohya", "peft")


@timed
def rebuilt(folder: Path, count: int, seed: int = 0) -> Tally:
    """F16: random combinations of combinations, each rebuilt by its record to the last bit."""
    tally, registry, chosen = Tally(), lite(folder / "made"), random.Random(seed)
    depths = {}
    for number, path in enumerate(adapters(folder, 5)):
        adding.add(registry, path, name=f"leaf{number}")
        depths[f"leaf{number}"] = 0
    for number in range(count):
        name, path = f"dag{number}", folder / f"dag{number}.safetensors"
        usable = sorted(own for own, depth in depths.items() if depth < 5)
        deep = sorted(usable, key=lambda own: -depths[own])[:6]
        some = chosen.sample(sorted({*deep, *chosen.sample(usable, 3)}), chosen.choice((2, 3)))
        what = _made(registry, path, some, chosen)
        adding.add(registry, path, name=name)
        depths[name] = 1 + max(depths[own] for own in some)
        with tally.promised(f"{name} of {some} by {what}"):
            done = rebuilding.rebuild(registry, registry.find(name))
            tally.check(done.equal, f"{name} of {some} by {what}: other tensors")
        tally.points += 1
    tally.figures = {"deepest": max(depths.values())}
    return tally


def _made(registry: Registry, path: Path, names: list[str], chosen: random.Random) -> str:
    """Writes a random combination; what it was."""
    weights = [chosen.choice(_WEIGHTS) for _ in names]
    method = chosen.choice(("linear", *METHODS))
    how = How(chosen.choice((0.4, 0.7)), chosen.choice(SPACES), chosen.randrange(9))
    dtype, form = chosen.choice((torch.float32, torch.float16)), chosen.choice(_FORMS)
    kind = chosen.choice(_BUDGETS)
    tau = combine_terms(
        [
            parse_term(f"{registry.find(own).path}:{weight}")
            for own, weight in zip(names, weights, strict=True)
        ],
        method=method,
        budget=None if kind is None else Budget(kind[0], kind[1], dtype.itemsize),
        how=None if METHODS[method].function else how,
    )
    save(tau, path, dtype=dtype, form=form, about={"kind": "combined"})
    return f"{method} {how} {kind} {dtype} {form} {weights}"
