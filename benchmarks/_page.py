"""A page of tables with goals: what ``exactness.py`` and ``lcd_oracles.py`` print and write."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version


@dataclass(frozen=True)
class Section:
    """A table of the page, and the goals that were missed."""

    title: str
    text: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)

    def held(self, value: float, goal: float, what: str) -> str:
        """The cell of a figure; where it misses its goal, that is noted."""
        if not value <= goal:
            self.missed.append(f"{self.title}, {what}: {value:.3e}, the goal is {goal:g}")
        return f"{value:.1e}" if isinstance(value, float) else str(value)

    def reached(self, value: float, goal: float, what: str) -> str:
        """The cell of a figure that is to be at least its goal, likewise."""
        if not value >= goal:
            self.missed.append(f"{self.title}, {what}: {value:.3g}, the goal is {goal:g} or more")
        return f"{value:.2f}"


def page(
    title: str,
    script: str,
    sections: Sequence[Section],
    seconds: float,
    libraries: Sequence[str] = ("torch",),
) -> str:
    """Title, how it was made, the goals that were missed, and the tables."""
    missed = [line for section in sections for line in section.missed]
    versions = ", ".join(f"{name} {version(name)}" for name in libraries)
    lines = [
        f"# {title}",
        "",
        f"`python benchmarks/{script}`, {datetime.now(UTC).date().isoformat()}, "
        f"{platform.machine()}, one core, "
        f"{seconds:.0f} CPU s; Python {platform.python_version()}, "
        f"{versions}.",
        "",
        "All goals are met." if not missed else "Missed: " + "; ".join(missed) + ".",
    ]
    for number, section in enumerate(sections, 1):
        lines += ["", f"## {number}. {section.title}", "", section.text, ""]
        ruled = [section.head, tuple("---" for _ in section.head), *section.rows]
        lines += ["| " + " | ".join(row) + " |" for row in ruled]
    return "\n".join(lines) + "\n"
