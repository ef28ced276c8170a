"""Fixtures: the embedded pipeline, and live weights on it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.main
from fake_hub import FakeHub, point_at
from fetching import DATA
from servers import Server, postgres
from stores import adapters
from tiny import tiny

from lcm_arith.combination import combine_terms
from lcm_arith.families import embedded
from lcm_arith.formats import pickle_child, pickles
from lcm_arith.fuse import LiveWeights
from lcm_arith.registry import adding, database
from lcm_arith.registry.downloads import http
from lcm_arith.registry.store import Registry
from lcm_arith.sampling import load_pipeline
from lcm_arith.saving import save
from lcm_arith.vector import TaskVector
from lcm_arith.weights import parse_term


@pytest.fixture
def fresh_pipeline() -> Callable[[], Any]:
    """Makes a pipeline that a test may change."""
    return lambda: load_pipeline(embedded().base)


@pytest.fixture(scope="session")
def shared_pipeline() -> Any:
    return load_pipeline(embedded().base)


@pytest.fixture
def pipeline(shared_pipeline: Any) -> Iterator[Any]:
    """The embedded pipeline, for tests that leave it as it was (checked)."""
    before = {k: v.clone() for k, v in shared_pipeline.unet.state_dict().items()}
    yield shared_pipeline
    after = shared_pipeline.unet.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.fixture
def live(pipeline: Any) -> Iterator[LiveWeights]:
    weights = LiveWeights(pipeline)
    yield weights
    weights.apply(TaskVector())


@pytest.fixture(scope="session")
def tiny_sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny pipeline with random weights; so are the three below."""
    return tiny(tmp_path_factory.mktemp("tiny") / "sd15", "sd15")


@pytest.fixture(scope="session")
def tiny_sd2v(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny") / "sd2-v", "sd2-v")


@pytest.fixture(scope="session")
def tiny_zsnr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny") / "sd2-zsnr", "sd2-zsnr")


@pytest.fixture(scope="session")
def tiny_sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny(tmp_path_factory.mktemp("tiny") / "sdxl", "sdxl")


@pytest.fixture
def tmp_cwd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    """A PostgreSQL server; the tests that need one fail where it cannot be started."""
    with postgres() as running:
        yield running


@pytest.fixture(params=["sqlite", "postgresql"])
def index_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty index, of either kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'index' / 'index.db'}"
    running: Server = request.getfixturevalue("server")
    return running.url()


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


@pytest.fixture(scope="session", autouse=True)
def _quiet(tmp_path_factory: pytest.TempPathFactory) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["LCM_ARITH_HOME"] = str(tmp_path_factory.getbasetemp() / "homes" / "shared")
    os.environ.pop("LCM_ARITH_DB", None)


@pytest.fixture(scope="session", autouse=True)
def _one_command_tree() -> Iterator[None]:
    """The tree of the commands is built once: each call would build it anew, in 0.1 s."""
    built = cache(typer.main.get_command)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("typer.main.get_command", built)
        patch.setattr("typer.testing._get_command", built)
        yield


_TESTS = count()


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A registry of each test's own, never the user's; made when something is added."""
    folder = tmp_path_factory.getbasetemp() / "homes" / str(next(_TESTS))
    monkeypatch.setenv("LCM_ARITH_HOME", str(folder))
    return folder


@pytest.fixture(autouse=True)
def disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing waits for the disk; where that is the claim (test_registry_faults.py), all do."""
    connect = database._on_connect

    def connected(connection: Any, record: Any) -> None:
        connect(connection, record)
        connection.execute("PRAGMA synchronous=OFF")

    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(database, "_on_connect", connected)


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle is opened without a child, for tests of what comes before and after."""

    def here(path: Path, descriptor: int, folder: Path, most: pickles.Limits) -> None:
        with open(descriptor, "rb", closefd=False) as file:
            pickle_child.write(pickle_child.read(file), folder / pickles.TENSORS, most=most.output)

    monkeypatch.setattr(pickles, "_open_in_child", here)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A server that stands in for the hub and CivitAI, with one plain file."""
    with FakeHub() as server:
        point_at(server, monkeypatch)
        server.files["/files/a.safetensors"] = DATA
        yield server


@pytest.fixture
def waits(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that a download would have waited."""
    waited: list[float] = []
    monkeypatch.setattr(http, "pause", waited.append)
    return waited
