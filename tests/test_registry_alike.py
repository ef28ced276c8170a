"""Vectors that are alike, vectors that are made of others, and what looking at them costs."""

from __future__ import annotations

import json
import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from stores import lite, problems

from lcm_arith.adapters import load
from lcm_arith.delta import LowRankDelta
from lcm_arith.embedded import files as shipped_files
from lcm_arith.registry import adding, comparing, describing, editing, exporting, lineage
from lcm_arith.registry.card import card
from lcm_arith.registry.manifests import Manifests
from lcm_arith.registry.rights import blocks_push
from lcm_arith.registry.store import Registry
from lcm_arith.vector import TaskVector

MODULE = "unet.down_blocks.{}.attentions.0.transformer_blocks.0.attn1.to_q"


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    return lite(tmp_path / "store")


def lora(path: Path, seed: int = 0, metadata: Mapping[str, str] | None = None) -> Path:
    """Two modules of rank 4 whose alphas, if any, are in the header."""
    draw = torch.Generator().manual_seed(seed)
    tensors = {}
    for block, width in enumerate((320, 640)):
        name = MODULE.format(block)
        tensors[f"{name}.lora_A.weight"] = torch.randn(4, width, generator=draw)
        tensors[f"{name}.lora_B.weight"] = torch.randn(width, 4, generator=draw)
    save_file(tensors, path, metadata=dict(metadata or {}))
    return path


def alphas(first: float, second: float) -> dict[str, str]:
    """A header of diffusers that gives the two modules their alphas."""
    values = {
        "unet.r": 4,
        "unet.lora_alpha": first,
        "unet.alpha_pattern": {MODULE.format(1).removeprefix("unet."): second},
    }
    return {"lora_adapter_metadata": json.dumps(values)}


# Which are the same.


def test_equal_tensors_of_other_alphas_are_another_vector(
    registry: Registry, tmp_path: Path
) -> None:
    for name, header in (
        ("a", alphas(4, 4)), ("b", alphas(32, 32)), ("c", alphas(4, 8)), ("d", alphas(8, 4)),
        ("e", {**alphas(8, 4), "made": "later"}),
    ):  # fmt: skip
        adding.add(registry, lora(tmp_path / f"{name}.safetensors", 1, header))
    records = {name: registry.find(name).record for name in "abcde"}
    assert len({own.tensors for own in records.values()}) == 1
    assert records["c"].alphas == records["d"].alphas == {"4": 1, "8": 1}
    (group,) = comparing.dedup(registry)
    assert (group.names, group.verdict) == (("d", "e"), "same tensors")
    assert comparing.merge(registry, group) == ["e"]
    assert registry.find("b").record == records["b"]


def test_nearly_equal_alphas_are_alike_and_not_merged(registry: Registry, tmp_path: Path) -> None:
    for name, alpha in (("a", 4), ("b", 4.01)):
        adding.add(registry, lora(tmp_path / f"{name}.safetensors", 1, alphas(alpha, alpha)))
    (group,) = comparing.dedup(registry)
    assert (group.verdict, group.same_tensors) == ("same, rounded", False)
    with pytest.raises(ValueError, match="differ"):
        comparing.merge(registry, group)


# What one of several keeps.


def two(registry: Registry, folder: Path, **headers: Mapping[str, str]) -> None:
    """Vectors of the same tensors in different files."""
    for name, header in headers.items():
        adding.add(registry, lora(folder / f"{name}.safetensors", 1, {"of": name, **header}))


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ({"modelspec.license": "CC-BY-NC-4.0"}, "licence CC-BY-NC-4.0"),
        ({"modelspec.trigger_phrase": "zork"}, "triggers zork"),
        ({"modelspec.author": "Ann"}, "author Ann"),
    ],
)
def test_a_vector_of_which_more_is_said_stays(
    header: Mapping[str, str], told: str, registry: Registry, tmp_path: Path
) -> None:
    two(
        registry, tmp_path, a={"modelspec.license": "MIT"}, b=header, c={"modelspec.license": "mit"}
    )
    before = registry.find("b")
    (group,) = comparing.dedup(registry)
    assert group.apart.keys() == {"b"}
    assert group.apart["b"].count(told) == 1
    assert comparing.merge(registry, group) == ["c"]
    assert registry.find("b") == before
    assert registry.find("c").name == "a"


def test_settings_are_united_unless_they_contradict(registry: Registry, tmp_path: Path) -> None:
    two(registry, tmp_path, a={}, b={}, c={}, d={"modelspec.license": "MIT"})
    editing.set_values(registry, "a", {"weight": "0.5"})
    editing.set_values(registry, "b", {"weight": "0.9", "title": "other"})
    editing.set_values(registry, "c", {"weight": "0.5", "triggers": ["ink"], "licence": "mit"})
    (group,) = comparing.dedup(registry)
    assert group.apart == {
        "b": "weight 0.5 (user)",
        "d": "licence MIT (header modelspec.license)",  # of the first nobody says it
    }
    assert comparing.merge(registry, group) == ["c", "d"]  # with c's word, d's licence is said
    assert registry.find("a").state.settings == {
        "weight": "0.5", "triggers": ["ink"], "licence": "mit",
    }  # fmt: skip
    assert registry.find("b").state.settings == {"weight": "0.9", "title": "other"}
    assert not problems(registry)


def test_a_users_word_does_not_replace_the_licence_of_the_one_that_is_kept(
    registry: Registry, tmp_path: Path
) -> None:
    two(registry, tmp_path, a={"modelspec.license": "CC-BY-NC-4.0"}, b={})
    editing.set_values(registry, "b", {"licence": "MIT"})
    (group,) = comparing.dedup(registry)
    assert "CC-BY-NC-4.0" in group.apart["b"]
    assert comparing.merge(registry, group) == []
    assert registry.find("b").name == "b"


def test_what_changed_since_it_was_compared_stays(registry: Registry, tmp_path: Path) -> None:
    two(registry, tmp_path, a={}, b={}, c={})
    (group,) = comparing.dedup(registry)
    editing.remove(registry, "b")
    adding.add(registry, lora(tmp_path / "other.safetensors", 2), name="b")
    assert comparing.merge(registry, group) == ["c"]
    assert registry.find("b").name == "b"
    assert not problems(registry)


def test_nothing_becomes_an_alias_of_a_name_that_is_gone(
    registry: Registry, tmp_path: Path
) -> None:
    two(registry, tmp_path, a={}, b={})
    (group,) = comparing.dedup(registry)
    editing.remove(registry, "a")
    assert comparing.merge(registry, group) == []
    assert registry.find("b").name == "b"
    assert not problems(registry)


# What a vector was made of.


def made(*terms: tuple[str, str]) -> dict[str, str]:
    """A header that names files by sha256, each with a weight."""
    rows = [{"sha256": sha256, "weight": weight} for sha256, weight in terms]
    return {"lcm_arith": json.dumps({"terms": rows})}


def chain(registry: Registry, folder: Path, count: int, **settings: str) -> list[str]:
    """Vectors v0, v1 …, each made of twice the one before; their files' sha256."""
    digests: list[str] = []
    for number in range(count):
        header = made(*((own, w) for own in digests[-1:] for w in ("0.5", "0.25")))
        path = lora(folder / f"v{number}.safetensors", number, header)
        said = settings if not number else {}
        digests.append(adding.add(registry, path, settings=said).record.object)
    return digests


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The manifests that were read, in order."""
    found: list[str] = []
    read = Manifests.get

    def get(self: Manifests, sha256: str) -> dict[str, object]:
        found.append(sha256)
        return read(self, sha256)

    monkeypatch.setattr(Manifests, "get", get)
    return found


def test_only_what_a_vector_was_made_of_is_read_and_once(
    registry: Registry, tmp_path: Path, reads: list[str]
) -> None:
    chain(registry, tmp_path, 4)
    for number in range(6):
        adding.add(registry, lora(tmp_path / f"other{number}.safetensors", 90 + number))
    found = registry.find("v3")
    above = {str(registry.find(name).state.record) for name in ("v0", "v1", "v2")}
    reads.clear()
    files = lineage.Files.of(registry)
    assert not reads
    lineage.lineage(registry, found, files)
    assert len(reads) == 3
    assert set(reads) == above
    exporting.rights(registry, found, files)
    exporting.card_values(registry, found, "x", files)
    exporting.rights(registry, registry.find("v2"), files)
    assert len(reads) == 4  # find's own
    reads.clear()
    exporting.export(registry, found, tmp_path / "out")
    assert sorted(reads) == sorted(above)


def test_vectors_without_parents_cost_no_manifest(
    registry: Registry, tmp_path: Path, reads: list[str]
) -> None:
    for number in range(5):
        adding.add(registry, lora(tmp_path / f"x{number}.safetensors", number))
    every = [registry.find(f"x{number}") for number in range(5)]
    reads.clear()
    for found in every:
        exporting.rights(registry, found)
    assert not reads


def test_a_file_that_is_used_twice_has_its_parents_once(registry: Registry, tmp_path: Path) -> None:
    chain(registry, tmp_path, 3)
    node = lineage.lineage(registry, registry.find("v2"))
    assert lineage.tree(node) == [
        "v2",
        "├── 0.5 · v1",
        "│   ├── 0.5 · v0",
        "│   └── 0.25 · v0",
        "└── 0.25 · v1  (above)",
    ]
    told = node.as_json()
    assert [own["above"] for own in (told, *told["parents"])] == [False, False, True]
    assert [len(own["parents"]) for own in told["parents"]] == [2, 0]
    assert [own["weight"] for own in told["parents"]] == ["0.5", "0.25"]
    origins = lineage.origins(registry, registry.find("v2"))
    weights = ["0.5 × 0.5", "0.5 × 0.25", "0.25 × 0.5", "0.25 × 0.25"]
    assert [(own.name, own.weight) for own in origins] == [("v0", text) for text in weights]


def test_a_billion_ways_to_one_file_are_told_as_several(registry: Registry, tmp_path: Path) -> None:
    digests = chain(registry, tmp_path, 31, licence="CC-BY-ND-4.0")
    found = registry.find("v30")
    node = lineage.lineage(registry, found)
    assert len(lineage.tree(node)) == 1 + 2 * 30
    assert len(lineage.mermaid(node)) == 1 + 31 + 2 * 30
    assert json.dumps(node.as_json()).count('"name"') == 1 + 2 * 30
    (origin,) = lineage.origins(registry, found)
    assert (origin.name, origin.sha256, origin.weight) == ("v0", digests[0], "several")
    effective = exporting.rights(registry, found)
    assert effective.mixed
    assert any("changed versions" in why for why in blocks_push(effective))
    values = exporting.card_values(registry, found, "x.safetensors")
    assert f"| v0 | several | {digests[0]} |" in card(values)
    assert "changed versions" in card(values)
    exporting.export(registry, found, tmp_path / "out")


def test_a_vector_that_claims_to_be_made_of_itself_ends(registry: Registry, tmp_path: Path) -> None:
    adding.add(registry, lora(tmp_path / "v.safetensors"))
    found = registry.find("v")
    own = found.record.object
    values = registry.manifests.get(str(found.state.record))
    terms = [{"sha256": own, "weight": "1"}] * 2
    lie = registry.manifests.put({**values, "made": {"terms": terms}, "parents": [own]})
    with registry.index.change() as change:
        change.record({**registry.index.row("v").columns, "sha256": lie}, (own,))
        change.update("v", type(found.state)(record=lie))
    node = lineage.lineage(registry, registry.find("v"))
    assert lineage.tree(node) == ["v", "├── 1 · v  (above)", "└── 1 · v  (above)"]
    assert exporting.rights(registry, registry.find("v")).unknown


# What a description costs.


def test_a_large_file_is_described_without_being_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    path = shipped_files.vector_path("lcm")
    kept = describing.describe(path, source={})
    alive, most = 0, 0
    once, lock = TaskVector.once, threading.RLock()

    def ended() -> None:
        nonlocal alive
        with lock:
            alive -= 1

    def counted(self: TaskVector, module: str) -> LowRankDelta:
        nonlocal alive, most
        delta = once(self, module)
        with lock:
            alive, most = alive + 1, max(most, alive + 1)
        weakref.finalize(delta.up, ended)
        return delta

    def unused(self: TaskVector, module: str) -> LowRankDelta:
        raise AssertionError(f"{module} is asked for to be kept")

    monkeypatch.setattr(describing, "KEPT", 0)
    monkeypatch.setattr(TaskVector, "once", counted)
    monkeypatch.setattr(TaskVector, "__getitem__", unused)
    assert describing.describe(path, source={}) == kept
    assert kept.modules > 100
    assert 1 <= most <= 2 * len(os.sched_getaffinity(0)) + 1  # of each thread one, and its last
    assert alive == 0


def test_a_large_dora_is_described_by_its_factors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = lora(tmp_path / "plain.safetensors")
    tensors = load_file(plain)
    gains = {
        f"{MODULE.format(b)}.lora_magnitude_vector": torch.ones(w) for b, w in ((0, 320), (1, 640))
    }
    save_file({**tensors, **gains}, tmp_path / "dora.safetensors")
    kept = describing.describe(tmp_path / "dora.safetensors", source={})
    monkeypatch.setattr(describing, "KEPT", 0)
    assert describing.describe(tmp_path / "dora.safetensors", source={}) == kept
    assert kept.network == {"dora": 2}
    assert kept.parameters == 4 * 2 * (320 + 640) + 320 + 640
    assert kept.fingerprint == describing.describe(plain, source={}).fingerprint


def test_norm_and_blocks_are_those_of_the_dense_updates() -> None:
    path = shipped_files.vector_path("noto")
    record, tau = describing.describe(path, source={}), load(path)
    energies = {target: float(tau[target].dense().double().square().sum()) for target in tau}
    assert float(record.norm) == pytest.approx(sum(energies.values()) ** 0.5, rel=1e-5)
    for block, share in record.blocks.items():
        own = sum(e for target, e in energies.items() if target.startswith(f"{block}."))
        assert float(share) == pytest.approx(own / sum(energies.values()), abs=1e-4)
    assert sum(map(float, record.blocks.values())) == pytest.approx(1, abs=1e-3)
    assert record.alphas.keys() == {f"{tau[t].scale * tau[t].rank:g}" for t in tau}
