"""The registry's contract: what each operation promises and refuses, on SQLite and PostgreSQL."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import tarfile
import time
import unicodedata
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from faults import SMALL, adapters, names
from support import random_vector

from lcm_arith.adapters import load, save
from lcm_arith.combination import combine_terms
from lcm_arith.errors import (
    InvalidContentError,
    LcmArithError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from lcm_arith.registry import adding, archive, comparing, editing, lineage, rebuilding, upkeep
from lcm_arith.registry.manifests import canonical, digest
from lcm_arith.registry.names import RESERVED, check_name, name_of
from lcm_arith.registry.objects import file_sha256
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry
from lcm_arith.weights import parse_term

DAYS = 86400.0


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six adapters, and one that was made of the first two."""
    folder = tmp_path_factory.mktemp("adapters")
    paths = adapters(folder, 6)
    terms = [parse_term(f"{paths[0]}:0.8"), parse_term(f"{paths[1]}:-0.5,mid=0.25")]
    save(combine_terms(terms), folder / "made.safetensors")
    return [*paths, folder / "made.safetensors"]


@pytest.fixture
def registry(tmp_path: Path, index_url: str) -> Registry:
    return Registry.open(tmp_path / "store", index_url)


@pytest.fixture
def family(registry: Registry, files: list[Path]) -> Registry:
    """``a`` and ``b``, and ``child`` that was made of both."""
    for name, path in (("a", files[0]), ("b", files[1]), ("child", files[6])):
        adding.add(registry, path, name=name)
    return registry


def problems(registry: Registry, *, deep: bool = False) -> list[tuple[str, tuple[str, ...]]]:
    return [(own.what, own.names) for own in upkeep.verify(registry, deep=deep).problems]


# Adding and finding.


def test_what_is_added_is_found_with_its_bytes(registry: Registry, files: list[Path]) -> None:
    added = adding.add(registry, files[0], name="a", tags=("y", "x"), settings={"kind": "task"})
    found = Registry.open(registry.root, registry.url).find("a")
    assert found.path.read_bytes() == files[0].read_bytes()
    assert found.path.stat().st_mode & 0o222 == 0
    assert found.record == added.record
    assert found.record.object == file_sha256(files[0])
    assert (found.record.bytes, found.record.modules) == (files[0].stat().st_size, 2)
    assert (found.state.tags, found.state.settings) == (("x", "y"), {"kind": "task"})
    assert not problems(registry, deep=True)


def test_a_name_is_made_of_the_files(registry: Registry, files: list[Path], tmp_path: Path) -> None:
    path = shutil.copy(files[0], tmp_path / "Été à Paris (v2).safetensors")
    assert adding.add(registry, Path(path)).name == "ete-a-paris-v2"


def test_the_same_bytes_are_one_object_under_two_names(
    registry: Registry, files: list[Path]
) -> None:
    assert adding.add(registry, files[0], name="one").also == ()
    assert adding.add(registry, files[0], name="two").also == ("one",)
    assert len(list(registry.objects)) == 1
    assert registry.find("one").path == registry.find("two").path


def test_a_taken_name_is_refused_and_nothing_is_left(registry: Registry, files: list[Path]) -> None:
    adding.add(registry, files[0], name="one")
    for name in ("one", "ONE", "lcm", "noto"):
        with pytest.raises(OutputExistsError, match=name.lower()):
            adding.add(registry, files[1], name=name)
    assert len(list(registry.objects)) == 1
    assert not list((registry.root / "tmp").iterdir())


@pytest.mark.parametrize(
    ("content", "error"),
    [(b"", InvalidContentError), (b"<html>", InvalidContentError), (None, NotFoundError)],
)
def test_what_is_no_adapter_leaves_nothing(
    registry: Registry, tmp_path: Path, content: bytes | None, error: type[LcmArithError]
) -> None:
    path = tmp_path / "bad.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=r"bad\.safetensors"):
        adding.add(registry, path)
    assert names(registry) == {}
    assert not list(registry.objects)


def test_a_pipe_is_refused_and_not_waited_for(registry: Registry, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    for link in (False, True):
        with pytest.raises(NotFoundError, match="regular file"):
            adding.add(registry, tmp_path / "pipe.safetensors", link=link)


def test_impossible_settings_are_refused(registry: Registry, files: list[Path]) -> None:
    with pytest.raises(UsageError, match="no kind"):
        adding.add(registry, files[0], name="a", settings={"kind": "magic"})
    with pytest.raises(UsageError, match="do not fit"):
        adding.add(registry, files[0], name="a", settings={"family": "sdxl"})
    assert names(registry) == {}


def test_a_linked_file_stays_where_it_is_and_is_watched(
    registry: Registry, files: list[Path], tmp_path: Path
) -> None:
    path = Path(shutil.copy(files[0], tmp_path / "mine.safetensors"))
    adding.add(registry, path, name="mine", link=True)
    assert registry.find("mine").path == path
    assert not list(registry.objects)
    assert registry.files(file_sha256(path)) == path
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert not problems(registry)
    assert problems(registry, deep=True) == [(f"{path}: the linked file was changed", ("mine",))]
    path.write_bytes(data[:-1])
    assert problems(registry) == [(f"{path}: the linked file was changed", ("mine",))]
    path.unlink()
    assert problems(registry) == [(f"{path}: the linked file is gone", ("mine",))]


def test_digests_find_what_they_begin(family: Registry) -> None:
    record = family.find("a").record
    for text in (f"sha256:{record.object}", record.object[:8], f"sha256:{record.object[:20]}"):
        assert family.find(text).record == record
    with pytest.raises(NotFoundError):
        family.find("sha256:00000000")
    with pytest.raises(NotFoundError):
        Registry.open(family.root / "none", f"sqlite:///{family.root}/no.db").find("00000000")


def test_a_digest_that_two_files_begin_with_is_refused(
    family: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = [family.find(name).record.object for name in ("a", "b")]
    # No two of our files share 8 digits; here all digests of the index do.
    with family.index.change() as change:
        for number, own in enumerate(objects):
            change.connection.exec_driver_sql(
                f"UPDATE records SET object = '{'ab' * 4}{number}{own[9:]}' WHERE object = '{own}'"
            )
    with pytest.raises(UsageError, match="begins 2 digests"):
        family.find("sha256:abababab")


def test_a_name_that_looks_like_a_digest_is_still_a_name(
    registry: Registry, files: list[Path]
) -> None:
    adding.add(registry, files[0], name="deadbeef")
    assert registry.find("deadbeef").name == "deadbeef"


def test_an_unknown_name_is_told_the_closest(family: Registry) -> None:
    with pytest.raises(NotFoundError) as caught:
        family.find("chidl")
    assert "child" in caught.value.hint


def test_listing_makes_nothing(registry: Registry) -> None:
    assert all(row.name in ("lcm", "noto") or not row.state.alias_of for row in registry.rows())
    assert names(registry) == {}
    assert not registry.root.exists()


# Editing.


def test_tags_notes_and_settings_add_up(family: Registry) -> None:
    editing.tag(family, "a", ["x", " y "])
    editing.tag(family, "a", ["z"], remove=["x", "never"])
    editing.note(family, "a", "first")
    editing.note(family, "a", "second")
    editing.set_values(family, "a", {"kind": "task", "weight": "0.8"})
    state = editing.set_values(family, "a", {"weight": None})
    assert state.tags == ("y", "z")
    assert state.notes == ("first", "second")
    assert state.settings == {"kind": "task"}
    assert family.find("a").state == state
    assert family.index.states.get("a") == state
    shown = family.find("a").record.said(state)
    assert shown["kind"] == {"value": "task", "source": "user"}


@pytest.mark.parametrize("tag", ["", "  ", "a\nb", "\x1b[31m", "x" * 101])
def test_no_tag_is_refused(family: Registry, tag: str) -> None:
    with pytest.raises(UsageError, match="is no tag"):
        editing.tag(family, "a", [tag])


def test_texts_that_no_database_keeps_are_refused_or_made_ones(
    registry: Registry, files: list[Path]
) -> None:
    adding.add(registry, files[0], name="a", source={"file": "nul \0 half \ud800 end"})
    assert registry.find("a").record.source == {"file": "nul \0 half \ud800 end"}
    editing.note(registry, "a", "nul \0 and \u2028")
    for edit in (editing.note, lambda r, n, t: editing.set_values(r, n, {"title": t})):
        with pytest.raises(UsageError, match="is no text"):
            edit(registry, "a", "half \ud800 end")
    assert registry.find("a").state.notes == ("nul \0 and \u2028",)
    assert not problems(registry, deep=True)


def test_what_was_shipped_cannot_be_changed(family: Registry) -> None:
    edits: tuple[Callable[[], Any], ...] = (
        lambda: editing.tag(family, "lcm", ["x"]),
        lambda: editing.note(family, "lcm", "x"),
        lambda: editing.set_values(family, "lcm", {"kind": "task"}),
        lambda: editing.rename(family, "lcm", "x"),
        lambda: editing.remove(family, "lcm"),
    )
    for edit in edits:
        with pytest.raises(UsageError, match="came with the program"):
            edit()


def test_an_alias_stands_for_its_target_and_moves(family: Registry) -> None:
    editing.alias(family, "best", "a")
    assert family.find("best").name == "a"
    editing.tag(family, "best", ["x"])
    assert family.find("a").state.tags == ("x",)
    editing.alias(family, "best", "b")
    assert family.find("best").name == "b"
    editing.alias(family, "other", "best")
    assert family.index.row("other").state.alias_of == "b"
    editing.alias(family, "fast", "lcm")
    assert family.find("fast").shipped
    assert not problems(family)


def test_impossible_aliases_are_refused(family: Registry) -> None:
    for name, target, error in (
        ("b", "a", OutputExistsError),
        ("lcm", "a", OutputExistsError),
        ("a", "a", UsageError),
        ("x", "nothing", NotFoundError),
        ("x", f"sha256:{family.find('a').record.object}", UsageError),
        ("no/name", "a", UsageError),
    ):
        with pytest.raises(error):
            editing.alias(family, name, target)


def test_aliases_follow_a_rename(family: Registry) -> None:
    editing.alias(family, "best", "a")
    editing.note(family, "a", "kept")
    editing.rename(family, "a", "new")
    assert family.find("best").name == "new"
    assert family.find("new").state.notes == ("kept",)
    with pytest.raises(NotFoundError):
        family.find("a")
    editing.rename(family, "best", "top")
    assert family.find("top").name == "new"
    assert not problems(family)


@pytest.mark.parametrize("to", ["b", "lcm", "B"])
def test_a_rename_to_a_taken_name_is_refused(family: Registry, to: str) -> None:
    before = names(family)
    with pytest.raises(OutputExistsError):
        editing.rename(family, "a", to)
    assert names(family) == before
    assert not problems(family)


def test_what_others_depend_on_is_not_removed(family: Registry) -> None:
    editing.alias(family, "best", "b")
    with pytest.raises(OutputExistsError, match="made of it: child") as caught:
        editing.remove(family, "b")
    assert "aliases of it: best" in caught.value.message
    assert editing.remove(family, "b", force=True) == ["best"]
    assert set(names(family)) == {"a", "child"}
    assert not problems(family)


def test_a_parent_with_another_name_may_lose_one(family: Registry, files: list[Path]) -> None:
    adding.add(family, files[0], name="copy")
    assert editing.remove(family, "a") == []
    assert lineage.lineage(family, family.find("child")).parents[0].name == "copy"


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


# Backup and restore.


@pytest.fixture
def backed(family: Registry, tmp_path: Path) -> Path:
    editing.alias(family, "best", "a")
    editing.tag(family, "a", ["x"])
    archive.backup(family, tmp_path / "backup.tar")
    return tmp_path / "backup.tar"


@pytest.fixture
def fresh(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "fresh", f"sqlite:///{tmp_path / 'fresh' / 'index.db'}")


def test_a_backup_is_the_same_bytes_each_time(
    family: Registry, backed: Path, fresh: Registry, tmp_path: Path
) -> None:
    archive.backup(family, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == backed.read_bytes()
    archive.restore(fresh, backed)
    archive.backup(fresh, tmp_path / "third.tar")
    assert (tmp_path / "third.tar").read_bytes() == backed.read_bytes()


def test_a_backup_is_not_overwritten_unasked(family: Registry, backed: Path) -> None:
    with pytest.raises(OutputExistsError):
        archive.backup(family, backed)
    archive.backup(family, backed, force=True)


def test_restore_gives_all_back(family: Registry, backed: Path, fresh: Registry) -> None:
    done = archive.restore(fresh, backed)
    assert (done.names, done.files) == (4, 6)
    assert fresh.rows() == family.rows()
    assert not problems(fresh, deep=True)
    assert rebuilding.rebuild(fresh, fresh.find("child")).equal
    again = archive.restore(fresh, backed)
    assert again.files == 0


def test_restore_refuses_names_with_other_content(
    backed: Path, fresh: Registry, files: list[Path]
) -> None:
    adding.add(fresh, files[3], name="b")
    before = names(fresh)
    with pytest.raises(OutputExistsError, match="b: there are vectors"):
        archive.restore(fresh, backed)
    assert names(fresh) == before
    archive.restore(fresh, backed, force=True)
    assert set(names(fresh)) == {"a", "b", "best", "child"}
    assert not problems(fresh, deep=True)


def member(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> bytes:
    """A tar archive with one member."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        info = tarfile.TarInfo(name)
        info.size, info.type, info.linkname = len(data), kind, link
        tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


_STATE = State(record="0" * 64).text().encode()
_SHA = digest(b"content")
HOSTILE = {
    "no tar": b"no tar at all" * 100,
    "cut": member("names/a.json", _STATE)[:600],
    "up": member("names/../../../evil.json", _STATE),
    "absolute": member("/names/a.json", _STATE),
    "dot": member(".", b""),
    "empty name": member("", b"x"),
    "symbolic link": member("names/a.json", kind=tarfile.SYMTYPE, link="/etc/passwd"),
    "hard link": member("names/a.json", kind=tarfile.LNKTYPE, link="names/b.json"),
    "device": member("names/a.json", kind=tarfile.CHRTYPE),
    "pipe": member("names/a.json", kind=tarfile.FIFOTYPE),
    "folder": member("names/a.json", kind=tarfile.DIRTYPE),
    "elsewhere": member("index.db", b"x"),
    "unknown folder": member("evil/a.json", _STATE),
    "too deep": member(f"objects/sha256/ab/cd/{_SHA}.safetensors", b"content"),
    "wrong shard": member(f"objects/sha256/00/{_SHA}.safetensors", b"content"),
    "shard of dots": member(f"objects/sha256/../{_SHA}.safetensors", b"content"),
    "wrong object": member(f"objects/sha256/{'0' * 2}/{'0' * 64}.safetensors", b"content"),
    "wrong manifest": member(f"manifests/sha256/{'0' * 2}/{'0' * 64}.json", b"{}"),
    "no name": member("names/UP.json", _STATE),
    "name of Windows": member("names/nul.json", _STATE),
    "state of no kind": member("names/a.json", b"[1]"),
    "state of a newer": member("names/a.json", b'{"record":null,"newer":1}'),
    "state of other types": member("names/a.json", b'{"record":5,"tags":"ab"}'),
    "half a surrogate pair": member(
        "names/a.json", b'{"notes":["\\ud800"],"record":"' + b"0" * 64 + b'"}'
    ),
    "state of nothing": member("names/a.json", b"{}"),
    "record is a path": member("names/a.json", b'{"record":"../../x"}'),
    "record is missing": member("names/a.json", _STATE),
    "bytes that are no text": member("names/a.json", b"\xff\xfe"),
    "twice": member("names/a.json", _STATE)[:1024] + member("names/a.json", _STATE),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_archive_is_refused(fresh: Registry, tmp_path: Path, case: str) -> None:
    (tmp_path / "x.tar").write_bytes(HOSTILE[case])
    before = {path for path in tmp_path.rglob("*") if fresh.root not in path.parents}
    with pytest.raises(InvalidContentError):
        archive.restore(fresh, tmp_path / "x.tar")
    assert names(fresh) == {}
    assert not list(fresh.objects)
    assert not list((fresh.root / "tmp").glob("*"))
    after = {path for path in tmp_path.rglob("*") if fresh.root not in path.parents}
    assert after - before <= {fresh.root}


def test_a_hostile_manifest_reaches_no_other_file(
    family: Registry, fresh: Registry, tmp_path: Path
) -> None:
    values = family.find("a").record.manifest()
    changes: tuple[dict[str, Any], ...] = (
        {"object": "../../../etc/passwd"},
        {"previews": [{"sha256": "../x", "suffix": ".png"}]},
        {"families": [1]},
        {"bytes": "many"},
        {"bytes": 2**70},
        {"guess": {}},
        {"guess": {"kind": 5}},
        {"ranks": {"many": 1}},
        {"norm": "long"},
        {"parents": 5},
        {"parents": ["../x"]},
        {"components": [1]},
        {"previews": [5]},
        {"previews": [{"sha256": "0" * 64, "suffix": "/../../../evil"}]},
    )
    for change in changes:
        data = canonical({**values, **change})
        sha = digest(data)
        out = io.BytesIO()
        with tarfile.open(fileobj=out, mode="w") as tar:
            for name, content in (
                (f"manifests/sha256/{sha[:2]}/{sha}.json", data),
                ("names/a.json", State(record=sha).text().encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        (tmp_path / "x.tar").write_bytes(out.getvalue())
        with pytest.raises(InvalidContentError):
            archive.restore(fresh, tmp_path / "x.tar")
        assert names(fresh) == {}


def test_a_bit_of_an_archive_that_is_not_as_it_was_changes_at_most_what_was_said(
    family: Registry, backed: Path, tmp_path: Path
) -> None:
    whole, chosen, wanted = backed.read_bytes(), random.Random(0), names(family)
    refused = 0
    for number in range(60):
        data, fresh = (
            bytearray(whole),
            Registry.open(tmp_path / f"r{number}", _lite(number, tmp_path)),
        )
        data[512 * chosen.randrange(len(data) // 512) + chosen.randrange(512)] ^= 4
        backed.write_bytes(data if number % 3 else whole[: chosen.randrange(len(whole))])
        try:
            archive.restore(fresh, backed)
        except InvalidContentError:
            refused += 1
            continue
        found = names(fresh)
        assert len({name for name in found if found[name] != wanted.get(name)}) <= 1
        assert all(file_sha256(path) == path.name[:64] for path in fresh.objects)
    assert 20 < refused < 60


def _lite(number: int, tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / f'r{number}' / 'index.db'}"


def test_threads_of_one_process_wait_for_each_other(family: Registry) -> None:
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: editing.tag(family, "a", [f"t{n}"]), range(24)))
    assert family.find("a").state.tags == tuple(sorted(f"t{n}" for n in range(24)))


def test_restore_of_nothing_is_told_so(fresh: Registry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.tar"):
        archive.restore(fresh, tmp_path / "gone.tar")


# Names.


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "a\\b", "-a", ".a", "a.", "a b", "a\0", "a\n", "é", "a" * 101, "x.pt",
     "x.safetensors", "x.JSON", *sorted(RESERVED), "con.x", "NUL.y", "ﬁle", "\uff41", "a:b", "a*"],
)  # fmt: skip
def test_no_name(name: str) -> None:
    with pytest.raises(UsageError):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "0", "a" * 100, "a.b", "a-b_c.d", "lcm-2", "a_"])
def test_a_name(name: str) -> None:
    assert check_name(name.upper()) == name
    assert check_name(unicodedata.normalize("NFD", name)) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("Æon flux", "on-flux"), ("--x--", "x"), ("con", "con-vector"), ("x.pt", "x-pt-vector"),
     ("a" * 300, "a" * 100), ("Ünïcode 🧪 v1.5", "unicode-v1.5")],
)  # fmt: skip
def test_a_name_of_any_text(text: str, name: str) -> None:
    assert name_of(text) == name
    with pytest.raises(UsageError):
        name_of("🧪")


# Many at once, and one that fails in the middle.


def test_a_change_that_fails_changes_nothing(family: Registry) -> None:
    before, stored = names(family), _bytes(family.root / "names")

    def change_all() -> None:
        with family.index.change() as change:
            change.update("a", State(alias_of="b"))
            change.insert("new", State(alias_of="a"))
            change.delete("b")
            change.insert("b", State(alias_of="a"))
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        change_all()
    assert names(family) == before
    assert _bytes(family.root / "names") == stored
    assert not list((family.root / "pending").iterdir())


def test_a_change_within_a_change_is_an_error_not_a_wait(family: Registry) -> None:
    with (
        pytest.raises(RuntimeError, match="within a change"),
        family.index.change(),
        family.index.change(),
    ):
        pass
    editing.tag(family, "a", ["x"])


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_vectors_of_the_same_tensors_become_one(family: Registry, tmp_path: Path) -> None:
    save(load(family.find("a").path), tmp_path / "k.safetensors", form="kohya")
    adding.add(family, family.find("a").path, name="again")
    editing.note(family, "again", "kept")
    (group,) = [own for own in comparing.dedup(family) if "again" in own.names]
    assert group.names == ("a", "again")
    assert comparing.merge(family, group) == ["again"]
    assert family.find("again").name == "a"
    assert family.find("a").state.notes == ("kept",)
    assert not problems(family)


def test_a_database_that_is_none_is_told_so(tmp_path: Path) -> None:
    for url in ("mysql://x/y", "nonsense", "sqlite+nothing:///x"):
        with pytest.raises(UsageError):
            names(Registry.open(tmp_path / "s", url))
    gone = f"postgresql+psycopg://postgres@/x?host={tmp_path}/nowhere"
    with pytest.raises(StorageError) as caught:
        names(Registry.open(tmp_path / "s", gone))
    assert caught.value.exit_code == 5
    (tmp_path / "s").write_text("a file is in the way")
    with pytest.raises(StorageError, match=str(tmp_path)):
        adding.add(Registry.open(tmp_path / "s", f"sqlite:///{tmp_path}/s/i.db"), tmp_path / "x")


def test_states_are_json_that_people_can_read(family: Registry) -> None:
    editing.note(family, "a", "für später 🧪")
    stored = json.loads((family.root / "names/a.json").read_text(encoding="utf-8"))
    assert stored["notes"] == ["für später 🧪"]
    assert stored["record"] == family.find("a").state.record


def test_a_name_is_of_its_own_adapter(registry: Registry, tmp_path: Path) -> None:
    for seed in range(3):
        path = tmp_path / f"v{seed}.safetensors"
        save(random_vector(3, 2.0, seed, SMALL), path)
        adding.add(registry, path)
        shutil.move(path, tmp_path / "moved")
    found = [registry.find(f"v{seed}").record for seed in range(3)]
    assert len({own.object for own in found}) == 3
    assert {tuple(own.ranks) for own in found} == {("3",)}
