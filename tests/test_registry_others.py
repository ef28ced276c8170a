"""What others say: their words beside ours on a remote, and words that are none."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from lcm_arith.embedded import files
from lcm_arith.errors import InvalidContentError, OutputExistsError
from lcm_arith.registry import adding, archive, editing, syncing
from lcm_arith.registry.manifests import canonical
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
