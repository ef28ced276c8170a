"""What a grid's folder holds of its plan, draws again alike, gives to others, and needs no more."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from lcm_arith.durable import make_folder, refusal
from lcm_arith.errors import IncompatibleError, LcmArithError
from lcm_arith.evaluation.drawing.engine import Engine, units
from lcm_arith.evaluation.drawing.keys import Keys
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import OK, Pair, Record, Store
from lcm_arith.evaluation.manifest import OTHERS, Manifest, read
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.rows import Row, keys
from lcm_arith.formats.container import whole_folder, write_bytes

_ROWS: Final = "rows.jsonl"


@dataclass(frozen=True)
class UnitStatus:
    """How far one unit of work is.

    Args:
        rows: Rows of it.
        pictures: That it has in all.
        made: Of them.
        failed: Made, and not finite.
        nfe: UNet rows that the missing ones take, as if drawn alone.
    """

    rows: tuple[Row, ...]
    pictures: int
    made: int
    failed: int
    nfe: int


def status(manifest: Manifest, store: Store) -> tuple[UnitStatus, ...]:
    """How far each unit of a grid is, in the order in which they are drawn."""
    items, found = manifest.grid.items, []
    for unit in units(manifest.grid.rows):
        pictures = [(row, store.picture(row, item)) for row in unit.rows for item in items]
        found.append(
            UnitStatus(
                unit.rows,
                len(pictures),
                sum(picture is not None for _, picture in pictures),
                sum(picture is not None and picture.status != OK for _, picture in pictures),
                sum(row.nfe for row, picture in pictures if picture is None),
            )
        )
    return tuple(found)


def needed(manifest: Manifest, store: Store) -> dict[str, Record]:
    """The records that hold a picture of the grid or of its confirmation."""
    grids = (manifest.grid, *manifest.confirmed)
    wanted = {store.key(row, item) for g in grids for row in g.rows for item in g.items}
    return {name: one for name, one in store.records.items() if wanted & one.pictures.keys()}


@dataclass(frozen=True)
class Replayed:
    """A chunk drawn again.

    Args:
        record: Its name.
        pictures: How many.
        unequal: Of them, those of another sha256.
        largest: Largest difference of a channel, 0 to 255.
        left_out: Pictures of a chunk that was not drawn again: it holds some of another question,
            whose base or vectors are no longer there.
    """

    record: str
    pictures: int
    unequal: int
    largest: int
    left_out: int = 0


def replay(
    manifest: Manifest, store: Store, sources: Sources, on_chunk: Callable[[int, int], None]
) -> Iterator[Replayed]:
    """Every chunk of a grid again, in the batches that it was made in, beside the stored one.

    A chunk's rows have the names of the question that made it. A row of this question that draws
    the same stands in for one whose names are gone; files say those names, so pixels decide then.

    Args:
        manifest: Of the grid.
        store: Its pictures; nothing is changed.
        sources: Of bases and vectors.
        on_chunk: Told (done, total).

    Raises:
        IncompatibleError: If a base or a vector is another file now.
    """
    _check_same(manifest, sources)
    records = [record for name, record in needed(manifest, store).items() if store.whole(name)]
    own = {store.key(*pair): pair for pair in manifest.pairs()}
    now = replace(store.keys, base=sources.base_digest, vector=sources.vector_digest, _rows={})
    before = Store(store.folder, now)
    with tempfile.TemporaryDirectory() as folder:
        again = Store(Path(folder), now)
        engine = Engine(again, sources)
        try:
            for done, record in enumerate(records, 1):
                pairs = _pairs_now(record, store.keys, own, now)
                if pairs:
                    engine.batches = {pairs[0][0].context.base: record.batch}
                    yield _compared(before, again, record, pairs, engine.make(pairs))
                else:
                    yield Replayed(record.name, 0, 0, 0, left_out=len(record.pairs))
                on_chunk(done, len(records))
        finally:
            engine.restore()


def _pairs_now(record: Record, noted: Keys, own: Mapping[str, Pair], now: Keys) -> list[Pair]:
    """What draws a chunk by the names of today; empty where a picture of it has none.

    Args:
        record: The chunk.
        noted: Names pictures by the files of this question.
        own: Name of a picture → the row and item of this question that draw it.
        now: Names pictures by all files that are there.
    """
    found = []
    for key, pair in zip(record.pictures, record.pairs, strict=True):
        if _is_named(key, pair, noted):
            found.append(pair)
        elif key in own:
            found.append(own[key])
        elif _is_named(key, pair, now):
            found.append(pair)
        else:
            return []
    return found


def _is_named(key: str, pair: Pair, keys: Keys) -> bool:
    try:
        return keys.key(*pair) == key
    except (KeyError, LcmArithError):  # no such base or vector
        return False


def _check_same(manifest: Manifest, sources: Sources) -> None:
    """Raises where a name stands for another base or vector than when the grid was drawn."""
    digests = {"bases": sources.base_digest, "vectors": sources.vector_digest}
    changed = [
        name
        for kind, digest in digests.items()
        for name, noted in manifest.facts[kind].items()
        if digest(name) != noted
    ]
    if changed:
        raise IncompatibleError(
            f"{', '.join(changed)}: not the files that the grid was drawn with",
            hint="put those back, or run the grid again",
        )


def _compared(
    store: Store, again: Store, record: Record, pairs: Sequence[Pair], made: Record
) -> Replayed:
    differing = [
        (pair == was, _difference(store, again, *pair))
        for was, pair, (key, picture) in zip(
            record.pairs, pairs, record.pictures.items(), strict=True
        )
        if made.pictures[key].sha256 != picture.sha256
    ]
    unequal = [largest for same_names, largest in differing if same_names or largest]
    return Replayed(record.name, len(pairs), len(unequal), max(unequal, default=0))


def _difference(store: Store, again: Store, row: Row, item: tuple[str, int]) -> int:
    statuses = [one.pictures(row, [item])[0].status for one in (store, again)]
    if statuses != [OK, OK]:
        return 255 if statuses[0] != statuses[1] else 0
    before, after = (one.pixels(row, [item]).astype(int) for one in (store, again))
    return int(np.abs(before - after).max())


def export(grid: Grid, store: Store, folder: Path) -> int:
    """Pictures as other tools read them: GenEval's folders, one set a row; how many.

    ``FOLDER/CELL_ID/00000/metadata.jsonl`` holds a prompt, ``samples/0000.png`` and on its seeds;
    ``FOLDER/rows.jsonl`` says what each cell id is.

    Args:
        grid: The plan.
        store: Its pictures; those that are missing are left out.
        folder: A new one.

    Raises:
        OutputExistsError: If the folder exists.
        StorageError: If the disk refuses.
    """
    with whole_folder(folder, force=False, mark=_ROWS) as part:
        return _laid_out(grid, store, part)


def _laid_out(grid: Grid, store: Store, folder: Path) -> int:
    count = 0
    rows = list({row.cell_id: row for row in grid.rows}.values())
    listed = [json.dumps({"cell_id": row.cell_id, **keys(row)}, ensure_ascii=False) for row in rows]
    write_bytes(folder / _ROWS, ("\n".join(listed) + "\n").encode(errors="backslashreplace"))
    for row in rows:
        for number, prompt in enumerate(grid.prompts):
            place = folder / row.cell_id / f"{number:05d}"
            make_folder(place / "samples")
            told = {"prompt": row.context.text(prompt), "tag": row.cell_id}
            write_bytes(place / "metadata.jsonl", (json.dumps(told) + "\n").encode())
            for index, seed in enumerate(grid.seeds):
                picture = store.picture(row, (prompt, seed))
                if picture and picture.status == OK:
                    _copy(store.picture_path(row, (prompt, seed)), place, index)
                    count += 1
    return count


def _copy(source: Path, place: Path, index: int) -> None:
    target = place / "samples" / f"{index:04d}.png"
    try:
        shutil.copyfile(source, target)
    except OSError as error:
        raise refusal(target, error) from error


@dataclass(frozen=True)
class Swept:
    """Files that no grid of a manifest needs.

    Args:
        paths: Their paths.
        bytes: What they take.
    """

    paths: tuple[Path, ...]
    bytes: int


def sweep(manifest: Manifest, store: Store, *, older_than: float, dry_run: bool) -> Swept:
    """Removes pictures and records that no manifest of the folder needs, nor its confirmation.

    Embeddings stay: they are small, and another metric reads them. So do the pictures of an earlier
    question, until its ``manifest-….json`` is deleted.

    Args:
        manifest: Of the grid.
        store: Its pictures.
        older_than: Age of what goes, s: younger files may be of a chunk that is being drawn.
        dry_run: Only tells.

    Raises:
        InvalidContentError: If a manifest of an earlier question cannot be read.
        StorageError: If the disk refuses.
    """
    kept = needed(manifest, store)
    for path in sorted(store.folder.glob(OTHERS)):
        before = read(path)
        kept |= needed(before, Store(store.folder, before.keys))
    names = {f"{key}.png" for record in kept.values() for key in record.pictures}
    names |= {f"{name}.json" for name in kept}
    chunks, images = store.folder / "chunks", store.folder / "images"
    # Records first: a picture without a record is absent, a record without its picture is damage.
    files = [p for place in (chunks, images) if place.is_dir() for p in sorted(place.iterdir())]
    young = time.time() - older_than
    found = ((p, _found(p)) for p in files if p.name not in names)
    idle = {path: known.st_size for path, known in found if known and known.st_mtime <= young}
    for path in () if dry_run else idle:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise refusal(path, error) from error
    return Swept(tuple(idle), sum(idle.values()))


def _found(path: Path) -> os.stat_result | None:
    """What the disk knows of a file; None if another process has renamed or removed it."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def table(units_: tuple[UnitStatus, ...]) -> list[dict[str, Any]]:
    """Units, JSON-ready."""
    return [
        {
            "rows": [keys(row) for row in one.rows],
            "pictures": one.pictures,
            "made": one.made,
            "failed": one.failed,
            "unet_rows_missing": one.nfe,
        }
        for one in units_
    ]
