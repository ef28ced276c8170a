"""What the shell's TAB offers for vectors; nothing heavy is imported, and nothing is printed.

Names come from their files beside the index, so that a damaged index costs none of them and no
database library is waited for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lcm_arith.embedded import files
from lcm_arith.errors import LcmArithError

if TYPE_CHECKING:
    from collections.abc import Iterable


def vectors(incomplete: str) -> list[str]:
    """Shipped and registered names, and adapter files in the folder that was begun."""
    names = known(incomplete)
    return names + [path for path in _adapters(incomplete) if path not in names]


def known(incomplete: str) -> list[str]:
    """Shipped and registered names."""
    return _beginning(files.vector_names(), incomplete) + own(incomplete)


def own(incomplete: str) -> list[str]:
    """Registered names; none where the registry cannot be read, for a TAB has nowhere to say so."""
    from lcm_arith.registry import paths
    from lcm_arith.registry.states import States

    try:
        return _beginning(States(paths.home()), incomplete)
    except (LcmArithError, OSError):
        return []


def kinds(incomplete: str) -> list[str]:
    """Kinds of vectors."""
    from lcm_arith.registry.records import KINDS

    return _beginning(KINDS, incomplete)


def recipes(incomplete: str) -> list[str]:
    """Names of the shipped recipes."""
    from lcm_arith.evaluation.plans.recipe import names

    return _beginning(names(), incomplete)


def _beginning(names: Iterable[str], start: str) -> list[str]:
    return [name for name in names if name.startswith(start)]


def _adapters(incomplete: str) -> list[str]:
    folder, _, start = incomplete.rpartition("/")
    inside = f"{folder}/" if "/" in incomplete else ""
    try:
        names = sorted(path.name for path in Path(inside or ".").iterdir())
    except OSError:
        return []
    found = [name for name in _beginning(names, start) if name.endswith(".safetensors")]
    return [f"{inside}{name}" for name in found]
