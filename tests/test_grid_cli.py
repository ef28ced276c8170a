"""grid-eval on the command line: its verbs on a folder, shards, a search, another base."""

from __future__ import annotations

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import fails, files_in, run
from grids import tiny_files
from rich.progress import Progress
from typer.testing import CliRunner

from lcm_arith.cli import output
from lcm_arith.cli.main import app
from lcm_arith.cli.output import Stages
from lcm_arith.embedded.pictures import concepts
from lcm_arith.errors import InvalidContentError, StorageError, UsageError
from lcm_arith.evaluation import manifest as manifests
from lcm_arith.evaluation.drawing.shards import WHOLE
from lcm_arith.evaluation.drawing.store import Picture, Store
from lcm_arith.evaluation.manifest import How
from lcm_arith.evaluation.plans.rows import Row
from lcm_arith.evaluation.session import reopened

TIMELESS = ["seconds_per_image"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base and vectors, and ``grid/``, a finished grid of them."""
    folder = tiny_files(tmp_path_factory.mktemp("cli"))
    (folder / "p.txt").write_text("fox\nred cat\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        run(*asked())
    return folder


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to work in."""
    shutil.copytree(made, tmp_path / "work")
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def asked(*more: str) -> list[str]:
    return [
        "grid-eval", "style.safetensors", "accel.safetensors", "--base", "base", "--l1", "0.5,1",
        "--l2", "1", "--steps", "1,2", "--prompts", "p.txt", "--seeds", "1", *more,
    ]  # fmt: skip


def run_raising(*arguments: str) -> None:
    CliRunner().invoke(app, list(arguments), catch_exceptions=False)


def told(*arguments: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("grid-eval", *arguments, "--json").stdout)
    return found


def cells(folder: str = "grid") -> pd.DataFrame:
    return pd.read_csv(f"{folder}/cells.csv").drop(columns=TIMELESS)


def test_report_says_again_what_run_said_and_reads_neither_base_nor_vectors(here: Path) -> None:
    before = cells()
    shutil.rmtree("base")
    Path("style.safetensors").unlink()
    Path("grid/cells.csv").unlink()
    run("grid-eval", "report", "grid")
    pd.testing.assert_frame_equal(cells(), before)
    assert before.prompt_score.isna().all()  # the emoji judge says nothing of another base
    assert before.ssim.notna().all()


def test_report_takes_the_place_of_its_own_files_alone(here: Path) -> None:
    note, mine = Path("grid/manifest.json"), Path("mine.csv")
    mine.write_text("mine")
    others = [Path("grid", name) for name in ("sheet_final.png", "sheets.png", "heatmap_my.png")]
    stale = [Path("grid", name) for name in ("sheet_9.png", "heatmap_ssim.png", "confirmed.csv")]
    for path in (*others, *stale):
        path.write_bytes(b"mine")
    note.write_text(json.dumps(json.loads(note.read_text()) | {"csv": str(mine.resolve())}))
    before = cells()
    told("report", "grid", "--csv", "asked.csv")
    told("report", "grid")
    assert {path.read_bytes() for path in (mine, *others)} == {b"mine"}
    assert not any(path.exists() and path.read_bytes() == b"mine" for path in stale)
    pd.testing.assert_frame_equal(cells(), before)
    assert Path("asked.csv").read_bytes() == Path("grid/cells.csv").read_bytes()
    assert fails("grid-eval", "report", "grid", "--csv", "grid/images.csv")[0] == 2
    assert fails("grid-eval", "report", "grid", "--csv", "no/such.csv")[0] == 3


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (["facts"], {}),
        (["facts"], []),
        (["facts", "bases"], {}),
        (["facts", "versions"], None),
        (["plan", "settings"], []),
        (["plan", "settings", 0, "target_sets"], ["no such"]),
        (["plan", "cells", 0, "l1"], "1e300000000"),
        (["plan", "cells", 0, "l1_schedule"], 5),
        (["plan", "cells", 0, "sampler"], "no such"),
        (["plan", "cells", 0, "method"], []),
        (["tools", "metrics"], ["no such"]),
        (["tools"], 5),
        (["how", "dtype"], "int3"),
        (["asked", "metric"], "no such"),
    ],
)
def test_an_edited_manifest_is_named_as_unusable(here: Path, place: list[Any], value: Any) -> None:
    path = Path("grid/manifest.json")
    told = json.loads(path.read_text())
    *above, last = place
    functools.reduce(lambda inside, key: inside[key], above, told)[last] = value
    path.write_text(json.dumps(told))
    code, message = fails("grid-eval", "status", "grid")
    assert (code, "is no manifest of a grid" in message) == (4, True), message


def test_a_run_that_is_killed_has_noted_its_batch_and_passes_broken_records_by(here: Path) -> None:
    def killed(stage: str, *_: object) -> None:
        raise KeyboardInterrupt(stage)

    session = reopened(Path("grid"), killed)
    question = replace(session.manifest, how=How())
    Path("new/chunks").mkdir(parents=True)
    Path("new/chunks/a.json").write_text('{"rows": [], "pictures": [5]}')
    Path("new/chunks/b.json").write_text("[" * 100_000)
    with pytest.raises(KeyboardInterrupt):
        replace(session, manifest=question, folder=Path("new")).draw(WHOLE)
    assert manifests.read(Path("new")).how.batches == {"base": 32}


def test_status_and_report_of_a_grid_that_lost_pictures(here: Path) -> None:
    whole = told("status", "grid")
    assert whole["made"] == whole["pictures"]
    images = pd.read_csv("grid/images.csv")
    lost = images[(images.role == "cell") & (images.l1 == 0.5)]
    Path("grid", lost.iloc[0].path).unlink()
    cut = told("status", "grid")
    assert whole["made"] - cut["made"] == len(lost)  # its chunk: both step counts
    told("report", "grid")
    table = cells().set_index(["role", "l1", "steps"]).loc["cell"]
    assert table.loc[0.5].status.tolist() == ["missing", "missing"]
    assert table.loc[0.5].ssim.isna().all()
    assert table.loc[1.0].status.tolist() == ["ok", "ok"]
    before = files_in(Path("grid/images"))
    run(*asked())
    after = files_in(Path("grid/images"))
    assert {name: after[name] for name in before} == before
    assert cells().status.eq("ok").all()


def test_replay_draws_the_same_bytes_and_notices_other_files(here: Path) -> None:
    found = told("replay", "grid")
    assert found["unequal"] == 0 < found["pictures"]
    shutil.copy("accel.safetensors", "style.safetensors")
    code, message = fails("grid-eval", "replay", "grid")
    assert code == 6
    assert "style.safetensors: not the files" in message


def test_export_lays_pictures_out_for_other_tools_once(here: Path) -> None:
    found = told("export", "grid", "--to", "out")
    rows = [json.loads(line) for line in Path("out/rows.jsonl").read_text().splitlines()]
    assert found["pictures"] == len(rows) * 2 == len(list(Path("out").rglob("*.png")))
    place = Path("out", rows[-1]["cell_id"], "00001")
    assert json.loads((place / "metadata.jsonl").read_text())["prompt"] == "red cat"
    images = pd.read_csv("grid/images.csv")
    same = images[(images.cell_id == rows[-1]["cell_id"]) & (images.prompt == "red cat")]
    assert (place / "samples/0000.png").read_bytes() == Path("grid", same.iloc[0].path).read_bytes()
    assert fails("grid-eval", "export", "grid", "--to", "out")[0] == 3


def test_shards_in_folders_of_their_own_are_one_grid_when_copied_together(here: Path) -> None:
    for number in (3, 1, 2):
        said = run(*asked("--shard", f"{number}/3", "--out", f"s{number}"))
        assert f"grid-eval report s{number}" in said.stdout.replace("\n", " ")
    for number in (1, 2, 3):
        shutil.copytree(f"s{number}", "together", dirs_exist_ok=True)
    run("grid-eval", "report", "together")
    pd.testing.assert_frame_equal(cells("together"), cells())


def test_two_reports_at_once_do_not_stumble_over_each_other(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unlink = Path.unlink

    def by_both(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok=True)
        unlink(path, missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", by_both)
        run("grid-eval", "report", "grid")
    assert Path("grid/sheet.png").is_file()


def test_a_search_says_what_it_looked_at_and_its_report_is_alike(here: Path) -> None:
    found = told("run", *asked("--search", "random", "--budget", "10000")[1:])
    assert found["searched"]["total"] == found["searched"]["finished"] == 4
    pd.testing.assert_frame_equal(cells(), pd.read_csv("grid/cells.csv").drop(columns=TIMELESS))
    assert told("report", "grid")["searched"] == found["searched"]


def test_the_report_of_a_search_that_was_cut_off_says_so(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    more = asked("--l1", "0.5,1,1.5", "--search", "random", "--budget", "10000")
    with monkeypatch.context() as patch:
        patch.setattr("lcm_arith.evaluation.session.search_grid", cut)
        CliRunner().invoke(app, more)
    said = " ".join(run("grid-eval", "report", "grid").stdout.split())
    assert "The search has not ended: of 6 cells 4 are whole" in said
    assert "The search has not ended" in Path("grid/report.html").read_text()
    assert "Searched: of 6 cells 6 were drawn" in " ".join(run(*more).stdout.split())


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (2, "--shard 0/3"),
        (2, "--executor slurm"),
        (2, "--workers 2"),
        (2, "--budget 100"),
        (2, "--search random --budget 10000 --shard 1/2"),
        (2, "--shard 1/2 --confirm 1"),
        (2, "--shard 1/2 --csv x.csv"),
        (2, "--shard 1/2 --require-metric teacher_dino"),
    ],
)
def test_impossible_ways_of_drawing_are_refused_before_anything_is_drawn(
    here: Path, code: int, more: str
) -> None:
    assert fails(*asked("--out", "new", *more.split()))[0] == code
    assert not Path("new/images").exists()


def test_a_folder_whose_name_is_no_text_holds_a_grid_and_a_prompt_that_is_none_is_refused(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "caf\udce9"  # as Python has the byte e9
    monkeypatch.setattr("sys.argv", ["lcm-arith", "grid-eval", "--out", name])
    run(*asked("--out", name))
    assert manifests.read(Path(name)).argv[-1] == name
    code, message = fails(*asked("--axis", f"negative={name}", "--axis", "guidance=2"))
    assert (code, "no text in UTF-8" in message) == (2, True), message


def test_verbs_of_a_folder_without_a_grid_say_so(tmp_cwd: Path) -> None:
    for name in ("report", "status", "replay", "export", "gc"):
        code, message = fails("grid-eval", name, "nowhere")
        assert code == 3
        assert "no grid is there" in message


def test_a_misspelled_verb_is_no_style_unless_there_is_one(tmp_cwd: Path) -> None:
    with pytest.raises(UsageError, match="no verb and no style") as caught:
        run_raising("grid-eval", "raport", "grid")
    assert caught.value.hint == "did you mean report?"
    Path("raport").write_text("no adapter")
    assert fails("grid-eval", "raport")[0] == InvalidContentError.exit_code


def test_a_narrower_question_says_where_the_wider_one_is_kept(here: Path) -> None:
    wide = cells()
    shown = run(*["1" if each == "0.5,1" else each for each in asked()])
    (kept,) = Path("grid").glob("manifest-*.json")
    assert f"it is kept: lcm-arith grid-eval report {kept}" in " ".join(shown.stderr.split())
    assert len(cells()) < len(wide)
    run("grid-eval", "report", str(kept))
    assert cells().equals(wide)


def test_a_file_in_the_way_of_the_folder_is_named_before_anything_is_read(tmp_cwd: Path) -> None:
    Path("taken").write_text("")
    code, message = fails("grid-eval", "--out", "taken/x/y")
    assert (code, f"{tmp_cwd / 'taken'}: is a file, not a folder" in message) == (3, True), message


def test_more_captions_than_there_are_is_said_before_drawing(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise StorageError("drawn")

    monkeypatch.setattr("lcm_arith.evaluation.session.Session.run", stop)
    result = CliRunner().invoke(app, [*asked()[:-4], "--prompts", "9999", "--part", "B"])
    count = len(concepts("B"))
    assert f"--prompts 9999: there are {count} captions in part B" in result.stderr
    assert isinstance(result.exception, StorageError)


def test_off_a_terminal_progress_is_a_line_a_minute(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = iter([0.0, 30.0, 61.0, 61.0, 90.0])
    with output.progress() as bar:
        assert isinstance(bar, Progress)
        stages = Stages(bar, clock=lambda: next(now))
        for done in (10, 20, 30):
            stages("draw", done, 100, "UNet rows")
        bar.stop()
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("draw UNet")]
    assert next(line for line in lines if " of 100" in line).startswith("draw UNet rows: 20 of 100")


def test_a_picture_of_the_teacher_that_is_none_takes_its_prompt_out_and_is_said(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.picture

    def picture(self: Store, row: Row, item: tuple[str, int]) -> Picture | None:
        found = real(self, row, item)
        if found and row.role == "teacher" and item[0] == "fox":
            return replace(found, sha256=None, status="nan")
        return found

    monkeypatch.setattr(Store, "picture", picture)
    code, message = fails("grid-eval", "report", "grid")
    assert code == 8
    assert "1 prompts are left out of all figures" in message
    assert set(pd.read_csv("grid/images.csv").prompt) == {"red cat"}
    assert cells().ssim.notna().all()


def test_a_confirmation_that_gave_no_pictures_leaves_the_grid_its_figures(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Store.picture

    def picture(self: Store, row: Row, item: tuple[str, int]) -> Picture | None:
        found = real(self, row, item)
        lost = found and row.role == "cell" and item == ("fox", 1)
        return replace(found, sha256=None, status="nan") if found and lost else found

    before = cells()
    monkeypatch.setattr(Store, "picture", picture)
    for ways in (asked("--confirm", "1"), ["grid-eval", "report", "grid"]):
        code, message = fails(*ways)
        assert (code, "not confirmed: grid: none of 1 cells" in message) == (8, True), message
        assert cells().equals(before)
        assert not Path("grid/confirmed.csv").exists()
    page = Path("grid/report.html").read_text()
    assert "Not confirmed: grid: none of 1 cells has all its pictures (1 nan)" in page


@pytest.mark.parametrize(("gone", "code"), [(False, 8), (True, 3)])
def test_controls_that_came_out_as_nan_are_told_from_missing_ones(
    here: Path, monkeypatch: pytest.MonkeyPatch, gone: bool, code: int
) -> None:
    real = Store.picture

    def picture(self: Store, row: Row, item: tuple[str, int]) -> Picture | None:
        found = real(self, row, item)
        if found and row.role == "control" and row.nfe == 2:
            missing = gone and row.sampler == "lcm"
            return None if missing else replace(found, sha256=None, status="nan")
        return found

    monkeypatch.setattr(Store, "picture", picture)
    found, message = fails("grid-eval", "report", "grid")
    assert found == code
    assert ("run the same grid again" in message) == gone
    assert ("every control of 2 UNet passes" in message) != gone
    assert ("--dtype float32" in message) != gone
