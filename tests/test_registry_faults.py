"""The registry under faults: a few points of each; ``make torture`` tries them by the hundred."""

from __future__ import annotations

import os
from pathlib import Path

import descent
import faults
import pytest
import tracer
import wear
from contention import killed_at_random, readers, same, writers
from faults import Tally
from stores import OPERATIONS, Stores, adapters, lite
from tracer import Call, traced

from lcm_arith.registry import adding, editing, upkeep
from lcm_arith.registry.states import States


@pytest.fixture(autouse=True)
def disk() -> None:
    """The real one."""


@pytest.fixture(scope="session")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Stores:
    return Stores.make(tmp_path_factory.mktemp("stores"))


def lossless(tally: Tally, points: int) -> None:
    assert not tally.losses, "\n".join(tally.losses)
    assert tally.points >= points


def test_what_was_acknowledged_survives_a_kill_at_any_moment(
    tmp_path: Path, index_url: str
) -> None:
    kills, longest = (10, 0.12) if index_url.startswith("sqlite") else (5, 0.4)
    tally = killed_at_random(tmp_path, index_url, kills, longest=longest)
    lossless(tally, kills)
    assert tally.figures["acknowledged"] > kills / 5


def test_an_operation_killed_at_any_call_is_done_or_not(stores: Stores) -> None:
    lossless(faults.killed_at_calls(stores, 1, OPERATIONS), 14)


def test_the_first_add_of_all_killed_before_its_folder_is_made(stores: Stores) -> None:
    tally = faults.killed_at_calls(
        stores, 99, OPERATIONS[:1], only=lambda call: call.name.startswith("mkdir")
    )
    lossless(tally, 10)  # objects, manifests, names, pending, tmp, and what is in them


def test_a_disk_that_refuses_leaves_the_store_as_it_was(stores: Stores) -> None:
    tally = faults.refused_at_calls(stores, 1, OPERATIONS)
    lossless(tally, len(OPERATIONS))
    assert tally.figures["told"] > 7


def test_a_migration_killed_at_any_statement_is_done_or_not(stores: Stores) -> None:
    lossless(faults.killed_at_statements(stores, every=4), 7)


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_an_old_schema_is_brought_up_and_a_newer_refused(
    stores: Stores, kind: str, request: pytest.FixtureRequest
) -> None:
    url = request.getfixturevalue("server").url() if kind == "postgresql" else None
    lossless(faults.schemas(stores, url), 2)


def test_writers_at_once_lose_nothing(tmp_path: Path, index_url: str) -> None:
    lossless(writers(tmp_path, index_url, 4, 12), 48)


def test_the_same_bytes_and_name_at_once_have_one_winner(tmp_path: Path, index_url: str) -> None:
    lossless(same(tmp_path, index_url, 6), 12)


def test_readers_miss_nothing_while_it_is_swept(tmp_path: Path, index_url: str) -> None:
    lossless(readers(tmp_path, index_url, 4, seconds=1), 20)


def test_a_source_that_changes_is_refused_or_added_whole(tmp_path: Path) -> None:
    lossless(wear.source_changed(tmp_path), 8)


def test_each_rotten_bit_is_found(tmp_path: Path) -> None:
    lossless(wear.rotten(tmp_path, 20), 20)


def test_reindex_outlives_any_damage_of_the_index(stores: Stores) -> None:
    lossless(wear.index_lost(stores, 5), 8)


def test_a_store_that_may_only_be_read(stores: Stores) -> None:
    lossless(wear.read_only(stores), 6)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
def test_a_store_of_another_user(stores: Stores) -> None:
    lossless(wear.shared(stores), 4)


def test_odd_places(tmp_path: Path) -> None:
    lossless(wear.odd_places(tmp_path), len(wear.PLACES))


def test_odd_surroundings(tmp_path: Path) -> None:
    lossless(wear.surroundings(tmp_path, ("all at once",)), 1)


def test_clocks_that_are_wrong(stores: Stores) -> None:
    lossless(wear.clocks(stores), 4)


def test_what_was_made_is_made_again_to_the_last_bit(tmp_path: Path) -> None:
    lossless(descent.rebuilt(tmp_path, 8), 8)


def test_bytes_are_on_the_disk_before_their_name_and_the_name_before_the_commit(
    stores: Stores,
) -> None:
    calls = faults.trace(stores, OPERATIONS[1]).calls
    assert calls, "nothing was seen"
    root = calls[0].path.rsplit("/", 1)[0]
    short = [Call(own.name, own.path.removeprefix(f"{root}/")) for own in calls]

    def at(name: str, start: str, end: str, last: bool = False) -> int:
        """Place of the only call of that kind, or of the last."""
        found = [
            number
            for number, own in enumerate(short)
            if own.name.removesuffix("at") == name
            and own.path.startswith(start)
            and own.path.endswith(end)
        ]
        assert found, (name, start, end, short)
        assert last or len(found) == 1, (name, start, end, short)
        return found[-1]

    sha256 = next(own.path for own in short if own.path.startswith("objects/sha256/"))[15:17]
    order = [
        at("write", "tmp/", "/object.safetensors"),
        at("fsync", "tmp/", "/object.safetensors"),
        at("rename", "objects/", ".safetensors"),
        at("fsync", f"objects/sha256/{sha256}", ""),
        at("write", "manifests/", ".part"),
        at("fsync", "manifests/", ".part"),
        at("rename", "manifests/", ".json"),
        at("fsync", "manifests/sha256/", "", last=True),
        at("write", "names/", ".part"),
        at("fsync", "names/", ".part"),
        at("rename", "names/new.json", ""),
        at("fsync", "names", "", last=True),
        at("pwrite64", "index.db", "", last=True),
        at("fdatasync", "index.db", "index.db"),
        at("unlink", "index.db-journal", ""),  # SQLite's COMMIT
    ]
    assert order == sorted(order), [short[number] for number in order]
    assert calls[order[-1] + 1] == Call("fdatasync", root), "and its folder after it"


# The tests above would see a loss: here one is made.


def test_a_lost_update_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit = editing.tag
    monkeypatch.setattr(editing, "tag", lambda r, n, t: edit(r, n, t) if t[0] != "t1-4" else None)
    losses = writers(tmp_path, f"sqlite:///{tmp_path / 'i.db'}", 2, 8).losses
    assert losses == ["1 updates of 16 are lost"]


def test_files_that_are_never_settled_are_seen(
    stores: Stores, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(States, "settle", lambda *_: None)
    rename = next(own for own in OPERATIONS if own.name == "rename")
    assert faults.killed_at_calls(stores, 12, (rename,)).losses


def test_a_kill_and_a_refusal_are_what_they_say(tmp_path: Path) -> None:
    path = adapters(tmp_path, 1)[0]

    def act() -> str:
        return adding.add(lite(tmp_path / "s"), path, name="new").name

    run = traced(act, tmp_path / "s", kill_at=5)
    assert (run.killed, len(run.calls), run.told) == (True, 6, {})
    run = traced(act, tmp_path / "s", refuse=lambda number, call: 28 * (call.name == "write"))
    assert run.told["error"] == "StorageError"
    assert "No space left on device" in run.told["message"]
    assert f"{path.stat().st_size:,} bytes are needed" in run.told["message"]
    assert traced(act, tmp_path / "s").told == {"done": "new"}
    assert not upkeep.verify(lite(tmp_path / "s"), deep=True).problems


def test_a_system_that_refuses_tracing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracer, "_TRACEME", 9999)
    with pytest.raises(tracer.TracingRefusedError, match="SYS_PTRACE"):
        traced(lambda: None, tmp_path)
