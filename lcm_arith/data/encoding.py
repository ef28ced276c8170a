"""Pictures as latents: looked at ahead in threads, encoded bucket by bucket."""

from __future__ import annotations

import hashlib
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
import torch
from torch import Tensor

from lcm_arith.bases import Base
from lcm_arith.data import pixels
from lcm_arith.data.captions import forms, listed
from lcm_arith.data.drawing import Row
from lcm_arith.data.sources import Item, Survey, reason
from lcm_arith.data.work import Made, Work, a_pass, parts
from lcm_arith.errors import InvalidContentError, UsageError

_AHEAD: Final = 16  # pictures that are read while others are encoded
_THREADS: Final = 4
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True, eq=False)
class _Ready:
    """A picture that was looked at: its row, and the pixels of those latents that are missing."""

    row: Row
    enlarged: bool
    pixels: dict[str, np.ndarray]


def pictured(work: Work, found: Survey) -> Made:
    """The pictures that can be used; what is not in the store yet is encoded.

    Raises:
        InvalidContentError: If none can be used, or the VAE makes NaN of one.
        UsageError: If the sides of the training pictures are no whole latents.
    """
    resolution, step = _shape(work)
    among = pixels.buckets(resolution, step)
    made: list[_Ready] = []
    skipped = list(found.skipped)
    waiting: dict[pixels.Size, dict[str, tuple[str, np.ndarray]]] = {}

    def look(item: Item) -> _Ready | str:
        try:
            return _ready(work, item, among)
        except pixels.UNREADABLE as error:
            return f"{item.name}: {reason(error)}"

    with closing(_ahead(look, found.items)) as looked:
        for done, each in enumerate(looked, start=1):
            if isinstance(each, str):
                skipped.append(each)
            else:
                bucket = waiting.setdefault(each.row.bucket, {})
                bucket |= {key: (each.row.name, shown) for key, shown in each.pixels.items()}
                made.append(replace(each, pixels={}))
                if len(bucket) >= a_pass(*each.row.bucket):
                    _encode_pictures(work, bucket)
            note = f"{len(skipped)} skipped" if skipped else ""
            work.on_stage("encode", done, len(found.items), note)
    for bucket in waiting.values():
        _encode_pictures(work, bucket)
    if not made:
        raise InvalidContentError(f"no picture can be used:\n  {listed(skipped)}")
    shapes = Counter(f"{row.bucket[1]}x{row.bucket[0]}" for row in (each.row for each in made))
    about = {
        "resolution": resolution,
        "buckets": dict(sorted(shapes.items())),
        "enlarged": sum(each.enlarged for each in made),
    }
    return Made(tuple(each.row for each in made), tuple(skipped), about)


def _shape(work: Work) -> tuple[int, int]:
    resolution, step = work.options.shape(work.base.size)
    if step % work.base.latent_scale:
        raise UsageError(
            f"resolution {resolution} px, bucket_step {step} px: a latent is "
            f"{work.base.latent_scale} px wide, sides must be multiples of it"
        )
    return resolution, step


def _ready(work: Work, item: Item, among: tuple[pixels.Size, ...]) -> _Ready:
    """Decodes the picture only if a latent of it is missing. May raise ``pixels.UNREADABLE``."""
    data, options = item.read(), work.options
    content = hashlib.sha256(data).digest()
    picture = item.decode(data)
    random = options.crop == "random"
    where = (content[0] / 256, content[1] / 256) if random else (0.5, 0.5)
    how = pixels.cut(pixels.upright_size(picture), among, where)
    keys = {
        work.key(
            picture=content.hex(),
            resized=how.resized,
            crop=(how.top, how.left, *how.target),
            mirrored=mirrored,
            vae=work.base.parts["vae"],
        ): mirrored
        for mirrored in ((False, True) if options.flip else (False,))
    }
    row = Row(
        item.name,
        how.target,
        tuple(keys),
        tuple(how.time_ids(mirrored=mirrored) for mirrored in keys.values()),
        forms(item.note.caption, options),
        options.repeats * item.note.repeats,
    )
    missing = {key: mirrored for key, mirrored in keys.items() if f"{key}.z0" not in work.store}
    shown = pixels.render(picture, how) if missing else None
    return _Ready(
        row,
        how.enlarged,
        {} if shown is None else {k: shown[:, ::-1] if m else shown for k, m in missing.items()},
    )


def _encode_pictures(work: Work, waiting: dict[str, tuple[str, np.ndarray]]) -> None:
    """Empties ``waiting``: key → name and pixels, of one size."""
    entries = list(waiting.items())
    waiting.clear()
    if not entries:
        return
    height, width, _ = entries[0][1][1].shape
    for part in parts(entries, a_pass(height, width)):
        z0 = _latents(work.base, [named for _, named in part])
        for (key, _), z in zip(part, z0, strict=True):
            work.store.add(f"{key}.z0", z)


def _latents(base: Base, shown: Sequence[tuple[str, np.ndarray]]) -> Tensor:
    """``[n, C, h, w]`` of named pictures.

    Raises:
        InvalidContentError: If some are not finite; names the first.
    """
    try:
        z0: Tensor = base.to_latents(np.stack([each for _, each in shown]))
    except InvalidContentError as error:
        if not shown[1:]:
            raise InvalidContentError(f"{shown[0][0]}: {error.message}", hint=error.hint) from error
        return torch.cat([_latents(base, [each]) for each in shown])
    bad = [name for (name, _), z in zip(shown, z0, strict=True) if not bool(z.isfinite().all())]
    if bad:
        raise InvalidContentError(
            f"{bad[0]}: the VAE makes NaN or infinity of it",
            hint="leave it out, or take a base model with another VAE",
        )
    return z0


def _ahead(function: Callable[[T], R], items: Iterable[T]) -> Generator[R]:
    """The results in order, some of them made while the last one is used."""
    futures: deque[Future[R]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool, pixels.quietly():
        try:
            for item in items:
                futures.append(pool.submit(function, item))
                if len(futures) >= _AHEAD:
                    yield futures.popleft().result()
            while futures:
                yield futures.popleft().result()
        finally:
            for future in futures:
                future.cancel()
