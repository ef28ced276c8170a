"""Commands run in this process, and small files for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import random_vector
from typer.testing import CliRunner

from lcm_arith.cli.main import app
from lcm_arith.errors import LcmArithError
from lcm_arith.saving import save


def run(*arguments: str) -> Any:
    """Runs a command that must succeed."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def fails(*arguments: str) -> tuple[int, str]:
    """Exit code and message of a command that must not succeed."""
    result = CliRunner().invoke(app, list(arguments))
    if isinstance(result.exception, LcmArithError):
        return result.exception.exit_code, str(result.exception)
    return result.exit_code, result.output


def verb(*arguments: str) -> Any:
    """JSON of a verb that must succeed."""
    return json.loads(run("registry", *arguments, "--json").stdout)


def small(path: str, seed: int = 1) -> Path:
    """A file of four modules of the embedded model."""
    save(random_vector(4, 4.0, seed), path, force=True)
    return Path(path)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def made_up(request: Any) -> dict[str, Any]:
    """What a training returns, without one."""
    if request.out.suffix:
        small(str(request.out))
    plan = {"rank": 1, "steps": 1, "batch": 1, "accumulation": 1}
    told = {"path": str(request.out), "run": "", "kind": "style", "modules": 1, "plan": plan}
    told |= {"pictures": 1, "captions": 1, "skipped_pictures": [], "cut_captions": 0}
    return {**told, "final_loss": 0.0, "skipped_steps": 0}
