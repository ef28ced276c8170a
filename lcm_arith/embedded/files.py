"""Where the embedded files lie, and whether they are the files that were built.

Nothing heavy is imported: commands that list what is shipped must not wait for torch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from lcm_arith.errors import NotFoundError

OTHER_GROUND: Final = "LCM_ARITH_EMBEDDED"
"""Environment variable: folder of a ground that ``tools/build_embedded.py --data`` made."""

ROOT: Final = Path(os.environ.get(OTHER_GROUND) or Path(__file__).parent).resolve()
MODEL: Final = ROOT / "emoji-sd"
JUDGE: Final = ROOT / "judge"
DATA: Final = ROOT / "data"
VECTORS: Final = ROOT / "vectors"

_MANIFEST: Final = "manifest.json"
_DEFAULTS: Final = "defaults.json"
_CEILINGS: Final = "ceilings.json"


def vector_names() -> tuple[str, ...]:
    """Names of the shipped vectors, sorted; empty before any was built."""
    return tuple(sorted(path.stem for path in VECTORS.glob("*.safetensors")))


def vector_path(name: str) -> Path:
    """File of the shipped vector ``name``.

    Raises:
        ValueError: If no such vector is shipped; the message lists those that are.
    """
    names = vector_names()
    if name not in names:
        known = ", ".join(names) or "none"
        raise ValueError(f"no embedded vector is named {name!r}; shipped: {known}")
    return VECTORS / f"{name}.safetensors"


@lru_cache(maxsize=1)
def defaults() -> Mapping[str, Any]:
    """What the embedded model is used with unless told otherwise, as its build measured it.

    Keys: ``guidance`` (scale s of sampling), ``omega`` (of distillation, s = 1 + omega), ``style``
    and ``accel`` (names of the default pair of vectors), ``teacher_steps``.

    Raises:
        NotFoundError: If ``ROOT`` holds no ground, as where the environment names another.
    """
    path = ROOT / _DEFAULTS
    if not path.is_file():
        raise NotFoundError(
            f"{ROOT}: holds no model to work on ({_DEFAULTS} is missing)",
            hint=f"{OTHER_GROUND} must name a folder that tools/build_embedded.py has filled",
        )
    return MappingProxyType(json.loads(path.read_text(encoding="utf-8")))


def ceilings() -> Mapping[str, Any]:
    """The best that a figure can be, as the build measured it on true pictures.

    Keys: part (``"A"``, ``"B"``), then set (or ``"mean"``), then ``"real"`` for fresh variants as
    drawn or ``"vae"`` for the same passed through the VAE, then the metric's name.
    """
    return MappingProxyType(json.loads((JUDGE / _CEILINGS).read_text(encoding="utf-8")))


def manifest() -> dict[str, str]:
    """SHA-256 of every embedded file, by path relative to ``ROOT`` with forward slashes."""
    listed: dict[str, str] = json.loads((ROOT / _MANIFEST).read_text(encoding="utf-8"))
    return listed


def write_manifest() -> dict[str, str]:
    """List the embedded files as they are now; returns what was written."""
    listed = {path.relative_to(ROOT).as_posix(): sha256(path) for path in _shipped()}
    write_file(ROOT / _MANIFEST, json.dumps(listed, indent=1, sort_keys=True) + "\n")
    return listed


def verify_manifest() -> list[str]:
    """Every way in which the files differ from the manifest, one line each; empty if none."""
    listed = manifest()
    present = {path.relative_to(ROOT).as_posix(): path for path in _shipped()}
    missing = [f"{name}: missing" for name in sorted(listed.keys() - present.keys())]
    unlisted = [f"{name}: not in {_MANIFEST}" for name in sorted(present.keys() - listed.keys())]
    digests = {name: sha256(present[name]) for name in sorted(listed.keys() & present.keys())}
    changed = [
        f"{name}: sha256 is {digest}, {_MANIFEST} says {listed[name]}"
        for name, digest in digests.items()
        if digest != listed[name]
    ]
    return missing + changed + unlisted


def write_file(path: Path, content: str | bytes) -> None:
    """Write beside ``path``, then rename: readers see the old file or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_bytes(content.encode() if isinstance(content, str) else content)
    os.replace(part, path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _shipped() -> Iterator[Path]:
    """Files under ``ROOT`` that are data: no code, no cache, no hidden file, no manifest."""
    for path in sorted(ROOT.rglob("*")):
        parts = path.relative_to(ROOT).parts
        hidden = any(part.startswith(".") or part == "__pycache__" for part in parts)
        if path.is_file() and not hidden and path.suffix != ".py" and parts != (_MANIFEST,):
            yield path
