"""Push and pull: whole or not at all, one of two racing pushers, and nothing believed unchecked."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from fake_hub import FakeHub, Seen, point_at, sha256
from fsspec.registry import _registry as loaded
from fsspec.registry import known_implementations
from huggingface_hub import HfApi

from lcm_arith.errors import (
    ConflictError,
    InvalidContentError,
    LcmArithError,
    NetworkError,
    NotFoundError,
    OutputExistsError,
    StorageError,
    UsageError,
    VerificationError,
)
from lcm_arith.registry.remotes import MOST_NAMES, Remote, digest_in, folder, open_remote, places
from lcm_arith.registry.remotes.folder import FolderRemote
from lcm_arith.registry.remotes.hub import HubRemote

BIG, SMALL, MANIFEST = bytes(range(256)) * 20, b"small", b'{"name":"x"}'
NAMES, OTHER = b'{"x": 1}', b'{"x": 2}'

# Names that must never become a path, as huggingface_hub's own test of unsafe file names lists
# them: upwards, absolute, a drive, a share; and near misses of ours.
UNSAFE = [
    "../file.txt",
    "..",
    "a/../../b",
    "..\\..\\file.txt",
    "/etc/passwd",
    "C:\\windows\\system32",
    "C:file",
    "\\\\host\\share\\file",
    "//host/share/file",
    "HEAD",
    "names.json",
    "",
    f"objects/sha256/ab/{'a' * 64}",
    f"objects/sha256/aa/{'a' * 63}",
    f"objects/sha256/aa/{'A' * 64}",
    f"objects/sha256/aa/{'a' * 64}/../x",
    f"objects/sha256/aa/{'a' * 64}\n",
    f"../objects/sha256/aa/{'a' * 64}",
    f"objects/sha256/aa/{'a' * 64}.SAFE",
]


def object_path(data: bytes) -> str:
    return f"objects/sha256/{sha256(data)[:2]}/{sha256(data)}"


def manifest_path(data: bytes) -> str:
    return f"manifests/sha256/{sha256(data)[:2]}/{sha256(data)}.json"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with FakeHub() as server:
        point_at(server, monkeypatch)
        server.repo("org/store", {".gitattributes": b"*.safetensors filter=lfs"})
        yield server


class Bench:
    """A remote, and how to reach into what it holds."""

    def __init__(
        self, remote: Remote, read: Callable[[str], bytes], write: Callable[[str, bytes], Any]
    ) -> None:
        self.remote, self.read, self.write = remote, read, write

    def again(self) -> Remote:
        """The same remote, opened by somebody else."""
        return open_remote(self.remote.url)


def _hub_bench(hub: FakeHub) -> Bench:
    repo = hub.repos["org/store"]

    def read(path: str) -> bytes:
        return repo.commits[repo.branches["main"]][path]

    return Bench(open_remote("hf:org/store"), read, lambda path, data: repo.commit({path: data}))


def _folder_bench(url: str) -> Bench:
    remote = open_remote(url)
    assert isinstance(remote, FolderRemote)
    fs, root = remote.fs, remote.root
    return Bench(
        remote,
        lambda path: bytes(fs.cat_file(f"{root}/{path}")),
        lambda path, data: fs.pipe_file(f"{root}/{path}", data),
    )


@pytest.fixture(params=["hub", "folder", "file", "memory"])
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Bench:
    if request.param == "hub":
        return _hub_bench(request.getfixturevalue("hub"))
    urls = {
        "folder": str(tmp_path / "store [1]"),
        "file": f"file://{tmp_path}/store",
        "memory": f"memory://{uuid.uuid4().hex}/store",
    }
    return _folder_bench(urls[request.param])


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    """Path on the remote → file here: a large object, a small one, a manifest."""
    adds = {object_path(BIG): BIG, object_path(SMALL): SMALL, manifest_path(MANIFEST): MANIFEST}
    found = {}
    for index, (path, data) in enumerate(adds.items()):
        found[path] = tmp_path / f"local-{index}"
        found[path].write_bytes(data)
    return found


def refused(kind: type[LcmArithError], code: int, call: Callable[[], object]) -> str:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert caught.value.exit_code == code
    return str(caught.value)


def test_what_is_pushed_is_pulled_by_somebody_else(
    bench: Bench, files: dict[str, Path], tmp_path: Path
) -> None:
    names, version = bench.remote.read_names()
    assert names is None
    made = bench.remote.commit(files, NAMES, version)
    other = bench.again()
    assert other.read_names() == (NAMES, made)
    assert other.present([*files, object_path(b"absent")]) == frozenset(files)
    for index, (path, local) in enumerate(files.items()):
        other.get(path, tmp_path / f"pulled-{index}")
        assert (tmp_path / f"pulled-{index}").read_bytes() == local.read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_second_push_sends_only_what_is_new_and_replaces_the_list(
    bench: Bench, files: dict[str, Path], tmp_path: Path
) -> None:
    made = bench.remote.commit(files, NAMES, bench.remote.read_names()[1])
    new = tmp_path / "new"
    new.write_bytes(b"new")
    marked = tmp_path / "marked"
    marked.write_bytes(SMALL)
    bench.write(object_path(SMALL), b"SMALL")  # of the same size: shows whether it is sent again
    version = bench.remote.read_names()[1]
    again = bench.remote.commit({**files, object_path(b"new"): new}, OTHER, version)
    assert bench.again().read_names() == (OTHER, again)
    assert again != made
    assert bench.read(object_path(b"new")) == b"new"
    assert bench.read(object_path(SMALL)) == b"SMALL"


def test_of_two_pushers_upon_one_version_the_second_is_told(
    bench: Bench, files: dict[str, Path]
) -> None:
    one, two = bench.remote, bench.again()
    version = one.read_names()[1]
    assert two.read_names()[1] == version
    made = one.commit(files, NAMES, version)
    said = refused(ConflictError, 3, lambda: two.commit(files, OTHER, version))
    assert "somebody else pushed in between" in said
    assert bench.again().read_names() == (NAMES, made)
    assert two.commit({}, OTHER, two.read_names()[1])
    assert bench.again().read_names()[0] == OTHER


def test_a_push_during_the_uploads_of_another_wins_and_the_other_is_told(
    bench: Bench, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    version, other = bench.remote.read_names()[1], bench.again()
    made: list[str] = []

    def cut_in(original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if not made:
                made.append("")
                made[0] = other.commit({}, OTHER, version)
            return original(*args, **kwargs)

        return call

    on_hub = isinstance(bench.remote, HubRemote)
    kind, name = (HfApi, "create_commit") if on_hub else (FolderRemote, "_put")
    monkeypatch.setattr(kind, name, cut_in(getattr(kind, name)))
    refused(ConflictError, 3, lambda: bench.remote.commit(files, NAMES, version))
    assert bench.again().read_names() == (OTHER, made[0])


def test_many_pushers_at_once_lose_no_push_on_a_folder(tmp_path: Path) -> None:
    _race(lambda: open_remote(str(tmp_path / "store")), 8)


def test_many_pushers_at_once_lose_no_push_on_the_hub(hub: FakeHub) -> None:
    _race(lambda: open_remote("hf:org/store"), 4)


def _race(open_one: Callable[[], Remote], pushers: int) -> None:
    """Each adds its number to the list until it is in; all numbers must be there in the end."""
    errors: list[BaseException] = []
    start = threading.Barrier(pushers)

    def push(number: int) -> None:
        try:
            remote = open_one()
            start.wait()
            for _ in range(10 * pushers):
                names, version = remote.read_names()
                listed = sorted([*json.loads(names or b"[]"), number])
                try:
                    remote.commit({}, json.dumps(listed).encode(), version)
                    return
                except ConflictError:
                    continue
            raise AssertionError("never got in")
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=push, args=(number,)) for number in range(pushers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    names, _ = open_one().read_names()
    assert json.loads(names or b"") == list(range(pushers))


def test_half_a_push_to_a_folder_is_invisible(
    files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up at every step of a push in turn; the list stays, and a retry ends well."""
    remote = open_remote(str(tmp_path / "store"))
    assert isinstance(remote, FolderRemote)
    before = remote.commit({}, OTHER, "")
    put, left = type(remote.fs).put_file, [0]

    def fail_at_last(fs: Any, local: str, at: str, **kwargs: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            Path(at).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        put(fs, local, at, **kwargs)

    monkeypatch.setattr(type(remote.fs), "put_file", fail_at_last)
    for steps in range(len(files) + 2):  # the files, the list, HEAD
        left[0] = min(steps, 1)  # those before are there already
        said = refused(StorageError, 5, lambda: remote.commit(files, NAMES, before))
        assert "No space left on device" in said
        assert open_remote(remote.url).read_names() == (OTHER, before)
        assert not list((tmp_path / "store").rglob("*.part"))
    monkeypatch.undo()
    made = remote.commit(files, NAMES, before)
    assert remote.read_names() == (NAMES, made)


@pytest.mark.parametrize("path", ["/org/store.git/info/lfs/objects/batch", f"/upload/{sha256(BIG)}",
                                  "/api/models/org/store/commit/main"])  # fmt: skip
def test_half_a_push_to_the_hub_is_invisible(
    path: str, hub: FakeHub, files: dict[str, Path]
) -> None:
    remote = open_remote("hf:org/store")
    _, version = remote.read_names()
    hub.fault(path, status=403, body=b'{"error": "quota exceeded"}', times=1)
    refused(NetworkError, 7, lambda: remote.commit(files, NAMES, version))
    assert remote.read_names() == (None, version)
    made = remote.commit(files, NAMES, version)
    assert remote.read_names() == (NAMES, made)


def test_a_stale_push_to_a_folder_sends_nothing(files: dict[str, Path], tmp_path: Path) -> None:
    remote = open_remote(str(tmp_path / "store"))
    remote.commit({}, OTHER, "")
    refused(ConflictError, 3, lambda: remote.commit(files, NAMES, ""))
    assert remote.present(files) == frozenset()


def test_a_commit_whose_answer_is_lost_is_not_sent_twice(
    hub: FakeHub, files: dict[str, Path]
) -> None:
    remote = open_remote("hf:org/store")
    version = remote.read_names()[1]
    path = "/api/models/org/store/commit/main"
    hub.fault(path, status=504, times=1)
    refused(NetworkError, 7, lambda: remote.commit(files, NAMES, version))
    assert len(hub.asked(path)) == 1


def test_a_push_to_the_hub_is_one_commit_with_its_parent(
    hub: FakeHub, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_writer\n")
    remote = open_remote("hf:org/store")
    made = remote.commit(files, NAMES, remote.read_names()[1])
    assert list(hub.repos["org/store"].commits)[1:] == [made]
    tree = hub.repos["org/store"].commits[made]
    assert tree[object_path(BIG)] == BIG
    assert tree["names.json"] == NAMES
    sent = hub.asked("/api/models/org/store/commit/main")
    assert [each.token for each in sent] == ["Bearer hf_writer"]
    uploads: list[Seen] = hub.asked(f"/upload/{sha256(BIG)}")
    assert [each.token for each in uploads] == [""]  # a signed address; the token is not for it


def test_a_file_that_the_hub_leaves_out_is_an_error(
    hub: FakeHub, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a .gitignore in the repository does: the client then skips the file in silence."""
    ignoring = {"path": object_path(SMALL), "uploadMode": "regular", "shouldIgnore": True}
    monkeypatch.setattr(
        "fake_hub._upload_mode",
        lambda row: (
            ignoring
            if row["path"] == object_path(SMALL)
            else {"path": row["path"], "uploadMode": "regular", "shouldIgnore": False}
        ),
    )
    remote = open_remote("hf:org/store")
    version = remote.read_names()[1]
    said = refused(VerificationError, 8, lambda: remote.commit(files, NAMES, version))
    assert f"left out 1 of 3 files, such as {object_path(SMALL)}" in said


def test_another_branch_is_another_remote(hub: FakeHub, files: dict[str, Path]) -> None:
    repo = hub.repos["org/store"]
    repo.branches["team"] = repo.branches["main"]
    remote = open_remote("hf:org/store@team")
    made = remote.commit(files, NAMES, remote.read_names()[1])
    assert remote.read_names() == (NAMES, made)
    assert open_remote("hf:org/store").read_names()[0] is None


# What a remote may not do


def test_a_corrupted_object_is_found_and_not_kept(
    bench: Bench, files: dict[str, Path], tmp_path: Path
) -> None:
    bench.remote.commit(files, NAMES, bench.remote.read_names()[1])
    for data in (BIG, SMALL):
        bad = data[:-1] + b"\0"
        bench.write(object_path(data), bad)
        place = tmp_path / "pulled"
        get = partial(bench.remote.get, object_path(data), place)
        said = refused(InvalidContentError, 4, get)
        assert sha256(bad) in said
        assert sha256(data) in said
        assert not place.exists()
        assert not list(tmp_path.glob(".*.part"))


@pytest.mark.parametrize("path", UNSAFE)
def test_no_other_path_is_ever_touched(path: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidContentError) as caught:
        digest_in(path)
    assert caught.value.exit_code == 4
    local = tmp_path / "local"
    local.write_bytes(b"x")
    for remote in (open_remote(str(tmp_path / "store")), HubRemote("org/store")):
        refused(InvalidContentError, 4, partial(remote.get, path, tmp_path / "got"))
        refused(InvalidContentError, 4, partial(remote.present, [path]))
        refused(InvalidContentError, 4, partial(remote.commit, {path: local}, b"", "0" * 40))
    assert [each.name for each in tmp_path.iterdir()] == ["local"]


def test_a_good_path_holds_its_digest() -> None:
    assert digest_in(object_path(BIG)) == sha256(BIG)
    assert digest_in(manifest_path(BIG)) == sha256(BIG)
    assert digest_in(object_path(BIG) + ".safetensors") == sha256(BIG)


def test_a_file_that_is_not_what_its_path_says_is_not_pushed(
    bench: Bench, files: dict[str, Path]
) -> None:
    version = bench.remote.read_names()[1]
    files[object_path(BIG)].write_bytes(b"changed")
    said = refused(InvalidContentError, 4, lambda: bench.remote.commit(files, NAMES, version))
    assert sha256(b"changed") in said
    assert bench.remote.present(files) == frozenset()
    assert bench.remote.read_names() == (None, version)


def test_a_list_that_is_too_long_is_refused_both_ways(
    bench: Bench, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MOST_NAMES == 16 * 2**20
    for module in ("places", "folder", "hub"):
        monkeypatch.setattr(f"lcm_arith.registry.remotes.{module}.MOST_NAMES", 100)
    version = bench.remote.read_names()[1]
    said = refused(InvalidContentError, 4, lambda: bench.remote.commit({}, bytes(101), version))
    assert "the limit is 100" in said
    monkeypatch.setattr(places, "MOST_NAMES", 1000)
    bench.remote.commit({}, b" " * 101, version)
    assert "100" in refused(InvalidContentError, 4, bench.remote.read_names)


def test_an_object_that_is_too_large_is_refused(
    bench: Bench, files: dict[str, Path], tmp_path: Path
) -> None:
    bench.remote.commit(files, NAMES, bench.remote.read_names()[1])
    place, path = tmp_path / "pulled", object_path(BIG)
    said = refused(InvalidContentError, 4, lambda: bench.remote.get(path, place, len(BIG) - 1))
    assert str(len(BIG) - 1) in said
    assert not place.exists()


@pytest.mark.parametrize("head", [b"../../etc/passwd", b"0" * 63, b"0" * 65, b"\xff" * 64, b""])
def test_a_head_that_names_no_list_is_refused(head: bytes, tmp_path: Path) -> None:
    bench = _folder_bench(str(tmp_path / "store"))
    (tmp_path / "store").mkdir()
    bench.write("HEAD", head)
    refused(InvalidContentError, 4, bench.remote.read_names)


def test_a_list_that_was_changed_is_refused(tmp_path: Path) -> None:
    bench = _folder_bench(str(tmp_path / "store"))
    made = bench.remote.commit({}, NAMES, "")
    bench.write(f"names/sha256/{made[:2]}/{made}.json", OTHER)
    assert sha256(OTHER) in refused(InvalidContentError, 4, bench.remote.read_names)


def test_what_is_not_there_is_not_found(bench: Bench, tmp_path: Path) -> None:
    place = tmp_path / "pulled"
    refused(NotFoundError, 3, lambda: bench.remote.get(object_path(b"absent"), place))
    assert not place.exists()
    place.write_bytes(b"mine")
    refused(OutputExistsError, 3, lambda: bench.remote.get(object_path(b"absent"), place))
    assert place.read_bytes() == b"mine"


def test_a_place_that_cannot_be_written_is_a_storage_error(
    bench: Bench, files: dict[str, Path], tmp_path: Path
) -> None:
    bench.remote.commit(files, NAMES, bench.remote.read_names()[1])
    place = tmp_path / "absent" / "pulled"
    refused(StorageError, 5, lambda: bench.remote.get(object_path(SMALL), place))


def test_a_repository_that_is_not_there_is_not_found(hub: FakeHub) -> None:
    refused(NotFoundError, 3, open_remote("hf:org/absent").read_names)
    refused(NotFoundError, 3, open_remote("hf:org/store@absent").read_names)


def test_offline_mode_asks_no_hub(
    hub: FakeHub, files: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    remote = open_remote("hf:org/store")
    refused(NetworkError, 7, remote.read_names)
    refused(NetworkError, 7, lambda: remote.get(object_path(BIG), tmp_path / "x"))
    refused(NetworkError, 7, lambda: remote.commit(files, NAMES, "0" * 40))
    assert hub.seen == []


# Addresses


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("hf:repo", "hf:org/repo"),
        ("hf:org/repo:file", "hf:org/repo"),
        ("nosuch://x/y", "is no remote that is known"),
    ],
)
def test_an_address_that_is_no_remote_is_refused(url: str, named: str) -> None:
    assert named in refused(UsageError, 2, lambda: open_remote(url))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {"class": "s3fs_absent.S3FileSystem", "err": "Install s3fs to access S3"}
    monkeypatch.setitem(known_implementations, "s3", row)
    monkeypatch.delitem(loaded, "s3", raising=False)
    said = refused(UsageError, 2, lambda: open_remote("s3://key:secret@Bucket/x"))
    assert "s3://Bucket/x: needs a package that is not installed (Install s3fs" in said
    assert "secret" not in said


def test_a_bucket_is_written_in_one_request_and_its_failures_are_network_errors(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for S3: no rename, whole puts; then a server that refuses."""
    from fsspec.implementations.memory import MemoryFileSystem

    class Bucket(MemoryFileSystem):  # type: ignore[misc]
        protocol = ("s3", "s3a")
        store: dict[str, Any] = {}  # noqa: RUF012  (as the class it stands in for)
        pseudo_dirs = [""]  # noqa: RUF012

        def mv(self, *_: Any, **__: Any) -> None:
            raise AssertionError("a bucket cannot rename")

    remote = FolderRemote("s3://bucket", Bucket(skip_instance_cache=True), "/bucket")
    made = remote.commit(files, NAMES, "")
    assert remote.read_names() == (NAMES, made)
    assert not [path for path in Bucket.store if path.endswith(".part")]

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Access Denied")

    monkeypatch.setattr(Bucket, "put_file", refuse)
    said = refused(NetworkError, 7, lambda: remote.commit(files, OTHER, made))
    assert "Access Denied" in said
    assert remote.read_names() == (NAMES, made)


def test_a_folder_without_permission_is_a_storage_error(
    files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "store").write_bytes(b"a file is in the way")
    refused(StorageError, 5, lambda: open_remote(str(tmp_path / "store")).commit(files, NAMES, ""))


def test_pushed_files_are_readable_as_the_umask_says(
    files: dict[str, Path], tmp_path: Path
) -> None:
    open_remote(str(tmp_path / "store")).commit(files, NAMES, "")
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    for path in (*files, folder.HEAD):
        assert (tmp_path / "store" / path).stat().st_mode == plain.stat().st_mode
