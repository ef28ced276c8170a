"""The pictures of a page: as many small ones as its size allows, and links to more."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

import pandas as pd
from PIL import Image

from lcm_arith.evaluation.judging.pixels import OK
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
    sha256: str  # empty where there is no picture
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
    images: pd.DataFrame, ids: list[str], first: Sequence[int], thumbnails: Thumbnails, room: int
) -> dict[str, Any]:
    """Pictures of the first prompts and seeds, JSON-ready.

    All prompts with the first seed come before the second one, so that few pictures show many
    prompts.

    Args:
        images: As ``images.csv``.
        ids: ``cell_id`` of each row.
        first: The rows' numbers; those of a prompt and seed are taken in this order.
        thumbnails: Asked for each distinct picture once, until the room is filled.
        room: Bytes of JSON to fill.

    Returns:
        ``items`` (prompt, seed); ``pictures`` of each row, for each of them [place in ``thumbs``
        or −1, path, what is wrong with it], or None; ``thumbs`` in base64; ``inside`` pictures that
        have one; ``linked`` pictures that have a path; ``drawn`` in all.
    """
    drawn = _by_item(images, {ids[row]: row for row in first})
    linked, used = [], 0
    for item, pictures in drawn.items():
        used += len(json.dumps(clean(item[0], LONGEST))) + 2 * _AROUND
        used += sum(len(json.dumps(p.path)) + _AROUND for p in pictures)
        if used > min(_LINKS, room):
            break
        linked.append(item)
    shown = [(n, picture) for n, item in enumerate(linked) for picture in drawn[item]]
    thumbs = _thumbs([picture for _, picture in shown], thumbnails, room - used)
    places = {digest: place for place, digest in enumerate(thumbs)}
    rows: list[list[Any]] = [[None] * len(linked) for _ in ids]
    for n, picture in shown:
        place = places.get(picture.sha256, -1)
        rows[picture.row][n] = [place, picture.path, picture.fault]
    return {
        "items": [[clean(prompt, LONGEST), seed] for prompt, seed in linked],
        "pictures": rows,
        "thumbs": list(thumbs.values()),
        "inside": sum(picture.sha256 in places for _, picture in shown),
        "linked": sum(picture.sha256 != "" for _, picture in shown),
        "drawn": sum(p.sha256 != "" for pictures in drawn.values() for p in pictures),
    }


def _by_item(images: pd.DataFrame, rows: dict[str, int]) -> dict[tuple[str, int], list[_Picture]]:
    """Pictures of each prompt and seed, in the order of ``rows``."""
    columns = ["prompt", "seed", "cell_id", "path", "sha256", "defect", "status"]
    found: dict[tuple[str, int], list[_Picture]] = {}
    for prompt, seed, identity, path, digest, defect, status in zip(
        *(images[column].fillna("").tolist() for column in columns), strict=True
    ):
        if identity in rows:
            wrong = status if status != OK else defect
            picture = _Picture(rows[identity], path, digest, "" if wrong == OK else wrong)
            found.setdefault((prompt, int(seed)), []).append(picture)
    seeds = {seed: n for n, seed in enumerate(dict.fromkeys(seed for _, seed in found))}
    order = {row: n for n, row in enumerate(rows.values())}
    return {
        item: sorted(found[item], key=lambda picture: order[picture.row])
        for item in sorted(found, key=lambda item: seeds[item[1]])
    }


def _thumbs(pictures: list[_Picture], thumbnails: Thumbnails, room: int) -> dict[str, str]:
    """sha256 → the small picture in base64, as many as there is room for."""
    made: dict[str, str] = {}
    paths = {picture.sha256: picture.path for picture in pictures if picture.sha256}
    for digest, path in paths.items():
        text = base64.b64encode(thumbnails(path)).decode()
        room -= len(text) + _AROUND
        if room < 0:
            break
        if text:
            made[digest] = text
    return made
