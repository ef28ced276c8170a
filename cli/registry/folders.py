"""What a folder holds that can be added, and what is left in it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

_PICKLES: Final = (".bin", ".pt", ".pth", ".ckpt")
_NAMED: Final = 5  # of those that are left


@dataclass(frozen=True)
class Listing:
    """The adapters that a source stands for.

    Args:
        source: As it was given.
        texts: The adapters: files and PEFT's folders, or the source itself.
        folder: Whether it was a folder of them.
        left: What looks like adapters there and is none of these: pickles, folders of files.
    """

    source: str
    texts: tuple[str, ...]
    folder: bool = False
    left: tuple[Path, ...] = ()

    def told(self) -> str:
        """What is left, in a line; empty where nothing is."""
        from lcm_arith.text import clean

        if not self.left:
            return ""
        names = ", ".join(f"{p.name}/" if p.is_dir() else p.name for p in self.left[:_NAMED])
        more = f" and {len(self.left) - _NAMED} more" if len(self.left) > _NAMED else ""
        why = []
        if any(not path.is_dir() for path in self.left):
            why.append("pickles need --allow-pickle")
        if any(path.is_dir() for path in self.left):
            why.append("folders in it are not looked into")
        return clean(f"Skipped {len(self.left)} in {self.source}: {names}{more} ({'; '.join(why)})")


def expanded(text: str, *, allow_pickle: bool) -> Listing:
    """The files in a folder, whatever the case of their endings, or the source itself.

    Raises:
        NotFoundError: If a folder holds none.
    """
    from lcm_arith.errors import NotFoundError
    from lcm_arith.formats.peft_folder import CONFIG
    from lcm_arith.registry.objects import ADAPTER

    folder = Path(text)
    if not folder.is_dir() or (folder / CONFIG).is_file():
        return Listing(text, (text,))
    endings = (ADAPTER, *_PICKLES) if allow_pickle else (ADAPTER,)
    inside = sorted(path for path in folder.iterdir() if not _of_macos(path))
    files = [path for path in inside if path.suffix.lower() in endings]
    folders = [path for path in inside if (path / CONFIG).is_file()]
    taken = {*files, *folders}
    left = tuple(path for path in inside if path not in taken and _looks_like_it(path, ADAPTER))
    listing = Listing(text, tuple(map(str, [*files, *folders])), folder=True, left=left)
    if not listing.texts:
        raise NotFoundError(
            f"{folder}: holds no {ADAPTER} file",
            hint=listing.told() or "folders in it are not looked into",
        )
    return listing


def _of_macos(path: Path) -> bool:
    """What macOS keeps beside a file on a disk of others."""
    return path.name.startswith("._")


def _looks_like_it(path: Path, ending: str) -> bool:
    if path.is_dir():
        return any(p.suffix.lower() == ending and not _of_macos(p) for p in path.rglob("*"))
    return path.suffix.lower() in _PICKLES
