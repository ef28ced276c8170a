"""The pictures of a page: as many small ones as its size allows, and links to more."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import pandas as pd
from PIL import Image

from lcm_arith.evaluation.pixels import OK
from lcm_arith.text import clean

SIDE: Final = 128  # px
LONGEST: Final = 400  # characters of a prompt
_LINKS: Final = 1_000_000  # bytes of links
_AROUND: Final = 24  # bytes of JSON around a path or a picture, at most

Thumbnails = Callable[[str], bytes]
"""Path of a picture as in images.csv → WebP, at most SIDE px; empty if there is no such picture."""


class _Picture(NamedTuple):
    row: int
    path: str
    sha256: str
    fault: str


def thumbnail(picture: bytes) -> bytes:
    """A stored picture as WebP, at most :data:`SIDE` px wide and high."""
    with Image.open(io.BytesIO(picture)) as whole:
        small = whole.convert("RGB")
    small.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    small.save(out, format="WEBP", quality=80, method=4)
    return out.getvalue()


def album(
    images: pd.DataFrame, ids: list[str], thumbnails: Thumbnails, room: int
) -> dict[str, Any]:
    """Pictures of the first prompts and seeds, JSON-ready.

    All prompts with the first seed come before the second one, so that few pictures show many
    prompts. A prompt and seed is shown for every row or for none.

    Args:
        images: As ``images.csv``.
        ids: ``cell_id`` of each row.
        thumbnails: Asked for each distinct picture once, while there is room.
        room: Bytes of JSON to fill.

    Returns:
        ``items`` (prompt, seed); ``pictures`` of each row, for each of them [place in ``thumbs``
        or −1, path, defect], or None; ``thumbs`` in base64; ``shown`` items that have thumbnails;
        ``drawn`` items in all.
    """
    drawn = _by_item(images, {identity: n for n, identity in enumerate(ids)})
    linked, used = [], 0
    for item, pictures in drawn.items():
        used += len(json.dumps(clean(item[0], LONGEST))) + 2 * _AROUND
        used += sum(len(json.dumps(p.path)) + _AROUND for p in pictures)
        if used > min(_LINKS, room):
            break
        linked.append(item)
    places, thumbs, shown = _thumbs([drawn[item] for item in linked], thumbnails, room - used)
    rows: list[list[Any]] = [[None] * len(linked) for _ in ids]
    for n, item in enumerate(linked):
        for picture in drawn[item]:
            place = places.get(picture.sha256, -1)
            rows[picture.row][n] = [place, picture.path, picture.fault]
    return {
        "items": [[clean(prompt, LONGEST), seed] for prompt, seed in linked],
        "pictures": rows,
        "thumbs": thumbs,
        "shown": shown,
        "drawn": len(drawn),
    }


def _by_item(images: pd.DataFrame, rows: dict[str, int]) -> dict[tuple[str, int], list[_Picture]]:
    columns = ["prompt", "seed", "cell_id", "path", "sha256", "defect"]
    found: dict[tuple[str, int], list[_Picture]] = {}
    for prompt, seed, identity, path, digest, defect in zip(
        *(images[column].tolist() for column in columns), strict=True
    ):
        fault = "" if defect == OK else str(defect)
        if identity in rows:
            picture = _Picture(rows[identity], str(path), str(digest), fault)
            found.setdefault((prompt, int(seed)), []).append(picture)
    seeds = {seed: n for n, seed in enumerate(dict.fromkeys(seed for _, seed in found))}
    return {item: found[item] for item in sorted(found, key=lambda item: seeds[item[1]])}


def _thumbs(
    items: list[list[_Picture]], thumbnails: Thumbnails, room: int
) -> tuple[dict[str, int], list[str], int]:
    """Place of each distinct picture, the pictures, and the number of items that they show."""
    places: dict[str, int] = {}
    thumbs: list[str] = []
    for shown, pictures in enumerate(items):
        paths = {p.sha256: p.path for p in pictures if p.sha256 not in places}
        made = {digest: thumbnails(path) for digest, path in paths.items()}
        texts = {digest: base64.b64encode(data).decode() for digest, data in made.items() if data}
        room -= sum(len(text) + _AROUND for text in texts.values())
        if room < 0:
            return places, thumbs, shown
        places |= {digest: len(thumbs) + n for n, digest in enumerate(texts)}
        thumbs += texts.values()
    return places, thumbs, len(items)
