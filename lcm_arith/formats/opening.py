"""Files that others wrote: opened without waiting for a pipe, read as strict JSON or YAML.

What readers of those formats let pass is refused here: names that are there twice, NaN, YAML's
aliases, which make a gigabyte of 300 bytes, and nesting without end.
"""

from __future__ import annotations

import json
import os
import stat
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from lcm_arith.errors import NotFoundError, StorageError

if TYPE_CHECKING:
    import yaml

MOST_NODES: Final = 10_000  # of a YAML document
MOST_DEPTH: Final = 32
MOST_YAML: Final = 256 * 2**10  # bytes; the parser reads about 1 MiB in 3 s


def identity(found: os.stat_result) -> tuple[int, ...]:
    """What tells a file from its successor: device, number, size, time of change."""
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class Opened:
    """A regular file's descriptor and what the system says of it; never waits for a pipe."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> tuple[int, os.stat_result]:
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFoundError(
                f"{self._path}: no such file", hint="give the path of a .safetensors file"
            ) from None
        except OSError as error:
            raise StorageError(f"{self._path}: cannot be read ({error.strerror})") from error
        found = os.fstat(self._descriptor)
        if not stat.S_ISREG(found.st_mode):
            os.close(self._descriptor)
            what = "is a folder" if stat.S_ISDIR(found.st_mode) else "is no regular file"
            raise NotFoundError(
                f"{self._path}: {what}", hint="give the path of a .safetensors file"
            )
        return self._descriptor, found

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def shown(name: str, length: int = 80) -> str:
    """A name as it can stand in a message: short and printable."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in name[:length])
    return plain + ("…" if len(name) > length else "") or "(no name)"


class TwiceError(ValueError):
    """A name that an object has twice; readers differ in which one counts."""


def strict_json(text: str, *, decimals: bool = False) -> Any:
    """The values of a JSON text.

    Args:
        text: JSON.
        decimals: Read fractions as :class:`decimal.Decimal`, as they are written.

    Raises:
        TwiceError: If an object has a name twice.
        ValueError: If it is no JSON, or holds NaN or infinity by name.
        RecursionError: If it is nested too deep.
    """
    return json.loads(
        text,
        object_pairs_hook=_unique,
        parse_constant=_no_constant,
        parse_float=Decimal if decimals else None,
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise TwiceError(shown(name))
        found[name] = value
    return found


def _no_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def strict_yaml(text: str) -> Any:
    """The values of a YAML document; every scalar is text, whatever its tag says.

    Raises:
        TwiceError: If a mapping has a name twice.
        ValueError: If it is no YAML, is too long, nested too deep, or uses an alias.
    """
    import yaml

    if len(text) > MOST_YAML:
        raise ValueError(f"has more than {MOST_YAML >> 10} KiB")
    try:
        return yaml.load(text, Loader=_strict_loader())
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
        mark = getattr(error, "problem_mark", None)
        at = f", line {mark.line + 1}" if mark else ""
        raise ValueError(f"{shown(str(problem))}{at}") from None


def _strict_loader() -> type[yaml.BaseLoader]:
    """A loader without aliases and with a budget; made here, for YAML is imported late."""
    import yaml

    class Loader(yaml.BaseLoader):
        nodes = depth = 0

        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("uses an alias (*name)")
            self.nodes, self.depth = self.nodes + 1, self.depth + 1
            if self.nodes > MOST_NODES or self.depth > MOST_DEPTH:
                raise ValueError(f"has more than {MOST_NODES} values or {MOST_DEPTH} levels")
            node = super().compose_node(parent, index)
            self.depth -= 1
            return node

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            found = super().construct_mapping(node, deep=deep)
            names = [key.value for key, _ in node.value]
            if len(found) != len(names):
                raise TwiceError(shown(str(next(n for n in names if names.count(n) > 1))))
            return found

    return Loader
