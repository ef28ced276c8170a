"""Small adapters and prepared stores, and what can be done to them."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from support import random_vector

from lcm_arith.registry import adding, archive, database, editing, shipped, upkeep
from lcm_arith.registry.states import State
from lcm_arith.registry.store import Registry
from lcm_arith.saving import save

SMALL: Final = {
    "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (192, 128),
    "unet.down_blocks.0.attentions.0.proj_in": (128, 128, 1, 1),
}
OLDER: Final = b"an older backup"
Names = dict[str, State]


def lite(root: Path) -> Registry:
    """A store with its index in its folder."""
    return Registry.open(root, f"sqlite:///{root / 'index.db'}")


def adapters(folder: Path, count: int) -> list[Path]:
    """Files of small adapters, each another."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for seed in range(count):
        path = folder / f"x{seed}.safetensors"
        if not path.exists():
            save(random_vector(2, 1.0, seed, SMALL), path)
        paths.append(path)
    shipped.rows()  # read now, not in each process
    return paths


def names(registry: Registry) -> Names:
    """Name → state, but for the time."""
    return {row.name: replace(row.state, added="") for row in registry.index.rows()}


def problems(registry: Registry, *, deep: bool = False) -> list[tuple[str, tuple[str, ...]]]:
    """What verify finds: in words, and of which names."""
    return [(own.what, own.names) for own in upkeep.verify(registry, deep=deep).problems]


@dataclass(frozen=True)
class Operation:
    """Something that is done to a store.

    Args:
        name: Of the operation.
        store: Which of the prepared stores it is done to.
        act: With a registry and a folder for its other files.
    """

    name: str
    store: str
    act: Callable[[Registry, Path], Any]
    again: Callable[[Registry, Path], Any] | None = None
    """How it is done once more, where that is another thing."""


def _add(registry: Registry, folder: Path) -> str:
    return adding.add(registry, folder / "x3.safetensors", name="new", tags=("t",)).name


def _backup(registry: Registry, folder: Path, *, force: bool = False) -> int:
    return archive.backup(registry, folder / "backup.tar", force=force).names


def _gc(registry: Registry, folder: Path) -> int:
    return len(upkeep.gc(registry, older_than=-1).files)


OPERATIONS: Final = (
    Operation("first add", "empty", _add),
    Operation("add", "base", _add),
    Operation("set", "base", lambda r, _: editing.set_values(r, "a", {"kind": "task"}).text()),
    Operation("tag", "base", lambda r, _: editing.tag(r, "best", ["new"], ["old"]).text()),
    Operation("note", "base", lambda r, _: editing.note(r, "b", "more").text()),
    Operation("alias", "base", lambda r, _: editing.alias(r, "best", "b")),
    Operation("rename", "base", lambda r, _: editing.rename(r, "a", "z")),
    Operation("rm", "base", lambda r, _: editing.remove(r, "a", force=True)),
    Operation("gc", "base", _gc),
    Operation("reindex", "base", lambda r, _: upkeep.reindex(r).names),
    Operation("reindex damaged", "damaged", lambda r, _: upkeep.reindex(r).names),
    Operation("migrate", "old", lambda r, _: len(r.index.rows())),
    Operation("backup", "base", _backup, lambda r, f: _backup(r, f, force=True)),
    Operation("backup again", "backed", lambda r, f: _backup(r, f, force=True)),
    Operation("restore", "empty", lambda r, f: archive.restore(r, f / "kept.tar").names),
)


@dataclass(frozen=True)
class Stores:
    """Prepared stores, to be copied for each point.

    Args:
        folder: Where they lie, with the adapters and a backup.
    """

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Stores:
        paths = adapters(folder, 4)
        base = lite(folder / "base")
        for name, path in zip("abc", paths, strict=False):
            adding.add(base, path, name=name)
        editing.tag(base, "a", ["old"])
        editing.note(base, "a", "a note")
        editing.alias(base, "best", "a")
        editing.remove(base, "c")  # gc has something to do
        archive.backup(base, folder / "kept.tar")
        shutil.copytree(folder / "base", folder / "damaged")
        (folder / "damaged/index.db").write_bytes(bytes(8192))
        shutil.copytree(folder / "base", folder / "old")
        shutil.rmtree(folder / "old/names")
        (folder / "empty").mkdir()
        made = cls(folder)
        _oldest(folder / "old/index.db", made.oldest())
        return made

    @contextmanager
    def copy(self, store: str) -> Iterator[tuple[Registry, Path]]:
        """A copy of a store, and a folder with the other files."""
        with tempfile.TemporaryDirectory(dir=self.folder) as place:
            kept = {"backed": "base"}.get(store, store)
            shutil.copytree(self.folder / kept, Path(place) / "store")
            if store == "backed":
                (Path(place) / "backup.tar").write_bytes(OLDER)
            for path in (*self.folder.glob("*.safetensors"), self.folder / "kept.tar"):
                os.link(path, Path(place) / path.name)
            root = Path(place) / "store"
            yield lite(root), Path(place)

    def oldest(self) -> Names:
        """The names that the store of schema 0 has."""
        base = lite(self.folder / "base")
        return {name: state for name, state in names(base).items() if state.record}

    def after(self, operation: Operation) -> tuple[Names, Names]:
        """The names before an operation and after it."""
        with self.copy(operation.store) as (registry, folder):
            before = {} if operation.store in ("damaged", "old") else names(registry)
            operation.act(registry, folder)
            after = names(registry)
        return (before or after) if operation.store != "empty" else {}, after


def _oldest(file: Path, states: Names) -> None:
    """An index of schema 0 in a file."""
    file.unlink()
    engine = database.engine(f"sqlite:///{file}")
    with database.alone(engine) as connection, connection.begin():
        fill_oldest(connection, states)


def fill_oldest(connection: sa.Connection, states: Names) -> None:
    """Schema 0 with names and notes."""
    database.tables.create_all(connection, tables=[database.migrations])
    database.MIGRATIONS["0000_initial"](connection)
    values = {"name": "0000_initial", "applied": "2026-01-01T00:00:00+00:00"}
    connection.execute(database.migrations.insert().values(values))
    for name, state in states.items():
        row = {"name": name, "record": state.record, "note": "; ".join(state.notes)}
        text = "INSERT INTO records VALUES (:record, :record)"
        connection.execute(sa.text(text), row)
        text = "INSERT INTO names (name, record, note) VALUES (:name, :record, :note)"
        connection.execute(sa.text(text), row)
