"""``manifest.json``: what a grid's folder is the answer to, and what making it took."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from lcm_arith.errors import InvalidContentError, NotFoundError
from lcm_arith.evaluation.asked import Asked, Margin, Search, Searched
from lcm_arith.evaluation.drawing.keys import PACKAGES, Keys
from lcm_arith.evaluation.drawing.store import Pair
from lcm_arith.evaluation.judging.metrics import METRICS, PICTURE_METRICS
from lcm_arith.evaluation.plans.plan import Grid, as_json, digest, from_json
from lcm_arith.evaluation.plans.rows import keys, of_keys
from lcm_arith.evaluation.statistics.stats import RESAMPLES
from lcm_arith.formats.container import DTYPES, write_bytes

NAME: Final = "manifest.json"
OTHER: Final = "manifest-{}.json"
OTHERS: Final = OTHER.format("*")
"""Of a question that was asked of the same folder before."""
SCHEMA: Final = 1
_BROKEN: Final = (
    LookupError, TypeError, ValueError, ArithmeticError, AttributeError, RecursionError,
)  # fmt: skip
"""What a file that is none of ours makes of reading it."""
_FACTS: Final = {
    "versions": dict,
    "bases": dict,
    "vectors": dict,
    "sides": dict,
    "cut_prompts": list,
}
_DEVICE: Final = r"(cpu|cuda)(:[0-9]+)?"
_VERSIONS: Final = (
    "lcm-arith", "torch", "diffusers", "transformers", "peft", "numpy", "pandas",
)  # fmt: skip


@dataclass(frozen=True)
class How:
    """How pictures are drawn.

    Args:
        dtype: Number format of the base's weights.
        device: Where.
        fast: As in ``lcm_arith.sampling.sample``.
        batches: Base → its UNet rows at once, once the engine has fixed them.
    """

    dtype: str = "float32"
    device: str = "cpu"
    fast: bool = False
    batches: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Tools:
    """What pictures are measured with.

    Args:
        metrics: Names.
        style_refs: Folder of the style's pictures.
        clip, dino, pickscore, aesthetic: Of the judges, folders and a file.
        required: Metrics without which nothing is drawn.
    """

    metrics: tuple[str, ...] = tuple(METRICS)
    style_refs: Path | None = None
    clip: Path | None = None
    dino: Path | None = None
    pickscore: Path | None = None
    aesthetic: Path | None = None
    required: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """A grid with all that was asked of it.

    Args:
        grid: The plan.
        asked: What its statistics answer.
        how: It is drawn.
        tools: It is measured with.
        csv: The table of the cells, where it is not the folder's own.
        argv: The command line.
        confirmed: The grids that confirmed its best cells.
        facts: Digests, versions, counters, times of what was drawn.
    """

    grid: Grid
    asked: Asked = field(default_factory=Asked)
    how: How = field(default_factory=How)
    tools: Tools = field(default_factory=Tools)
    csv: Path | None = None
    argv: tuple[str, ...] = ()
    confirmed: tuple[Grid, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def told(self, **facts: Any) -> Manifest:
        """The same with more facts."""
        return replace(self, facts={**self.facts, **facts})

    @property
    def grids(self) -> tuple[Grid, ...]:
        """The plan, and what confirmed it."""
        return (self.grid, *self.confirmed)

    @property
    def keys(self) -> Keys:
        """Names of its pictures, by what was noted of bases and vectors: none of them is read."""
        facts = self.facts
        versions = {name: facts["versions"][name] for name in PACKAGES}
        bases, vectors = facts["bases"], facts["vectors"]
        return Keys(bases.__getitem__, vectors.__getitem__, self.how.dtype, self.how.fast, versions)

    def pairs(self) -> Iterator[Pair]:
        """Every picture that it needs."""
        for grid in self.grids:
            for row in {row.pixels_key: row for row in grid.rows}.values():
                yield from ((row, item) for item in grid.items)

    def pictures(self) -> frozenset[str]:
        """Their names."""
        keys = self.keys
        return frozenset(keys.key(*pair) for pair in self.pairs())


def continued(manifest: Manifest, folder: Path) -> Manifest:
    """The same with what an earlier run of a folder noted: its batches, and what confirmed it.

    Batches hold for the same weights in the same number format on the same device; the confirmation
    where this question needs all pictures that the earlier one needed.
    """
    try:
        before = read(folder)
    except (NotFoundError, InvalidContentError):
        return manifest
    known, now = before.facts["bases"], manifest.facts["bases"]
    if replace(before.how, batches={}) == replace(manifest.how, batches={}):
        held = {b: n for b, n in before.how.batches.items() if b in now and known.get(b) == now[b]}
        manifest = replace(manifest, how=replace(manifest.how, batches=held))
    whole = replace(manifest, confirmed=before.confirmed)
    return whole if before.pictures() <= whole.pictures() else manifest


def write(manifest: Manifest, folder: Path) -> Path:
    """Puts it into a folder, whole or not at all; its path.

    One that is there and needs a picture that this one does not need stays under another name: gc
    leaves its pictures alone, and report answers it again.
    """
    path = folder / NAME
    with suppress(NotFoundError, InvalidContentError):
        needed = read(folder).pictures()
        if not needed <= manifest.pictures():
            name = OTHER.format(digest("".join(sorted(needed)))[:8])
            write_bytes(folder / name, path.read_bytes(), force=True)
    text = json.dumps(_as_json(manifest), indent=1, ensure_ascii=False, sort_keys=True)
    # Names of files may hold bytes that are no UTF-8: what replaces them is an escape of JSON.
    write_bytes(path, f"{text}\n".encode(errors="backslashreplace"), force=True)
    return path


def read(folder: Path) -> Manifest:
    """The manifest of a folder, or in a file.

    Raises:
        NotFoundError: If it has none.
        InvalidContentError: If it is none of this version.
    """
    path = folder / NAME if folder.is_dir() else folder
    if not path.is_file():
        raise NotFoundError(
            f"{folder}: no grid is there, {NAME} is missing", hint="make one: lcm-arith grid-eval"
        )
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        if told["schema_version"] != SCHEMA:
            raise InvalidContentError(f"{path}: of version {told['schema_version']}, not {SCHEMA}")
        return _of_json(told)
    except _BROKEN as error:
        if isinstance(error, InvalidContentError):
            raise
        raise InvalidContentError(
            f"{path}: is no manifest of a grid ({type(error).__name__}: {error})",
            hint="run the same grid-eval again: it writes another, and draws only what is missing",
        ) from error


def versions() -> dict[str, str]:
    """What computes here."""
    found = {name: version(name) for name in _VERSIONS}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def _as_json(manifest: Manifest) -> dict[str, Any]:
    asked, tools = manifest.asked, asdict(manifest.tools)
    return {
        "schema_version": SCHEMA,
        "argv": list(manifest.argv),
        "csv": manifest.csv and str(manifest.csv),
        "plan": as_json(manifest.grid),
        "prompts_sha256": digest("\n".join(manifest.grid.prompts)),
        "confirmed": [as_json(grid) for grid in manifest.confirmed],
        "asked": {
            "metric": asked.metric,
            "baseline": asked.baseline and keys(asked.baseline),
            "margin": asked.margin and asdict(asked.margin),
            "confirm": asked.confirm,
            "search": asked.search and asdict(asked.search),
            "searched": asked.searched and asdict(asked.searched),
        },
        "how": asdict(manifest.how),
        "tools": {
            name: str(value) if isinstance(value, Path) else value for name, value in tools.items()
        },
        "statistics": {"resamples": RESAMPLES, "seed": 0},
        "facts": dict(manifest.facts),
    }


def _of_json(told: dict[str, Any]) -> Manifest:
    asked, tools = told["asked"], told["tools"]
    lists = ("metrics", "required")
    paths = {name: value and Path(value) for name, value in tools.items() if name not in lists}
    manifest = Manifest(
        grid=from_json(told["plan"]),
        asked=Asked(
            metric=asked["metric"],
            baseline=asked["baseline"] and of_keys(asked["baseline"]),
            margin=asked["margin"] and Margin(**asked["margin"]),
            confirm=asked["confirm"],
            search=asked["search"] and Search(**asked["search"]),
            searched=asked["searched"] and Searched(**asked["searched"]),
        ),
        how=How(**told["how"]),
        tools=Tools(metrics=tuple(tools["metrics"]), required=tuple(tools["required"]), **paths),
        csv=told["csv"] and Path(told["csv"]),
        argv=tuple(told["argv"]),
        confirmed=tuple(map(from_json, told["confirmed"])),
        facts=told["facts"],
    )
    _check(manifest)
    return manifest


def _check(manifest: Manifest) -> None:
    """Raises ValueError or LookupError where a manifest lacks what its verbs read."""
    facts, asked, how, tools = manifest.facts, manifest.asked, manifest.how, manifest.tools
    counts = (asked.confirm, *(astuple(asked.searched) if asked.searched else ()))
    whole = {
        "facts": all(isinstance(facts[name], kind) for name, kind in _FACTS.items()),
        "sides": all(type(side) is int and side > 0 for side in facts["sides"].values()),
        "metrics": {*tools.metrics, *tools.required} <= METRICS.keys(),
        "asked": set(asked.metrics) <= set(PICTURE_METRICS) and all(type(n) is int for n in counts),
        "margin": asked.margin is None or type(asked.margin.delta) in (int, float),
        "baseline": asked.baseline in (None, *manifest.grid.cells),
        "how": how.dtype in DTYPES and re.fullmatch(_DEVICE, how.device) is not None,
        "batches": isinstance(how.batches, dict)
        and all(type(rows) is int and rows > 0 for rows in how.batches.values()),
    }
    wrong = [name for name, fits in whole.items() if not fits]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: not as they are written")
    named = manifest.keys
    for row in (row for grid in manifest.grids for row in grid.rows):
        named.weights(row)  # bases and vectors must have been noted
