"""What time does to a store: files changed under it, rotten bits, a lost index, odd places."""

from __future__ import annotations

import functools
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from faults import Tally, sound, timed
from stores import SMALL, Stores, adapters, lite, names
from support import random_vector
from tracer import Call, traced

from lcm_arith.errors import LcmArithError, StorageError
from lcm_arith.registry import adding, editing, upkeep
from lcm_arith.registry.store import Registry
from lcm_arith.saving import save

NOBODY: Final = 65534
_PAGE: Final = 4096  # bytes


# F9: the source changes while it is read.


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _grown(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def _overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def _replaced(path: Path) -> None:
    other = path.with_name("other.safetensors")
    save(random_vector(2, 1.0, 99, SMALL), other, force=True)
    os.replace(other, path)


CHANGES: Final = (_cut, _grown, _overwritten, _replaced)


@timed
def source_changed(folder: Path, changes: tuple[Callable[[Path], None], ...] = CHANGES) -> Tally:
    """F9: a file that changes under ``add`` is refused, or what was opened is added whole."""
    tally = Tally()
    for number, change in enumerate(changes):
        for copied in (False, True):  # before the copy is written, and before it is flushed
            root, path = (
                folder / f"c{number}{copied}",
                folder / f"source{number}{copied}.safetensors",
            )
            save(random_vector(2, 1.0, number, SMALL), path)
            registry, done = lite(root), list[str]()
            add = functools.partial(_added, registry, path)
            at = "fsync" if copied else "openat"
            run = traced(add, root, before=functools.partial(_meddle, at, change, path, done))
            where = f"{change.__name__[1:]} {'after' if copied else 'before'} it was copied"
            refused = run.told.get("error") == "InvalidContentError" and run.told["code"] == 4
            whole = change is _replaced and "done" in run.told
            tally.check(bool(done) and (refused or whole), f"{where}: {run.told}")
            tally.check(len(names(registry)) == whole, f"{where}: {names(registry)}")
            sound(tally, registry, where)
            tally.check(len(list(registry.objects)) == whole, f"{where}: half stored")
            tally.points += 1
    return tally


def _added(registry: Registry, path: Path) -> str:
    return adding.add(registry, path, name="new").name


def _meddle(
    at: str, change: Callable[[Path], None], path: Path, done: list[str], _: int, call: Call
) -> None:
    """Changes the source once, when its copy comes to a call."""
    if call.name == at and call.path.endswith("/object.safetensors") and not done:
        done.append(at)
        time.sleep(0.02)  # the clock of a file system ticks every 4 to 10 ms
        change(path)


# F10: a bit of each file.


@timed
def rotten(folder: Path, count: int) -> Tally:
    """F10: of so many objects and manifests one bit each; all are found, named and put aside."""
    registry, tally, chosen = lite(folder / "rotten"), Tally(), random.Random(0)
    for number, path in enumerate(adapters(folder / "many", count // 2)):
        adding.add(registry, path, name=f"v{number}")
    owners: dict[str, str] = {}
    for name in names(registry):
        found = registry.find(name)
        owners |= {found.path.name: name, f"{found.state.record}.json": name}
    for path in [*registry.objects, *(registry.manifests.path(own) for own in registry.manifests)]:
        data = bytearray(path.read_bytes())
        data[chosen.randrange(len(data))] ^= 1 << chosen.randrange(8)
        path.chmod(0o644)
        path.write_bytes(data)
        tally.points += 1
    problems = upkeep.verify(registry, deep=True).problems
    told = {own.what.split(":")[0]: own for own in problems if own.quarantined}
    tally.check(told.keys() == owners.keys(), f"{len(told)} of {len(owners)} are found")
    named = sum(told[file].names == (owner,) for file, owner in owners.items() if file in told)
    tally.check(named == len(owners), f"{named} of {len(owners)} name what they belong to")
    aside = [Path(str(own.quarantined)).is_file() for own in told.values()]
    tally.check(all(aside), "not all are in quarantine")
    tally.check(not list(registry.objects) and not list(registry.manifests), "some stayed")
    tally.figures = {"found": len(told)}
    return tally


# F11: the index is lost or damaged.


def _deleted(file: Path, _: random.Random) -> None:
    file.unlink()


def _emptied(file: Path, _: random.Random) -> None:
    file.write_bytes(b"")


def _zeroed(file: Path, _: random.Random) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def _page(file: Path, chosen: random.Random) -> None:
    with file.open("r+b") as opened:
        opened.seek(_PAGE * chosen.randrange(file.stat().st_size // _PAGE))
        opened.write(chosen.randbytes(_PAGE))


@timed
def index_lost(stores: Stores, pages: int) -> Tally:
    """F11: reindex gives all names back whatever became of the index, and touches no object."""
    tally, chosen = Tally(figures={"set aside": 0}), random.Random(0)
    for damage in (_deleted, _emptied, _zeroed, *([_page] * pages)):
        with stores.copy("base") as (registry, _):
            before = names(registry)
            files = _stamps(registry)
            damage(Path(str(registry.index.file)), chosen)
            where = f"{damage.__name__[1:]} {tally.points}"
            with tally.promised(where):
                done = upkeep.reindex(registry)
                tally.figures["set aside"] += done.aside is not None
                tally.check(names(registry) == before, f"{where}: {names(registry)}")
                tally.check(not done.lost, f"{where}: lost {done.lost}")
                tally.check(_stamps(registry) == files, f"{where}: files were touched")
                sound(tally, registry, where)
        tally.points += 1
    return tally


def _stamps(registry: Registry) -> dict[str, tuple[int, ...]]:
    paths = [*registry.objects, *(registry.manifests.path(own) for own in registry.manifests)]
    found = {path.name: path.stat() for path in paths}
    return {name: (own.st_ino, own.st_mtime_ns, own.st_mode) for name, own in found.items()}


# F14: odd surroundings.


@contextmanager
def as_nobody(folder: Path) -> Iterator[None]:
    """Root reads and writes everything: here the process is of another user, who owns nothing."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@timed
def read_only(stores: Stores) -> Tally:
    """F14: a store that may only be read is listed, found and loaded; what writes is refused."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "store"
        shutil.copytree(stores.folder / "base", root)
        source = shutil.copy(stores.folder / "x3.safetensors", place)
        os.chmod(place, 0o755)
        os.chmod(source, 0o644)
        for own in (root, *root.rglob("*")):
            own.chmod(0o555 if own.is_dir() else 0o444)
        registry = lite(root)
        with as_nobody(root):
            with tally.promised("reading"):
                tally.check({"a", "b", "best"} <= {row.name for row in registry.rows()}, "ls")
                tally.check(registry.find("best").path.is_file(), "find")
                tally.check(not upkeep.verify(registry, deep=True).problems, "verify")
            for what, act in (
                ("add", lambda: adding.add(registry, Path(source), name="new")),
                ("tag", lambda: editing.tag(registry, "a", ["x"])),
                ("rename", lambda: editing.rename(registry, "a", "z")),
                ("rm", lambda: editing.remove(registry, "b")),
                ("gc", lambda: upkeep.gc(registry)),
                ("reindex", lambda: upkeep.reindex(registry)),
            ):
                told = _refusal(act)
                right = isinstance(told, StorageError) and told.exit_code == 5
                tally.check(right and str(root) in told.message, f"{what}: {told!r}")
                tally.points += 1
        for own in (root, *root.rglob("*")):
            own.chmod(0o755 if own.is_dir() else 0o644)
        tally.check(names(lite(root)) == names(lite(stores.folder / "base")), "it was changed")
    return tally


@timed
def shared(stores: Stores) -> Tally:
    """F14: a store of one user in which another adds what is there, and changes what is said."""
    tally = Tally()
    with tempfile.TemporaryDirectory() as place:
        root = Path(place) / "store"
        shutil.copytree(stores.folder / "base", root)
        source = shutil.copy(stores.folder / "x0.safetensors", place)
        os.chmod(place, 0o755)
        os.chmod(source, 0o644)
        for own in (root, *root.rglob("*")):
            if own.is_dir() or own.name.startswith("index.db"):
                own.chmod(own.stat().st_mode | 0o666)  # as a umask of 000 would have it
        registry = lite(root)
        with as_nobody(root):
            for what, act in (
                ("add", lambda: adding.add(registry, Path(source), name="again")),
                ("tag", lambda: editing.tag(registry, "a", ["x"])),
                ("alias", lambda: editing.alias(registry, "best", "b")),
                ("gc", lambda: upkeep.gc(registry, older_than=-1)),
            ):
                with tally.promised(what):
                    act()
                tally.points += 1
        tally.check({"again", "a"} <= names(registry).keys(), "names")
        sound(tally, registry, "afterwards")
    return tally


def _refusal(act: Callable[[], Any]) -> Any:
    try:
        return act()
    except LcmArithError as error:
        return error


PLACES: Final = ("with spaces", "emoji 🧪 é", "n" * 255, "quote'\"%?#&;$", "-dash")


@timed
def odd_places(folder: Path) -> Tally:
    """F14: folders with spaces, emoji, 255 bytes and signs that mean something in URLs."""
    tally, path = Tally(), adapters(folder, 1)[0]
    for place in PLACES:
        with tally.promised(place[:20]):
            registry = lite(folder / place)
            adding.add(registry, path, name="new")
            editing.tag(registry, "new", ["ünï", "🧪"])
            tally.check(registry.find("new").state.tags == ("ünï", "🧪"), f"{place[:20]}: tags")
            tally.check((folder / place / "index.db").is_file(), f"{place[:20]}: index elsewhere")
            sound(tally, registry, place[:20])
        tally.points += 1
    return tally


SURROUNDINGS: Final[dict[str, dict[str, str]]] = {
    "LC_ALL=C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "no HOME": {"HOME": ""},
    "latin-1 output": {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1"},
    "all at once": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "HOME": ""},
}
_SCRIPT: Final = r"""
import os, sys
from pathlib import Path
from lcm_arith.registry import adding, editing, upkeep
from lcm_arith.registry.store import Registry
if not os.environ.get("HOME"):
    os.environ.pop("HOME", None)
registry = Registry.open()
adding.add(registry, Path(os.fsdecode(bytes.fromhex(sys.argv[1]))), name="new")
editing.note(registry, "new", "gr\u00fc\u00dfe \U0001f9ea")
assert registry.find("new").state.notes == ("gr\u00fc\u00dfe \U0001f9ea",)
assert not upkeep.verify(registry, deep=True).problems
print(ascii(str(registry.root)), ascii(registry.find("new").record.source["file"]))
"""


@timed
def surroundings(folder: Path, which: Iterable[str] = tuple(SURROUNDINGS)) -> Tally:
    """F14: other locales, no home, a name that is no UTF-8; what one writes, another reads."""
    tally, path = Tally(), adapters(folder, 1)[0]
    odd = os.fsencode(folder) + b"/\xfc\xff \xf0\x9f\xa7\xaa.safetensors"
    shutil.copy(os.fsencode(path), odd)
    for name in which:
        home = folder / f"home {tally.points} é"
        kept = {key: own for key, own in os.environ.items() if not key.startswith(("LC_", "LANG"))}
        done = subprocess.run(
            [sys.executable, "-c", _SCRIPT, odd.hex()],
            env={**kept, "LCM_ARITH_HOME": str(home), **SURROUNDINGS[name]},
            capture_output=True,
            timeout=120,
            check=False,
        )
        tally.check(done.returncode == 0, f"{name}: {done.stderr.decode(errors='replace')[-900:]}")
        with tally.promised(name):
            registry = lite(home)
            tally.check(registry.find("new").state.notes == ("grüße 🧪",), f"{name}: the note")
            sound(tally, registry, name)
        tally.points += 1
    return tally


@timed
def clocks(stores: Stores) -> Tally:
    """F14: files of the future and of the past: gc never takes what a name needs."""
    tally = Tally()
    for years in (-40, -1, 1, 40):
        with stores.copy("base") as (registry, _):
            before, at = names(registry), time.time() + years * 365 * 86400
            for path in registry.root.rglob("*"):
                os.utime(path, (at, at))
            swept = upkeep.gc(registry)
            where = f"{years} years"
            tally.check((len(swept.files) == 2) == (years < 0), f"{where}: swept {swept.files}")
            tally.check(names(registry) == before, f"{where}: names changed")
            tally.check(not upkeep.verify(registry, deep=True).problems, f"{where}: verify")
        tally.points += 1
    return tally
