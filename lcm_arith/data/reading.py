"""Captions as prompt embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from lcm_arith.condition import Condition
from lcm_arith.data.drawing import TOLD
from lcm_arith.data.work import Work, parts

_CAPTIONS: Final = 64  # a pass of the text encoder


def read_captions(work: Work, texts: Iterable[str]) -> tuple[dict[str, str], str]:
    """Caption → key of its embedding, and the key of ∅; encodes those that are new."""
    readers = {
        part: digest
        for part, digest in sorted(work.base.parts.items())
        if part.startswith(("text_encoder", "tokenizer"))
    }
    common = {**work.reading(), "encoders": readers}
    keys = {text: work.key(caption=text, **common) for text in dict.fromkeys(texts)}
    nothing = work.key(nothing=work.base.zero_uncond, **common)
    if not _there(work, nothing):
        _keep(work, [nothing], work.base.uncond(**work.reading()))
    new = [text for text, key in keys.items() if not _there(work, key)]
    for at, part in enumerate(parts(new, _CAPTIONS)):
        _keep(work, [keys[text] for text in part], work.base.encode(part, **work.reading()))
        work.on_stage("captions", min((at + 1) * _CAPTIONS, len(new)), len(new), "")
    return keys, nothing


def _keep(work: Work, keys: Sequence[str], encoded: Condition) -> None:
    for at, key in enumerate(keys):
        for name in TOLD[work.base.kind]:
            work.store.add(f"{key}.{name}", encoded[name][at])


def _there(work: Work, key: str) -> bool:
    return all(f"{key}.{name}" in work.store for name in TOLD[work.base.kind])
