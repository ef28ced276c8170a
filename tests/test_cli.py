"""The command line: outputs, exit codes, and nothing written on a mistake."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from commands import fails, run
from PIL import Image
from safetensors.torch import load_file, save_file
from support import random_vector

from lcm_arith.adapters import load
from lcm_arith.cli.main import main
from lcm_arith.errors import NotFoundError
from lcm_arith.evaluation import demo
from lcm_arith.saving import save

FAST = ["--prompts", "1", "--seeds", "1", "--steps", "1", "--l1", "1", "--l2", "1"]


def test_combine_without_options_writes_the_papers_sum(tmp_cwd: Path) -> None:
    out = run("combine").output
    assert "0.8 · fluent-emoji + 1 · lcm" in out
    tau, style, accel = load("combined.safetensors"), load("fluent-emoji"), load("lcm")
    module = tau.modules[7]
    expected = 0.8 * style[module].dense() + accel[module].dense()
    assert torch.allclose(tau[module].dense(), expected, rtol=0, atol=1e-6)


def test_combine_to_a_rank_prints_what_was_kept(tmp_cwd: Path) -> None:
    told = json.loads(run("combine", "--rank", "8", "--json", "-o", "x.safetensors").output)
    assert told["schema_version"] == 1
    assert told["rank_min"] == told["rank_max"] == 8
    assert 0.3 < told["retained_energy"] < 1
    assert Path(told["path"]).stat().st_size == told["bytes"]


def test_combine_negates(tmp_cwd: Path) -> None:
    run("combine", "noto", "none", "--l1", "-1", "-o", "minus.safetensors")
    minus, plus = load("minus.safetensors"), load("noto")
    assert all(torch.allclose(minus[m].dense(), -plus[m].dense(), atol=1e-7) for m in plus)


def test_generate_writes_pictures_a_sheet_and_keeps_earlier_ones(tmp_cwd: Path) -> None:
    arguments = ("generate", "fox", "red apple", "--vector", "lcm", "--steps", "1", "--json")
    first, second = (json.loads(run(*arguments).stdout) for _ in range(2))
    assert (first["sampler"], first["guidance"]) == ("lcm", 1.0)
    for path in (*first["pictures"], first["sheet"], *second["pictures"]):
        with Image.open(path) as picture:
            picture.load()
            assert min(picture.size) >= 64
    assert not set(first["pictures"]) & set(second["pictures"])
    a, b = (Path(told["pictures"][0]).read_bytes() for told in (first, second))
    assert a == b


def test_generate_without_arguments_draws_a_dozen(tmp_cwd: Path) -> None:
    result = run("generate", "--steps", "1", "--guidance", "1", "--out", "here")
    assert len(list(Path("here").glob("*-seed0.png"))) == 12
    assert "dpm++, 1 steps" in result.stderr


def test_an_unknown_prompt_is_drawn_with_a_note_of_the_nearest(tmp_cwd: Path) -> None:
    result = run("generate", "foxx", "--steps", "1")
    assert "never learnt 'foxx'" in result.stderr
    assert "fox" in result.stderr.split("nearest:")[1]
    assert len(list(Path("generated").glob("0000-foxx-*.png"))) == 1


def test_grid_eval_writes_its_tables_and_resumes(tmp_cwd: Path) -> None:
    asked = (*FAST, "--csv", "t.csv", "--metrics", "psnr,color_swd", "--style-refs", "refs")
    Path("refs").mkdir()
    Image.new("RGB", (9, 9)).save("refs/mine.png")
    run("grid-eval", *asked)
    first = pd.read_csv("t.csv")
    assert first.psnr.tolist()[1] == float("inf")
    assert first.psnr.notna().all()
    assert (first.color_swd > 20).all()  # far from black
    assert first.luma_shift.isna().all()
    assert first.role.tolist() == ["base", "teacher", "control", "cell"]
    assert {"images.csv", "sheet.png"} <= {path.name for path in Path("grid").iterdir()}
    before = {p: p.stat().st_mtime_ns for p in Path("grid/images").iterdir()}
    printed = run("grid-eval", *asked, "--json").stdout
    assert "Infinity" not in printed  # it is no JSON; the teacher's PSNR to itself is infinite
    told = json.loads(printed)
    assert [row["role"] for row in told["rows"]] == first.role.tolist()
    assert (told["best_set"]["cells"], told["baseline"]["steps"]) == ([], 1)  # of one prompt
    assert "grid/comparisons.csv" in told["paths"]
    assert {p: p.stat().st_mtime_ns for p in Path("grid/images").iterdir()} == before
    timeless = [c for c in first.columns if c != "seconds_per_image"]
    pd.testing.assert_frame_equal(first[timeless], pd.read_csv("t.csv")[timeless])


def test_grid_eval_without_a_style_has_base_as_teacher(tmp_cwd: Path) -> None:
    run("grid-eval", "none", "lcm", *FAST)
    table = pd.read_csv("grid/cells.csv").set_index("role")
    assert table.style_accuracy.isna().all()
    distance = table.pair_distance.to_dict()
    assert distance["teacher"] == distance["base"]
    assert (table.l1 == 0).all()


def bad_files(folder: Path) -> None:
    save(random_vector(4, 4.0, 1, {"unet.conv_in": (320, 4, 3, 3)}), folder / "alien.safetensors")
    (folder / "text.safetensors").write_text("hello")
    tensors = load_file(folder / "alien.safetensors")
    save_file({k: v * float("nan") for k, v in tensors.items()}, folder / "nan.safetensors")
    (folder / "cut.safetensors").write_bytes((folder / "nan.safetensors").read_bytes()[:-9])
    (folder / "exists.safetensors").write_text("mine")
    (folder / "empty").mkdir()


@pytest.mark.parametrize(
    ("code", "command"),
    [
        (2, "combine --rank 0"),
        (2, "combine --l1 nan"),
        (2, "combine --no-such-option"),
        (2, "grid-eval --l1 0:1:0"),
        (2, "grid-eval --steps 0"),
        (2, "grid-eval --baseline 0.8,1,3"),
        (2, "grid-eval --prompts 0"),
        (2, "grid-eval --seeds 0"),
        (2, "grid-eval --part C"),
        (2, "generate --steps 0"),
        (2, "generate --sampler heun"),
        (2, "generate --guidance -1"),
        (2, "generate --vector noto:heavy"),
        (2, "distill --omega -1"),
        (2, "distill --steps 0"),
        (2, "finetune --rank 0"),
        (2, "finetune --data empty --embedded-style noto"),
        (2, "finetune -o mine"),
        (2, "combine -o mine.bin"),
        (2, "grid-eval --l1 1e999999"),
        (2, "grid-eval --out g --csv g/images.csv"),
        (3, "combine notto"),
        (3, "combine nowhere/x.safetensors"),
        (3, "combine -o exists.safetensors"),
        (3, "combine -o nowhere/x.safetensors"),
        (3, "finetune --data nowhere"),
        (3, "finetune --embedded-style notto"),
        (3, "finetune -o exists.safetensors"),
        (3, "distill -o exists.safetensors"),
        (3, "generate --vector notto:1"),
        (3, "generate --out exists.safetensors"),
        (3, "grid-eval --prompts nowhere.txt"),
        (3, "grid-eval --csv nowhere/t.csv"),
        (4, "combine text.safetensors"),
        (4, "combine nan.safetensors"),
        (4, "combine cut.safetensors"),
        (4, "combine --l1 0 --l2 0"),
        (4, "finetune --data empty"),
        (4, "distill --data empty"),
        (4, "grid-eval cut.safetensors"),
        (6, "combine alien.safetensors"),
        (6, "generate --vector alien.safetensors:1"),
        (6, "grid-eval alien.safetensors"),
    ],
)
def test_bad_input_has_its_exit_code_and_writes_nothing(
    tmp_cwd: Path, code: int, command: str
) -> None:
    bad_files(tmp_cwd)
    before = {p: p.read_bytes() if p.is_file() else b"" for p in tmp_cwd.rglob("*")}
    found, message = fails(*command.split())
    assert found == code, message
    assert message.strip()
    assert {p: p.read_bytes() if p.is_file() else b"" for p in tmp_cwd.rglob("*")} == before


def test_names_with_brackets_and_empty_names_are_taken_as_they_are(tmp_cwd: Path) -> None:
    run("combine", "-o", "my[v2].safetensors")
    out = run("combine", "my[v2].safetensors", "none", "-o", "o[bold].safetensors").output
    assert "my[v2].safetensors" in out
    assert "wrote o[bold].safetensors" in out
    assert fails("combine", "", "lcm")[0] == 3


def test_choices_on_the_command_line_are_the_librarys_tables() -> None:
    from lcm_arith.cli.options import DtypeName, SamplerName
    from lcm_arith.formats.container import DTYPES
    from lcm_arith.sampling import SAMPLERS

    assert [name.value for name in SamplerName] == list(SAMPLERS)
    assert [name.value for name in DtypeName] == list(DTYPES)


def test_an_empty_prompt_is_refused(tmp_cwd: Path) -> None:
    code, message = fails("generate", " ")
    assert (code, "prompt is empty" in message) == (2, True)
    assert not list(tmp_cwd.iterdir())


def test_errors_reach_the_shell_as_one_message_and_a_code(tmp_cwd: Path) -> None:
    command = [sys.executable, "-m", "lcm_arith", "combine", "notto"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_cwd, check=False)
    assert done.returncode == 3
    assert done.stdout == ""
    assert done.stderr.startswith("Error: notto: no vector and no file of that name")
    assert "Traceback" not in done.stderr


def test_an_error_goes_up_whole_to_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python then prints its traceback."""
    monkeypatch.setattr("sys.argv", ["lcm-arith", "combine", "notto"])
    monkeypatch.setattr("lcm_arith.cli.main._QUIET", {})  # it would change this process for good
    monkeypatch.setenv("LCM_ARITH_DEBUG", "1")
    with pytest.raises(NotFoundError, match="notto"):
        main()


@pytest.mark.slow
def test_the_demo_writes_what_it_promises(tmp_cwd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "PROMPTS", "4")
    monkeypatch.setattr(demo, "SEEDS", 1)
    told = json.loads(run("demo", "--json").stdout)
    for name in ("combined.safetensors", "sheet.png", "grid.csv", "grid/sheet.png"):
        assert f"demo/{name}" in told["paths"]
        assert Path("demo", name).is_file()
    table = pd.read_csv("demo/grid.csv")
    assert set(table.role) == {"base", "teacher", "control", "cell"}
    assert "too few prompts to tell" in told["result"]
    best = table[(table.role == "cell") & (table.steps == 2)].pair_distance.min()
    assert best < table[(table.role == "control") & (table.nfe == 2)].pair_distance.min()
