"""Quality against cost: the cells that no other one beats in both."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd

from lcm_arith.evaluation import plots, tables

_SPREAD: Final = 0.14  # octaves of NFE over which cells of one NFE stand side by side


def front(table: pd.DataFrame, metric: str) -> pd.Series:
    """Whether no other cell of its base and style is as good for fewer passes or better for as many.

    By the means of ``metric`` and by NFE, so that the same pictures give the same front on every
    machine. Equal cells are on it together; a cell without a mean is not.

    Args:
        table: As ``cells.csv``; with the teachers' rows, for a metric that is best near them.
        metric: A column of it.

    Returns:
        The column ``pareto``: True or False for cells, None for other rows.
    """
    found: list[bool | None] = [None] * len(table)
    merits, passes = tables.merit(table, metric), table["nfe"].to_numpy(float)
    places: dict[tuple[str, ...], list[int]] = {}
    for n, (role, group) in enumerate(zip(table["role"], tables.groups(table), strict=True)):
        if role == "cell":
            places.setdefault(group, []).append(n)
    for group in places.values():
        best, cheaper = -np.inf, -np.inf  # so far; among fewer passes than the present cell's
        last = np.nan
        for n in sorted(group, key=lambda n: (passes[n], -np.nan_to_num(merits[n], nan=-np.inf))):
            if passes[n] != last:
                last, cheaper = passes[n], best
            found[n] = bool(merits[n] > cheaper and merits[n] >= best)
            best = np.fmax(best, merits[n])
    return pd.Series(found, table.index, dtype=object, name="pareto")


def pareto_png(table: pd.DataFrame, metric: str, title: str) -> bytes:
    """Cells with their intervals over NFE, the front, the best set, controls and teachers.

    Args:
        table: As ``cells.csv``, with intervals and ``in_best_set``.
        metric: A column of it.
        title: Over everything.
    """
    figure = plots.new_figure(8, 5)
    axes = figure.add_subplot()
    best, cells = tables.in_best_set(table), (table["role"] == "cell").to_numpy()
    _points(axes, table[cells & ~best], metric, color="#37659e", marker="o", label="cell")
    _points(axes, table[cells & best], metric, color="#c2570c", marker="o", label="best set")
    for role, marker in (("control", "D"), ("teacher", "*")):
        _points(axes, table[table["role"] == role], metric, color="#6b7280", marker=marker,
                label=role, mfc="none")  # fmt: skip
    _fronts(axes, table, metric)
    ticks = sorted(set(table["nfe"][table["role"] != "base"]))
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("UNet passes a picture (NFE)")
    axes.set_ylabel(f"{metric} ({tables.goal(metric)})")
    axes.set_title(title, loc="left", fontsize=10)
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    return plots.png(figure)


def _points(axes: Any, rows: pd.DataFrame, metric: str, **look: Any) -> None:
    rows = rows[np.isfinite(rows[metric].astype(float))]
    if rows.empty:
        return
    values = rows[metric].to_numpy(float)
    ends = rows[[f"{metric}_lo", f"{metric}_hi"]].to_numpy(float)
    errors = np.abs(np.nan_to_num(ends - values[:, None])).T
    count = rows.groupby("nfe")["nfe"].transform("size").to_numpy(float)
    place = rows.groupby("nfe").cumcount().to_numpy(float)
    beside = (place + 0.5) / count - 0.5  # −1/2 … 1/2
    axes.errorbar(rows["nfe"].to_numpy(float) * 2 ** (beside * _SPREAD * np.minimum(count - 1, 4)),
                  values, yerr=errors, fmt="none", ecolor=look["color"], elinewidth=0.8, alpha=0.5)  # fmt: skip
    look.setdefault("mfc", look["color"])
    axes.plot(rows["nfe"].to_numpy(float) * 2 ** (beside * _SPREAD * np.minimum(count - 1, 4)),
              values, linestyle="none", markersize=6, **look)  # fmt: skip


def _fronts(axes: Any, table: pd.DataFrame, metric: str) -> None:
    on = table[(front(table, metric) == True).to_numpy()]  # noqa: E712 - None is neither
    lines = on.assign(group=tables.groups(on)).groupby("group", sort=False)
    for number, (_, line) in enumerate(lines):
        line = line.drop_duplicates("nfe").sort_values("nfe")
        axes.step(line["nfe"], line[metric], where="post", color="#111827", linewidth=1.2,
                  label=None if number else "Pareto front", zorder=0)  # fmt: skip
