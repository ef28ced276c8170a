"""Charts of vectors, as PNG bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from lcm_arith.evaluation.showing.sheets import drawable


def new_figure(width: float, height: float) -> Any:
    """A figure of so many inches that no window shows."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Any, *, dpi: int = 130) -> bytes:
    """The figure's PNG; the same figure gives the same bytes."""
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dpi, metadata={"Software": None})
    return out.getvalue()


def plain(text: str) -> str:
    """A text as it stands, in letters that the font has; ``$`` begins no formula."""
    return drawable(text).replace("$", r"\$")


def interference_png(rows: Sequence[tuple[Any, ...]], names: tuple[str, str]) -> bytes:
    """Shared subspaces of two vectors, a pair of bars for each block; the dashed line is chance.

    Args:
        rows: (block, modules, cosine, output overlap, input overlap, norm, norm).
        names: Of the two vectors.
    """
    figure = new_figure(8, 1.4 + 0.45 * len(rows))
    axes = figure.add_subplot()
    places = range(len(rows))
    axes.barh([p - 0.2 for p in places], [row[3] for row in rows], 0.38, label="output")
    axes.barh([p + 0.2 for p in places], [row[4] for row in rows], 0.38, label="input")
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(list(places), [f"{row[0]} ({row[1]})" for row in rows])
    axes.invert_yaxis()
    axes.set_xlabel("shared subspace, multiples of chance")
    axes.set_title(f"{names[0]} and {names[1]}", loc="left")
    axes.legend(frameon=False)
    return png(figure, dpi=110)
