"""Build the files of the embedded default from public npm packages, stage by stage.

    python tools/build_embedded.py data     # captions and drawings -> lcm_arith/embedded/data
    python tools/build_embedded.py probe    # the judge's probe and ceilings
    python tools/build_embedded.py manifest # sha256 of every embedded file

Each stage reads what the stages before it wrote, so that any of them can be run again alone.
Needs ``npm`` on the path (``data`` only) and ``resvg-py``. Progress goes to stderr, results to
stdout. With the same versions of Pillow and resvg-py the same inputs give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcm_arith.embedded import files
from lcm_arith.embedded.pictures import (
    BASE_SETS,
    COLUMNS,
    SETS,
    SIDE,
    WHITE,
    PictureSet,
    Pixels,
    Variation,
    concepts,
    part_of,
    render,
    variants,
)

if TYPE_CHECKING:  # torch is for the stages that need it
    from lcm_arith.embedded.probe import Judge, Probe, Rows

CONCEPTS: Final = Path(__file__).with_name("concepts.txt")
CAPTIONS: Final = PictureSet("captions", "emojibase-data", "17.0.0", "MIT", in_base=True)

# Line art is seen as on paper: what its lines enclose is white. Left transparent, black lines
# vanish on a dark background, and the judge names 82 % of the pictures instead of 98 %.
ON_PAPER: Final = frozenset({"fluent-emoji-high-contrast"})

# Of the file that the registry serves, so that a changed package cannot pass unseen.
SHA256: Final = {
    "emojibase-data": "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    "@iconify-json/emojione": "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e",
    "@iconify-json/fluent-emoji": (
        "8044210dbf11e016d4de85f15d01a243423bd832457e7e2491df1b751c0e272b"
    ),
    "@iconify-json/fluent-emoji-flat": (
        "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
    ),
    "@iconify-json/fluent-emoji-high-contrast": (
        "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"
    ),
    "@iconify-json/noto": "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
    "@iconify-json/twemoji": "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
}


class BuildError(RuntimeError):
    """A stage cannot go on; the message says which inputs are wrong and how."""


@dataclass(frozen=True)
class Options:
    """What the command line decides for every stage."""

    cache: Path
    threads: int


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


# --- stage: data ------------------------------------------------------------------------------


def build_data(options: Options) -> None:
    """Captions and drawings of all concepts, from the npm packages into ``data``."""
    rows = concept_rows(read_concepts(CONCEPTS), read_captions(options.cache))
    sets = [read_icons(entry, options.cache) for entry in SETS.values()]
    chosen = choose_icons(rows, sets)
    files.DATA.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    files.write_file(files.DATA / "concepts.json", f"[\n{lines}\n]\n")
    for icons in sets:
        tiles = [rasterise(icons, chosen[icons.name, row["hexcode"]]) for row in rows]
        path = files.DATA / f"{icons.name}.png"
        write_atlas(path, tiles)
        say(f"{path.name}: {len(tiles)} drawings, {path.stat().st_size / 1e6:.2f} MB")
    files.write_file(files.DATA / "NOTICE.md", notice(sets))
    build_manifest(options)


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


def read_icons(entry: PictureSet, cache: Path) -> Icons:
    """One artist's drawings as SVG bodies."""
    package = fetch(entry, cache)
    sheet = read_member(package, "package/icons.json")
    names = read_member(package, "package/chars.json")
    author = read_member(package, "package/info.json")["author"]
    return Icons(
        name=entry.name,
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
        f"| {icons.name} | {icons.author} | `{SETS[icons.name].package}` "
        f"{SETS[icons.name].version} | {SETS[icons.name].licence} |"
        for icons in sets
    )
    return (
        "# Whose work this is\n\n"
        "The drawings come from these npm packages. They were rasterised to 64 by 64 px and laid\n"
        "on one sheet a set; nothing else was changed. Labels and tags are those of emojibase.\n\n"
        f"| set | author | package | licence |\n|---|---|---|---|\n{artwork}\n"
        f"| {CAPTIONS.name} | Miles Johnson (https://emojibase.dev) | `{CAPTIONS.package}` "
        f"{CAPTIONS.version} | {CAPTIONS.licence} |\n"
    )


# --- packages ---------------------------------------------------------------------------------


def fetch(entry: PictureSet, cache: Path) -> Path:
    """The package's file in the cache, downloaded by ``npm pack`` if it is not there yet."""
    stem = entry.package.removeprefix("@").replace("/", "-")
    path = cache / f"{stem}-{entry.version}.tgz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        wanted = f"{entry.package}@{entry.version}"
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
    if digest != SHA256[entry.package]:
        raise BuildError(
            f"{path}: sha256 is {digest}, expected {SHA256[entry.package]}; "
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


# --- stage: probe -----------------------------------------------------------------------------

FITTED: Final = 4  # variants of each drawing that the probe is fitted to, through the VAE
FRESH: Final = 2  # variants of each drawing that the ceilings are measured on
TRUE: Final = 24  # variants of each drawing that count as its true pictures

METRICS: Final = ("retrieval_top1", "style_accuracy", "pair_distance", "sharp_ratio")


def build_probe(options: Options) -> None:
    """Fit the probe that names a picture's set, and measure the ceilings of all metrics.

    Everything is drawn afresh: seed 0 for the true pictures, 1 for the fit, 2 for the ceilings.
    """
    import torch

    from lcm_arith.embedded import probe

    torch.set_num_threads(options.threads)
    judge, vae = probe.load_judge(), load_vae()
    rows, labels = [], []
    for label, name in enumerate(SETS):
        say(f"fit: {name}")
        pictures = through_vae(vae, all_variants((name,), FITTED, seed=1))
        rows.append(judge.embed_pictures(pictures))
        labels += [label] * len(pictures)
    fitted = probe.fit_probe(np.concatenate(rows), labels, tuple(SETS))
    probe.save_probe(fitted)
    found = measure_ceilings(judge, fitted, vae)
    text = json.dumps(found, indent=1, sort_keys=True)
    files.write_file(files.JUDGE / "ceilings.json", text + "\n")
    print(ceilings_table(found))
    build_manifest(options)


def measure_ceilings(judge: Judge, fitted: Probe, vae: Any) -> dict[str, Any]:
    """Part, target, "real" or "vae", metric: its mean over fresh variants, 4 digits.

    Targets: each set; "base", for which any drawing of a base set is true, as for a model without
    style vector; "mean" of the sets.
    """
    captions = judge.embed_captions([concept.caption for concept in concepts()])
    found: dict[str, Any] = {"A": {}, "B": {}}
    for name, members in (*((name, (name,)) for name in SETS), ("base", BASE_SETS)):
        say(f"ceilings: {name}")
        true = all_variants(members, TRUE, seed=0)
        fresh = all_variants(members, FRESH, seed=2)
        for way, pictures in (("real", fresh), ("vae", through_vae(vae, fresh))):
            scores = score(judge, fitted, captions, members, pictures, true)
            for part, entry in found.items():
                each = FRESH * len(members)
                inside = np.repeat([concept.part == part for concept in concepts()], each)
                entry.setdefault(name, {})[way] = {
                    metric: round(float(values[inside].mean()), 4)
                    for metric, values in scores.items()
                }
    for entry in found.values():
        entry["mean"] = {
            way: {m: round(sum(entry[s][way][m] for s in SETS) / len(SETS), 4) for m in METRICS}
            for way in ("real", "vae")
        }
    return found


def score(
    judge: Judge,
    fitted: Probe,
    captions: Rows,
    members: Sequence[str],
    pictures: Pixels,
    true: Pixels,
) -> dict[str, NDArray[np.float64]]:
    """Every metric of every picture of a target, float64 ``[n]`` each.

    Args:
        judge: Embeds pictures.
        fitted: Names their set.
        captions: Unit rows ``[concepts, d]``.
        members: The sets that count as true and as rightly named.
        pictures: uint8 ``[concepts * fresh, 64, 64, 3]``, concept by concept.
        true: uint8 ``[concepts * known, 64, 64, 3]``, likewise.
    """
    from lcm_arith.embedded import probe

    rows, true_rows = judge.embed_pictures(pictures), judge.embed_pictures(true)
    count = len(captions)
    fresh, known = len(rows) // count, len(true_rows) // count
    own = np.repeat(np.arange(count), fresh)
    distances = [
        probe.pair_distance(mine, truth)
        for mine, truth in zip(np.split(rows, count), np.split(true_rows, count), strict=True)
    ]
    usual = probe.sharpness(true).reshape(-1, known).mean(axis=1).repeat(fresh)
    values = (
        probe.own_caption_first(rows, captions, own.tolist()),
        np.array([named in members for named in fitted.predict(rows)]),
        np.concatenate(distances),
        probe.sharpness(pictures) / usual,
    )
    return {m: v.astype(np.float64) for m, v in zip(METRICS, values, strict=True)}


def all_variants(members: Sequence[str], count: int, *, seed: int) -> Pixels:
    """``count`` variants of every concept in each of the sets, concept by concept."""
    drawn = [variants(name, c, count, seed) for c in concepts() for name in members]
    return np.concatenate(drawn)


def load_vae() -> Any:
    """The embedded model's VAE, float32."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(files.MODEL / "vae")
    return vae.float().eval().requires_grad_(False)


def through_vae(vae: Any, pictures: Pixels, batch: int = 64) -> Pixels:
    """Pictures encoded (posterior mean) and decoded again, uint8 ``[n, 64, 64, 3]``."""
    import torch

    decoded = []
    with torch.inference_mode():
        for start in range(0, len(pictures), batch):
            levels = torch.from_numpy(pictures[start : start + batch]).permute(0, 3, 1, 2)
            latents = vae.encode(levels.float() / 127.5 - 1.0).latent_dist.mean  # [n, 16, 8, 8]
            pixels = vae.decode(latents).sample.permute(0, 2, 3, 1)  # [n, 64, 64, 3]
            decoded.append(((pixels + 1.0) * 127.5).round().clamp(0, 255).byte().numpy())
    return np.concatenate(decoded)


def ceilings_table(found: Mapping[str, Any]) -> str:
    """The ceilings for a person: a row a set, real / VAE in each cell."""
    lines = [f"{'part':<5}{'set':<28}" + "".join(f"{metric:>18}" for metric in METRICS)]
    for part, entry in found.items():
        for name in (*SETS, "mean", "base"):
            cells = (f"{entry[name]['real'][m]:.3f} / {entry[name]['vae'][m]:.3f}" for m in METRICS)
            lines.append(f"{part:<5}{name:<28}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)


# --- stage: manifest --------------------------------------------------------------------------


def build_manifest(options: Options) -> None:
    """Rewrite ``manifest.json`` for the embedded files as they are now."""
    listed = files.write_manifest()
    size = sum((files.ROOT / name).stat().st_size for name in listed)
    say(f"manifest.json: {len(listed)} files, {size / 1e6:.1f} MB")


# --- command line -----------------------------------------------------------------------------

Stage = Callable[[Options], None]

STAGES: Final[Mapping[str, Stage]] = {
    "data": build_data,
    "probe": build_probe,
    "manifest": build_manifest,
}


def say(line: str) -> None:
    """Progress, for a person."""
    print(line, file=sys.stderr, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one stage; 1 if it fails."""
    parser = argparse.ArgumentParser(description="Build the files of the embedded default.")
    parser.add_argument("stage", choices=STAGES, help="what to build")
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="FOLDER",
        default=Path.home() / ".cache" / "lcm-arith" / "npm",
        help="npm packages, kept between runs (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=int, metavar="N", default=2, help="CPU threads (default: %(default)s)"
    )
    given = parser.parse_args(arguments)
    try:
        STAGES[given.stage](Options(cache=given.cache, threads=given.threads))
    except BuildError as error:
        say(f"{given.stage}: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
