"""From a source to a training set: each picture and each caption is encoded once, ever."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from lcm_arith.bases import Base
from lcm_arith.data import saved
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.drawings import Captioned
from lcm_arith.data.encoding import pictured
from lcm_arith.data.options import DataOptions
from lcm_arith.data.reading import read_captions
from lcm_arith.data.sources import Survey, survey
from lcm_arith.data.store import Store, alone
from lcm_arith.data.teacher import prompted
from lcm_arith.data.work import OnStage, Work
from lcm_arith.errors import UsageError
from lcm_arith.sampling import too_long


def silent(stage: str, done: int, total: int, note: str) -> None:
    """Tells nobody."""


def prepare(
    base: Base,
    source: Path | str | Captioned | Survey,
    options: DataOptions | None = None,
    *,
    cache: Path | None = None,
    on_stage: OnStage = silent,
) -> TrainingSet:
    """Encodes what is not in the cache yet.

    A picture is known by its content, shape and crop and the VAE; a caption by its text, how it is
    read, and the text encoders. So another base, size or caption encodes only what it changes, and
    a killed run goes on.

    Args:
        base: The base model; its VAE and text encoders are used where something is new, its UNet
            where prompts come without pictures.
        source: See :func:`.sources.survey`, or what that returned.
        options: Sizes, captions, number format; None is all defaults.
        cache: Folder, made where it is missing; whoever prepares into it at the same time waits.
            None keeps all in memory.
        on_stage: Told about progress.

    Returns:
        The set; with a cache, tensors are read from there when they are drawn.

    Raises:
        NotFoundError: If there is no such source.
        InvalidContentError: If no picture can be used, captions are missing or broken, the VAE
            makes NaN of a picture, or a shard of the cache is damaged.
        IncompatibleError: If a cache that serves as source is of another base model.
        UsageError: If options cannot work or have no effect.
        OutputExistsError, StorageError: If the cache cannot be a cache.
    """
    options = options or DataOptions()
    found = source if isinstance(source, Survey) else survey(source, options)
    if found.cached is not None:
        if cache is not None:
            raise UsageError(f"{found.cached.parent}: is a cache already, it takes no other")
        return saved.load(found.cached, base.parts, options)
    with alone(cache):
        store = Store(cache, getattr(torch, options.cache_dtype))
        work = Work(base, options, store, on_stage)
        try:
            made = prompted(work, found) if found.prompts else pictured(work, found)
            embeds, nothing = read_captions(
                work, [text for row in made.rows for text in row.captions]
            )
        finally:
            store.flush()
        origin = {
            "source": found.kind,
            **found.about,
            **made.about,
            "pictures": len(made.rows),
            "skipped": len(made.skipped),
            "cut_captions": _cut_captions(base, options, embeds),
            "options": options.given(),
        }
        data = TrainingSet(made.rows, embeds, nothing, store, base.kind, origin, made.skipped)
        data = replace(data, origin={**origin, "digest": saved.digest(data)})
        if cache is not None:
            saved.save(data, cache, found.identity, base.parts)
    return data


def _cut_captions(base: Base, options: DataOptions, texts: Iterable[str]) -> int:
    """Captions of which only the beginning is read."""
    return len(too_long(base.pipeline.tokenizer, list(texts), options.max_tokens))
