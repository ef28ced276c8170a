"""README.md and docs/ tell the truth: commands parse, links lead, none is missing."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ground import tables
from typer.main import get_command
from typer.testing import CliRunner

from lcm_arith.cli.main import app
from lcm_arith.families import family

ROOT = Path(__file__).resolve().parents[1]
SHELLS = {"bash", "console", "sh", "shell"}
FENCE = re.compile(r"^ *```(\w*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")


@pytest.fixture(scope="module")
def readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def command_paths(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every command that does something, as the words to type after ``lcm-arith``."""
    children = getattr(command, "commands", None)
    if children is None:
        yield path
    else:
        for name, child in children.items():
            yield from command_paths(child, (*path, name))


def shell_commands(markdown: str, program: str) -> Iterator[list[str]]:
    """Arguments of each call of ``program`` in the shell blocks of a page.

    Where a block has prompts (``$ ``), its other lines are output. Pipes, redirections, ``&&``,
    comments, continued lines, variables set in front and a folder before the name are understood.
    """
    for language, block in FENCE.findall(markdown):
        if language not in SHELLS:
            continue
        lines = [line.strip() for line in block.replace("\\\n", " ").splitlines()]
        prompts = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        for line in prompts or lines:
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words: list[str] = []
            for word in [*lexer, ";"]:
                if set(word) <= set("();<>|&"):
                    while words and re.match(r"\w+=", words[0]):
                        del words[0]
                    if words and words[0].rpartition("/")[2] == program:
                        yield words[1:]
                    words = []
                else:
                    words.append(word)


def only_parsing(command: Any) -> Any:
    """The command tree with every body taken out: values are parsed and checked, nothing runs."""
    for child in getattr(command, "commands", {}).values():
        only_parsing(child)
    command.callback = lambda **_: None
    return command


@pytest.fixture(scope="module")
def tour() -> str:
    return (ROOT / "docs" / "registry.md").read_text(encoding="utf-8")


def test_every_command_is_in_the_readme_or_the_page_of_its_group(readme: str, tour: str) -> None:
    paths = [" ".join(path) for path in command_paths(get_command(app))]
    assert {"combine", "registry ls", "grid-eval report"} <= set(paths)
    groups = {"registry": tour, "grid-eval": (ROOT / "docs" / "grid-eval.md").read_text("utf-8")}
    assert all(f"(docs/{name}.md)" in readme for name in groups)
    pages = {path: groups.get(path.split()[0], readme) for path in paths}
    missing = [p for p, page in pages.items() if not re.search(rf"(lcm-arith |`){p}\b", page)]
    assert not missing


def test_the_number_of_verbs_is_right(readme: str) -> None:
    verbs = [path for path in command_paths(get_command(app)) if path[0] == "registry"]
    assert f"{len(verbs)} verbs" in readme


def complaint(command: Any, args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What Typer says against a command line; empty if it parses."""
    with pytest.raises(SystemExit) as end:
        command.main(list(args), prog_name="lcm-arith")
    said = capsys.readouterr().err
    return f"lcm-arith {shlex.join(args)}: {said}" if end.value.code else ""


@pytest.mark.parametrize(
    "page", ["README.md", "docs/registry.md", "docs/distillation.md", "docs/axes.md"]
)
def test_every_command_line_of_a_page_parses(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    command = only_parsing(get_command(app))
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = list(shell_commands(text, "lcm-arith"))
    assert lines, f"{page} shows no command line"
    for launcher in ("accelerate", "torchrun"):
        lines += [line[line.index("lcm_arith") + 1 :] for line in shell_commands(text, launcher)]
    assert "".join(complaint(command, args, capsys) for args in lines) == ""


@pytest.mark.parametrize(
    "args", ["no-such-command", "combine --no-such-option", "generate fox --steps many"]
)
def test_a_wrong_command_line_does_not_parse(args: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = complaint(only_parsing(get_command(app)), args.split(), capsys)
    assert re.search("no such|invalid value", said, re.IGNORECASE)


# A page's ``lcm-arith``: it passes its words on, and waits for what they come to.
STAND_IN = r"""
set -euo pipefail
trap 'echo end > "$PLACE/asked"' EXIT
lcm-arith() {
    printf '%s\0' "$@" > "$PLACE/words"
    echo run > "$PLACE/asked"
    local code; read -r code < "$PLACE/answered"
    cat "$PLACE/out"; cat "$PLACE/err" >&2; return "$code"
}
"""


def in_a_shell(script: str, place: Path) -> str:
    """What a script of commands prints; they run in this process, which has imported all."""
    os.mkfifo(place / "asked")
    os.mkfifo(place / "answered")
    shell = subprocess.Popen(
        ["bash", "-c", STAND_IN + script], env={**os.environ, "PLACE": str(place)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while (place / "asked").read_text() == "run\n":
        words = (place / "words").read_text().split("\0")[:-1]
        result = CliRunner().invoke(app, words)
        (place / "out").write_text(result.stdout)
        (place / "err").write_text(f"{result.stderr}{result.exception or ''}")
        (place / "answered").write_text(f"{result.exit_code}\n")
    said, _ = shell.communicate(timeout=60)
    assert shell.returncode == 0, said
    return said


@pytest.mark.slow
def test_the_tour_of_the_registry_runs_as_it_stands(
    tour: str, tmp_cwd: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """In a shell, in one folder, in the page's order; the first failure ends it."""
    blocks = [block for language, block in FENCE.findall(tour) if language in SHELLS]
    said = in_a_shell("\n".join(blocks), tmp_path_factory.mktemp("shell"))
    for told in (
        "mixed: made again, the same bytes",
        "here.safetensors = 0.8 · ink + 1.0 · lcm",
        "4 names, 3 files: every byte as it should be",
    ):
        assert told in said


def test_make_targets_in_the_readme_exist(readme: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in [args[0] for args in shell_commands(readme, "make") if args]:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"make {target}"


def test_relative_links_lead_to_a_file() -> None:
    pages = ("README.md", "CONTRIBUTING.md", "docs/distillation.md", "docs/axes.md")
    dead = [
        f"{page}: {target}"
        for page in pages
        for target in LINK.findall((ROOT / page).read_text(encoding="utf-8"))
        if not (ROOT / page).parent.joinpath(target).exists()
    ]
    assert not dead


@pytest.fixture(scope="module")
def training() -> str:
    return (ROOT / "docs" / "distillation.md").read_text(encoding="utf-8")


def test_the_places_in_the_code_that_the_page_on_training_names_exist(training: str) -> None:
    places = re.findall(r"`([\w/]+\.py)` `(\w+)`", training)
    assert len(places) > 25
    for file, name in places:
        path = ROOT / ("" if file.startswith("tests/") else "lcm_arith") / file
        assert re.search(rf"^(def|class) {name}\b", path.read_text("utf-8"), re.MULTILINE), file


def test_the_defaults_in_the_page_on_training_are_the_families(training: str) -> None:
    for name in ("emoji", "sd15", "sd2", "ssd1b", "sdxl"):
        row = family(name)
        own, full, style = row.acceleration, row.full, row.style
        batch = f"{own.batch} × {own.accumulation}" if own.accumulation > 1 else own.batch
        cells = (
            name, row.resolution, f"{row.omega:g}", row.grid_points, row.stride, own.rank,
            own.steps, batch, own.learning_rate, full.learning_rate,
            f"{style.rank}, {style.steps}, {style.batch}, {style.learning_rate}",
        )  # fmt: skip
        assert f"| {' | '.join(map(str, cells))} |" in training


def test_shell_commands_are_found_as_a_shell_would_find_them() -> None:
    page = """
```console
$ A=1 .venv/bin/lcm-arith demo --out "my demo" # shows all
lcm-arith is printed here
$ cd x && lcm-arith combine a b \\
    --l1 0.8 | tee log
```
```python
lcm-arith("no shell")
```
"""
    assert list(shell_commands(page, "lcm-arith")) == [
        ["demo", "--out", "my demo"],
        ["combine", "a", "b", "--l1", "0.8"],
    ]


def test_the_readmes_table_is_the_short_form_of_the_whole_one(readme: str) -> None:
    rows: dict[tuple[str, str], list[tuple[str, ...]]] = {}
    for block in (ROOT / "docs" / "table.md").read_text(encoding="utf-8").split("\n## Part ")[1:]:
        for line in block.split("###")[0].splitlines()[4:]:
            if line:
                cells = tuple(cell.strip() for cell in line.strip("|").split("|"))
                rows.setdefault((block[0], cells[0]), []).append(cells)
    assert len(rows) == 10
    assert tables.markdown(tables.short(rows)) in readme
