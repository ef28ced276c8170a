"""Files → records. This is the one part of the registry that reads adapters, with torch."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from lcm_arith.analysis import inner, shares
from lcm_arith.errors import InvalidContentError
from lcm_arith.formats import dialects
from lcm_arith.formats.container import OWN_METADATA, tensors_digest
from lcm_arith.formats.keys import dialect
from lcm_arith.formats.preflight import KEPT, SafeFile
from lcm_arith.modules import candidates, is_vector
from lcm_arith.pool import ahead
from lcm_arith.registry.facts import Facts, from_header, merge
from lcm_arith.registry.fingerprints import probed
from lcm_arith.registry.recognise import Outline, guess_kind
from lcm_arith.registry.records import DIGEST, Record
from lcm_arith.vector import Source, TaskVector

_MAGNITUDES: Final = ("lora_magnitude_vector", "dora_scale")


def describe(
    path: Path,
    *,
    source: Mapping[str, Any],
    facts: Facts | None = None,
    name: str = "",
    link: str | None = None,
    previews: tuple[Mapping[str, str], ...] = (),
) -> Record:
    """The record of a ``.safetensors`` file.

    A DoRA's ranks, norms and fingerprint are those of its factors, which need no base model.

    Args:
        path: Of a file that nobody changes meanwhile.
        source: Where it came from, JSON-ready.
        facts: What others say of it, beside its own header.
        name: What it was called, from which its kind may be guessed.
        previews: Pictures that are objects already.
        link: Its place outside of the registry, if it stays there.

    Raises:
        InvalidContentError: If it is no adapter that can be read.
    """
    file = SafeFile.open(path)
    small = file.size <= KEPT
    digest, kept = file.checked(keep=small)
    tensors: Mapping[str, Tensor] = kept if small else file
    plain = [name for name in tensors if not name.endswith(_MAGNITUDES)]
    stretched = len(tensors) - len(plain)
    factors: Mapping[str, Tensor] = (
        {name: kept[name] for name in plain}
        if small
        else replace(file, entries={name: file.entries[name] for name in plain})
    )
    parsed = dialects.parse(factors, file.metadata, str(path))
    tau = TaskVector(((1.0, Source(parsed.deltas, {}, {}, parsed.outlines)),))
    measures = measured(tau)
    layers = [own for target, own in measures.items() if not is_vector(target)]
    energies = {target: own.energy for target, own in measures.items()}
    fitting = candidates({target: tuple(d.shape) for target, d in parsed.outlines.items()})
    made = own_header(file.metadata, path)
    said = merge(*filter(None, (facts, from_header(file.metadata))))
    components = tuple(sorted({target.split(".")[0] for target in measures}))
    outline = Outline(
        fitting[0].family if fitting else None,
        frozenset(measures),
        any(own.startswith("text_encoder") for own in components),
    )
    return Record(
        object=digest,
        bytes=path.stat().st_size,
        data=_data_sha256(path, min(entry.start for entry in file.entries.values())),
        tensors=tensors_digest(tensors, file.outlines()),
        dialect=dialect(tensors),
        network={"dora": stretched} if stretched else dict(parsed.kinds),
        families=tuple((c.family, f"{c.coverage:.4f}") for c in fitting),
        ranks={str(r): n for r, n in sorted(Counter(own.rank for own in layers).items())},
        alphas=dict(Counter(own.alpha for own in layers)),
        dtypes=dict(Counter(str(e.dtype).removeprefix("torch.") for e in file.entries.values())),
        modules=len(measures),
        parameters=sum(math.prod(entry.shape) for entry in file.entries.values()),
        components=components,
        norm=f"{math.sqrt(sum(energies.values())):.6g}",
        blocks={block: f"{share:.4f}" for block, share in shares(energies).items()},
        guess=_plain(guess_kind(name, outline, file.metadata, said).as_json()),
        facts=_plain(replace(said, previews=()).as_json()),
        made=made,
        parents=tuple(sorted(set(_parents(made)))),
        metadata=dict(file.metadata),
        source=dict(source),
        link=link,
        previews=previews,
        fingerprint={target: own.probed for target, own in measures.items()},
    )


@dataclass(frozen=True)
class Measure:
    """What is known of a module's update.

    Args:
        energy: Its squared Frobenius norm.
        rank: Of its factors.
        alpha: A decimal string.
        probed: Its part of the fingerprint.
    """

    energy: float
    rank: int
    alpha: str
    probed: str


def measured(tau: TaskVector) -> dict[str, Measure]:
    """Target → its measures; each update is computed once and not kept."""

    def measure(target: str) -> Measure:
        delta = tau.once(target)
        alpha = f"{delta.scale * delta.rank:g}"
        return Measure(inner(delta, delta), delta.rank, alpha, probed(target, delta))

    return dict(zip(tau, ahead(measure, tau), strict=True))


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The same as JSON gives it back."""
    plain: dict[str, Any] = json.loads(json.dumps(values))
    return plain


def own_header(metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What this program wrote into a header, every number as it was written there.

    Raises:
        InvalidContentError: If it is no JSON object.
    """
    try:
        found = json.loads(metadata.get(OWN_METADATA, "{}"), parse_float=str)
    except (ValueError, RecursionError) as error:
        raise InvalidContentError(f"{path}: header {OWN_METADATA!r} is not JSON") from error
    if not isinstance(found, dict):
        raise InvalidContentError(f"{path}: header {OWN_METADATA!r} is no JSON object")
    return found


def _parents(made: Any) -> Iterator[str]:
    """Every sha256 in the terms of a sum, however deep."""
    terms = made.get("terms") if isinstance(made, dict) else None
    for term in terms if isinstance(terms, list) else []:
        if not isinstance(term, dict):
            continue
        if isinstance(term.get("sha256"), str) and DIGEST.fullmatch(term["sha256"]):
            yield term["sha256"]
        yield from _parents(term.get("of"))


def _data_sha256(path: Path, start: int) -> str:
    with path.open("rb") as file:
        file.seek(start)
        return hashlib.file_digest(file, "sha256").hexdigest()
