"""What gc takes from a grid's folder, and what it leaves."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
from grids import draw, tiny_files, tiny_grid

from lcm_arith.evaluation import manifest as manifests
from lcm_arith.evaluation.asked import confirmation
from lcm_arith.evaluation.drawing.keys import PACKAGES, keys_of
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store
from lcm_arith.evaluation.manifest import How, Manifest
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.upkeep import sweep


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
