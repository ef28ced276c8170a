"""The weights of a row as a task vector: λ1·τ_style + λ2·τ_LCM, by any method, at any rank."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import Final

from lcm_arith.combination import NONE, by_method
from lcm_arith.evaluation.plans.rows import ONE, ZERO, Mix, style_terms
from lcm_arith.methods import method
from lcm_arith.projection import reproject
from lcm_arith.vector import TaskVector
from lcm_arith.weights import Term, Weights, weigh

_UNET: Final = "unet."
_TEXT: Final = "te"
"""How a weight names both text encoders."""


def plain(mix: Mix) -> Mix:
    """The mix without what has no effect: equal weights are one mix."""
    if terms(mix):
        return mix
    return Mix(mix.base, NONE, NONE, ZERO, ZERO)


def content(mix: Mix) -> Hashable:
    """Equal of mixes that give equal weights, however they are written: ``a:2`` · 0.5 is ``a``.

    In an order in which mixes of one text state follow each other: the acceleration is last.
    """
    mix = plain(mix)
    return (mix.base, mix.te, mix.method, mix.rank, terms(mix))


def terms(mix: Mix) -> tuple[Term, ...]:
    """The vectors that are added, each with all of its λ but ``te``; the acceleration last."""
    style = [Term(term.name, _times(mix.l1, term.weights)) for term in style_terms(mix.style)]
    accel = [Term(mix.accel, Weights(_short(mix.l2)))] if mix.accel != NONE else []
    return tuple(term for term in (*style, *accel) if _does(term.weights))


def _times(weight: Decimal, own: Weights) -> Weights:
    return replace(
        own,
        overall=_short(weight * own.overall),
        parts=tuple((part, _short(weight * value)) for part, value in own.parts),
    )


def _short(weight: Decimal) -> Decimal:
    """One spelling a value: ``0.80`` and ``0.8`` are one λ."""
    return Decimal(format(weight.normalize(), "f")) if weight else ZERO


def _does(weights: Weights) -> bool:
    return bool(weights.overall or any(value for _, value in weights.parts))


@dataclass(frozen=True, eq=False)
class Mixed:
    """A mix, made.

    Args:
        vector: What is added to the base's weights.
        text: Its :func:`text_state`.
    """

    vector: TaskVector
    text: Hashable


def mixed(mix: Mix, vector: Callable[[str], TaskVector]) -> Mixed:
    """The task vector of a mix.

    Args:
        mix: Which.
        vector: Name → its vector.

    Raises:
        UsageError: If the method is unknown, or a weight's part matches nothing.
        InvalidContentError: If a method other than a sum is to combine DoRAs.
    """
    row, named = method(mix.method), terms(mix)
    made = by_method(
        [_weighed(vector(term.name), term, mix.te) for term in named],
        row, rank=None if row.exact else mix.rank, how=None,
    )  # fmt: skip
    if row.exact and mix.rank is not None and named:
        made = reproject(made, mix.rank)
    return Mixed(made, text_state(mix, vector))


def text_state(mix: Mix, vector: Callable[[str], TaskVector]) -> Hashable:
    """Equal of two mixes on one base whose text encoders are equal; None leaves them as they are.

    Args:
        mix: Which.
        vector: Name → its vector.
    """
    speaking = [term for term in terms(mix) if _text_modules(vector(term.name))]
    if not speaking:
        return None
    return (mix.te, *speaking) if method(mix.method).exact and mix.rank is None else mix


def _weighed(tau: TaskVector, term: Term, te: Decimal | None) -> TaskVector:
    own = weigh(tau, term.weights, term.name)
    if te in (None, ONE) or not _text_modules(own):
        return own
    return weigh(own, Weights(ONE, ((_TEXT, te or ZERO),)), term.name)


def _text_modules(tau: TaskVector) -> bool:
    return any(not module.startswith(_UNET) for module in tau)
