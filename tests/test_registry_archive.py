"""What backup and restore promise, and what a hostile archive comes to."""

from __future__ import annotations

import io
import random
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from stores import names, problems

from lcm_arith.embedded.files import sha256 as file_sha256
from lcm_arith.errors import (
    InvalidContentError,
    NotFoundError,
    OutputExistsError,
)
from lcm_arith.registry import adding, archive, editing, rebuilding
from lcm_arith.registry.manifests import canonical, digest
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry

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


@pytest.mark.parametrize("index_url", ["sqlite"], indirect=True)
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
