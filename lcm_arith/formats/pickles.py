"""Pickled adapters (``.bin``, ``.pt``, ``.pth``, ``.ckpt``), opened by a child under limits.

A pickle is a program. ``torch.load(weights_only=True)`` runs only the part of it that builds
tensors, and has had holes; so a process of its own opens it (:mod:`.pickle_child`), which may take
little, hands over a safetensors file, and is gone. That file is believed no more than any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from torch import Tensor

from lcm_arith.errors import InvalidContentError, LcmArithError, StorageError, UsageError
from lcm_arith.formats.opening import Opened, identity, shown
from lcm_arith.formats.preflight import MOST_HEADER, SafeFile, pickled

TENSORS: Final = "tensors.safetensors"  # of the child's folder: what it read
REFUSAL: Final = "refusal.json"  # or why it did not: a message and a hint
MOST_PICKLE: Final = 4 * 2**30  # bytes; SDXL at rank 128 in float32 is 1.5 GiB
STATM: Final = Path("/proc/self/statm")  # Linux: pages of address space that a process has
_CHILD: Final = "lcm_arith.formats.pickle_child"
_COMPLAINTS: Final = "stderr.txt"
_DAMAGED: Final = "it is damaged, or made to harm its reader"
_MOST_SAID: Final = 4096  # bytes of what the child says that are read
_REFUSALS: Final = {e.exit_code: e for e in (InvalidContentError, StorageError)}
_SAFE_TORCH: Final = (2, 10)  # the first without CVE-2026-24747 (GHSA-63cw-57p8-fm3p)


@dataclass(frozen=True)
class Limits:
    """What the child may take, memory and processor time beyond what starting has taken.

    Args:
        memory: Bytes of address space.
        output: Bytes of a file that it writes.
        cpu: Seconds of processor time.
        wall: Seconds on the clock, starting included; the parent counts them.
    """

    memory: int
    output: int
    cpu: int
    wall: float


def limits(size: int) -> Limits:
    """Limits for a pickle of ``size`` bytes.

    Honest ones of 512 MiB took their size (twice that where their one tensor was a view, which is
    copied), 2 s of processor time, and up to 8 s in all on two busy cores. Views may say a number
    twice; that a file's tensors come to more than twice its size is a trick.
    """
    return Limits(
        memory=256 * 2**20 + 2 * size,
        output=MOST_HEADER + 2 * size,
        cpu=20 + size // (32 * 2**20),
        wall=120 + size / (8 * 2**20),
    )


def is_pickle(path: Path) -> bool:
    """Whether a file begins as torch's pickles do, whatever its name.

    Raises:
        NotFoundError: If it is no regular file.
        StorageError: If it cannot be read.
    """
    with Opened(path) as (descriptor, _):
        return pickled(os.pread(descriptor, 64, 0))


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """sha256 of a pickle, and its tensors: checked like those of any adapter, held in memory.

    Raises:
        NotFoundError: If it is no regular file.
        InvalidContentError: If it is not a dict of floating-point tensors, takes more than its
            limits, ends the child, or holds NaN.
        StorageError: If there is no place for a temporary folder or another process.
        UsageError: If this system or this torch cannot open a pickle safely.
    """
    _check_system(path)
    try:
        with Opened(path) as (descriptor, found), TemporaryDirectory(prefix="lcm-arith-") as folder:
            if found.st_size > MOST_PICKLE:
                raise InvalidContentError(
                    f"{path}: it has {found.st_size / 2**30:.1f} GiB", hint="an adapter is smaller"
                )
            with open(descriptor, "rb", closefd=False) as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.lseek(descriptor, 0, os.SEEK_SET)
            _open_in_child(path, descriptor, Path(folder), limits(found.st_size))
            if identity(os.fstat(descriptor)) != identity(found):
                raise InvalidContentError(
                    f"{path}: was changed while it was read", hint="run the command again"
                )
            return digest, _tensors(path, Path(folder) / TENSORS)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"{path}: no process of its own can read it ({error})") from error


def _check_system(path: Path) -> None:
    if find_spec("resource") is None or not STATM.exists():
        raise UsageError(
            f"{path}: a pickle is opened only under limits, which this system does not have",
            hint="convert it on Linux, or in WSL or a container",
        )
    if tuple(int(part) for part in torch.__version__.split(".")[:2]) < _SAFE_TORCH:
        raise UsageError(
            f"{path}: a pickle can make torch {torch.__version__} run code (CVE-2026-24747)",
            hint="install torch 2.10 or later",
        )


def _open_in_child(path: Path, descriptor: int, folder: Path, most: Limits) -> None:
    """Leaves the tensors in ``folder``, or raises what the child refused or died of.

    The child gets the pickle as its standard input, so that it knows no path but its own folder.
    It imports from where this process does, and nothing from the current folder (``-P``). Python's
    isolated mode (``-I``) would lose packages that are found by PYTHONPATH or in the user's site.
    """
    command = [sys.executable, "-P", "-m", _CHILD, *map(str, (most.memory, most.output, most.cpu))]
    try:
        with (folder / _COMPLAINTS).open("wb") as complaints:
            done = subprocess.run(
                command,
                stdin=descriptor,
                stdout=subprocess.DEVNULL,
                stderr=complaints,
                cwd=folder,
                env=_environment(folder),
                timeout=most.wall,
                check=False,
            )
    except subprocess.TimeoutExpired:
        raise InvalidContentError(
            f"{path}: was not read within {most.wall:.0f} s", hint=_DAMAGED
        ) from None
    if done.returncode < 0:
        raise _death(path, -done.returncode, most)
    if done.returncode:
        raise _refusal(path, folder, done.returncode)


def _environment(folder: Path) -> dict[str, str]:
    libraries = {k: os.environ[k] for k in ("LD_LIBRARY_PATH",) if k in os.environ}  # torch's
    return libraries | {
        "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path)),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        "OMP_NUM_THREADS": "1",  # each thread takes address space
        "TORCH_DEVICE_BACKEND_AUTOLOAD": "0",  # no plug-ins
        "HOME": str(folder),
        "TMPDIR": str(folder),
    }


def _death(path: Path, number: int, most: Limits) -> InvalidContentError:
    if number == signal.SIGXCPU:
        what = f"reading it takes more than {most.cpu} s of processor time"
    else:
        what = f"the process that read it was ended by signal {number} ({signal.strsignal(number)})"
    return InvalidContentError(f"{path}: {what}", hint=_DAMAGED)


def _refusal(path: Path, folder: Path, code: int) -> LcmArithError:
    refusal = folder / REFUSAL
    if code in _REFUSALS and refusal.exists():
        with refusal.open("rb") as file:
            message, hint = json.loads(file.read(_MOST_SAID))
        return _REFUSALS[code](f"{path}: {message}", hint=hint)
    lines = (folder / _COMPLAINTS).read_bytes()[-_MOST_SAID:].decode(errors="replace").split("\n")
    last = ([f"exit code {code}"] + [line for line in lines if line.strip()])[-1]
    return LcmArithError(
        f"{path}: the process that reads pickles failed: {shown(last)}", hint="please report it"
    )


def _tensors(path: Path, written: Path) -> dict[str, Tensor]:
    """What the child wrote, by the reader of every adapter; errors name the pickle instead."""
    try:
        return SafeFile.open(written).checked(keep=True)[1]
    except LcmArithError as error:
        message = error.message.replace(str(written), f"{path} (as safetensors)")
        raise type(error)(message, hint=error.hint) from None
