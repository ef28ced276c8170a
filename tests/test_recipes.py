"""Every recipe plans as it stands; the command line wins; what is no option is an error."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from commands import fails, run
from support import random_vector
from typer.main import get_command
from typer.testing import CliRunner

from lcm_arith.cli import grid_eval
from lcm_arith.cli.main import app
from lcm_arith.errors import InvalidContentError
from lcm_arith.evaluation import session
from lcm_arith.evaluation.plans.axes import AXES
from lcm_arith.evaluation.plans.plan import Grid
from lcm_arith.evaluation.plans.recipe import FOLDER, names, read
from lcm_arith.evaluation.plans.rows import Row
from lcm_arith.saving import save

ROOT = Path(__file__).resolve().parents[1]
COMMANDS = {
    name: re.findall(r"^# lcm-arith (grid-eval .*)$", (FOLDER / f"{name}.yaml").read_text(), re.M)
    for name in names()
}


class Planned(Exception):
    """The rows that would be drawn."""


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch, tmp_cwd: Path) -> None:
    def plan(grid: Grid, *_: Any, **__: Any) -> None:
        raise Planned(grid.rows)

    monkeypatch.setattr(session, "draw_grid", plan)
    layer = {"text_encoder.text_model.encoder.layers.0.mlp.fc1": (512, 128)}
    save(random_vector(2, 2.0, 1, layer), "mine.safetensors")


def planned(*arguments: str) -> list[Row]:
    """The cells of a command."""
    result = CliRunner().invoke(app, ["grid-eval", *arguments])
    assert isinstance(result.exception, Planned), (result.output, result.exception)
    return [row for row in result.exception.args[0] if row.role == "cell"]


@pytest.mark.parametrize("name", names())
def test_a_recipe_plans_by_the_command_in_its_first_lines(name: str) -> None:
    (command,) = COMMANDS[name]
    assert f"--recipe {name}" in command
    assert 3 <= len(planned(*shlex.split(command)[1:])) <= 40


@pytest.mark.parametrize("name", names())
def test_a_recipe_restates_no_default(name: str) -> None:
    run: Any = get_command(grid_eval.app).commands["run"]  # type: ignore[attr-defined]
    defaults = {p.opts[0].removeprefix("--"): p.default for p in run.params}
    recipe = read(name, defaults)
    assert recipe.options.keys() <= defaults.keys()
    assert not [key for key, value in recipe.options.items() if value == str(defaults[key])]
    assert recipe.options["out"] == name


def test_recipes_and_axes_are_in_the_docs() -> None:
    page = (ROOT / "docs" / "axes.md").read_text(encoding="utf-8")
    for name in names():
        assert f"| `{name}` | {read(name).question} |" in page
    for axis in AXES.values():
        assert f"| `{axis.name}` | {axis.about} |" in page


RECIPE = """
question: Mine?
l1: [0.8, 1.2/1]
steps: 2
axes:
  sampler: lcm,ddim
  style: [noto, "twemoji:0.5,up=0"]
"""


def test_the_command_line_wins(tmp_cwd: Path) -> None:
    Path("mine.yaml").write_text(RECIPE)
    whole = planned("--recipe", "mine.yaml")
    assert {str(cell.l1) for cell in whole} == {"0.8", "1.1"}
    assert {cell.context.style for cell in whole} == {"noto", "twemoji:0.5,up=0"}
    assert len(whole) == 2 * 2 * 2 * 2  # with the default λ2
    own = planned("fluent-emoji", "--l1", "1", "--axis", "sampler=dpm++", "--recipe", "mine.yaml")
    assert {(c.context.style, str(c.l1), c.sampler, c.steps) for c in own} == {
        ("fluent-emoji", "1", "dpm++", 2)
    }


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("l1: 1", "lacks a question"),
        ("question: x\nsteps: 1\nsteps: 2", "steps is there twice"),
        ("question: x\nstep: 1", "did you mean steps?"),
        ("question: x\nrecipe: other", "recipe is no option"),
        ("question: x\nl1: {a: 1}", "neither a value nor a list"),
        ("question: x\nl1: [[1]]", "neither a value nor a list"),
        ("question: x\naxes: [rank]", "no mapping"),
        ("question: x\naxes: {negative: [a, 'b;c']}", "holds a semicolon"),
        ("question: &a x\nl1: *a", "uses an alias"),
        ("- x", "lacks a question"),
        ("{", "mine.yaml: "),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, told: str, tmp_cwd: Path) -> None:
    Path("mine.yaml").write_text(text)
    code, message = fails("grid-eval", "--recipe", "mine.yaml")
    assert code == InvalidContentError.exit_code, message
    assert told in message


def test_errors_in_a_recipes_values_are_those_of_the_command_line(tmp_cwd: Path) -> None:
    Path("mine.yaml").write_text(RECIPE.replace("lcm,ddim", "lmc"))
    code, message = fails("grid-eval", "--recipe", "mine.yaml")
    assert (code, "did you mean lcm?" in message) == (2, True)
    code, message = fails("grid-eval", "--recipe", "which-smpler")
    assert (code, "did you mean which-sampler?" in message) == (3, True)


def test_recipes_are_listed_shown_and_copied(tmp_cwd: Path) -> None:
    told = json.loads(run("recipes", "ls", "--json").stdout)
    assert [each["name"] for each in told["recipes"]] == list(names())
    assert all(name in run("recipes", "ls").stdout for name in names())
    text = (FOLDER / "methods.yaml").read_text(encoding="utf-8")
    assert run("recipes", "show", "methods").stdout == text
    run("recipes", "cp", "methods")
    assert Path("methods.yaml").read_text(encoding="utf-8") == text
    assert fails("recipes", "cp", "methods")[0] == 3
    run("recipes", "cp", "methods", "own.yaml")
    assert run("recipes", "show", "own.yaml").stdout == text
