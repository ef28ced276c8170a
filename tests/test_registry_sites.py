"""Vectors from the hub and from CivitAI: pinned, checked against what they list, tokens kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_hub import FakeHub, sha256
from fetching import DATA, LOGIN, POINTER, TOKEN, get, refused, safetensors

from lcm_arith.errors import (
    InvalidContentError,
    LcmArithError,
    NetworkError,
    NotFoundError,
    UsageError,
)

# The hub


def test_the_hub_works_without_a_login(hub: FakeHub, tmp_path: Path) -> None:
    card = b"---\nlicense: openrail++\n---\n# Style\n"
    commit = hub.repo("org/repo", {"README.md": card, "style.safetensors": DATA, "a.txt": b"a"})
    found = get("hf:org/repo", tmp_path)
    assert found.path == tmp_path / "style.safetensors"
    assert found.path.read_bytes() == DATA
    assert found.said == {"README.md": card.decode()}
    assert found.checked
    assert found.origin == {
        "url": f"{hub.url}/org/repo/resolve/{commit}/style.safetensors",
        "repo": "org/repo",
        "commit": commit,
        "file": "style.safetensors",
    }
    assert [each.name for each in tmp_path.iterdir()] == ["style.safetensors"]
    assert not any(each.token for each in hub.seen)


def test_a_hub_token_is_stripped_and_stays_with_the_hub(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("DEBUG")
    monkeypatch.setenv("HF_TOKEN", f" {TOKEN}\n")
    hub.repo("org/repo", {"style.safetensors": DATA})
    found = get("hf:org/repo", tmp_path)
    here = f"127.0.0.1:{hub.server_port}"
    tokens = {(each.host == here, each.token) for each in hub.seen}
    assert tokens == {(True, f"Bearer {TOKEN}"), (False, "")}
    assert TOKEN not in repr(found)
    assert "HTTP Request: GET" in caplog.text  # the log is really that of the clients
    assert TOKEN not in caplog.text


def test_a_token_with_a_break_inside_is_refused_unseen(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_one\nhf_two")
    said = refused(UsageError, 2, "hf:org/repo", tmp_path)
    assert "HF_TOKEN: holds no token" in said
    assert "hf_one" not in said


def test_a_revision_is_pinned_to_the_commit_that_it_was(hub: FakeHub, tmp_path: Path) -> None:
    old = hub.repo("org/repo", {"style.safetensors": DATA})
    hub.repo("org/repo", {"style.safetensors": safetensors(2000)})
    found = get(f"hf:org/repo@{old}", tmp_path)
    assert (found.origin["commit"], found.sha256) == (old, sha256(DATA))
    hub.repos["org/repo"].branches["v1"] = old
    (tmp_path / "style.safetensors").unlink()
    assert get("hf:org/repo@v1", tmp_path).origin["commit"] == old
    asked = [each.path for each in hub.seen if "/resolve/" in each.path]
    assert asked == [f"/org/repo/resolve/{old}/style.safetensors"] * 2


SMALL = safetensors(10)


@pytest.mark.parametrize(
    ("files", "chosen"),
    [
        (("a.safetensors", "x.txt"), "a.safetensors"),
        (("deep/a.safetensors",), "deep/a.safetensors"),
        (("a.safetensors", "pytorch_lora_weights.safetensors"), "pytorch_lora_weights.safetensors"),
        (("pytorch_lora_weights.safetensors", "c-1/pytorch_lora_weights.safetensors"),
         "pytorch_lora_weights.safetensors"),
        (("a.safetensors", "b.safetensors"), UsageError),
        (("adapter_model.safetensors", "pytorch_lora_weights.safetensors"), UsageError),
        (("a.bin",), NotFoundError),
        ((), NotFoundError),
    ],
)  # fmt: skip
def test_the_file_is_chosen_by_name_or_the_choices_are_listed(
    files: tuple[str, ...], chosen: str | type[LcmArithError], hub: FakeHub, tmp_path: Path
) -> None:
    hub.repo("org/repo", dict.fromkeys(files, SMALL))
    if isinstance(chosen, str):
        assert get("hf:org/repo", tmp_path).origin["file"] == chosen
        return
    said = refused(chosen, chosen.exit_code, "hf:org/repo", tmp_path)
    assert all(repr(name) in said for name in files)


def test_a_peft_adapter_brings_its_configuration(hub: FakeHub, tmp_path: Path) -> None:
    config = b'{"r": 4, "lora_alpha": 2}'
    files = {"p/adapter_config.json": config, "p/adapter_model.safetensors": DATA}
    hub.repo("org/repo", {**files, "adapter_config.json": b"{}"})
    found = get("hf:org/repo:p/adapter_model.safetensors", tmp_path)
    assert (tmp_path / "adapter_config.json").read_bytes() == config
    assert found.said == {"adapter_config.json": config.decode()}
    assert sorted(each.name for each in tmp_path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


def test_a_gated_repository_names_the_token_and_the_page(hub: FakeHub, tmp_path: Path) -> None:
    commit = hub.repo("org/repo", {"style.safetensors": DATA})
    hub.fault(
        f"/org/repo/resolve/{commit}/style.safetensors",
        status=403,
        body=b"Access to model org/repo is restricted",
        headers={"X-Error-Code": "GatedRepo"},
    )
    said = refused(NetworkError, 7, "hf:org/repo", tmp_path)
    assert "403 (Access to model org/repo is restricted)" in said
    assert f"accept the terms at {hub.url}/org/repo" in said
    assert "HF_TOKEN" in said


def test_a_listing_that_is_gated_names_the_token_and_the_page(hub: FakeHub, tmp_path: Path) -> None:
    path = "/api/models/org/repo"
    hub.fault(path, status=403, body=b"{}", headers={"X-Error-Code": "GatedRepo"})
    said = refused(NetworkError, 7, "hf:org/repo", tmp_path)
    assert f"accept the terms at {hub.url}/org/repo" in said


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hf:org/absent", "Repository not found"),
        ("hf:org/repo@v9", "no revision"),
        ("hf:org/repo:b.safetensors", "no such file"),
    ],
)
def test_what_is_absent_on_the_hub_is_not_found(
    text: str, named: str, hub: FakeHub, tmp_path: Path
) -> None:
    hub.repo("org/repo", {"a.safetensors": DATA})
    assert named in refused(NotFoundError, 3, text, tmp_path)


def test_the_hubs_listing_is_asked_again_when_it_is_busy(
    hub: FakeHub, waits: list[float], tmp_path: Path
) -> None:
    hub.repo("org/repo", {"a.safetensors": DATA})
    hub.fault("/api/models/org/repo", status=429, headers={"Retry-After": "7"}, times=1)
    assert get("hf:org/repo", tmp_path).checked
    assert waits == [7.0]


def test_a_proxys_page_in_place_of_the_listing_is_named(hub: FakeHub, tmp_path: Path) -> None:
    hub.fault("/api/models/org/repo", status=200, body=LOGIN)
    said = refused(InvalidContentError, 4, "hf:org/repo", tmp_path)
    assert "does not answer as the hub does" in said


@pytest.mark.parametrize(
    ("came", "named"), [(DATA[:-1] + b"\1", "the server lists"), (POINTER, "Git LFS pointer")]
)
def test_a_hub_file_that_is_not_the_listed_one_is_refused(
    came: bytes, named: str, hub: FakeHub, tmp_path: Path
) -> None:
    hub.repo("org/repo", {"a.safetensors": DATA})
    hub.fault(f"/cdn/{sha256(DATA)}", status=200, body=came)
    said = refused(InvalidContentError, 4, "hf:org/repo", tmp_path)
    assert named in said
    if came != POINTER:
        assert sha256(came) in said
        assert sha256(DATA) in said


def test_offline_mode_asks_nobody(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repo("org/repo", {"a.safetensors": DATA})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE is set" in refused(NetworkError, 7, "hf:org/repo", tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # as it was started with
    assert "HF_HUB_OFFLINE is set" in refused(NetworkError, 7, "hf:org/repo", tmp_path)
    assert hub.seen == []


def cached(root: Path, files: dict[str, bytes]) -> str:
    """A cache as ``hf download`` leaves it: blobs, links to them, and a branch; the commit."""
    repo, commit = root / "models--org--repo", "c" * 40
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    (repo / "blobs").mkdir()
    for name, data in files.items():
        blob = repo / "blobs" / sha256(data)
        blob.write_bytes(data)
        link = repo / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(blob)
    return commit


def test_offline_mode_takes_what_the_hubs_cache_has(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, card = b'{"r": 4}', b"# Card"
    files = {"adapter_config.json": config, "adapter_model.safetensors": DATA, "README.md": card}
    commit = cached(tmp_path / "cache", files)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "out"
    out.mkdir()
    found = get("hf:org/repo", out)
    assert found.path.read_bytes() == DATA
    assert not found.path.is_symlink()
    assert (out / "adapter_config.json").read_bytes() == config
    assert found.said == {"adapter_config.json": config.decode(), "README.md": card.decode()}
    assert (found.origin["commit"], found.sha256, found.checked) == (commit, sha256(DATA), True)
    assert len(list(out.iterdir())) == 2
    for path in out.iterdir():
        path.unlink()
    assert get(f"hf:org/repo@{commit}:README.md", out).path.read_bytes() == card
    (out / "README.md").unlink()
    refused(NetworkError, 7, "hf:org/repo@v1", out)
    refused(NetworkError, 7, "hf:org/repo@a/../../snapshots", out)
    refused(NotFoundError, 3, "hf:org/repo:absent.safetensors", out)
    blob = tmp_path / "cache" / "models--org--repo" / "blobs" / sha256(DATA)
    blob.write_bytes(DATA[:-1])
    said = refused(InvalidContentError, 4, "hf:org/repo", out)
    assert sha256(DATA[:-1]) in said
    assert sha256(DATA) in said
    assert hub.seen == []


def test_a_hub_that_is_not_https_is_refused(
    tmp_path: Path, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.example.org")
    assert "HF_ENDPOINT: is http" in refused(UsageError, 2, "hf:org/repo", tmp_path)


# CivitAI


def test_civitai_gives_the_primary_file_and_its_listing(hub: FakeHub, tmp_path: Path) -> None:
    hub.civitai(12, DATA)
    found = get("urn:air:sdxl:lora:civitai:77@12", tmp_path)
    assert found.path == tmp_path / "style.safetensors"
    assert found.sha256 == sha256(DATA)
    assert found.checked
    assert json.loads(found.said["civitai.json"])["trainedWords"] == ["in the style of x"]
    assert found.origin == {
        "url": f"{hub.url}/api/download/models/12",
        "version": "12",
        "model": "77",
        "file": "style.safetensors",
        "air": "urn:air:sdxl:lora:civitai:77@12",
    }
    assert [each.name for each in tmp_path.iterdir()] == ["style.safetensors"]


def test_a_civitai_token_stays_with_civitai(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAI_TOKEN", f"{TOKEN}\n")
    hub.civitai(12, DATA)
    hub.files["/r2/file"] = DATA
    to = f"{hub.elsewhere}/r2/file?X-Amz-Signature=abc"
    hub.fault("/api/download/models/12", status=307, headers={"Location": to})
    found = get("civitai:12", tmp_path)
    assert found.path.name == "style.safetensors"
    assert [(each.path, each.token) for each in hub.seen] == [
        ("/api/v1/model-versions/12", f"Bearer {TOKEN}"),
        ("/api/download/models/12", f"Bearer {TOKEN}"),
        ("/r2/file", ""),
    ]


def test_a_listing_that_leads_elsewhere_gets_no_token(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAI_TOKEN", TOKEN)
    hub.civitai(12, DATA)
    hub.versions["12"]["files"][0]["downloadUrl"] = f"{hub.elsewhere}/files/a.safetensors"
    get("civitai:12", tmp_path)
    assert [each.token for each in hub.seen] == [f"Bearer {TOKEN}", ""]


def test_civitai_without_a_token_says_where_to_get_one(hub: FakeHub, tmp_path: Path) -> None:
    hub.civitai(12, DATA)
    body = b'{"error": "Unauthorized", "message": "The creator requires you to be logged in"}'
    hub.fault("/api/download/models/12", status=401, body=body)
    said = refused(NetworkError, 7, "civitai:12", tmp_path)
    assert "401 (The creator requires you to be logged in)" in said
    assert "set CIVITAI_TOKEN" in said


def test_a_servers_echo_of_the_token_is_not_shown(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CIVITAI_TOKEN", TOKEN)
    hub.civitai(12, DATA)
    hub.fault("/api/download/models/12", status=401, body=f"bad key {TOKEN}".encode())
    assert TOKEN not in refused(NetworkError, 7, "civitai:12", tmp_path)


def test_a_civitai_file_of_another_hash_is_refused(hub: FakeHub, tmp_path: Path) -> None:
    hub.civitai(12, DATA)
    other = safetensors(999)
    hub.files["/api/download/models/12"] = other
    said = refused(InvalidContentError, 4, "civitai:12", tmp_path)
    assert sha256(other) in said
    assert sha256(DATA) in said


@pytest.mark.parametrize(
    ("changes", "kind", "named"),
    [
        ({"id": 13}, InvalidContentError, "no listing of this version"),
        ({"modelId": 78}, InvalidContentError, "belongs to model 78, not to 77"),
        ({"files": []}, NotFoundError, "names no primary file"),
        ({"files": [{"name": "a"}, {"name": "b"}]}, NotFoundError, "among 'a', 'b'"),
        ({"files": [{"name": "a", "downloadUrl": "http://example.org/a"}]}, InvalidContentError,
         "downloadUrl is http"),
    ],
)  # fmt: skip
def test_a_listing_that_makes_no_sense_is_refused(
    changes: dict[str, object],
    kind: type[LcmArithError],
    named: str,
    hub: FakeHub,
    tmp_path: Path,
) -> None:
    hub.civitai(12, DATA, **changes)
    said = refused(kind, kind.exit_code, "urn:air:sdxl:lora:civitai:77@12", tmp_path)
    assert named in said


def test_a_version_that_civitai_does_not_know_is_not_found(hub: FakeHub, tmp_path: Path) -> None:
    said = refused(NotFoundError, 3, "civitai:12", tmp_path)
    assert "No model with id 12" in said
