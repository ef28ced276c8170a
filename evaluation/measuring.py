"""A drawn grid measured: which rows have all their pictures, the best controls, every metric."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any, Final, Protocol

import numpy as np
import pandas as pd

from lcm_arith.embedded.probe import load_probe
from lcm_arith.errors import DivergedError, NotFoundError
from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.drawing.store import MAKE_IT, OK, Picture, Store
from lcm_arith.evaluation.grid import CELL_COLUMNS, IMAGE_COLUMNS, Pixels, Result, named
from lcm_arith.evaluation.judging.judges import Judges
from lcm_arith.evaluation.judging.metrics import (
    BETTER,
    METRICS,
    PICTURE_METRICS,
    deciding,
    measure,
)
from lcm_arith.evaluation.judging.pixels import OK as NO_DEFECT
from lcm_arith.evaluation.judging.pixels import Values, defects
from lcm_arith.evaluation.judging.references import References, true_references
from lcm_arith.evaluation.judging.required import empty, expected
from lcm_arith.evaluation.judging.sample import Sample
from lcm_arith.evaluation.judging.yardstick import Yardstick, cell_means
from lcm_arith.evaluation.plans.plan import Grid, Setting
from lcm_arith.evaluation.plans.rows import Row
from lcm_arith.evaluation.statistics.best import score

MISSING: Final = "missing"
ERROR: Final = "error"

OnStage = Callable[[str, int, int, str], None]
"""(stage, done, total, note)."""


class Reader(Protocol):
    """Knows what the text encoders of bases read: ``Sources``, or what was noted of them."""

    def too_long(self, name: str, prompts: Sequence[str]) -> list[str]:
        """Prompts of which that of a base reads only the beginning."""
        ...


@dataclass(frozen=True, eq=False)
class Measuring:
    """What a grid is measured with; one row's pictures are in memory at a time, and its teacher's.

    Args:
        grid: The plan.
        store: Of its pictures.
        judges: Of all bases.
        references: Base → pictures of the style; others take the drawings of their target sets.
        chosen: Metrics that are computed; the columns of others stay empty.
        failed: Rows that could not be drawn → why.
    """

    grid: Grid
    store: Store
    judges: Judges = field(default_factory=Judges)
    references: Mapping[str, References] = field(default_factory=dict)
    chosen: Collection[str] = tuple(METRICS)
    failed: Mapping[Row, str] = field(default_factory=dict)

    def status(self, row: Row) -> str:
        """``ok``, or why the row is not measured."""
        found = {self._status(self.store.picture(row, item)) for item in self.grid.items}
        if found == {OK}:
            return OK
        if MISSING not in found:
            return next(iter(found - {OK}))
        return ERROR if row in self.failed else MISSING

    def _status(self, picture: Picture | None) -> str:
        return picture.status if picture else MISSING

    def samples(self, setting: Setting) -> Callable[[Row], Sample]:
        """Row of a setting → its pictures and what they are measured against.

        Raises:
            NotFoundError: If the teacher's pictures are not there.
        """
        drawn = tuple(map(setting.context.text, self.grid.prompts))
        judges = self.judges.on(setting.context.base)
        yardstick = Yardstick(
            judges.embedded.judge, load_probe(), setting.target_sets, setting.style_set, drawn
        )
        own = self.references.get(setting.context.base)
        held = own or true_references(setting.target_sets, drawn)
        pixels = Pixels(self.store, self.grid)
        teacher = Sample(pixels[setting.teacher], drawn, yardstick, judges, held)

        @cache
        def style_cos(row: Row) -> Values:
            return sample(row).style_cos

        def sample(row: Row) -> Sample:
            unstyled = self._unstyled(row, style_cos)
            if row == setting.teacher:
                teacher.unstyled = unstyled
                return teacher
            return Sample(pixels[row], drawn, yardstick, judges, held, teacher, unstyled)

        return sample

    def empty(self) -> tuple[str, ...]:
        """What keeps metrics empty that one would expect, one line each."""
        names = expected(self.chosen)
        return tuple(empty(names, self.grid, self.judges, self.references))

    def _unstyled(self, row: Row, of: Callable[[Row], Values]) -> Callable[[], Values] | None:
        """style_cos without the style vector; NaN where that row lacks a picture."""
        plain = self.grid.unstyled(row)
        if plain == row:
            return None
        if self.status(plain) != OK:
            return lambda: np.full(len(self.grid.items), np.nan)
        return partial(of, plain)

    def margins(self, setting: Setting, sample: Callable[[Row], Sample]) -> tuple[Row, ...]:
        """Base, teacher, and the best control of each NFE.

        Raises:
            NotFoundError: If no control of an NFE has all its pictures, and some are missing.
            DivergedError: If none is missing.
        """
        best = []
        for passes, candidates in setting.controls.items():
            why = {row: self.status(row) for row in candidates}
            there = [row for row, status in why.items() if status == OK]
            if not there and {MISSING, ERROR} & set(why.values()):
                raise NotFoundError(
                    f"{self.store.folder}: no control of {passes} UNet passes is there yet",
                    hint=MAKE_IT,
                )
            if not there:
                raise DivergedError(
                    f"{self.store.folder}: every control of {passes} UNet passes has pictures that "
                    "came out as NaN or infinity",
                    hint="--dtype float32, other --steps or prompts; see the style with inspect",
                )
            best.append(best_row({row: sample(row) for row in there}))
        return (setting.base, setting.teacher, *best)


def measured(measuring: Measuring, reader: Reader, counters: Counters, on_stage: OnStage) -> Result:
    """The tables of a drawn grid; cells that lack a picture are left out, and said.

    Args:
        measuring: What it is measured with.
        reader: Of its bases.
        counters: Work that drawing it took.
        on_stage: Told about progress.

    Raises:
        NotFoundError: If the pictures of a base row, a teacher, all controls or all cells are not
            there.
        DivergedError: If no cell could be drawn, or all controls of an NFE have NaN or infinity.
    """
    measuring, dropped = _without_failed_margins(measuring)
    grid, lines = measuring.grid, _Lines(measuring)
    why = {cell: measuring.status(cell) for cell in grid.cells}
    _check_any(measuring.store, why)
    margins: list[Row] = []
    unknown: dict[str, None] = {}
    total = sum(2 + len(setting.controls) for setting in grid.settings)
    total += sum(status == OK for status in why.values())
    done = 0
    for setting in grid.settings:
        sample = measuring.samples(setting)
        own = measuring.margins(setting, sample)
        cells = [c for c, status in why.items() if c.context == setting.context and status == OK]
        for row in (*own, *cells):
            lines.add(row, sample(row))
            done += 1
            on_stage("measure", done, total, "rows")
        margins += own
        unknown |= dict.fromkeys(sample(setting.teacher).yardstick.unknown_prompts)
    rows = (*margins, *(cell for cell, status in why.items() if status == OK))
    left = {cell: status for cell, status in why.items() if status != OK}
    return Result(
        grid,
        rows,
        pd.DataFrame([lines.cells[row] for row in rows], columns=list(CELL_COLUMNS)),
        pd.concat(
            [*(lines.images[row] for row in rows), *map(lines.images_of_left, left)],
            ignore_index=True,
        ),
        lines.metrics,
        Pixels(measuring.store, grid),
        list(unknown),
        cut_prompts(grid, reader),
        counters,
        left,
        pd.DataFrame([lines.left(*each) for each in left.items()], columns=list(CELL_COLUMNS)),
        measuring.empty(),
        measuring.failed,
        dropped,
    )


def _without_failed_margins(measuring: Measuring) -> tuple[Measuring, tuple[str, ...]]:
    """Without the prompts of which a base row or a teacher has a picture that is none; those, too.

    Nothing can be held against such a picture.

    Raises:
        DivergedError: If no prompt is left.
    """
    grid, store = measuring.grid, measuring.store
    margins = [row for s in grid.settings for row in (s.base, s.teacher)]
    bad = {
        item[0]
        for row in margins
        for item in grid.items
        if (picture := store.picture(row, item)) and picture.status != OK
    }
    kept = tuple(prompt for prompt in grid.prompts if prompt not in bad)
    if not kept:
        raise DivergedError(
            f"{store.folder}: of every prompt a picture of the base or of the teacher came out as "
            "NaN or infinity",
            hint="--dtype float32; see the adapters with inspect",
        )
    dropped = tuple(prompt for prompt in grid.prompts if prompt in bad)
    return replace(measuring, grid=replace(grid, prompts=kept)), dropped


def _check_any(store: Store, why: Mapping[Row, str]) -> None:
    """Raises where no cell has all its pictures."""
    if OK in why.values():
        return
    counts = ", ".join(f"{n} {status}" for status, n in Counter(why.values()).items())
    what = f"{store.folder}: none of {len(why)} cells has all its pictures ({counts})"
    if MISSING in why.values():
        raise NotFoundError(what, hint=MAKE_IT)
    raise DivergedError(what, hint="smaller λ, or --dtype float32; see the adapters with inspect")


@dataclass(eq=False)
class _Lines:
    """The lines of the tables, row by row."""

    measuring: Measuring
    metrics: dict[Row, dict[str, np.ndarray]] = field(default_factory=dict)
    cells: dict[Row, dict[str, Any]] = field(default_factory=dict)
    images: dict[Row, pd.DataFrame] = field(default_factory=dict)

    def add(self, row: Row, sample: Sample) -> None:
        """Measures a row."""
        of_pictures, of_cell = measure(sample, self.measuring.chosen)
        faults = defects(sample.pixels)
        pictures = self.measuring.store.pictures(row, self.measuring.grid.items)
        self.metrics[row] = of_pictures
        self.cells[row] = {
            **self._keys(row),
            "n_images": len(pictures),
            **cell_means(of_pictures),
            **of_cell,
            "seconds_per_image": float(np.mean([each.seconds for each in pictures])),
            "n_defects": int((faults != NO_DEFECT).sum()),
            "status": OK,
            "n_failed": 0,
            "partial": False,
            "nfe_run": float(np.mean([each.nfe_run for each in pictures])),
        }
        self.images[row] = self._image_lines(row, pictures, {**of_pictures, "defect": faults})

    def left(self, row: Row, status: str) -> dict[str, Any]:
        """The line of a row that is left out."""
        pictures = self._pictures(row)
        return {
            **self._keys(row),
            "n_images": sum(each is not None and each.status == OK for each in pictures),
            "status": status,
            "n_failed": sum(each is None or each.status != OK for each in pictures),
            "partial": status == MISSING,
        }

    def images_of_left(self, row: Row) -> pd.DataFrame:
        """The lines of its pictures; without metrics."""
        empty: dict[str, Any] = dict.fromkeys((*PICTURE_METRICS, "defect"), np.nan)
        return self._image_lines(row, self._pictures(row), empty)

    def _pictures(self, row: Row) -> list[Picture | None]:
        return [self.measuring.store.picture(row, item) for item in self.measuring.grid.items]

    def _keys(self, row: Row) -> dict[str, Any]:
        grid = self.measuring.grid
        counts = {"n_prompts": len(grid.prompts), "n_seeds": len(grid.seeds)}
        return {**named(row), **counts, "nfe": row.nfe}

    def _image_lines(
        self, row: Row, pictures: Sequence[Picture | None], columns: Mapping[str, Any]
    ) -> pd.DataFrame:
        store, items = self.measuring.store, self.measuring.grid.items
        there = [
            (store.picture_path(row, item).relative_to(store.folder).as_posix(), each.sha256)
            if each and each.sha256
            else ("", "")
            for item, each in zip(items, pictures, strict=True)
        ]
        return pd.DataFrame(
            {
                **named(row),
                "prompt": [prompt for prompt, _ in items],
                "seed": [seed for _, seed in items],
                "path": [path for path, _ in there],
                "sha256": [digest for _, digest in there],
                **columns,
                "status": [each.status if each else MISSING for each in pictures],
                "nfe_run": [each.nfe_run if each else np.nan for each in pictures],
            },
            columns=list(IMAGE_COLUMNS),
        )


def best_row(samples: Mapping[Row, Sample]) -> Row:
    """The best row by the first metric of ``DECIDING`` that all of their pictures have."""

    def values(metric: str) -> np.ndarray:
        return np.stack([METRICS[metric].function(sample) for sample in samples.values()])

    metric = deciding(values)
    means = [cell_means({metric: each})[metric] for each in values(metric)]
    return list(samples)[int(np.argmax(score(np.array(means), BETTER[metric])))]


def cut_prompts(grid: Grid, reader: Reader) -> list[str]:
    """Prompts, as edited, and negatives of which a text encoder reads only the beginning."""
    texts: dict[str, dict[str, None]] = {}
    for context in (setting.context for setting in grid.settings):
        drawn = [*map(context.text, grid.prompts), context.negative]
        texts.setdefault(context.base, {}).update(dict.fromkeys(drawn))
    cut = (text for base, read in texts.items() for text in reader.too_long(base, list(read)))
    return list(dict.fromkeys(cut))
