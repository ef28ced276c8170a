"""What gc, verify and reindex promise, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path

import pytest
from stores import names, problems

from lcm_arith.adapters import load, locate
from lcm_arith.analysis import distance
from lcm_arith.embedded import files as vectors
from lcm_arith.errors import (
    InvalidContentError,
    NotFoundError,
    OutputExistsError,
    UsageError,
)
from lcm_arith.registry import adding, archive, editing, rebuilding, upkeep
from lcm_arith.registry.store import Registry
from lcm_arith.saving import save_folder

DAYS = 86400.0


# gc.


def test_gc_keeps_what_a_child_was_made_of(family: Registry) -> None:
    for name in ("a", "b"):
        editing.remove(family, name, force=True)
    assert upkeep.gc(family, older_than=-1).files == ()
    assert rebuilding.rebuild(family, family.find("child")).equal
    swept = upkeep.gc(family, older_than=-1, keep_parents=False)
    assert len(swept.files) == 4
    assert len(list(family.objects)) == len(list(family.manifests)) == 1
    assert not problems(family, deep=True)
    with pytest.raises(NotFoundError, match="does not have"):
        rebuilding.rebuild(family, family.find("child"))


def test_gc_spares_what_is_young(family: Registry) -> None:
    editing.remove(family, "child")
    assert upkeep.gc(family).files == ()
    for path in (family.root / "objects").rglob("*.safetensors"):
        os.utime(path, (time.time() - 2 * DAYS,) * 2)
    assert upkeep.gc(family).files == ()  # its manifest is young, and it is found by its digest
    for path in (family.root / "manifests").rglob("*.json"):
        os.utime(path, (time.time() - 2 * DAYS,) * 2)
    assert len(upkeep.gc(family).files) == 2


def test_a_dry_run_of_gc_removes_nothing(family: Registry) -> None:
    editing.remove(family, "child")
    told = upkeep.gc(family, older_than=-1, dry_run=True)
    assert len(told.files) == 2
    assert told.bytes == sum(Path(own).stat().st_size for own in told.files)
    assert upkeep.gc(family, older_than=-1) == told
    assert not any(Path(own).exists() for own in told.files)
    with pytest.raises(NotFoundError):
        family.find("sha256:" + Path(told.files[-1]).name[:64])


def test_gc_takes_the_workspaces_of_the_dead_alone(family: Registry) -> None:
    dead = family.root / "tmp" / f"{os.uname().nodename}-999999999-abc"
    mine = family.root / "tmp" / f"{os.uname().nodename}-{os.getpid()}-abc"
    foreign = family.root / "tmp" / "another-host-1-abc"
    for folder in (dead, mine, foreign):
        folder.mkdir()
    assert upkeep.gc(family, older_than=-1).pieces == (str(dead),)
    os.utime(foreign, (time.time() - 2 * DAYS,) * 2)
    assert upkeep.gc(family).pieces == (str(foreign),)
    assert mine.exists()


def test_gc_with_a_lost_index_loses_nothing(family: Registry, tmp_path: Path) -> None:
    before = names(family)
    other = Registry.open(family.root, f"sqlite:///{tmp_path / 'new.db'}")
    assert upkeep.gc(other, older_than=-1).files == ()
    assert names(other) == before


def test_gc_refuses_where_a_manifest_is_lost(family: Registry) -> None:
    family.manifests.path(str(family.find("a").state.record)).unlink()
    with pytest.raises(InvalidContentError, match="a: its manifest is lost"):
        upkeep.gc(family, older_than=-1)


# verify and reindex.


def test_verify_tells_each_kind_of_problem(family: Registry) -> None:
    editing.alias(family, "best", "a")
    a, b, child = (family.find(name) for name in ("a", "b", "child"))
    a.path.unlink()
    b.path.chmod(0o644)
    os.truncate(b.path, 100)
    family.manifests.path(str(child.state.record)).unlink()
    (family.root / "names/a.json").write_bytes(b"{")
    shutil.copy(family.root / "names/b.json", family.root / "names/stray.json")
    found = {(who, what.split(":")[-1].strip()[:30]) for what, who in problems(family)}
    assert {who for who, _ in found} == {("a",), ("b",), ("child",), ("stray",)}
    text = "\n".join(f"{who} {what}" for what, who in problems(family))
    for part in ("is missing", f"has 100 of {b.record.bytes} bytes", "cannot be read", "not JSON"):
        assert part in text
    assert "is in names, not in the index" in text


def test_verify_tells_of_an_index_that_says_other_things(family: Registry) -> None:
    with family.index.change() as change:
        change.connection.exec_driver_sql("UPDATE records SET bytes = 1 WHERE modules = 2")
    assert {what for what, _ in problems(family)} == {
        "the index says other things than the manifest: reindex"
    }
    upkeep.reindex(family)
    assert not problems(family)


@pytest.mark.parametrize("which", ["object", "manifest"])
def test_deep_verify_puts_damage_aside_and_a_new_add_heals_it(
    family: Registry, files: list[Path], which: str
) -> None:
    found = family.find("a")
    path = found.path if which == "object" else family.manifests.path(str(found.state.record))
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    first, *_ = upkeep.verify(family, deep=True).problems
    assert first.names == ("a",)
    assert Path(str(first.quarantined)).read_bytes() == data
    assert not path.exists()
    adding.add(family, files[0], name="again")
    upkeep.reindex(family)
    assert not problems(family, deep=True)


def test_reindex_restores_everything_that_was_said(family: Registry) -> None:
    editing.alias(family, "best", "a")
    editing.tag(family, "a", ["x"])
    editing.note(family, "b", "n")
    editing.set_values(family, "child", {"kind": "task"})
    before = family.rows()
    with family.index.change() as change:
        change.connection.exec_driver_sql("DELETE FROM names")
        change.connection.exec_driver_sql("DELETE FROM parents")
        change.connection.exec_driver_sql("DELETE FROM records")
    assert upkeep.reindex(family).names == 4
    assert family.rows() == before


def test_reindex_writes_the_file_of_a_name_that_only_the_index_has(family: Registry) -> None:
    before = family.rows()
    (family.root / "names/a.json").unlink()
    assert problems(family) == [("has no file in names: reindex writes one", ("a",))]
    upkeep.reindex(family)
    assert family.rows() == before
    assert not problems(family)


def test_reindex_names_what_it_cannot_read(family: Registry) -> None:
    (family.root / "names/a.json").write_bytes(b"[]")
    family.manifests.path(str(family.find("b").state.record)).unlink()
    done = upkeep.reindex(family)
    assert done.lost.keys() == {"a", "b"}
    assert set(names(family)) == {"b", "child"}


def test_a_lost_file_of_a_name_is_never_overwritten(family: Registry, files: list[Path]) -> None:
    path = family.root / "names/kept.json"
    shutil.copy(family.root / "names/a.json", path)
    before = path.read_bytes()
    with pytest.raises(OutputExistsError, match="the index does not know it"):
        adding.add(family, files[2], name="kept")
    assert path.read_bytes() == before


# What a review found.


def test_parents_without_a_name_survive_a_lost_index_and_a_backup(
    family: Registry, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        editing.remove(family, name, force=True)
    upkeep.reindex(family)
    assert upkeep.gc(family, older_than=-1).files == ()
    assert rebuilding.rebuild(family, family.find("child")).equal
    archive.backup(family, tmp_path / "all.tar")
    other = Registry.open(tmp_path / "other", f"sqlite:///{tmp_path / 'other' / 'index.db'}")
    archive.restore(other, tmp_path / "all.tar")
    assert upkeep.gc(other, older_than=-1).files == ()
    assert rebuilding.rebuild(other, other.find("child")).equal


def test_a_damaged_file_is_not_used(family: Registry) -> None:
    path = family.find("child").path
    path.chmod(0o644)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(InvalidContentError, match="was changed on the disk"):
        load(path)
    with pytest.raises(InvalidContentError, match="was changed on the disk"):
        rebuilding.rebuild(family, family.find("child"))


def test_a_link_that_was_changed_or_leads_into_the_registry_is_refused(
    registry: Registry, files: list[Path], tmp_path: Path
) -> None:
    path = tmp_path / "linked.safetensors"
    shutil.copy(files[0], path)
    adding.add(registry, path, link=True)
    record = registry.find("linked").record
    os.utime(path)  # another date alone is looked at, and forgiven
    assert registry.file_of(record) == path
    shutil.copy(files[1], path)
    with pytest.raises(InvalidContentError, match="was changed since it was linked"):
        registry.file_of(record)
    assert registry.files(record.object) is None
    adding.add(registry, files[0], name="inside")
    for inside in (registry.find("inside").path, vectors.vector_path("lcm")):
        with pytest.raises(UsageError, match="is in the registry or came with the program"):
            adding.add(registry, inside, name="again", link=True)


def test_a_peft_file_is_read_with_the_alphas_beside_it(registry: Registry, tmp_path: Path) -> None:
    save_folder(load("noto"), tmp_path / "peft")
    config = json.loads((tmp_path / "peft/adapter_config.json").read_text())
    config["lora_alpha"] = 4 * config["r"]
    (tmp_path / "peft/adapter_config.json").write_text(json.dumps(config))
    added = adding.add(registry, tmp_path / "peft/adapter_model.safetensors")
    assert added.name == "peft"
    lost, total = distance(load(registry.find("peft").path), 4.0 * load("noto"))
    assert lost <= 1e-6 * total


def test_a_folder_of_a_vectors_name_does_not_hide_it(
    home: Path, files: list[Path], tmp_cwd: Path
) -> None:
    registry = Registry.open()
    adding.add(registry, files[0], name="half")
    Path("half").mkdir()
    assert locate("half") == registry.find("half").path
    assert locate("./half") == Path("half")
