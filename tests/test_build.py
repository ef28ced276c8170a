"""tools/build_embedded.py: every stage on a toy ground, and a killed training goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ground import folder as pictures_folder
from ground.clip import covered, disturbed, is_kept_out, moved, recoloured, softened
from ground.common import BuildError, Options
from ground.figures import wilson
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from lcm_arith.embedded import pictures
from lcm_arith.training.loop import step_generator

ROOT = Path(__file__).resolve().parents[1]
TOOL = ROOT / "tools" / "build_embedded.py"
STYLES = ("noto", "fluent-emoji")
THINGS = pictures.concepts()[4:8]  # three of part A, one of part B


def build(ground: Path, *stages: str, data: Path | None = None, **options: Any) -> list[str]:
    """The command line of a toy build."""
    given = [f"--{name}={value}" for name, value in options.items()]
    source = [f"--data={data}"] if data else []
    places = [f"--out={ground}", f"--work={ground}-work", *source]
    return [sys.executable, str(TOOL), *stages, *places, "--threads=1", *given]


def run(command: list[str], code: int = 0) -> str:
    """Runs it; what it said."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def own_pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """STYLE/x.png + x.txt: drawings with transparency, one picture that only one style has."""
    folder = tmp_path_factory.mktemp("own")
    for style in STYLES:
        (folder / style).mkdir()
        for index, concept in enumerate(THINGS):
            Image.fromarray(pictures.drawing(style, concept)).save(folder / style / f"{index}.png")
            (folder / style / f"{index}.txt").write_text(concept.caption)
    lonely = Image.fromarray(pictures.drawing("noto", pictures.concepts()[-1]))
    lonely.save(folder / "noto" / "lonely.png")
    (folder / "noto" / "lonely.txt").write_text("nobody else draws me")
    return folder


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory, own_pictures: Path) -> Path:
    """A toy ground of the user's own pictures: every stage but the report, a step each.

    Its teacher then takes few steps: what an untrained base draws is noise in 25 as well.
    """
    folder = tmp_path_factory.mktemp("ground")
    stages = ("data", "vae", "decoder", "clip", "base", "judge", "probe", "guidance", "styles")
    command = build(
        folder, *stages, "acceleration", "manifest", data=own_pictures, shorter=10000, prompts=1
    )
    said = run(command)
    assert "noto: 1 captions are not in every style and are left out: nobody else" in said
    defaults = folder / "defaults.json"
    values = json.loads(defaults.read_text())
    assert values["teacher_steps"] == 25
    defaults.write_text(json.dumps({**values, "teacher_steps": 2}))
    return folder


@pytest.mark.long
def test_a_toy_ground_holds_what_the_embedded_one_holds(ground: Path) -> None:
    listed = json.loads((ground / "manifest.json").read_text())
    shipped = json.loads((ROOT / "lcm_arith" / "embedded" / "manifest.json").read_text())
    own = {"data/NOTICE.md", *(f"data/{name}.png" for name in pictures.sets())}
    own |= {f"vectors/{name}.safetensors" for name in pictures.style_sets()}
    toys = {f"data/{name}.png" for name in STYLES}
    toys |= {f"vectors/{name}.safetensors" for name in STYLES}
    assert set(listed) == (set(shipped) - own) | toys


@pytest.mark.long
def test_drawings_and_captions_come_through_unchanged(ground: Path) -> None:
    rows = json.loads((ground / "data" / "concepts.json").read_text())
    assert sorted(row["label"] for row in rows) == sorted(thing.caption for thing in THINGS)
    place = [row["label"] for row in rows].index(THINGS[0].caption)
    with Image.open(ground / "data" / "noto.png") as sheet:
        tile = np.asarray(sheet)[:64, 64 * place : 64 * place + 64]
    assert np.array_equal(tile, pictures.drawing("noto", THINGS[0]))


@pytest.mark.long
def test_every_command_runs_on_a_ground_of_ones_own(ground: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "LCM_ARITH_EMBEDDED": str(ground)}
    command = [sys.executable, "-m", "lcm_arith", "grid-eval", "--prompts", "2", "--seeds", "1"]
    done = subprocess.run(
        [*command, "--steps", "1", "--l1", "1", "--l2", "1", "--part", "all", "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "grid").is_dir() or list(tmp_path.iterdir())


def test_a_ground_that_is_not_there_is_said(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "lcm_arith", "generate", "fox"],
        cwd=tmp_path,
        env={**os.environ, "LCM_ARITH_EMBEDDED": str(tmp_path / "nowhere")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    assert "holds no model to work on" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_the_report_of_a_toy_ground_prints_every_figure(ground: Path) -> None:
    said = run(build(ground, "report", prompts=2, seeds=2))
    page = (ground / "embedded.md").read_text()
    for name in ("judge: true caption", "base: two artists", "style: style_acc", "gap closed"):
        assert name in page
        assert name in said
    assert (ground / "embedded_curves.png").stat().st_size > 1000


@pytest.mark.long
def test_a_killed_base_goes_on_to_the_same_weights(ground: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for copy in (whole, cut):
        shutil.copytree(ground, copy)
    run(build(whole, "base", shorter=3000))  # 3 steps
    command = build(cut, "base", shorter=3000, seconds=0)
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "cut-work" / "base.pt"
    while not checkpoint.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    made = len(torch.load(checkpoint, weights_only=True)["steps"])
    assert 0 < made < 3  # it was cut in the middle
    assert "goes on from" in run(build(cut, "base", shorter=3000))
    weights = [
        load_file(folder / "emoji-sd" / "unet" / "diffusion_pytorch_model.safetensors")
        for folder in (whole, cut)
    ]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "noto" / "0.txt").unlink(), "0.txt"),
        (lambda folder: (folder / "noto" / "0.txt").write_text(" "), "is empty"),
        (lambda folder: (folder / "noto" / "0.png").write_bytes(b"no"), "0.png"),
        (
            lambda folder: (folder / "noto" / "0.txt").write_text(
                (folder / "noto" / "1.txt").read_text()
            ),
            "another picture's",
        ),
    ],
)
def test_own_pictures_that_cannot_be_used_are_named(
    own_pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object],
    message: str,
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(own_pictures, copy)
    spoil(copy)
    written: list[Any] = []
    monkeypatch.setattr(pictures_folder, "write_data", lambda *given: written.append(given))
    with pytest.raises(BuildError, match=message):
        pictures_folder.build(Options(tmp_path, tmp_path, data=copy))
    assert not written


def test_a_stage_that_cannot_go_on_ends_the_build_and_writes_nothing(
    own_pictures: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(own_pictures, copy)
    (copy / "noto" / "0.txt").unlink()
    assert "0.txt" in run(build(tmp_path / "ground", "data", "vae", data=copy), code=1)
    assert not list((tmp_path / "ground").iterdir())


@pytest.mark.parametrize(
    "wrong", [["no-such-stage"], ["--data=nowhere", "--out=x"], ["--data=."], ["--shorter=0"]]
)
def test_wrong_calls_of_the_build_are_refused(wrong: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(TOOL), *wrong], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


# --- figures ----------------------------------------------------------------------------------


def test_wilsons_interval_is_the_published_one() -> None:
    # Newcombe 1998, Statistics in Medicine 17, table I: 81 of 263 and 15 of 148, method 3
    for share, count, low, high in (
        (81 / 263, 263, 0.2553, 0.3662),
        (15 / 148, 148, 0.0624, 0.1605),
    ):
        found = wilson(share, count)
        assert (found.low, found.high) == pytest.approx((low, high), abs=1e-4)
    assert wilson(1.0, 50).high == pytest.approx(1.0)


def test_a_tenth_of_the_pairs_is_kept_out_of_the_judge() -> None:
    pairs = [(s, c) for s in pictures.sets() for c in pictures.concepts()]
    share = sum(is_kept_out(s, c) for s, c in pairs) / len(pairs)
    assert share == pytest.approx(0.1, abs=0.03)  # 0.0097 is the standard error of 960 draws


def test_softened_pictures_keep_their_mean_and_lose_their_edges() -> None:
    x = torch.randn(400, 3, 64, 64, generator=step_generator(0, 0))
    soft = softened(x, step_generator(0, 1))
    kept = [torch.equal(a, b) for a, b in zip(x, soft, strict=True)]
    assert sum(kept) / len(kept) == pytest.approx(0.5, abs=0.08)
    changed = [i for i, same in enumerate(kept) if not same]
    assert float(soft[changed].diff(dim=3).abs().mean()) < 0.6 * float(x.diff(dim=3).abs().mean())
    assert float(soft.mean() - x.mean()) == pytest.approx(0.0, abs=1e-3)


def test_the_judges_pictures_are_disturbed_as_often_as_said() -> None:
    x = torch.rand(600, 3, 64, 64, generator=step_generator(0, 0)) * 2 - 1

    def share(hits: Tensor) -> float:
        return float(hits.float().mean())

    same = (moved(x, step_generator(0, 1)) == x).flatten(1).all(1)
    assert 1 - share(same) == pytest.approx(0.67, abs=0.06)
    grey = recoloured(x, step_generator(0, 2))
    assert share((grey == grey[:, :1]).flatten(1).all(1)) == pytest.approx(0.25, abs=0.06)
    hidden = (covered(x, step_generator(0, 3)) == 0).all(1).flatten(1).sum(1)
    assert set(hidden.tolist()) <= {0, 256}  # a square of 16 px, or none
    # noise of 0.1 on top of a square leaves none of its zeros: two in three keep theirs
    assert share(hidden > 0) == pytest.approx(0.33 * 0.67, abs=0.06)
    assert torch.equal(disturbed(x, step_generator(0, 4)), disturbed(x, step_generator(0, 4)))
