"""report.html: one file that shows a grid, without a network, from its tables and pictures."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import numpy as np
import pandas as pd

from lcm_arith.evaluation.judging.metrics import METRICS
from lcm_arith.evaluation.showing import tables
from lcm_arith.evaluation.showing.album import LONGEST, Thumbnails, album
from lcm_arith.evaluation.statistics.comparisons import SURE
from lcm_arith.text import clean

MOST_BYTES: Final = 5_000_000
_SLACK: Final = 20_000  # bytes


@dataclass(frozen=True)
class Facts:
    """What stands on the page besides the tables.

    Args:
        title: Over everything.
        metric: What decides which cell is best, and is shown first.
        lines: What the grid says, the most important first; one that ends with ``:`` is the name
            of what the next ones speak of.
        notes: What to beware of.
        files: Names of the other files beside the page.
    """

    title: str
    metric: str
    lines: Sequence[str] = ()
    notes: Sequence[str] = ()
    files: Sequence[str] = ()


def page(
    cells: pd.DataFrame,
    images: pd.DataFrame,
    comparisons: pd.DataFrame,
    facts: Facts,
    thumbnails: Thumbnails,
) -> bytes:
    """The whole page, UTF-8; under :data:`MOST_BYTES` unless the tables alone are larger.

    It loads nothing: its policy allows its own script and style by their hashes, and pictures that
    are in it. Texts reach the document as text only.

    Args:
        cells: As ``cells.csv``, with the statistics.
        images: As ``images.csv``.
        comparisons: As ``comparisons.csv``.
        facts: What else to say.
        thumbnails: Asked for the first pictures only, as many as the size allows.
    """
    said = _said(cells, comparisons, facts)
    room = MOST_BYTES - _SLACK - len(_document(facts, said))
    first = np.argsort(
        -np.where(cells["role"] == "cell", cells["p_best"].fillna(-1), 2), kind="stable"
    )
    said |= album(images, cells["cell_id"].tolist(), first.tolist(), thumbnails, room)
    return _document(facts, said)


def _document(facts: Facts, said: dict[str, Any]) -> bytes:
    style, script = _part("page.css"), _part("page.js") + _part("page_views.js")
    lead = [line for line in facts.lines[:1] if not line.endswith(":")]
    parts = {
        "title": _text(facts.title),
        "lead": _text("".join(lead)),
        "lines": "".join(map(_line, facts.lines[len(lead) :])),
        "notes": "".join(f"<li>{_text(note)}</li>" for note in facts.notes),
        "files": "".join(
            f'<li><a href="{quote(name, safe="", errors="replace")}">{_text(name)}</a></li>'
            for name in facts.files
        ),
        "style": style,
        "style_hash": _hash(style),
        "script": script,
        "script_hash": _hash(script),
        "data": _json(said),
    }
    # One pass: what a part holds is not filled in again.
    filled = re.sub(r"{{(\w+)}}", lambda found: parts[found[1]], _part("page.html"))
    return filled.encode(errors="backslashreplace")


def _part(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _text(text: str) -> str:
    return html.escape(clean(text))


def _line(line: str) -> str:
    name = ' class="name"' if line.endswith(":") else ""
    return f"<li{name}>{_text(line)}</li>"


def _hash(part: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'"


def _json(value: Any) -> str:
    """JSON in ASCII that cannot end a script element."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _said(cells: pd.DataFrame, comparisons: pd.DataFrame, facts: Facts) -> dict[str, Any]:
    vary, fixed = tables.axes(cells)
    measured = tables.measured(cells)
    return {
        "metric": facts.metric,
        "metrics": [
            {
                "key": name,
                "better": METRICS[name].better,
                "goal": tables.goal(name),
                "meaning": METRICS[name].meaning.replace("`", ""),
                "single": METRICS[name].per == "picture",
            }
            for name in measured
        ],
        "axes": [
            {
                "name": axis.name,
                "values": [clean(value, LONGEST) for value in axis.values],
                "spoken": [clean(axis.spoken(value), LONGEST) for value in axis.values],
            }
            for axis in vary
        ],
        "fixed": [clean(axis.spoken(axis.values[0]), LONGEST) for axis in fixed if axis.telling],
        "rows": _rows(cells, comparisons, vary, measured),
        "palette": tables.PALETTE,
        "sure": SURE,
    }


def _rows(
    cells: pd.DataFrame, comparisons: pd.DataFrame, vary: list[tables.Axis], measured: list[str]
) -> list[dict[str, Any]]:
    is_cell = (cells["role"] == "cell").to_numpy()
    at = np.full((len(cells), len(vary)), -1)
    at[is_cell] = np.array([axis.at for axis in vary]).reshape(len(vary), is_cell.sum()).T
    teachers = tables.companions(cells, "teacher")
    controls = tables.companions(cells, "control", same=("nfe",))
    best, based = tables.in_best_set(cells), tables.baselines(cells, comparisons)
    groups, contexts = tables.groups(cells), tables.contexts(cells)
    kinds = list(dict.fromkeys(groups))
    against = _against(comparisons)
    lines = cells.to_dict("records")
    return [
        {
            "role": line["role"],
            "at": at[n].tolist() if is_cell[n] else None,
            "how": [line["sampler"], int(line["steps"]), _number(line["guidance"])],
            "group": kinds.index(groups[n]),
            "of": contexts[n],
            "nfe": int(line["nfe"]),
            "pictures": int(line["n_images"]),
            "prompts": int(line["n_prompts"]),
            "faults": _number(line["n_defects"]),
            "status": line["status"],
            "failed": int(line["n_failed"]),
            "best": bool(best[n]),
            "chance": _number(line["p_best"]),
            "baseline": bool(based[n]),
            "teacher": int(teachers[n]),
            "control": int(controls[n]) if is_cell[n] else -1,
            "values": {
                name: [_number(line.get(name + end)) for end in ("", "_lo", "_hi")]
                for name in measured
            },
            "against": against.get(line["cell_id"], {}) if is_cell[n] else {},
        }
        for n, line in enumerate(lines)
    ]


def _against(comparisons: pd.DataFrame) -> dict[str, dict[str, list[Any]]]:
    found: dict[str, dict[str, list[Any]]] = {}
    columns = ["cell_id", "metric", "diff", "lo", "hi", "p_holm", "p_better"]
    for identity, metric, *values in comparisons[columns].itertuples(index=False, name=None):
        found.setdefault(identity, {})[metric] = [_number(value) for value in values]
    return found


def _number(value: Any) -> float | str | None:
    """Six digits, as in the CSV; infinite ones as text, since JSON has none."""
    if value is None or value != value:
        return None
    number = float(f"{float(value):.6g}")
    return number if np.isfinite(number) else str(number)
