"""Where a command's result goes: a file, a name in the registry, or both."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from lcm_arith.registry.store import Registry

Name = Annotated[
    str | None,
    typer.Option(
        "--name", help="Keep the result in the registry under this name; without -o only there."
    ),
]


@dataclass(frozen=True)
class Output:
    """Where a result is written.

    Args:
        path: File or folder to write now.
        name: Name in the registry; None where it goes nowhere but to ``path``.
        kept: Whether ``path`` is what the user asked for, not a piece that is put away.
        registry: The user's, where there is a name.
    """

    path: Path
    name: str | None = None
    kept: bool = True
    registry: Registry | None = field(default=None, repr=False)

    def put(
        self, made: dict[str, Any], command: str, settings: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Registers what was written, if it has a name.

        Args:
            made: What is told of the file: its ``path`` becomes that in the registry where no
                other was asked for, and ``name`` is added.
            command: That made it.
            settings: What is known of it beside its header.

        Raises:
            OutputExistsError: If the name was taken meanwhile; a file that was asked for stays.
            StorageError: If the disk or the database refuses.
        """
        if self.registry is None or self.name is None:
            return made
        from lcm_arith.formats.peft_folder import WEIGHTS
        from lcm_arith.registry import adding

        file = self.path / WEIGHTS if self.path.is_dir() else self.path
        added = adding.add(
            self.registry,
            file,
            name=self.name,
            settings=settings,
            source={"command": command},
            beside=False,  # what lies there tells of an older file
        )
        path = self.path if self.kept else self.registry.find(added.name).path
        return {**made, "path": str(path), "name": added.name}


@contextmanager
def output(out: Path | None, name: str | None, default: str) -> Iterator[Output]:
    """Where to write; a piece that only the registry keeps is gone afterwards.

    Args:
        out: ``-o``.
        name: ``--name``.
        default: File where neither is given.

    Raises:
        OutputExistsError: If the name is taken.
        UsageError: If it is none.
        StorageError: If the registry cannot be written.
    """
    if name is None:
        yield Output(out or Path(default))
        return
    from lcm_arith.registry import adding
    from lcm_arith.registry.names import check_name
    from lcm_arith.registry.store import Registry

    registry, own = Registry.open(), check_name(name)
    adding.check_free(registry, own)
    if out is not None:
        yield Output(out, own, registry=registry)
        return
    with registry.objects.workspace() as folder:
        yield Output(folder / f"{own}.safetensors", own, kept=False, registry=registry)


def kind_of(adapter: str) -> dict[str, Any]:
    """The kind that a shipped or registered vector surely has, for what is made of it alone.

    A guess is not passed on: it would look as if somebody had said it.
    """
    from lcm_arith.embedded import files
    from lcm_arith.errors import NotFoundError, UsageError
    from lcm_arith.registry.store import Registry

    if adapter not in files.vector_names() and Path(adapter).exists():
        return {}
    try:
        found = Registry.open().find(adapter)
    except (NotFoundError, UsageError):  # a file that is not there; loading it tells
        return {}
    kind = found.record.said(found.state)["kind"]
    return {} if kind["source"] == "assumed" else {"kind": kind["value"]}
