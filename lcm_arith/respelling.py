"""Flux and SD3 adapters from their publisher's spelling to diffusers' and back, exactly.

A layer that is one in the publisher's code and several in diffusers (see :mod:`.dit`) holds their
rows one below the other. Taken apart, each gets its rows of ``up`` and the whole ``down``. Put
together, the downs stand one below the other and the ups on the diagonal, of rank Σ rank; a part
that is not adapted has rows of zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from lcm_arith import dit
from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import IncompatibleError, UsageError
from lcm_arith.modules import fits
from lcm_arith.vector import Lazy, Source, TaskVector

Deltas = Mapping[str, LowRankDelta]
Maker = Callable[[Deltas], LowRankDelta]


def respelled(tau: TaskVector, spelling: str) -> TaskVector:
    """The same updates under the names of a spelling; vectors that have them pass.

    Args:
        tau: Any vector.
        spelling: ``dit.OWN`` or ``dit.DIFFUSERS``.

    Raises:
        IncompatibleError: If both spellings are in it.
        UsageError: If it is not of a model whose two spellings are known.
    """
    found = dit.spellings_of(tau)
    if found.keys() <= {spelling}:
        return tau
    if len(found) > 1:
        raise IncompatibleError(dit.two_spellings(found), hint=dit.RESPELL)
    layers = _layers_of(tau, next(iter(found)))
    makers: dict[str, Maker] = {m: _same(m) for m in tau if not m.startswith(f"{dit.COMPONENT}.")}
    for layer in layers:
        makers |= _apart(layer, tau) if spelling == dit.DIFFUSERS else _together(layer, tau)
    lazy = Lazy(makers, lambda module: makers[module](tau))
    outlined = Lazy(tau, tau.outline)
    outlines = {module: make(outlined) for module, make in makers.items()}
    return TaskVector(((1.0, Source(lazy, {"spelling": spelling, "of": tau}, outlines=outlines)),))


def alike(tau: TaskVector, other: TaskVector) -> TaskVector:
    """``tau`` in the spelling of ``other``, so that the two can be compared.

    Raises:
        IncompatibleError, UsageError: As :func:`respelled`.
    """
    found = dit.spellings_of(other)
    return respelled(tau, next(iter(found))) if len(found) == 1 else tau


def _layers_of(tau: TaskVector, spelling: str) -> tuple[dit.Layer, ...]:
    """The layers of the published model that the vector fits.

    Raises:
        UsageError: If it fits none.
    """
    shapes = {m: tuple(tau.shape_of(m)) for m in tau if m.startswith(f"{dit.COMPONENT}.")}
    for family in dit.TRANSFORMERS:
        for model in dit.layers(family):
            weights = dit.spelled(model, spelling)
            if all(fits(shape, weights.get(module)) for module, shape in shapes.items()):
                return model
    raise UsageError(
        f"{len(shapes)} modules such as {min(shapes)} are not all of Flux or SD3, of which alone "
        "both spellings are known",
        hint="write kohya or comfy"
        if spelling == dit.OWN
        else "write diffusers, or peft without text encoders",
    )


def _same(module: str) -> Maker:
    return lambda deltas: deltas[module]


def _apart(layer: dit.Layer, deltas: Iterable[str]) -> dict[str, Maker]:
    """Modules of diffusers that a layer is made of."""
    own = f"{dit.COMPONENT}.{layer.own}"
    if own not in deltas:
        return {}

    def maker(first: int, rows: int) -> Maker:
        def make(of: Deltas) -> LowRankDelta:
            delta = of[own]
            return LowRankDelta(
                delta.down, _turned(delta.up.narrow(0, first, rows), layer), delta.scale
            )

        return make

    firsts = (sum(layer.rows[:at]) for at in range(len(layer.rows)))
    return {
        f"{dit.COMPONENT}.{part}": maker(first, rows)
        for part, first, rows in zip(layer.parts, firsts, layer.rows, strict=True)
    }


def _together(layer: dit.Layer, deltas: Iterable[str]) -> dict[str, Maker]:
    """The publisher's layer of diffusers' modules."""
    parts = [f"{dit.COMPONENT}.{part}" for part in layer.parts]
    there = [part for part in parts if part in deltas]

    def make(of: Deltas) -> LowRankDelta:
        if len(parts) == 1:
            delta = of[parts[0]]
            return LowRankDelta(delta.down, _turned(delta.up, layer), delta.scale)
        found = {part: of[part] for part in there}
        ranks = [delta.rank for delta in found.values()]
        up = next(iter(found.values())).up.new_zeros(sum(layer.rows), sum(ranks)).float()
        place = {part: at for at, part in enumerate(parts)}
        for column, (part, delta) in enumerate(found.items()):
            first, left = sum(layer.rows[: place[part]]), sum(ranks[:column])
            up[first : first + len(delta.up), left : left + delta.rank] = delta.up * delta.scale
        return LowRankDelta(torch.cat([delta.down.float() for delta in found.values()]), up)

    return {f"{dit.COMPONENT}.{layer.own}": make} if there else {}


def _turned(up: Tensor, layer: dit.Layer) -> Tensor:
    """Rows with their halves exchanged where the two spellings order them differently."""
    return torch.cat(up.chunk(2)[::-1]) if layer.swapped else up
