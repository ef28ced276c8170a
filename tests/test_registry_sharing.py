"""Vectors leave the registry and come back: export, push, pull, downloads, licences."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
import yaml
from fake_hub import FakeHub, point_at
from safetensors.torch import save_file

from lcm_arith.adapters import load
from lcm_arith.analysis import distance
from lcm_arith.combination import combine_terms
from lcm_arith.embedded import files
from lcm_arith.errors import NotFoundError, OutputExistsError, UsageError
from lcm_arith.registry import adding, comparing, editing, exporting, syncing, upkeep
from lcm_arith.registry.downloads import parse_source
from lcm_arith.registry.fetching import add_from
from lcm_arith.registry.remotes import open_remote
from lcm_arith.registry.store import Registry
from lcm_arith.saving import save, save_folder
from lcm_arith.weights import parse_term


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "here", f"sqlite:///{tmp_path / 'here' / 'index.db'}")


@pytest.fixture
def other(tmp_path: Path) -> Registry:
    return Registry.open(tmp_path / "there", f"sqlite:///{tmp_path / 'there' / 'index.db'}")


def mixed(registry: Registry, folder: Path, *terms: str, name: str = "mix") -> None:
    path = folder / f"{name}.safetensors"
    save(combine_terms([parse_term(t) for t in terms]), path, about={"kind": "combined"})
    adding.add(registry, path)


def equal(one: Path, name: str) -> bool:
    lost, total = distance(load(one), load(name))
    return lost <= 1e-6 * total  # float32's rounding of a scale


@pytest.mark.parametrize("form", exporting.FORMATS)
def test_an_export_holds_the_vector_and_a_card_that_says_its_parts(
    form: str, registry: Registry, tmp_path: Path
) -> None:
    mixed(registry, tmp_path, "noto:0.8", "lcm:1")
    done = exporting.export(registry, registry.find("mix"), tmp_path / "out", form=form)
    path = tmp_path / "out" if form == "peft" else tmp_path / "out" / done.file
    assert equal(path, str(tmp_path / "mix.safetensors"))
    assert done.copied == (form == "diffusers")
    text = (tmp_path / "out/README.md").read_text()
    written = hashlib.sha256((tmp_path / "out" / done.file).read_bytes()).hexdigest()
    assert f"sha256 of this file: {written}" in text
    assert ("models/Lora" in text) == (form == "kohya")
    front = yaml.safe_load(text.split("---")[1])
    assert front["license"] == "other"  # Apache-2.0 and CC-BY-4.0 together are neither
    for name, weight in (("noto", "0.8"), ("lcm", "1")):
        assert re.search(rf"\| {name} \| {weight} \| [0-9a-f]{{64}} \|", text)
    assert "num_inference_steps=4" in text  # of the acceleration in it
    assert "LCMScheduler" in text
    with pytest.raises(OutputExistsError):
        exporting.export(registry, registry.find("mix"), tmp_path / "out", form=form)
    exporting.export(registry, registry.find("mix"), tmp_path / "out", form=form, force=True)


def test_a_mix_has_the_triggers_of_its_parts_and_kohya_gets_them_beside(
    registry: Registry, tmp_path: Path
) -> None:
    own = {"triggers": ["notoish"]}
    adding.add(registry, files.vector_path("noto"), name="mine", settings=own)
    mixed(registry, tmp_path, "noto:1", "lcm:1")
    exporting.export(registry, registry.find("mix"), tmp_path / "out", form="kohya")
    beside = json.loads((tmp_path / "out/mix.json").read_text())
    assert beside["activation text"] == "notoish"
    assert "notoish" in (tmp_path / "out/README.md").read_text()


def test_licences_of_all_parts_travel_and_the_unknown_stays_unknown(
    registry: Registry, tmp_path: Path
) -> None:
    save(2.0 * load("noto"), tmp_path / "a.safetensors")
    save(3.0 * load("noto"), tmp_path / "b.safetensors")
    adding.add(registry, tmp_path / "a.safetensors", settings={"licence": "CC-BY-NC-4.0"})
    adding.add(registry, tmp_path / "b.safetensors")
    a, b = (str(registry.find(name).path) for name in "ab")
    mixed(registry, tmp_path, f"{a}:1", "twemoji:1", name="first")
    mixed(registry, tmp_path, str(registry.find("first").path) + ":0.5", f"{b}:1", name="second")
    first = exporting.rights(registry, registry.find("first"))
    assert first.terms.words() == ("attribution", "non-commercial")
    assert not first.unknown
    second = exporting.rights(registry, registry.find("second"))
    assert second.terms.non_commercial
    assert not second.unknown  # nobody licensed b, but it is made of noto
    tensors = {
        f"lora_unet_mid_block_attentions_0_proj_in.{p}": torch.ones(*s)
        for p, s in (("lora_down.weight", (2, 128)), ("lora_up.weight", (128, 2)))
    }
    save_file(tensors, tmp_path / "c.safetensors")
    adding.add(registry, tmp_path / "c.safetensors")
    assert exporting.rights(registry, registry.find("c")).unknown


def test_a_push_and_a_pull_carry_everything_but_private_notes(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    mixed(registry, tmp_path, "noto:0.8", "lcm:1")
    editing.tag(registry, "mix", ["fast"])
    editing.note(registry, "mix", "for nobody else")
    editing.alias(registry, "best", "mix")
    remote = open_remote(str(tmp_path / "remote"))
    assert syncing.push(registry, remote, ["best"]).names == ("best", "mix")
    again = syncing.push(registry, remote)
    assert (again.names, again.same) == ((), ("best", "mix"))
    assert syncing.pull(other, remote).names == ("best", "mix")
    found = other.find("best")
    assert found.name == "mix"
    assert found.path.read_bytes() == registry.find("mix").path.read_bytes()
    assert (found.state.tags, found.state.notes) == (("fast",), ())
    assert not upkeep.verify(other, deep=True).problems
    assert syncing.pull(other, remote).names == ()
    with pytest.raises(NotFoundError, match="has no x"):
        syncing.pull(other, remote, ["x"])


def test_names_that_stand_for_something_else_are_not_replaced_unasked(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    remote = open_remote(str(tmp_path / "remote"))
    mixed(registry, tmp_path, "noto:0.8", "lcm:1")
    (tmp_path / "mix.safetensors").unlink()
    mixed(other, tmp_path, "noto:0.7", "lcm:1")
    syncing.push(registry, remote)
    with pytest.raises(OutputExistsError, match="mix"):
        syncing.push(other, remote)
    with pytest.raises(OutputExistsError, match="mix"):
        syncing.pull(other, remote)
    before = other.find("mix").record.object
    syncing.pull(other, remote, force=True)
    assert other.find("mix").record.object == registry.find("mix").record.object != before


def test_what_a_remote_says_of_a_file_is_measured_anew(
    registry: Registry, other: Registry, tmp_path: Path
) -> None:
    mixed(registry, tmp_path, "noto:0.8", "lcm:1")
    manifests = registry.manifests
    told = manifests.get(str(registry.find("mix").state.record))
    lie = manifests.put({**told, "families": [["sdxl", "1.0"]], "norm": "0"})
    with registry.index.change() as change:
        state = change.state("mix")
        assert state is not None
        record = {**registry.index.row("mix").columns, "sha256": lie}
        change.record(record, ())
        change.update("mix", type(state)(record=lie))
    remote = open_remote(str(tmp_path / "remote"))
    syncing.push(registry, remote)
    syncing.pull(other, remote)
    assert other.find("mix").record.families[0][0] == "emoji"
    assert float(other.find("mix").record.norm) > 0


def test_a_non_commercial_mix_is_pushed_by_those_who_say_they_may(
    registry: Registry, tmp_path: Path
) -> None:
    save(2.0 * load("noto"), tmp_path / "a.safetensors")
    adding.add(registry, tmp_path / "a.safetensors", settings={"licence": "CC-BY-NC-ND-4.0"})
    mixed(registry, tmp_path, str(registry.find("a").path) + ":1", "lcm:1")
    remote = open_remote(str(tmp_path / "remote"))
    with pytest.raises(UsageError, match=r"mix: .*changed versions"):
        syncing.push(registry, remote, ["mix"])
    assert remote.read_names()[0] is None
    assert syncing.push(registry, remote, ["mix"], have_rights=True).names == ("mix",)


def test_a_download_is_registered_with_its_commit_and_card(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = "---\nlicense: mit\ninstance_prompt: a drawing by noto\n---\n# Noto\n"
    files_there = {
        "pytorch_lora_weights.safetensors": files.vector_path("noto").read_bytes(),
        "README.md": card.encode(),
    }
    with FakeHub() as hub:
        point_at(hub, monkeypatch)
        commit = hub.repo("artist/Noto-Style", files_there)
        source = parse_source("hf:artist/Noto-Style")
        assert source is not None
        added = add_from(registry, source, tags=("hub",))
    assert (added.name, added.also) == ("noto-style", ("noto",))
    said = added.record.said(registry.find("noto-style").state)
    assert said["licence"] == {"value": "mit", "source": "card"}
    assert said["triggers"][0] == {"value": "a drawing by noto", "source": "card"}
    assert (added.record.source["repo"], added.record.source["commit"]) == (
        "artist/Noto-Style",
        commit,
    )


def test_a_listing_is_taken_over_as_what_it_is(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FakeHub() as hub:
        point_at(hub, monkeypatch)
        data = files.vector_path("noto").read_bytes()
        hub.civitai(77, data, trainedWords=["notoish"], baseModel="SD 1.5")
        source = parse_source("civitai:77")
        assert source is not None
        added = add_from(registry, source, name="listed")
    said = added.record.said(registry.find("listed").state)
    assert said["triggers"][0] == {"value": "notoish", "source": "listing"}
    assert said["base"]["value"] == "SD 1.5"
    assert added.record.families[0][0] == "emoji"  # shapes outrank labels


def test_a_folder_of_peft_becomes_one_file_that_says_all(
    registry: Registry, tmp_path: Path
) -> None:
    save_folder(load("noto"), tmp_path / "peft")
    added = adding.add(registry, tmp_path / "peft")
    found = registry.find("peft")
    assert added.record.dialect == "diffusers"
    assert equal(found.path, "noto")
    near = comparing.similar(registry, found, top=1)[0]
    assert (near.name, near.distance.verdict) == ("noto", "same")
    with pytest.raises(UsageError, match="link"):
        adding.add(registry, tmp_path / "peft", name="x", link=True)


def test_a_changed_link_is_found_out(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "big.safetensors"
    save(load("noto"), path)
    adding.add(registry, path, link=True)
    assert registry.find("big").path == path
    assert not list(registry.objects)
    assert not upkeep.verify(registry, deep=True).problems
    save(0.5 * load("noto"), path, force=True)
    (problem,) = upkeep.verify(registry, deep=True).problems
    assert "was changed" in problem.what
    path.unlink()
    (problem,) = upkeep.verify(registry).problems
    assert "is gone" in problem.what
