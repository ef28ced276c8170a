"""Vectors on a live model: rebuild its weights from a pristine copy.

W(τ) = round(W₀ + ΔW(τ)), always from W₀, one product and one rounding. Never fuse and unfuse, never
``W += Δλ·BA``: both drift. Visiting order does not matter, and an empty vector restores every bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import IncompatibleError
from lcm_arith.modules import BIAS, GAIN, fits
from lcm_arith.vector import TaskVector

_PRISTINE: Final[WeakKeyDictionary[Any, dict[str, Tensor]]] = WeakKeyDictionary()
"""Pipeline → its weights W₀; kept per pipeline, so that nobody takes rebuilt weights for W₀."""


@dataclass(frozen=True, eq=False)
class LiveWeights:
    """The components of a pipeline whose weights follow a task vector.

    Several of them on one pipeline share its pristine weights; the last one applied holds.

    Args:
        pipeline: A diffusers pipeline; its weights are rebuilt in place.
    """

    pipeline: Any

    @property
    def _pristine(self) -> dict[str, Tensor]:
        return _PRISTINE.setdefault(self.pipeline, {})

    def apply(self, tau: TaskVector) -> None:
        """Sets every weight to W₀ + ΔW(τ); modules that τ does not name return to W₀.

        Raises:
            IncompatibleError: If τ names a module that the model lacks, or of another shape;
                nothing is changed then.
        """
        targets = check_compatible(self.pipeline, tau)
        with torch.no_grad():
            for module in self._pristine.keys() - targets.keys():
                _weight(self.pipeline, module).copy_(self._pristine[module])
            for module, weight in targets.items():
                if module not in self._pristine:
                    self._pristine[module] = weight.detach().clone()
                pristine = self._pristine[module]
                delta = tau[module].to(weight.device)
                if module + GAIN in tau:
                    gain = tau[module + GAIN].to(weight.device).dense()
                    whole = pristine.float()
                    whole = whole + whole * gain.reshape(-1, *(1,) * (weight.ndim - 1))
                    weight.copy_(whole + delta.dense().reshape(weight.shape))
                elif weight.dtype == torch.float32:
                    _add_in_place(weight, pristine, delta)
                else:
                    weight.copy_(pristine.float() + delta.dense().reshape(weight.shape))


def _add_in_place(weight: Tensor, pristine: Tensor, delta: LowRankDelta) -> None:
    """W ← W₀ + BA as one product into the weight's own memory: no dense ΔW beside it."""
    up = delta.up.flatten(1).float() * delta.scale
    down = delta.down.float().reshape(-1, *weight.shape[1:])  # as the weight, of rank r
    torch.addmm(_matrix(pristine, weight), up, _matrix(down, weight), out=_matrix(weight, weight))


def _matrix(values: Tensor, weight: Tensor) -> Tensor:
    """``[n, …]`` as ``[n, m]`` in the order in which a weight lies in memory."""
    if weight.ndim == 4 and not weight.is_contiguous():
        values = values.permute(0, 2, 3, 1)  # channels last
    return values.reshape(len(values), -1)


def check_compatible(pipeline: Any, tau: TaskVector) -> dict[str, Tensor]:
    """Target → the weight that it updates, for every target of ``tau`` but gains.

    Raises:
        IncompatibleError: If a module is absent or its shape differs; all of them are listed.
    """
    found: dict[str, Tensor] = {}
    problems: list[str] = []
    taken: dict[int, str] = {}
    for module in tau:
        if module.endswith(GAIN):
            continue  # beside its module's weight
        weight = _weight(pipeline, module)
        shape = tau.shape_of(module)
        if weight is None:
            problems.append(f"{module}: the base model has no such module")
        elif not fits(tuple(shape), tuple(weight.shape)):
            problems.append(f"{module}: {list(shape)} but the base has {list(weight.shape)}")
        elif taken.setdefault(id(weight), module) != module:
            problems.append(f"{module}: is {taken[id(weight)]}, too; give both one name")
        else:
            found[module] = weight
    if problems:
        more = f"\n  … and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise IncompatibleError(
            f"the adapter does not fit this base model ({len(problems)} of {len(tau)} modules):\n  "
            + "\n  ".join(problems[:5])
            + more,
            hint="it was made for another architecture; use a base model of its family",
        )
    return found


def _weight(pipeline: Any, target: str) -> Any:
    """A module's weight, or a bias; text encoders have a ``text_model`` level or not."""
    component, path = target.split(".", 1)
    path, name = (path.removesuffix(BIAS), "bias") if path.endswith(BIAS) else (path, "weight")
    owner = getattr(pipeline, component, None)
    if not isinstance(owner, nn.Module):
        return None
    for spelled in dict.fromkeys((path, path.removeprefix("text_model."), f"text_model.{path}")):
        try:
            return getattr(owner.get_submodule(spelled), name, None)
        except AttributeError:
            continue
    return None
