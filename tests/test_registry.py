"""The registry's contract: what each operation promises and refuses, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import os
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import SMALL, names, problems
from support import random_vector

from lcm_arith.adapters import load
from lcm_arith.embedded.files import sha256 as file_sha256
from lcm_arith.errors import (
    InvalidContentError,
    LcmArithError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    UsageError,
)
from lcm_arith.registry import adding, comparing, editing, lineage
from lcm_arith.registry.names import RESERVED, check_name, name_of
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry
from lcm_arith.saving import save

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
