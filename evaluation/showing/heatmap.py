"""A metric over the cells of a grid, as a picture."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.evaluation.judging.pixels import OK
from lcm_arith.evaluation.showing import plots, tables
from lcm_arith.evaluation.showing.tables import Axis

_MOST_LINES: Final = 12
_LETTERS: Final = 13  # of a legend, an inch
_BEST, _DARK, _LIGHT = "#c2570c", "#10131a", "#ffffff"


@dataclass(frozen=True, eq=False)
class _Panel:
    """Places in the table, ``[down, across]``; −1 where there is no cell."""

    name: str
    places: np.ndarray


def heatmap(
    table: pd.DataFrame, comparisons: pd.DataFrame, metric: str, title: str, by: str
) -> bytes:
    """The cells' means, bright is better, on one scale; PNG.

    Down and across are the first two axes in which the cells differ (λ1, λ2, steps, then the rest);
    there is a column of panels for each value of the third and a line of panels for each mixture
    of the others, of which the first 12 are drawn. Beneath a mean stands half of its interval; the
    best set is framed, the baseline named, cells that are not told apart from it are hatched, and a
    cell that was not drawn stays empty.

    Args:
        table: As ``cells.csv``, with intervals and ``in_best_set``.
        comparisons: As ``comparisons.csv``.
        metric: A column of the one and a value of the other.
        title: Over everything.
        by: The metric that decides which cells may be the best.
    """
    vary, _ = tables.axes(table)
    nowhere = Axis("", "", ("",), np.zeros(len(tables.of_cells(table)), int))
    down, across, third, *rest = (*vary, nowhere, nowhere, nowhere)[: max(3, len(vary))]
    lines = _lines(table, down, across, third, rest)
    drawn = lines[:_MOST_LINES]
    figure = plots.new_figure(
        max(5, len(third.values) * (0.9 + 0.8 * len(across.values))),
        1.3 + len(drawn) * (0.8 + 0.5 * len(down.values)),
    )
    wide = int((0.9 + 0.8 * len(across.values)) * _LETTERS)
    axes = figure.subplots(len(drawn), len(third.values), squeeze=False)
    marks = _Marks(table, comparisons, metric, by)
    for axis, panel in zip(axes.flat, (p for line in drawn for p in line), strict=True):
        _draw(axis, panel, marks)
        axis.set_title(marks.title(panel, wide), fontsize=9)
        axis.set_xticks(range(len(across.values)), [plots.plain(v) for v in across.values])
        axis.set_yticks(range(len(down.values)), [plots.plain(v) for v in down.values])
        axis.set_xlabel(across.name)
        axis.set_ylabel(down.name)
    figure.suptitle(f"{metric} ({tables.goal(metric)}): {plots.plain(title)}", fontsize=10)
    left_out = f"the first {len(drawn)} of {len(lines)} lines; report.html shows all"
    legend = [*marks.legend(), *([left_out] if len(drawn) < len(lines) else [])]
    legend_wide = int(figure.get_figwidth() * _LETTERS)
    figure.supxlabel(textwrap.fill(";  ".join(legend), legend_wide), fontsize=8)
    return plots.png(figure)


def _lines(
    table: pd.DataFrame, down: Axis, across: Axis, third: Axis, rest: list[Axis]
) -> list[list[_Panel]]:
    cells = np.flatnonzero(table["role"] == "cell")
    mixtures = sorted(set(zip(*(axis.at.tolist() for axis in rest), strict=True))) or [()]
    found = []
    for mixture in mixtures:
        line = []
        for number, value in enumerate(third.values):
            here = third.at == number
            for axis, at in zip(rest, mixture, strict=True):
                here &= axis.at == at
            places = np.full((len(down.values), len(across.values)), -1)
            places[down.at[here], across.at[here]] = cells[here]
            said = [axis.spoken(axis.values[at]) for axis, at in zip(rest, mixture, strict=True)]
            name = ", ".join((third.spoken(value), *said))
            line.append(_Panel(plots.plain(name), places))
        found.append(line)
    return found


class _Marks:
    """What is drawn of each line of a table."""

    def __init__(
        self, table: pd.DataFrame, comparisons: pd.DataFrame, metric: str, by: str
    ) -> None:
        self.table, self.metric, self.by = table, metric, by
        self.values = table[metric].to_numpy(float)
        single = f"{metric}_lo" in table
        ends = table[[f"{metric}_lo", f"{metric}_hi"]].to_numpy(float) if single else None
        self.half = (ends[:, 1] - ends[:, 0]) / 2 if ends is not None else self.values * np.nan
        self.best = tables.in_best_set(table)
        self.unsure = tables.undecided(table, comparisons, metric)
        self.baseline = tables.baselines(table, comparisons)
        self.controls = tables.companions(table, "control", same=("nfe",))
        merits = tables.merit(table, metric)
        cells = merits[(table["role"] == "cell").to_numpy() & np.isfinite(merits)]
        span = np.ptp(cells)
        self.levels = (merits - cells.min()) / span if span else merits - cells.min() + 1

    def why(self, place: int) -> str:
        """A cell has no value, where that is known."""
        status = "" if place < 0 else str(self.table["status"].iloc[place])
        return "" if status == OK else status

    def text(self, place: int) -> str:
        """What is written into a cell."""
        half = self.half[place]
        interval = f"± {_short(half)}" if np.isfinite(half) else ""
        named = "baseline" if self.baseline[place] else ""
        return "\n".join(filter(None, (_short(self.values[place]), interval, named)))

    def title(self, panel: _Panel, wide: int) -> str:
        """Of a panel, in lines of so many letters, with its control's value if there is but one."""
        of = {int(self.controls[n]) for n in panel.places.flat if n >= 0} - {-1}
        control = [f"control {_short(self.values[n])}" for n in of]
        name = textwrap.fill(panel.name, wide)
        return "\n".join((name, *(control if len(of) == 1 else ()))).strip()

    def legend(self) -> tuple[str, ...]:
        """What the marks mean, and the margins."""
        margins = [
            f"{role} {_short(self.values[n])}"
            for role in ("teacher", "base")
            for n in np.flatnonzero(self.table["role"] == role)
        ]
        return (
            "bright is better",
            *((f"framed: may be the best by {self.by}",) if self.best.any() else ()),
            *(("hatched: not told apart from the baseline",) if self.unsure.any() else ()),
            *(("±: half of the 95 % interval",) if np.isfinite(self.half).any() else ()),
            *(margins if len(margins) <= 2 else ()),
        )


def _draw(axis: Any, panel: _Panel, marks: _Marks) -> None:
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    colours = LinearSegmentedColormap.from_list("merit", tables.PALETTE)
    levels = np.where(panel.places < 0, np.nan, marks.levels[panel.places])
    axis.imshow(levels, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for line in range(1, max(levels.shape)):
        axis.axvline(line - 0.5, color=_LIGHT, linewidth=2)
        axis.axhline(line - 0.5, color=_LIGHT, linewidth=2)
    axis.set_xlim(-0.5, levels.shape[1] - 0.5)
    axis.set_ylim(levels.shape[0] - 0.5, -0.5)
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for (y, x), place in np.ndenumerate(panel.places):
        if place < 0 or not np.isfinite(marks.values[place]):
            axis.text(x, y, marks.why(place), ha="center", va="center", fontsize=7.5)
            continue
        red, green, blue, _ = colours(levels[y, x])
        ink = _LIGHT if 0.3 * red + 0.59 * green + 0.11 * blue < 0.5 else _DARK
        axis.text(x, y, marks.text(place), ha="center", va="center", fontsize=7.5, color=ink)
        if marks.unsure[place]:
            axis.add_patch(
                Rectangle((x - 0.5, y - 0.5), 1, 1, fill=False, hatch="///", edgecolor=ink,
                          linewidth=0, alpha=0.25)
            )  # fmt: skip
        if marks.best[place]:
            axis.add_patch(
                Rectangle(
                    (x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=_BEST, linewidth=2
                )
            )


def _short(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")
