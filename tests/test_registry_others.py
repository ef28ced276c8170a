"""What others say: their words beside ours on a remote, and words that are none."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from fake_hub import FakeHub, point_at
from safetensors.torch import save_file

from lcm_arith.embedded import files
from lcm_arith.errors import IncompatibleError, InvalidContentError, OutputExistsError, UsageError
from lcm_arith.registry import adding, archive, database, editing, syncing, upkeep
from lcm_arith.registry.downloads import UrlSource, parse_source
from lcm_arith.registry.fetching import add_from
from lcm_arith.registry.manifests import MOST_BYTES, canonical, digest
from lcm_arith.registry.naming import give
from lcm_arith.registry.remotes import Remote, open_remote
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry


def opened(folder: Path) -> Registry:
    return Registry.open(folder, f"sqlite:///{folder / 'index.db'}")


@pytest.fixture
def here(tmp_path: Path) -> Registry:
    registry = opened(tmp_path / "here")
    adding.add(registry, files.vector_path("noto"), name="ink")
    return registry


@pytest.fixture
def there(tmp_path: Path) -> Registry:
    return opened(tmp_path / "there")


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    return open_remote(str(tmp_path / "remote"))


def listed(remote: Remote, name: str = "ink") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(remote.read_names()[0] or b"")["names"][name]
    return found


def relist(remote: Remote, **changed: Mapping[str, Any]) -> None:
    """Writes a list of names as somebody else's program would."""
    data, version = remote.read_names()
    values = json.loads(data or b"")
    values["names"] |= changed
    remote.commit({}, json.dumps(values).encode(), version)


def test_a_push_keeps_what_others_said_meanwhile(
    here: Registry, there: Registry, remote: Remote
) -> None:
    syncing.push(here, remote)
    syncing.pull(there, remote)
    editing.set_values(here, "ink", {"licence": "cc-by-4.0", "triggers": ["inky"]})
    editing.tag(here, "ink", ["best"])
    editing.note(here, "ink", "important")
    assert syncing.push(here, remote, with_notes=True).names == ("ink",)
    before = listed(remote)
    assert syncing.push(there, remote).names == ()  # it knows nothing that is new
    assert listed(remote) == before
    editing.tag(there, "ink", ["mine"])
    editing.set_values(there, "ink", {"title": "Ink"})
    assert syncing.push(there, remote).names == ("ink",)
    assert listed(remote)["settings"] == {
        "licence": "cc-by-4.0",
        "triggers": ["inky"],
        "title": "Ink",
    }
    assert (listed(remote)["tags"], listed(remote)["notes"]) == (["best", "mine"], ["important"])


def test_a_push_that_contradicts_is_refused_and_names_the_settings(
    here: Registry, there: Registry, remote: Remote
) -> None:
    syncing.push(here, remote)
    syncing.pull(there, remote)
    editing.set_values(here, "ink", {"licence": "cc-by-4.0", "title": "Ink", "author": "Ann"})
    syncing.push(here, remote)
    editing.set_values(there, "ink", {"licence": "mit", "title": "Ink", "kind": "style"})
    with pytest.raises(OutputExistsError, match=r"said there of ink \(licence\)"):
        syncing.push(there, remote)
    assert listed(remote)["settings"]["licence"] == "cc-by-4.0"
    done = syncing.push(there, remote, force=True)
    assert (done.names, done.other) == (("ink",), {"ink": ("licence",)})
    assert listed(remote)["settings"] == {
        "licence": "mit",
        "title": "Ink",
        "kind": "style",
        "author": "Ann",  # what only the remote says is not lost, whatever is forced
    }


def test_an_alias_is_not_moved_by_a_push(here: Registry, there: Registry, remote: Remote) -> None:
    adding.add(here, files.vector_path("lcm"), name="pen")
    editing.alias(here, "best", "ink")
    syncing.push(here, remote)
    syncing.pull(there, remote)
    editing.alias(there, "best", "pen")
    with pytest.raises(OutputExistsError, match="best stand for other"):
        syncing.push(there, remote)
    assert listed(remote, "best")["alias_of"] == "ink"


def test_a_pull_takes_over_what_is_not_said_here_and_tells_of_contradictions(
    here: Registry, there: Registry, remote: Remote
) -> None:
    syncing.push(here, remote)
    syncing.pull(there, remote)
    editing.set_values(here, "ink", {"licence": "cc-by-4.0", "title": "Ink"})
    editing.tag(here, "ink", ["best"])
    editing.note(here, "ink", "important")
    syncing.push(here, remote, with_notes=True)
    editing.set_values(there, "ink", {"title": "Other"})
    editing.tag(there, "ink", ["mine"])
    editing.note(there, "ink", "own")
    added = there.find("ink").state.added
    done = syncing.pull(there, remote)
    assert (done.names, done.same) == (("ink",), ())
    assert done.told == {"ink": ("licence", "tags", "notes")}
    assert done.other == {"ink": ("title",)}
    state = there.find("ink").state
    assert state.settings == {"licence": "cc-by-4.0", "title": "Other"}
    assert (state.tags, state.notes) == (("best", "mine"), ("own", "important"))
    assert state.added == added
    again = syncing.pull(there, remote)
    assert (again.names, again.told, again.other) == ((), {}, {"ink": ("title",)})
    syncing.pull(there, remote, force=True)
    assert there.find("ink").state.settings == {"licence": "cc-by-4.0", "title": "Ink"}


BAD_STATES = {
    "a kind that is no text": {"settings": {"kind": {"x": 1}}},
    "triggers that are no list": {"settings": {"triggers": 7}},
    "triggers that are no texts": {"settings": {"triggers": ["a", 7]}},
    "a number": {"settings": {"weight": 3}},
    "an unknown setting": {"settings": {"colour": "red"}},
    "a fraction": {"settings": {"weight": 0.5}},
    "a list of licences": {"settings": {"licence": ["mit"]}},
    "a kind that there is not": {"settings": {"kind": "sharp"}},
    "a family of other shapes": {"settings": {"family": "sdxl"}},
    "a tag that is no text": {"tags": [1]},
    "a record that is no digest": {"record": "0" * 63},
}


@pytest.mark.parametrize("values", BAD_STATES.values(), ids=BAD_STATES)
def test_what_a_remote_says_is_checked_before_it_is_taken_over(
    values: dict[str, Any], here: Registry, there: Registry, remote: Remote
) -> None:
    syncing.push(here, remote)
    relist(remote, ink={**listed(remote), **values})
    with pytest.raises(InvalidContentError):
        syncing.pull(there, remote)
    assert [row.name for row in there.index.rows()] == []


@pytest.mark.parametrize(
    "aliases",
    [{"aa": "bb", "bb": "aa"}, {"aa": "aa"}, {"aa": "gone"}, {"aa": "bb", "bb": "ink"}],
    ids=["a circle", "itself", "nothing", "a chain"],
)
def test_aliases_of_a_backup_stand_for_vectors(
    aliases: dict[str, str], here: Registry, tmp_path: Path
) -> None:
    path = tmp_path / "other.tar"
    with tarfile.open(path, "w") as tar:
        for name, target in aliases.items():
            data = State(alias_of=target).text().encode()
            info = tarfile.TarInfo(f"names/{name}.json")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InvalidContentError, match="stand"):
        archive.restore(here, path)
    assert [row.name for row in here.index.rows()] == ["ink"]


def test_a_vector_with_aliases_does_not_become_an_alias(here: Registry) -> None:
    editing.alias(here, "best", "ink")
    with pytest.raises(InvalidContentError, match="best: would stand for ink, an alias"):
        give(here, {"ink": State(alias_of="noto")}, force=True)
    assert here.find("best").name == "ink"
    assert give(here, {"drawn": State(alias_of="noto")}) == ["drawn"]  # a shipped one


@pytest.mark.parametrize("name", ["../x", "A", "con", "x.safetensors", "", 7])
def test_an_alias_stands_for_a_name(name: Any) -> None:
    with pytest.raises(InvalidContentError, match="alias_of"):
        State.of(canonical({"alias_of": name}), "remote")


@pytest.mark.parametrize(
    ("repo", "file", "name"),
    [
        ("ByteDance/Hyper-SD", "Hyper-SDXL-8steps-lora.safetensors", "hyper-sdxl-8steps-lora"),
        ("ByteDance/Hyper-SD", "Hyper-SD15-4steps-lora.safetensors", "hyper-sd15-4steps-lora"),
        ("artist/Ink", "pytorch_lora_weights.safetensors", "ink"),
        ("artist/Ink", "v2/adapter_model.safetensors", "ink-v2"),
        ("artist/Ink", "v2/Pen.safetensors", "pen"),
    ],
)
def test_a_file_of_the_hub_has_its_own_name_unless_all_are_called_so(
    repo: str, file: str, name: str, there: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub() as hub:
        point_at(hub, monkeypatch)
        hub.repo(repo, {file: files.vector_path("lcm").read_bytes()})
        source = parse_source(f"hf:{repo}:{file}")
        assert source is not None
        assert add_from(there, source).name == name


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder, and the address at which its files can be downloaded."""
    (tmp_path / "site").mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Says nothing."""

    handler = partial(Handler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield tmp_path / "site", f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_kind_guessed_from_the_name_of_a_download_stays_over_push_and_pull(
    here: Registry, there: Registry, remote: Remote, site: tuple[Path, str]
) -> None:
    folder, url = site
    name = "lcm-lora-sdv1-5.safetensors"
    # Without the header that says its kind, so that only the name does.
    module = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    shapes = {"lora_down.weight": (2, 1280), "lora_up.weight": (1280, 2)}
    tensors = {f"{module}.{part}": torch.ones(*shape) for part, shape in shapes.items()}
    save_file(tensors, folder / name)
    added = add_from(here, UrlSource(f"{url}/{name}"), name="fast")
    assert (added.record.guess["kind"], added.record.source["file"]) == ("acceleration", name)
    shutil.copy(folder / name, folder / "a.safetensors")
    plain = adding.add(here, folder / "a.safetensors")
    assert plain.record.guess["kind"] != "acceleration"
    syncing.push(here, remote, ["fast"])
    syncing.pull(there, remote)
    assert there.find("fast").record == added.record
    again = syncing.push(there, remote)
    assert (again.names, again.same) == ((), ("fast",))


def test_a_manifest_of_a_remote_has_a_limit(
    here: Registry, there: Registry, remote: Remote, tmp_path: Path
) -> None:
    syncing.push(here, remote)
    data = b" " * (MOST_BYTES + 1)
    sha256 = digest(data)
    path = tmp_path / "remote/manifests/sha256" / sha256[:2] / f"{sha256}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    relist(remote, ink={**listed(remote), "record": sha256})
    with pytest.raises(InvalidContentError, match="larger than 16777216 bytes"):
        syncing.pull(there, remote)


@pytest.mark.parametrize("url", ["github://x", "reference://x", "generic://x", "ftp://h:xx/y"])
def test_an_address_that_fsspec_cannot_read_is_a_mistake_of_the_user(url: str) -> None:
    with pytest.raises(UsageError, match="no remote that is known"):
        open_remote(url)


def test_a_file_system_that_cannot_be_written_is_a_mistake_of_the_user(here: Registry) -> None:
    with pytest.raises(UsageError, match="cannot be a remote"):
        syncing.push(here, open_remote("data:abc"))


@pytest.mark.parametrize(
    "url", ["simplecache::nosuch://u:secret@b/x", "filecache::nosuch://secret@h/x"]
)
def test_no_part_of_a_chained_address_shows_a_password(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_remote(url)
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"
    assert "//b/x" in caught.value.message or "//h/x" in caught.value.message


@pytest.mark.parametrize("url", ["u:p@ss:secret@h/x", "u:secret@h:xx/x", "[::1/x"])
def test_a_database_whose_port_is_no_number_is_a_mistake_of_the_user(url: str) -> None:
    with pytest.raises(UsageError, match="port is no number") as caught:
        database.engine(f"postgresql+psycopg://{url}")
    assert "secret" not in f"{caught.value.message} {caught.value.hint}"


def test_two_folders_on_one_index_are_told_apart(tmp_path: Path, index_url: str) -> None:
    one, other = (Registry.open(tmp_path / own, index_url) for own in ("one", "other"))
    adding.add(one, files.vector_path("noto"), name="ink")
    said = (tmp_path / "one/store-id").read_text()
    for call in (other.rows, lambda: upkeep.reindex(other), lambda: other.find("ink")):
        with pytest.raises(IncompatibleError, match=f"{one.root}.*{said}") as caught:
            call()
        assert caught.value.exit_code == 6
    assert [row.name for row in one.index.rows()] == ["ink"]
    own = opened(tmp_path / "other")
    adding.add(own, files.vector_path("lcm"), name="pen")
    with pytest.raises(IncompatibleError):
        Registry.open(tmp_path / "other", index_url).rows()
    (tmp_path / "one").rename(tmp_path / "moved")
    moved = Registry.open(tmp_path / "moved", index_url)
    assert moved.find("ink").path.is_file()
    assert upkeep.reindex(moved).names == 1


def test_a_new_index_takes_the_id_of_its_folder(here: Registry) -> None:
    said = (here.root / "store-id").read_text()
    assert len(said) == 32
    (here.root / "index.db").unlink()
    assert [row.name for row in opened(here.root).index.rows()] == ["ink"]
    with here.index.reading() as connection:
        assert connection.execute(sa.select(database.store.c.id)).scalars().all() == [said]
    (here.root / "store-id").unlink()  # an index in the folder is nobody else's
    assert [row.name for row in here.index.rows()] == ["ink"]


def test_an_older_index_with_names_is_not_taken_by_an_empty_folder(
    tmp_path: Path, index_url: str
) -> None:
    one, other = (Registry.open(tmp_path / own, index_url) for own in ("one", "other"))
    adding.add(one, files.vector_path("noto"), name="ink")
    with one.index.change() as change:  # as the version before left it
        database.store.drop(change.connection)
        table = database.migrations
        change.connection.execute(table.delete().where(table.c.name == "0002_store"))
    with pytest.raises(IncompatibleError, match="folder that is not known"):
        other.rows()
    assert [row.name for row in one.index.rows()] == ["ink"]
    with pytest.raises(IncompatibleError, match=str(one.root)):
        other.rows()
