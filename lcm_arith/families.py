"""Base families: one row each, with the defaults that depend on the model.

A family answers what fits it and how it is sampled and trained. The embedded model is the first
row; its measured defaults are stored beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from lcm_arith import dit
from lcm_arith.embedded import files
from lcm_arith.errors import IncompatibleError, NotFoundError
from lcm_arith.modules import EMBEDDED, candidates, fits, target_shape, weight_shapes
from lcm_arith.training.plan import Plan, Training

if TYPE_CHECKING:  # defaults are told without waiting for torch
    from lcm_arith.vector import TaskVector


@dataclass(frozen=True, kw_only=True)
class Family:
    """A base family.

    Args:
        name: Its id.
        base: Folder of the base model, where it is shipped.
        resolution: Side of the pictures that it was made for, px.
        prediction: What the network's output is: epsilon, v_prediction or sample.
        guidance: diffusers' guidance scale for sampling without acceleration (1 + ω).
        omega: The paper's ω for distillation.
        grid_points: K, on which the student is consistent; LCMScheduler's
            ``original_inference_steps``.
        stride: Grid points that one of the teacher's steps goes back.
        teacher_steps: Steps of dpm++ that count as the many-step teacher.
        style: Defaults of ``finetune``.
        acceleration: Defaults of ``distill``, of all modes that train an adapter.
        full: Defaults of ``distill --mode full``.
    """

    name: str
    base: Path | None = None
    resolution: int
    prediction: str = "epsilon"
    guidance: float = 7.5
    omega: float = 7.5
    grid_points: int = 50
    stride: int = 1
    teacher_steps: int = 25
    style: Training
    acceleration: Training
    full: Plan


@dataclass(frozen=True, kw_only=True)
class Shipped(Family):
    """A family with a base model that is at hand."""

    base: Path


@cache
def embedded() -> Shipped:
    """The family of the embedded model."""
    stored = files.defaults()
    return Shipped(
        name=EMBEDDED,
        base=files.MODEL,
        resolution=64,
        guidance=float(stored["guidance"]),
        omega=float(stored["omega"]),
        stride=5,  # 100 timesteps, 10 hops from noise to picture: better than 17 in so few steps
        teacher_steps=int(stored["teacher_steps"]),
        style=Training(rank=16, steps=800, batch=32, learning_rate=1e-3, ema=0.99),
        # Its gradient norm is about 0.1; single batches far above it threw whole runs off course.
        acceleration=Training(
            rank=32, steps=400, batch=32, learning_rate=4e-4, max_grad_norm=0.2, ema=0.99
        ),
        full=Plan(steps=400, batch=32, learning_rate=4e-5, max_grad_norm=0.2),  # not measured
    )


def _published(name: str, resolution: int, batch: int, prediction: str = "epsilon") -> Family:
    """A family that is distilled on one card of 24 GB: 12 pictures a step, ``batch`` at once."""
    return Family(
        name=name,
        resolution=resolution,
        prediction=prediction,
        # A convention of kohya-ss/sd-scripts' users, not measured here: rank 16, 1e-4 with AdamW,
        # 1600 steps of 4 (20 pictures, 10 repeats of each, 32 epochs).
        style=Training(rank=16, steps=1600, batch=4, learning_rate=1e-4),
        # What diffusers' consistency_distillation has, not measured here: 12 pictures, 1000 steps,
        # rank 64 with 1e-4; all weights with 1e-6.
        acceleration=Training(
            rank=64, steps=1000, batch=batch, accumulation=12 // batch, learning_rate=1e-4
        ),
        full=Plan(steps=1000, batch=batch, accumulation=12 // batch, learning_rate=1e-6),
    )


_ROWS: Final[Mapping[str, Family]] = MappingProxyType(
    {
        row.name: row
        for row in (
            _published("sd15", 512, batch=12),
            _published("sd2", 768, batch=6, prediction="v_prediction"),
            _published("ssd1b", 1024, batch=4),
            _published("sdxl", 1024, batch=4),
            # Of the kind of sd15, in other sizes. Of the kind of sdxl is the row of that name.
            _published("sd", 512, batch=12),
        )
    }
)


def family(name: str) -> Family:
    """The defaults of a family: the embedded one, a published one, or ``sd`` for others like sd15.

    Raises:
        NotFoundError: If there is none of that name.
    """
    if name == EMBEDDED:
        return embedded()
    if name not in _ROWS:
        raise NotFoundError(
            f"{name}: no family of base models", hint=f"one of {', '.join((*_ROWS, EMBEDDED))}"
        )
    return _ROWS[name]


def misfits(tau: TaskVector, base: Path) -> list[str]:
    """The modules of ``tau`` that a base's folder lacks or holds in another shape."""
    shapes = weight_shapes(base)
    return [m for m in tau if not fits(tuple(tau.shape_of(m)), target_shape(shapes, m))]


def check_same_family(vectors: dict[str, TaskVector]) -> None:
    """Raises unless the vectors can be updates of one base model.

    Args:
        vectors: Name or path → vector, as the user gave them.

    Raises:
        IncompatibleError: If one fits the embedded model and another does not, two are of different
            families, have neither a module nor a known family in common, or a module in different
            shapes, or spell the layers of one transformer differently.
    """
    _check_spelling(vectors)
    wrong = {name: misfits(tau, embedded().base) for name, tau in vectors.items() if tau}
    fitting = [name for name, bad in wrong.items() if not bad]
    if not fitting and len(wrong) > 1:
        (first, one), *rest = ((name, tau) for name, tau in vectors.items() if tau)
        for name, tau in rest:
            known = _check_families({first: one, name: tau})
            shared = set(one.modules) & set(tau.modules)
            if not shared and not known:
                raise IncompatibleError(
                    f"{first} and {name} have no target module in common",
                    hint="they were made for different base models",
                )
            for module in sorted(shared):
                (one + tau).shape_of(module)
    elif fitting and len(fitting) < len(wrong):
        name = next(name for name, bad in wrong.items() if bad)
        module = wrong[name][0]
        raise IncompatibleError(
            f"{name}: is an adapter of another architecture than {fitting[0]}: "
            f"{len(wrong[name])} of {len(vectors[name])} modules do not fit, "
            f"{module} of shape {list(vectors[name].shape_of(module))} for one",
            hint="combine vectors of one base family",
        )


def _check_spelling(vectors: Mapping[str, TaskVector]) -> None:
    """Raises where two vectors would be disjoint halves of one transformer."""
    places: dict[str, str] = {}
    found: dict[str, str] = {}
    for name, tau in vectors.items():
        for spelling, module in dit.spellings_of(tau).items():
            places.setdefault(spelling, name)
            found.setdefault(spelling, module)
    if len(found) > 1:
        one, other = (places[spelling] for spelling in found)
        raise IncompatibleError(f"{one} and {other}: {dit.two_spellings(found)}", hint=dit.RESPELL)


def _check_families(vectors: Mapping[str, TaskVector]) -> bool:
    """Whether a known family fits both of two vectors.

    Raises:
        IncompatibleError: If both fit families, but none both, or one is of a UNet and the other of
            a transformer.
    """
    fitting, parts = {}, {}
    for name, tau in vectors.items():
        shapes = {module: tuple(tau.shape_of(module)) for module in tau}
        fitting[name] = [candidate.family for candidate in candidates(shapes)]
        parts[name] = {module.partition(".")[0] for module in tau} & {"unet", dit.COMPONENT}
    (one, first), (other, second) = fitting.items()
    known = first and second and not set(first) & set(second)
    if known or (parts[one] and parts[other] and not parts[one] & parts[other]):
        told = [f"{n} of {' or '.join(fitting[n]) or 'an unknown model'}" for n in vectors]
        raise IncompatibleError(
            f"the adapters are of different families: {', '.join(told)}",
            hint="combine vectors of one base family",
        )
    return bool(set(first) & set(second))
