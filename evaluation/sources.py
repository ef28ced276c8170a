"""What the names in a grid stand for: base models, vectors, the picture sets behind them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lcm_arith.adapters import facts, load
from lcm_arith.bases import Base, load_base
from lcm_arith.combination import NONE
from lcm_arith.embedded import pictures
from lcm_arith.errors import IncompatibleError
from lcm_arith.evaluation.rows import Row
from lcm_arith.families import Family, check_same_family, embedded, family, misfits
from lcm_arith.modules import EMBEDDED
from lcm_arith.vector import TaskVector
from lcm_arith.weights import Term, parse_term

_PUBLISHED_LIKE = "sd"
"""Family whose defaults hold for every base but the embedded one: they have them in common."""


def style_terms(style: str) -> tuple[Term, ...]:
    """The vectors of a style: one name, or several as ``a:1+b:0.5``; none of ``"none"``.

    Raises:
        UsageError: If a λ is no number.
    """
    if style == NONE:
        return ()
    parts = [style] if Path(style).exists() else style.split("+")
    return tuple(parse_term(part) for part in parts)


@dataclass(eq=False)
class Sources:
    """Loads each vector once, and one base at a time.

    Args:
        dtype: Number format of the base's weights.
        device: Where it computes.
    """

    dtype: str = "float32"
    device: str = "cpu"
    _vectors: dict[str, TaskVector] = field(default_factory=dict)
    _base: tuple[str, Base] | None = None

    def vector(self, name: str) -> TaskVector:
        """A vector by shipped or registered name, or path.

        Raises:
            NotFoundError, InvalidContentError: As :func:`lcm_arith.adapters.load`.
        """
        if name not in self._vectors:
            self._vectors[name] = load(name)
        return self._vectors[name]

    def base(self, name: str) -> Base:
        """A base model; the one before is let go.

        Raises:
            NotFoundError, InvalidContentError, IncompatibleError, NetworkError: As
                :func:`lcm_arith.bases.load_base`.
        """
        if self._base is None or self._base[0] != name:
            self._base = None
            self._base = (name, load_base(None if name == EMBEDDED else name))
        return self._base[1]

    def family(self, base: str) -> Family:
        """Defaults of a base's family."""
        return embedded() if base == EMBEDDED else family(_PUBLISHED_LIKE)

    def style_set(self, style: str) -> str | None:
        """The shipped picture set that a style of one vector was trained on, if it says so."""
        terms = style_terms(style)
        if len(terms) != 1:
            return None
        own = facts(self.vector(terms[0].name)).get("style")
        return own if isinstance(own, str) and own in pictures.sets() else None

    def check(self, rows: Iterable[Row]) -> None:
        """Raises unless every vector can be read and fits its base; no base is loaded for that.

        Raises:
            NotFoundError, InvalidContentError: If a vector cannot be used.
            IncompatibleError: If one does not fit another, or its base.
        """
        pairs = dict.fromkeys((row.context.base, row.context.style, row.accel) for row in rows)
        for base, style, accel in pairs:
            names = [term.name for term in style_terms(style)]
            names += [accel] if accel != NONE else []
            named = {name: self.vector(name) for name in names}
            check_same_family(named)
            for name, tau in named.items():
                _check_fits(base, name, tau)


def _check_fits(base: str, name: str, tau: TaskVector) -> None:
    """By the headers of a folder's files; other bases tell when they are loaded."""
    folder = embedded().base if base == EMBEDDED else Path(base)
    wrong = misfits(tau, folder) if folder.is_dir() else []
    if wrong:
        raise IncompatibleError(
            f"{name}: does not fit the base model {base}: {len(wrong)} of {len(tau)} modules, "
            f"{wrong[0]} of shape {list(tau.shape_of(wrong[0]))} for one",
            hint="it was made for another architecture; use a base model of its family",
        )
