"""What the licences of a mix's parents ask together of whoever passes it on.

Terms add up. Some pairs of licences cannot both be kept; that is said, not solved.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Final

from lcm_arith.registry.licences import DECLARED, Licence, Terms

SEVERAL: Final = "several"
"""The weight of a part that goes into a mix on too many ways to tell them all."""


@dataclass(frozen=True)
class Parent:
    """A part of a mix, for its licence's sake.

    Args:
        name: Its title.
        licence: What is known of its licence.
        author: Who made it.
        url: Where it comes from.
    """

    name: str
    licence: Licence
    author: str = ""
    url: str = ""

    def line(self) -> str:
        """A line of attribution."""
        by = f" by {self.author}" if self.author else ""
        at = f", {self.url}" if self.url else ""
        note = f" ({DECLARED})" if self.licence.id == "civitai" else ""
        return f"{self.name}{by}{at}: {self.licence.name}{note}"


@dataclass(frozen=True)
class Effective:
    """What holds for a mix.

    Args:
        terms: All that any parent asks.
        unknown: Whether one may ask more.
        attributions: A line for each parent that wants to be named, or may want it.
        incompatible: Names of licences that cannot both be kept, and why.
        mixed: Whether it is a changed version of its parents.
        licences: The parents', each once.
    """

    terms: Terms
    unknown: bool
    attributions: tuple[str, ...]
    incompatible: tuple[tuple[str, str, str], ...]
    mixed: bool
    licences: tuple[Licence, ...]


def union(parents: Sequence[Parent], *, mixed: bool | None = None) -> Effective:
    """What all parents' licences ask together.

    Args:
        parents: At least one, or nothing is known.
        mixed: Whether the result differs from its one parent; by itself, whether there are two.
    """
    terms = Terms()
    for parent in parents:
        terms |= parent.licence.terms
    licences = list(dict.fromkeys(parent.licence for parent in parents))
    return Effective(
        terms,
        unknown=not parents or any(licence.unknown for licence in licences),
        attributions=tuple(
            p.line() for p in parents if p.licence.terms.attribution or p.licence.unknown
        ),
        incompatible=tuple(
            (a.name, b.name, why) for a, b in combinations(licences, 2) if (why := _clash(a, b))
        ),
        mixed=len(parents) > 1 if mixed is None else mixed,
        licences=tuple(licences),
    )


_SISTERS: Final = {"gpl-3.0", "agpl-3.0"}  # section 13 of both lets them be combined


def _clash(one: Licence, other: Licence) -> str:
    """Why two licences cannot both be kept in one work; empty where they can."""
    if {one.id, other.id} == _SISTERS:
        return ""
    if one.terms.share_alike and other.terms.share_alike:
        return "each wants the mix under itself"
    for alike, free in ((one, other), (other, one)):
        extra = [
            word
            for word, has, wants in zip(
                ("non-commercial", "use restrictions"),
                (alike.terms.non_commercial, alike.terms.use_restrictions),
                (free.terms.non_commercial, free.terms.use_restrictions),
                strict=True,
            )
            if wants and not has
        ]
        if alike.terms.share_alike and extra:
            return f"{alike.name} wants the mix under itself, without {' or '.join(extra)}"
    return ""


def blocks_push(effective: Effective) -> tuple[str, ...]:
    """Why it must not be published without more rights; empty where nothing is known against it.

    What is unknown does not block; ``effective.unknown`` is to be said beside it.
    """
    why = []
    if effective.terms.non_commercial:
        why.append("a parent forbids commercial use, and publishing cannot keep others from it")
    if effective.terms.no_derivatives and effective.mixed:
        why.append("a parent forbids changed versions, which a mix is")
    why += [f"{a} and {b}: {reason}" for a, b, reason in effective.incompatible]
    return tuple(why)


def hub_licence(effective: Effective) -> dict[str, str]:
    """``license`` of a model card, and ``license_name`` where the hub has no id for it."""
    if effective.unknown:
        return {"license": "unknown"}
    if len(effective.licences) > 1:
        return {"license": "other", "license_name": "several-see-below"}
    only = effective.licences[0]
    return {"license": only.id} if only.hub else {"license": "other", "license_name": only.id}
