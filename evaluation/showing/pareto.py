"""Quality against cost: the cells that no other one beats in both."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.evaluation.showing import plots, tables

_APART: Final = 0.045  # octaves between cells of one NFE, which stand side by side
_WIDEST: Final = 0.5  # octaves that they take together at most


def front(table: pd.DataFrame, metric: str) -> pd.Series:
    """Cells that none of their base and style beats: as good for less, or better for as much.

    By the means of ``metric`` and by NFE, so that the same pictures give the same front on every
    machine. Equal cells are on it together; a cell without a mean is not.

    Args:
        table: As ``cells.csv``; with the teachers' rows, for a metric that is best near them.
        metric: A column of it.

    Returns:
        The column ``pareto``: True or False for cells, None for other rows.
    """
    found = pd.Series([None] * len(table), table.index, dtype=object, name="pareto")
    merits, passes = tables.merit(table, metric), table["nfe"].to_numpy(int)
    groups, cell = np.array(tables.groups(table)), (table["role"] == "cell").to_numpy()
    for group in np.unique(groups[cell]):
        here = cell & (groups == group)
        m, n = merits[here], passes[here]
        beaten = (n[:, None] < n) & (m[:, None] >= m) | (n[:, None] == n) & (m[:, None] > m)
        found[here] = (~beaten.any(axis=0) & ~np.isnan(m)).astype(object)
    return found


def pareto_png(table: pd.DataFrame, metric: str, title: str) -> bytes:
    """Cells with their intervals over NFE, the front, the best set, controls and teachers; PNG.

    Args:
        table: As ``cells.csv``, with intervals and ``in_best_set``.
        metric: A column of it.
        title: Over everything.
    """
    shown = _beside(table, metric)
    figure = plots.new_figure(8, 5)
    axes = figure.add_subplot()
    best, role = tables.in_best_set(shown), shown["role"].to_numpy()
    _points(axes, shown[(role == "cell") & ~best], metric, "cell", color="#37659e", marker="o")
    _points(axes, shown[best], metric, "may be the best", color="#c2570c", marker="o")
    _points(axes, shown[role == "control"], metric, "best control of as many passes",
            color="#6b7280", marker="D", markerfacecolor="none")  # fmt: skip
    _fronts(axes, shown[role == "cell"], metric)
    teachers = table.assign(context=tables.contexts(table))[(table["role"] == "teacher").to_numpy()]
    for value, passes, context in teachers[[metric, "nfe", "context"]].to_numpy():
        told = filter(None, ("teacher", context, f"{passes:.0f} passes"))
        axes.axhline(value, color="#6b7280", linewidth=1, linestyle="--", zorder=0,
                     label=plots.plain(", ".join(told)))  # fmt: skip
    ticks = sorted(set(shown["nfe"]))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("UNet passes a picture (NFE)")
    axes.set_ylabel(f"{metric} ({tables.goal(metric)})")
    axes.set_title(plots.plain(title), loc="left", fontsize=10)
    axes.grid(axis="y", alpha=0.3, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return plots.png(figure)


def _beside(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Measured cells and controls with their places ``x``: those of one NFE side by side."""
    kept = table["role"].isin(["cell", "control"]) & np.isfinite(table[metric].astype(float))
    shown = table.assign(merit=tables.merit(table, metric), front=front(table, metric))[kept]
    shown = shown.sort_values(["nfe", "merit"], ascending=[True, False], kind="stable")
    same = shown.groupby("nfe")["nfe"]
    count, place = same.transform("size"), same.cumcount()
    width = np.minimum(_APART * (count - 1), _WIDEST)
    offset = width * (place / (count - 1).clip(lower=1) - 0.5)
    return shown.assign(x=shown["nfe"] * 2.0**offset)


def _points(axes: Any, rows: pd.DataFrame, metric: str, label: str, **look: Any) -> None:
    if rows.empty:
        return
    values = rows[metric].to_numpy(float)
    if f"{metric}_lo" in rows:
        ends = rows[[f"{metric}_lo", f"{metric}_hi"]].to_numpy(float)
        axes.vlines(rows["x"], *ends.T, color=look["color"], linewidth=0.8, alpha=0.5)
    axes.plot(rows["x"], values, linestyle="none", markersize=5.5, label=label, **look)


def _fronts(axes: Any, cells: pd.DataFrame, metric: str) -> None:
    on, end = cells[cells["front"].to_numpy(bool)], cells["x"].max()
    lines = on.assign(group=tables.groups(on)).groupby("group", sort=False)
    for number, (_, line) in enumerate(lines):
        label = "_" if number else "no other cell beats these in both"
        x, y = [*line["x"], end], [*line[metric], line[metric].iloc[-1]]
        axes.step(x, y, where="post", color="#111827", linewidth=1.2, label=label, zorder=1)
