"""Names on the command line: results that get one, parents that are found, and what TAB offers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import fails, files_in, run, small, verb

from lcm_arith.adapters import load
from lcm_arith.embedded import files


def test_a_named_result_is_registered_with_its_recipe(tmp_cwd: Path) -> None:
    told = json.loads(run("combine", "noto:0.5", "lcm:1", "--name", "fast", "--json").stdout)
    assert told["name"] == "fast"
    assert not list(tmp_cwd.iterdir())
    assert verb("show", "fast")["said"]["kind"] == {"value": "combined", "source": "header"}
    tree = verb("lineage", "fast")
    assert [(own["name"], own["weight"]) for own in tree["parents"]] == [
        ("noto", "0.5"),
        ("lcm", "1.0"),
    ]
    module = load("noto").modules[3]
    expected = 0.5 * load("noto")[module].dense() + load("lcm")[module].dense()
    assert torch.allclose(load("fast")[module].dense(), expected, atol=1e-6)
    assert load(told["path"]).modules == load("fast").modules


def test_a_name_and_a_file_are_both_made(tmp_cwd: Path) -> None:
    run("combine", "noto:1", "--name", "x", "-o", "x.safetensors")
    assert Path(verb("path", "x")["path"]).read_bytes() == Path("x.safetensors").read_bytes()
    run("convert", "x", "--format", "peft", "-o", "folder", "--name", "y")
    assert (tmp_cwd / "folder" / "adapter_config.json").is_file()
    named, noto = load("y"), load("noto")
    assert all(torch.allclose(named[m].dense(), noto[m].dense()) for m in noto)


@pytest.mark.parametrize(
    ("command", "kind"),
    [
        ("combine noto:1", "combined"),
        ("negate noto", "task"),
        ("reproject lcm --rank 4", "acceleration"),
        ("convert noto", "style"),
        ("extract --rank 2", "task"),
    ],
)
def test_every_command_that_makes_a_vector_can_name_it(
    tmp_cwd: Path, command: str, kind: str
) -> None:
    if command.startswith("extract"):
        run("fuse", "noto:1")
    run(*command.split(), "--name", "made")
    assert verb("show", "made")["said"]["kind"]["value"] == kind
    assert not list(tmp_cwd.glob("*.safetensors"))


@pytest.mark.parametrize("name", ["taken", "noto", "no name!"])
def test_a_name_that_cannot_be_is_refused_before_the_work(
    tmp_cwd: Path, home: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    small("taken.safetensors")
    run("registry", "add", "taken.safetensors")
    before = files_in(home)

    def work(*_: Any, **__: Any) -> None:
        raise AssertionError("the work began")

    for place in ("make_vectors.make_style", "make_vectors.make_acceleration", "adapters.load"):
        monkeypatch.setattr(f"lcm_arith.{place}", work)
    for place in ("combination.combine_terms", "checkpoints.extract"):
        monkeypatch.setattr(f"lcm_arith.{place}", work)
    for command in ("combine", "negate", "reproject", "convert", "extract", "distill", "finetune"):
        code, message = fails(command, "--name", name)
        assert code == (2 if "!" in name else 3), (command, message)
    assert files_in(home) == before


def test_verify_finds_registered_parents_by_their_sha256(tmp_cwd: Path) -> None:
    small("one.safetensors", 1)
    small("two.safetensors", 2)
    run("combine", "one.safetensors:0.75", "two.safetensors:-0.5")
    code, message = fails("verify")
    assert (code, "registry add" in message) == (2, True)
    run("registry", "add", "one.safetensors", "two.safetensors")
    Path("one.safetensors").unlink()
    told = json.loads(run("verify", "--json").stdout)
    assert told["error"] < 1e-6
    assert [own["weight"] for own in told["terms"]] == ["0.75", "-0.5"]
    assert told["terms"][0]["name"] == "one"
    small("other.safetensors", 3)
    shutil.copy("other.safetensors", "two")  # a file that hides the name
    assert json.loads(run("verify", "--json").stdout)["error"] < 1e-6


# What TAB offers.


@pytest.fixture
def stocked(tmp_cwd: Path) -> None:
    """``a`` and ``b`` in the registry, two files here."""
    small("a.safetensors")
    small("text.safetensors", 2)
    run("registry", "add", "a.safetensors")
    run("registry", "add", "text.safetensors", "--name", "b")


def completed(words: str) -> tuple[list[str], list[str]]:
    """What TAB offers after ``words``, and which heavy modules that imported."""
    script = """
import atexit, sys
heavy = {"torch", "numpy", "sqlalchemy", "diffusers", "pandas"}
atexit.register(lambda: print("heavy:", *sorted(set(sys.modules) & heavy)))
sys.argv = ["lcm-arith"]
from lcm_arith.cli.main import main
main()
"""
    shell = {
        "_LCM_ARITH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **shell},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    *offered, last = done.stdout.splitlines()
    return offered, last.split()[1:]


def test_tab_offers_names_and_files_and_imports_nothing_heavy(stocked: None) -> None:
    run("registry", "alias", "florid", "a")
    assert completed("lcm-arith inspect fl") == (
        ["fluent-emoji", "fluent-emoji-high-contrast", "florid"],
        [],
    )
    assert completed("lcm-arith combine noto te")[0] == ["text.safetensors"]
    assert completed("lcm-arith verify x.safetensors ./te")[0] == ["./text.safetensors"]
    assert completed("lcm-arith registry show n")[0] == ["noto"]
    assert completed("lcm-arith registry rm ")[0] == ["a", "b", "florid"]
    assert completed("lcm-arith registry set a --kind s")[0] == ["style"]


@pytest.mark.parametrize("spoilt", ["none", "a file", "names a file"])
def test_tab_offers_shipped_names_where_there_is_no_registry(
    stocked: None, home: Path, spoilt: str
) -> None:
    place = home / "names" if spoilt.startswith("names") else home
    shutil.rmtree(place)
    if spoilt != "none":
        place.write_text("a file")
    assert completed("lcm-arith registry show ") == (list(files.vector_names()), [])


def test_tab_needs_no_index(stocked: None, home: Path) -> None:
    (home / "index.db").write_bytes(b"x" * 5000)
    assert completed("lcm-arith registry rm ") == (["a", "b"], [])
