"""Stage ``data`` from npm packages: captions and drawings of all concepts."""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ground.common import BuildError, Options, say
from lcm_arith.embedded import files, pictures
from lcm_arith.embedded.pictures import (
    COLUMNS,
    SIDE,
    WHITE,
    PictureSet,
    Pixels,
    Variation,
    part_of,
    render,
)

CONCEPTS: Final = Path(__file__).parents[1] / "concepts.txt"

# Line art is seen as on paper: what its lines enclose is white. Left transparent, black lines
# vanish on a dark background, and the judge names 82 % of the pictures instead of 98 %.
ON_PAPER: Final = frozenset({"fluent-emoji-high-contrast"})


@dataclass(frozen=True)
class Package:
    """An npm package.

    Args:
        name: Of the package.
        version: Pinned.
        licence: Of its drawings.
        sha256: Of the file that the registry serves, so that a changed one cannot pass unseen.
    """

    name: str
    version: str
    licence: str
    sha256: str


CAPTIONS: Final = Package(
    "emojibase-data",
    "17.0.0",
    "MIT",
    "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
)


def _iconify(
    name: str, version: str, licence: str, sha256: str, *, in_base: bool, has_vector: bool
) -> tuple[PictureSet, Package]:
    package = Package(f"@iconify-json/{name}", version, licence, sha256)
    source = f"{package.name} {version}"
    return PictureSet(name, source, licence, in_base, has_vector), package


SETS: Final[Mapping[str, tuple[PictureSet, Package]]] = {
    entry[0].name: entry
    for entry in (
        _iconify(
            "noto",
            "1.2.9",
            "Apache-2.0",
            "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
            in_base=True,
            has_vector=True,
        ),
        _iconify(
            "twemoji",
            "1.2.5",
            "CC-BY-4.0",
            "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
            in_base=True,
            has_vector=True,
        ),
        _iconify(
            "fluent-emoji-flat",
            "1.2.6",
            "MIT",
            "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
            in_base=True,
            has_vector=False,
        ),
        _iconify(
            "emojione",
            "1.2.3",
            "CC-BY-4.0",
            "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
            in_base=True,
            has_vector=False,
        ),
        _iconify(
            "fluent-emoji",
            "1.2.7",
            "MIT",
            "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b",
            in_base=False,
            has_vector=True,
        ),
        _iconify(
            "fluent-emoji-high-contrast",
            "1.2.6",
            "MIT",
            "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0",
            in_base=False,
            has_vector=True,
        ),
    )
}


@dataclass(frozen=True)
class Icons:
    """One set of an iconify package: drawings by name, names by hexcode (may be empty)."""

    name: str
    author: str
    sheet: Mapping[str, Any]
    names: Mapping[str, str]

    def resolve(self, name: str) -> str | None:
        """The drawing's own name: aliases followed, ``None`` if the set has no such drawing."""
        seen: set[str] = set()
        while name not in self.sheet["icons"] and name not in seen:
            alias = self.sheet.get("aliases", {}).get(name)
            if alias is None or alias.keys() != {"parent"}:  # a turned or mirrored copy
                return None
            seen.add(name)
            name = alias["parent"]
        return name if name in self.sheet["icons"] else None


def build(options: Options) -> None:
    """Captions and drawings of all concepts, from the npm packages into ``data``."""
    rows = concept_rows(read_concepts(CONCEPTS), read_captions(options.packages))
    sets = [read_icons(name, package, options.packages) for name, (_, package) in SETS.items()]
    chosen = choose_icons(rows, sets)
    tiles = {
        icons.name: [rasterise(icons, chosen[icons.name, row["hexcode"]]) for row in rows]
        for icons in sets
    }
    write_data(rows, [entry for entry, _ in SETS.values()], tiles)
    files.write_file(files.DATA / "NOTICE.md", notice(sets))


def write_data(
    rows: Sequence[Mapping[str, Any]],
    entries: Sequence[PictureSet],
    tiles: Mapping[str, Sequence[Pixels]],
) -> None:
    """``data``: concepts, sets, and one atlas a set with its drawings in the concepts' order."""
    files.DATA.mkdir(parents=True, exist_ok=True)
    for stem, values in (("concepts", rows), ("sets", [asdict(entry) for entry in entries])):
        lines = ",\n".join(json.dumps(value, ensure_ascii=False) for value in values)
        files.write_file(files.DATA / f"{stem}.json", f"[\n{lines}\n]\n")
    for name, drawings in tiles.items():
        path = files.DATA / f"{name}.png"
        write_atlas(path, drawings)
        say(f"{path.name}: {len(drawings)} drawings, {path.stat().st_size / 1e6:.2f} MB")
    pictures.forget()


def read_concepts(path: Path) -> list[str]:
    """Hexcodes of the list, one a line; what follows a ``#`` is for the reader."""
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    hexcodes = [line for line in lines if line]
    twice = sorted({code for code in hexcodes if hexcodes.count(code) > 1})
    if twice:
        raise BuildError(f"{path.name}: listed twice: {', '.join(twice)}")
    return hexcodes


def read_captions(cache: Path) -> dict[str, dict[str, Any]]:
    """Label and tags by hexcode, from emojibase."""
    entries: list[dict[str, Any]] = read_member(fetch(CAPTIONS, cache), "package/en/data.json")
    return {entry["hexcode"]: entry for entry in entries}


def concept_rows(
    hexcodes: Sequence[str], captions: Mapping[str, Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rows of ``concepts.json`` in the order of the list; labels are captions, hence unique."""
    unknown = [code for code in hexcodes if code not in captions]
    if unknown:
        raise BuildError(f"emojibase {CAPTIONS.version} has no hexcode {', '.join(unknown)}")
    labels = [captions[code]["label"] for code in hexcodes]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        raise BuildError(f"labels of two concepts: {', '.join(twice)}; drop one of each")
    return [
        {
            "hexcode": code,
            "label": label,
            "tags": captions[code].get("tags", []),
            "part": part_of(code),
        }
        for code, label in zip(hexcodes, labels, strict=True)
    ]


def read_icons(name: str, entry: Package, cache: Path) -> Icons:
    """One artist's drawings as SVG bodies."""
    package = fetch(entry, cache)
    sheet = read_member(package, "package/icons.json")
    names = read_member(package, "package/chars.json")
    author = read_member(package, "package/info.json")["author"]
    return Icons(
        name=name,
        author=f"{author['name']} ({author['url']})",
        sheet=sheet,
        names={code.upper(): name for code, name in names.items()},
    )


def choose_icons(
    rows: Sequence[Mapping[str, Any]], sets: Sequence[Icons]
) -> dict[tuple[str, str], str]:
    """The drawing of every (set, hexcode).

    By the set's own hexcode table; two packages ship an empty one, so then by the concept's name,
    on which the sets agree: the label with hyphens, or the name that other sets give the hexcode.
    """
    chosen: dict[tuple[str, str], str] = {}
    missing: list[str] = []
    for row in rows:
        code = row["hexcode"]
        others = sorted({icons.names[code] for icons in sets if code in icons.names})
        for icons in sets:
            own = icons.names.get(code)
            tried = [own] if own else [row["label"].lower().replace(" ", "-"), *others]
            found = next((real for name in tried if (real := icons.resolve(name))), None)
            if found:
                chosen[icons.name, code] = found
            else:
                missing.append(f"{icons.name}: {code} ({row['label']}), tried {', '.join(tried)}")
    if missing:
        raise BuildError("\n".join([f"{len(missing)} drawings are missing:", *missing]))
    return chosen


def rasterise(icons: Icons, name: str) -> Pixels:
    """One drawing, uint8 ``[64, 64, 4]`` with the SVG's own transparency; line art in black."""
    # Imported here so that the other stages run without it.
    import resvg_py

    icon = icons.sheet["icons"][name]
    left, top, width, height = (
        icon.get(key, icons.sheet.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{SIDE}" height="{SIDE}" viewBox="{left} {top} {width} {height}">'
        f"{icon['body'].replace('currentColor', 'black')}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    with Image.open(io.BytesIO(bytes(png))) as image:
        tile = np.array(image.convert("RGBA"))
    if tile.shape != (SIDE, SIDE, 4) or not tile[..., 3].any():
        raise BuildError(f"{icons.name}: {name}: nothing drawn, or of shape {list(tile.shape)}")
    if icons.name in ON_PAPER:
        tile = on_paper(tile)
    tile[tile[..., 3] == 0] = 0  # unseen colours only cost bytes
    return tile


def on_paper(tile: Pixels) -> Pixels:
    """The drawing with white under all that its lines enclose, uint8 ``[64, 64, 4]``.

    Outside and along the outer edge the transparency stays as it is, so that there is no halo.
    """
    outside = reached_from_border(tile[..., 3] < 128)
    rim = np.pad(outside, 1, constant_values=True)
    touched = [rim[y : y + SIDE, x : x + SIDE] for y in range(3) for x in range(3)]
    enclosed = ~np.any(touched, axis=0)  # [64, 64]
    papered = tile.copy()
    papered[enclosed, :3] = render(tile, Variation(False, SIDE, (0, 0), WHITE))[enclosed]
    papered[enclosed, 3] = 255
    return papered


def reached_from_border(free: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that a walk over free ones, never diagonally, reaches from outside."""
    reached = np.zeros_like(free)
    while True:
        rim = np.pad(reached, 1, constant_values=True)
        steps = (rim[:-2, 1:-1], rim[2:, 1:-1], rim[1:-1, :-2], rim[1:-1, 2:])
        grown = free & (reached | np.any(steps, axis=0))
        if np.array_equal(grown, reached):
            return reached
        reached = grown


def write_atlas(path: Path, tiles: Sequence[Pixels]) -> None:
    """All drawings of a set in one lossless PNG, 16 tiles in a row, by concept order."""
    rows = -(-len(tiles) // COLUMNS)
    sheet = np.zeros((rows, SIDE, COLUMNS, SIDE, 4), dtype=np.uint8)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, COLUMNS)
        sheet[row, :, column] = tile
    image = Image.fromarray(sheet.reshape(rows * SIDE, COLUMNS * SIDE, 4))
    image.save(path, format="PNG", optimize=True)


def notice(sets: Sequence[Icons]) -> str:
    """Whose work the data is; CC-BY-4.0 asks for it."""
    artwork = "\n".join(
        f"| {icons.name} | {icons.author} | `{p.name}` {p.version} | {p.licence} |"
        for icons in sets
        for p in (SETS[icons.name][1],)
    )
    return (
        "# Whose work this is\n\n"
        "The drawings come from these npm packages. They were rasterised to 64 by 64 px and laid\n"
        "on one sheet a set; nothing else was changed. Labels and tags are those of emojibase.\n\n"
        f"| set | author | package | licence |\n|---|---|---|---|\n{artwork}\n"
        f"| captions | Miles Johnson (https://emojibase.dev) | `{CAPTIONS.name}` "
        f"{CAPTIONS.version} | {CAPTIONS.licence} |\n"
    )


# --- packages ---------------------------------------------------------------------------------


def fetch(entry: Package, cache: Path) -> Path:
    """The package's file in the cache, downloaded by ``npm pack`` if it is not there yet."""
    stem = entry.name.removeprefix("@").replace("/", "-")
    path = cache / f"{stem}-{entry.version}.tgz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        wanted = f"{entry.name}@{entry.version}"
        say(f"npm pack {wanted}")
        done = subprocess.run(
            ["npm", "pack", wanted, "--silent", "--pack-destination", str(cache)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0 or not path.exists():
            raise BuildError(f"npm pack {wanted} failed: {done.stderr.strip() or done.stdout}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != entry.sha256:
        raise BuildError(
            f"{path}: sha256 is {digest}, expected {entry.sha256}; "
            "delete the file to download it again"
        )
    return path


def read_member(package: Path, name: str) -> Any:
    """One JSON file out of a package."""
    with tarfile.open(package) as tar:
        member = tar.extractfile(name)
        if member is None:
            raise BuildError(f"{package.name}: {name} is not a file")
        return json.load(member)
