"""Help and completion must not wait for torch: what starting the command line imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

HEAVY = {"accelerate", "diffusers", "numpy", "pandas", "peft", "PIL", "sqlalchemy", "torch",
         "transformers"}  # fmt: skip
PRINT_HEAVY = f"print(sorted(set(sys.modules) & {HEAVY}))"

# One interpreter asks every command for its help; a line of JSON tells what each did.
ASK_ALL = f"""
import contextlib, functools, io, json, sys
import typer.main
from lcm_arith.cli.main import app, main

get_command = typer.main.get_command = functools.cache(typer.main.get_command)

def paths(command, path=()):
    yield path
    for name, child in getattr(command, "commands", {{}}).items():
        yield from paths(child, (*path, name))

for path in paths(get_command(app)):
    sys.argv = ["lcm-arith", *path, "--help"]
    printed, code = io.StringIO(), 0
    with contextlib.redirect_stdout(printed):
        try:
            main()
        except SystemExit as end:
            code = end.code or 0
    heavy = sorted(set(sys.modules) & {HEAVY})
    print(json.dumps([" ".join(path), code, len(printed.getvalue()), heavy]))
"""


def python(*args: str, cwd: Path) -> str:
    env = os.environ | {"NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("module", ["lcm_arith", "lcm_arith.cli.main"])
def test_importing_loads_nothing_heavy(module: str, tmp_path: Path) -> None:
    assert python("-c", f"import sys, {module}; {PRINT_HEAVY}", cwd=tmp_path).strip() == "[]"


def test_help_lists_the_commands_and_loads_nothing_heavy(tmp_path: Path) -> None:
    code = f"import atexit, runpy, sys; atexit.register(lambda: {PRINT_HEAVY}); \
sys.argv = ['lcm-arith', '--help']; runpy.run_module('lcm_arith', run_name='__main__')"
    printed = python("-c", code, cwd=tmp_path).rstrip()
    assert printed.endswith("[]")
    for command in ("combine", "generate", "finetune", "distill", "grid-eval", "demo"):
        assert command in printed


def test_help_of_every_command_loads_nothing_heavy(tmp_path: Path) -> None:
    answers = [json.loads(line) for line in python("-c", ASK_ALL, cwd=tmp_path).splitlines()]
    assert len(answers) > 1
    for command, code, length, heavy in answers:
        assert (code, heavy) == (0, []), f"lcm-arith {command} --help"
        assert length > 100, f"lcm-arith {command} --help prints next to nothing"


def test_the_version_is_the_packages(tmp_path: Path) -> None:
    said = python("-m", "lcm_arith", "--version", cwd=tmp_path)
    assert said.strip() == f"lcm-arith {version('lcm-arith')}"
