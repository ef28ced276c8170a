"""The process that opens one pickle: run by :mod:`.pickles`, which says why.

The pickle is its standard input. It leaves ``tensors.safetensors`` in the current folder, or
``refusal.json`` and the exit code of the error.
"""

from __future__ import annotations

import json
import math
import pickle
import re
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Final, NoReturn

import torch
from torch import Tensor

from lcm_arith.errors import InvalidContentError, LcmArithError, StorageError
from lcm_arith.formats import container
from lcm_arith.formats.opening import shown
from lcm_arith.formats.pickles import REFUSAL, STATM, TENSORS
from lcm_arith.formats.preflight import DTYPES

_WRAPPER: Final = "state_dict"
_LISTED: Final = 3  # entries that an error names
_ASK: Final = "it is damaged, or more than numbers; ask its author for a .safetensors file"
_TOO_MUCH: Final = "opening it takes more memory than a file of its size can need"

# What torch.load builds beside a plain tensor → how to tell.
_ODD: Final[Mapping[str, Callable[[Tensor], bool]]] = {
    "nested": lambda tensor: tensor.is_nested,
    "sparse": lambda tensor: tensor.layout is not torch.strided,
    "quantized": lambda tensor: tensor.is_quantized,
    "empty of numbers (meta)": lambda tensor: tensor.device.type != "cpu",
}


def main(memory: int, output: int, cpu: int) -> None:
    """Reads, writes, or says why not; the arguments are those of ``pickles.Limits``."""
    limit(memory, output, cpu)
    try:
        write(read(sys.stdin.buffer), Path(TENSORS), most=output)
    except LcmArithError as error:
        _refuse(error)
    except (MemoryError, RuntimeError) as error:
        if not _out_of_memory(error):
            raise
        _refuse(InvalidContentError(_TOO_MUCH, hint=_ASK))


def _refuse(error: LcmArithError) -> NoReturn:
    Path(REFUSAL).write_text(json.dumps([error.message, error.hint]))
    sys.exit(error.exit_code)


def limit(memory: int, output: int, cpu: int) -> None:
    """Sets this process's limits for good; those of the user that are lower stay.

    They are set after torch was imported, whose share differs from build to build, and before a
    byte of the pickle is read.
    """
    import resource  # Unix alone

    used = int(STATM.read_text().split()[0]) * resource.getpagesize()
    seconds = math.ceil(time.process_time()) + cpu
    for kind, soft, hard in (
        (resource.RLIMIT_AS, used + memory, used + memory),
        (resource.RLIMIT_CPU, seconds, seconds + 1),  # SIGXCPU, which tells why; then SIGKILL
        (resource.RLIMIT_FSIZE, output, output),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        given = [n for n in resource.getrlimit(kind) if n != resource.RLIM_INFINITY]
        resource.setrlimit(kind, (min([soft, *given]), min([hard, *given])))


def read(file: BinaryIO) -> dict[str, Tensor]:
    """Name → tensor of a pickle that holds nothing else, or that in a ``state_dict``.

    Raises:
        InvalidContentError: If ``torch.load(weights_only=True)`` refuses it, or it holds anything
            but plain floating-point tensors under names.
    """
    try:
        found = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the pickle chooses what its reader stumbles over
        raise InvalidContentError(_why(error), hint=_ASK) from error
    if isinstance(found, dict) and list(found) == [_WRAPPER]:
        found = found[_WRAPPER]
    if not isinstance(found, dict):
        raise _no_adapter(
            f"it holds an object of type {type(found).__name__}, not a dict of tensors"
        )
    wrong = [what for name, value in found.items() if (what := _objection(name, value))]
    if wrong:
        more = f" and {len(wrong) - _LISTED} more" if wrong[_LISTED:] else ""
        listed = "; ".join(wrong[:_LISTED])
        raise _no_adapter(f"{len(wrong)} of {len(found)} entries are refused: {listed}{more}")
    return {name: tensor.detach().resolve_neg() for name, tensor in found.items()}


def write(tensors: Mapping[str, Tensor], path: Path, *, most: int) -> None:
    """Writes a safetensors file; views that share memory become tensors of their own.

    Raises:
        InvalidContentError: If it would have more than ``most`` bytes.
        StorageError: If the disk refuses.
    """
    first, _ = container.header(tensors, {})
    size = len(first) + sum(tensor.numel() * tensor.itemsize for tensor in tensors.values())
    if size > most:
        raise _no_adapter(
            f"its tensors written out would take {size / 2**20:,.0f} MiB, more than the "
            f"{most / 2**20:,.0f} MiB that a file of its size can hold"
        )
    try:
        with path.open("wb") as file:
            file.write(first)
            for name in sorted(tensors):
                plain = tensors[name].contiguous().reshape(-1)
                file.write(plain.view(torch.uint8).numpy().data)
    except OSError as error:
        raise StorageError(f"no room to take it apart in {path.absolute().parent} "
                           f"({error.strerror})") from error  # fmt: skip


def _no_adapter(what: str) -> InvalidContentError:
    return InvalidContentError(what, hint="a pickled adapter is a flat dict, name → tensor")


def _objection(name: object, value: object) -> str:
    """What is wrong with an entry; empty if nothing is."""
    if not isinstance(name, str):  # and is not printed: a nested one can be endless
        return f"a key of type {type(name).__name__}, not a name"
    if not name.isprintable():
        return f"{shown(name)}: the name is not printable"
    if not isinstance(value, Tensor) or type(value) not in (Tensor, torch.nn.Parameter):
        return f"{shown(name)}: of type {type(value).__name__}, not a tensor"
    odd = next((kind for kind, has in _ODD.items() if has(value)), "")
    if odd:
        return f"{shown(name)}: a tensor that is {odd}"
    if value.dtype not in DTYPES.values():
        return f"{shown(name)}: {value.dtype} is not a floating-point number that is read"
    return ""


def _why(error: Exception) -> str:
    # torch wraps the unpickler's words into advice to switch its checks off: take them out.
    cause = error.__context__ if isinstance(error, pickle.UnpicklingError) else None
    text = str(cause or error).partition("\n")[0]
    asked = re.search(r"GLOBAL (\S+)", text)
    if asked:
        return f"it calls for {shown(asked[1])}, which builds no tensor and may run code"
    if _out_of_memory(error):
        return _TOO_MUCH
    said = f": {shown(text)}" if text else ""
    return f"torch.load cannot read it ({type(error).__name__}{said})"


def _out_of_memory(error: Exception) -> bool:
    """Python's own error, or what torch makes of the system's."""
    told = re.search("allocate memory|bad_alloc", str(error)) is not None
    return isinstance(error, MemoryError) or told


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
