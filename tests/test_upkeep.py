"""What gc takes from a grid's folder, and what it leaves."""

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from grids import draw, tiny_files, tiny_grid
from PIL import Image

from lcm_arith.evaluation import manifest as manifests
from lcm_arith.evaluation.asked import confirmation
from lcm_arith.evaluation.drawing.keys import PACKAGES, keys_of
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.manifest import How, Manifest
from lcm_arith.evaluation.plans.plan import Grid, as_json, from_json
from lcm_arith.evaluation.upkeep import Replayed, replay, sweep


def noted(grid: Grid, store: Store, dtype: str = "float32") -> Manifest:
    """A manifest as a run writes it."""
    row = grid.cells[0]
    return Manifest(grid, how=How(dtype)).told(
        cut_prompts=[],
        sides={},
        versions={name: store.keys.versions[name] for name in PACKAGES},
        bases={row.context.base: store.keys.base(row.context.base)},
        vectors={name: store.keys.vector(name) for name in (row.context.style, row.accel)},
    )


def test_gc_takes_what_no_question_of_the_folder_needs(tmp_path: Path) -> None:
    files, folder = tiny_files(tmp_path), tmp_path / "grid"
    first, second = tiny_grid(files, "0.5", seeds=1), tiny_grid(files, "1", seeds=1)
    for grid in (first, second):
        store = draw(grid, folder).store
        manifests.write(noted(grid, store), folder)
    (other,) = folder.glob("manifest-*.json")
    manifest = manifests.read(folder)
    store = Store(folder, manifest.keys)
    assert sweep(manifest, store, older_than=0, dry_run=False).paths == ()
    other.unlink()
    swept = sweep(manifest, store, older_than=0, dry_run=True)
    gone = {store.key(row, item) for row in first.cells for item in first.items}
    assert {path.stem for path in swept.paths if path.suffix == ".png"} == gone
    sweep(manifest, store, older_than=0, dry_run=False)
    left = Store(folder, manifest.keys)
    assert all(left.has(row, item) for row in second.rows for item in second.items)
    assert not any(left.has(row, item) for row in first.cells for item in first.items)


def test_gc_passes_over_what_others_rename_or_remove_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "grid"
    manifest = noted(
        tiny_grid(tiny_files(tmp_path), "0.5", seeds=1), Store(folder, keys_of(Sources()))
    )
    (folder / "images").mkdir(parents=True)
    for name in (".a.png.part", "b.png", "c.png"):
        (folder / "images" / name).write_bytes(b"12345")
    stat, unlink = Path.stat, Path.unlink

    def renamed(path: Path, **how: bool) -> os.stat_result:
        if path.suffix == ".part":
            unlink(path, missing_ok=True)
        return stat(path, **how)

    def removed(path: Path, missing_ok: bool = False) -> None:
        if path.name == "b.png":
            unlink(path)
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "stat", renamed)
    monkeypatch.setattr(Path, "unlink", removed)
    swept = sweep(manifest, Store(folder, manifest.keys), older_than=0, dry_run=False)
    assert ([path.name for path in swept.paths], swept.bytes) == (["b.png", "c.png"], 10)
    assert not list((folder / "images").iterdir())


def test_a_question_is_kept_until_another_needs_all_its_pictures(tmp_path: Path) -> None:
    files, folder = tiny_files(tmp_path), tmp_path / "grid"
    folder.mkdir()
    grid = tiny_grid(files, "0.5", seeds=1)
    store = Store(folder, keys_of(Sources()))
    base = str(files / "base")
    batched = replace(noted(grid, store), how=How(batches={base: 7}))
    confirmed = replace(batched, confirmed=(confirmation(grid, grid.cells[:1]),))
    manifests.write(batched, folder)
    manifests.write(confirmed, folder)
    again = manifests.continued(noted(grid, store), folder)
    assert (again.how.batches, again.confirmed) == ({base: 7}, confirmed.confirmed)
    manifests.write(again, folder)
    assert not list(folder.glob("manifest-*.json"))
    half = noted(grid, store, "float16")
    assert manifests.continued(half, folder).confirmed == ()
    assert manifests.continued(half, folder).how.batches == {}, "measured in another format"
    other = replace(noted(grid, store), facts={**again.facts, "bases": {base: "f" * 64}})
    assert manifests.continued(other, folder).how.batches == {}, "of other weights"
    manifests.write(half, folder)  # the same plan, and no picture of it is the same
    (kept,) = folder.glob("manifest-*.json")
    assert manifests.read(kept).confirmed == confirmed.confirmed


def replayed(manifest: Manifest, folder: Path) -> list[Replayed]:
    """Every chunk again, with sources of its own."""
    return list(replay(manifest, Store(folder, manifest.keys), Sources(), lambda *_: None))


def renamed(grid: Grid, files: Path) -> Grid:
    """The same grid after its base and style got other names, and their folder."""
    place = files.rename(files.with_name("moved"))
    (place / "style.safetensors").rename(place / "other.safetensors")
    (place / "base").rename(place / "copy")
    told = json.dumps(as_json(grid)).replace(str(files), str(place))
    told = told.replace("/style.safetensors", "/other.safetensors").replace("/base", "/copy")
    return from_json(json.loads(told))


def test_pictures_of_files_that_have_another_name_now_are_replayed(tmp_path: Path) -> None:
    files, folder = tiny_files(tmp_path / "files"), tmp_path / "grid"
    grid = tiny_grid(files, "0.5", seeds=1)
    made = draw(grid, folder).counters.pictures
    now = renamed(grid, files)
    drawn = draw(now, folder)
    assert drawn.counters.pictures == 0
    found = replayed(noted(now, drawn.store), folder)
    assert sum(each.pictures for each in found) == made
    assert not any(each.unequal or each.left_out for each in found)


def test_a_replay_under_another_name_notices_another_picture(tmp_path: Path) -> None:
    files, folder = tiny_files(tmp_path / "files"), tmp_path / "grid"
    grid = tiny_grid(files, "0.5", seeds=1)
    store = draw(grid, folder).store
    row, item = grid.cells[0], grid.items[0]
    (name,) = (n for n, record in store.records.items() if store.key(row, item) in record.pictures)
    damage(folder, store, name, store.key(row, item))
    found = replayed(noted(renamed(grid, files), Store(folder, keys_of(Sources()))), folder)
    assert {each.record: each.unequal for each in found if each.unequal} == {name: 1}
    assert max(each.largest for each in found) > 100


def damage(folder: Path, store: Store, record: str, key: str) -> None:
    """Another picture, noted as if it had been drawn."""
    path, note = store.path(key), folder / "chunks" / f"{record}.json"
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    pixels = np.asarray(Image.open(path))
    Image.fromarray(255 - pixels).save(path)
    after = hashlib.sha256(path.read_bytes()).hexdigest()
    note.write_text(note.read_text().replace(before, after))


def test_a_chunk_that_cannot_be_drawn_whole_is_left_out_of_a_replay_and_counted(
    tmp_path: Path,
) -> None:
    files, folder = tiny_files(tmp_path / "files"), tmp_path / "grid"
    grid = tiny_grid(files, "0.5", seeds=1)
    made = draw(grid, folder).counters.pictures
    part = grid.of_cells(grid.cells[:1])
    found = replayed(noted(part, Store(folder, keys_of(Sources()))), folder)
    assert (sum(each.pictures for each in found), sum(each.left_out for each in found)) == (made, 0)
    part = renamed(part, files)
    found = replayed(noted(part, Store(folder, keys_of(Sources()))), folder)
    margin = [each for each in found if each.pictures]
    assert [each.pictures for each in margin] == [len(part.items)]  # the base row has no vector
    assert sum(each.left_out for each in found) == made - len(part.items)
    assert not any(each.unequal for each in found)
