"""A question to a grid from end to end: draw what is missing, measure, answer, write it all down.

``run`` draws; ``report`` does the rest from what a folder holds, and draws nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lcm_arith.durable import make_folder
from lcm_arith.embedded.files import sha256
from lcm_arith.errors import DivergedError
from lcm_arith.evaluation import answers as words
from lcm_arith.evaluation import manifest as manifests
from lcm_arith.evaluation.asked import Searched
from lcm_arith.evaluation.drawing.counters import Counters
from lcm_arith.evaluation.drawing.engine import Engine
from lcm_arith.evaluation.drawing.executors.local import local
from lcm_arith.evaluation.drawing.executors.tasks import Executor
from lcm_arith.evaluation.drawing.mixing import terms
from lcm_arith.evaluation.drawing.shards import WHOLE, Shard
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.findings import Answer, answer
from lcm_arith.evaluation.grid import Result
from lcm_arith.evaluation.judging.judges import Judges, load_judges
from lcm_arith.evaluation.judging.references import References, read_references
from lcm_arith.evaluation.judging.required import require
from lcm_arith.evaluation.manifest import Manifest
from lcm_arith.evaluation.measuring import (
    MISSING,
    Measuring,
    OnStage,
    Reader,
    cut_prompts,
    measured,
)
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.report import check_csv, write_report
from lcm_arith.evaluation.running import Drawn, draw_grid
from lcm_arith.evaluation.searching import search_grid


@dataclass(frozen=True, eq=False)
class Concluded:
    """What became of a question.

    Args:
        result: The measured grid.
        answers: One for each base and style.
        lines: The same in words.
        paths: Written files, the table first.
        searched: What a search did, if there was one.
    """

    result: Result
    answers: tuple[Answer, ...]
    lines: tuple[str, ...]
    paths: tuple[Path, ...]
    searched: Searched | None = None

    def raise_if_failed(self) -> None:
        """Raises if pictures lack for another reason than that nobody drew them yet.

        Raises:
            DivergedError: If weights gave NaN or infinity, or could not be drawn with.
        """
        if self.result.dropped:
            raise DivergedError(
                f"{len(self.result.dropped)} prompts are left out of all figures, since a picture "
                f"of the base or of the teacher came out as NaN or infinity: "
                f"{', '.join(map(repr, self.result.dropped[:3]))}",
                hint="--dtype float32, or take them out of the prompts",
            )
        lost = [one.lost for one in self.answers if isinstance(one.lost, DivergedError)]
        if lost:
            raise DivergedError(f"not confirmed: {lost[0].message}", hint=lost[0].hint)
        failed = {row: why for row, why in self.result.left_out.items() if why != MISSING}
        if failed:
            row, status = next(iter(failed.items()))
            why = self.result.failed.get(row, status)
            raise DivergedError(
                f"{len(failed)} of {len(self.result.grid.cells)} cells have no figures: {why}, "
                f"{words.named(row)} for one; the others are reported",
                hint="see status in the table; smaller λ, or --dtype float32",
            )


@dataclass(frozen=True)
class _Noted:
    """What a manifest says of the prompts that were cut."""

    cut: Sequence[str]

    def too_long(self, name: str, prompts: Sequence[str]) -> list[str]:
        return [prompt for prompt in prompts if prompt in self.cut]


@dataclass(frozen=True, eq=False)
class Session:
    """A manifest's question, ready to be worked on.

    Args:
        manifest: The question.
        folder: Of the pictures and of all that is written.
        sources: Of bases and vectors.
        on_stage: Told about progress.
        executor: Who draws.
    """

    manifest: Manifest
    folder: Path
    sources: Sources
    on_stage: OnStage
    executor: Executor = local

    @cached_property
    def judges(self) -> Judges:
        """Of all bases; their embeddings are kept in the folder."""
        tools = self.manifest.tools
        return load_judges(
            clip=tools.clip, dino=tools.dino, pickscore=tools.pickscore,
            aesthetic=tools.aesthetic, store=self.folder / "embeddings", device=self.sources.device,
        )  # fmt: skip

    def run(self) -> Concluded:
        """Draws what is missing, measures, and writes everything.

        Raises:
            NotFoundError, InvalidContentError, IncompatibleError: If a base or a vector cannot be
                used; nothing is drawn then.
            StorageError: If the disk refuses.
        """
        references = self._required()
        grids: list[Grid] = []
        total, told = Counters(), self._begun()

        def draw(grid: Grid) -> Result:
            nonlocal total, told
            grids.append(grid)
            drawn = self._draw(grid, told)
            total, told = total.plus(drawn.counters), _batched(told, drawn.batches)
            return self._measured(grid, drawn, references, self.sources)

        if told.asked.search:
            told, total = self._searched(told, references)
        result = draw(told.grid)
        answers = answer(result, told.asked, draw)
        told = told.told(counters=asdict(total), efficiency=round(total.efficiency, 4))
        return self._written(replace(told, confirmed=tuple(grids[1:])), result, answers)

    def _begun(self) -> Manifest:
        """Writes the manifest, with what an earlier run noted, before anything is drawn."""
        make_folder(self.folder)
        told = manifests.continued(self.manifest.told(**self._digests()), self.folder)
        manifests.write(told, self.folder)
        return told

    def _keeping(self, told: Manifest) -> Callable[[Mapping[str, int]], None]:
        """Writes the manifest again when a batch became another: a killed run goes on with it."""
        kept = told

        def keep(batches: Mapping[str, int]) -> None:
            nonlocal kept
            if not batches.items() <= kept.how.batches.items():
                kept = _batched(kept, batches)
                manifests.write(kept, self.folder)

        return keep

    def _searched(
        self, told: Manifest, references: Mapping[str, References]
    ) -> tuple[Manifest, Counters]:
        """The manifest of the cells that a search finishes, and the work of it."""
        store, batches = Store(self.folder, told.keys), dict(told.how.batches)
        engine = Engine(store, self.sources, batches, self._keeping(told))
        grid, found = search_grid(
            told.grid, told.asked, engine, judges=self.judges, references=references,
            on_stage=self.on_stage,
        )  # fmt: skip
        told = _batched(told, engine.batches)
        return replace(told, grid=grid, asked=replace(told.asked, searched=found)), engine.counters

    def draw(self, shard: Shard) -> Drawn:
        """Draws what is missing of a part of the grid, and measures nothing.

        Raises:
            UsageError, NotFoundError, InvalidContentError, IncompatibleError, StorageError: As
                :meth:`run`.
        """
        self._required()
        return self._draw(self.manifest.grid, self._begun(), shard)

    def _required(self) -> dict[str, References]:
        """The pictures of the style, where all that has to be measured can be."""
        references = self._references(self._sides())
        require(self.manifest.tools.required, self.manifest.grid, self.judges, references)
        return references

    def report(self) -> Concluded:
        """The same from the pictures that are there; a confirmation only if it is whole.

        Neither bases nor vectors are read: the manifest says what pictures of them are called.

        Raises:
            NotFoundError: If pictures of a base row, a teacher or all controls are missing.
        """
        facts = self.manifest.facts
        references, noted = self._references(facts["sides"]), _Noted(facts["cut_prompts"])
        store = self.store()

        def there(grid: Grid) -> Result:
            return self._measured(grid, Drawn(store), references, noted)

        result = there(self.manifest.grid)
        answers = answer(result, self.manifest.asked, there if self.manifest.confirmed else None)
        return self._written(self.manifest, result, answers)

    def _draw(self, grid: Grid, told: Manifest, shard: Shard = WHOLE) -> Drawn:
        return draw_grid(
            grid, self.sources, folder=self.folder, on_stage=self.on_stage, fast=told.how.fast,
            batches=told.how.batches, on_batches=self._keeping(told), shard=shard,
            executor=self.executor,
        )  # fmt: skip

    def _measured(
        self, grid: Grid, drawn: Drawn, references: Mapping[str, References], reader: Reader
    ) -> Result:
        measuring = Measuring(
            grid, drawn.store, self.judges, references, self.manifest.tools.metrics, drawn.failed
        )
        return measured(measuring, reader, drawn.counters, self.on_stage)

    def store(self) -> Store:
        """The pictures of the folder, called as when they were drawn."""
        return Store(self.folder, self.manifest.keys)

    def _sides(self) -> dict[str, int]:
        """Base → side of its pictures, px, where that matters."""
        bases = dict.fromkeys(s.context.base for s in self.manifest.grid.settings)
        asked = self.manifest.tools.style_refs is not None
        return {base: self.sources.side(base) for base in bases} if asked else {}

    def _references(self, sides: Mapping[str, int]) -> dict[str, References]:
        """Base → the pictures of ``--style-refs``, in the size of its pictures."""
        folder = self.manifest.tools.style_refs
        return {
            base: read_references(folder, (side, side)) for base, side in sides.items() if folder
        }

    def _digests(self) -> dict[str, Any]:
        """What the pictures are made of and measured with: sha256, versions, sizes."""
        rows = self.manifest.grid.rows
        bases = dict.fromkeys(row.context.base for row in rows)
        names = dict.fromkeys(term.name for row in rows for mix in row.mixes for term in terms(mix))
        refs = self.manifest.tools.style_refs
        return {
            "versions": manifests.versions(),
            "cut_prompts": cut_prompts(self.manifest.grid, self.sources),
            "sides": self._sides(),
            "bases": {base: self.sources.base_digest(base) for base in bases},
            "vectors": {name: self.sources.vector_digest(name) for name in names},
            "style_refs": {p.name: sha256(p) for p in sorted(refs.iterdir()) if p.is_file()}
            if refs
            else {},
            "judges": self.judges.digests(),
        }

    def _written(self, told: Manifest, result: Result, answers: tuple[Answer, ...]) -> Concluded:
        table = told.csv or self.folder / "cells.csv"
        lines = (*words.search_lines(told.asked, result), *words.all_lines(answers))
        paths = write_report(
            result, self.folder, table, answers, lines,
            lambda done, total: self.on_stage("report", done, total, "charts"),
        )  # fmt: skip
        paths.append(manifests.write(told, self.folder))
        return Concluded(result, answers, lines, tuple(paths), told.asked.searched)


def _batched(told: Manifest, batches: Mapping[str, int]) -> Manifest:
    """With the UNet rows at once of some bases."""
    return replace(told, how=replace(told.how, batches={**told.how.batches, **batches}))


def reopened(folder: Path, on_stage: OnStage = lambda *_: None, csv: Path | None = None) -> Session:
    """The session of a folder's manifest.

    Args:
        folder: Of a grid, or its manifest.
        on_stage: Told about progress.
        csv: The table of the cells; None is the folder's own, wherever the manifest had another.

    Raises:
        NotFoundError, InvalidContentError: As :func:`lcm_arith.evaluation.manifest.read`.
        UsageError, OutputExistsError: As :func:`lcm_arith.evaluation.report.check_csv`.
    """
    manifest = replace(manifests.read(folder), csv=csv)
    sources = Sources(manifest.how.dtype, manifest.how.device)
    place = folder if folder.is_dir() else folder.parent
    check_csv(csv or place / "cells.csv", place)
    return Session(manifest, place, sources, on_stage)
