"""What an adapter file holds, in numbers that need no base model."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lcm_arith.adapters import base_of, check_address, open_adapter, recipe_digest
from lcm_arith.analysis import inner, share_by_block
from lcm_arith.formats import dialects
from lcm_arith.formats.container import tensors_digest
from lcm_arith.formats.keys import dialect
from lcm_arith.modules import GAIN, candidates, is_vector
from lcm_arith.pool import one_thread

_TRIGGERS: Final = ("instance_prompt", "modelspec.trigger_phrase", "ss_trigger_words")


@dataclass(frozen=True)
class Inspection:
    """What :func:`inspect` found; :meth:`as_json` for machines."""

    path: str
    sha256: str
    tensors_sha256: str
    recipe_sha256: str | None
    dialect: str
    kinds: dict[str, int]
    families: tuple[tuple[str, float], ...]
    ranks: dict[int, int]
    alphas: dict[str, int]
    without_alpha: int
    dtypes: dict[str, int]
    parameters: int
    norm: float
    blocks: dict[str, float]
    triggers: dict[str, str]
    metadata: dict[str, str]

    def as_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            **vars(self),
            "families": [{"family": name, "coverage": share} for name, share in self.families],
        }


def inspect(name: str | Path, base: Path | None = None) -> Inspection:
    """Dialect, kind, family, ranks, norms and metadata of a shipped vector or a file.

    Ranks, alphas and norms are those of the factors: a DoRA's gains are not in them.

    Args:
        name: Shipped name or path.
        base: The model that a DoRA was made for.

    Raises:
        NotFoundError, InvalidContentError: As :func:`lcm_arith.adapters.load`.
    """
    file, metadata = open_adapter(name)
    digest, tensors = file.checked(keep=True)
    check_address(file.path, digest)
    parsed = dialects.parse(tensors, metadata, str(file.path), base_of(file, base))
    found = candidates({target: tuple(d.shape) for target, d in parsed.outlines.items()})
    deltas = {t: parsed.deltas[t] for t in parsed.deltas if not t.endswith(GAIN)}
    layers = [delta for target, delta in deltas.items() if not is_vector(target)]
    factors = [tensor for tensor in tensors.values() if tensor.ndim]  # alphas are not told here
    alphas = Counter(f"{d.scale * d.rank:g}" for d in layers)
    with one_thread():
        norm = math.sqrt(sum(inner(d, d) for d in deltas.values()))
        blocks = share_by_block(deltas)
    return Inspection(
        path=str(file.path),
        sha256=digest,
        tensors_sha256=tensors_digest(tensors),
        recipe_sha256=recipe_digest(metadata),
        dialect=dialect(tensors),
        kinds=dict(parsed.kinds),
        families=tuple((c.family, c.coverage) for c in found),
        ranks=dict(sorted(Counter(d.rank for d in layers).items())),
        alphas=dict(alphas.most_common()),
        without_alpha=parsed.without_alpha,
        dtypes=dict(Counter(str(f.dtype).removeprefix("torch.") for f in factors)),
        parameters=sum(t.numel() for t in tensors.values()),
        norm=norm,
        blocks=blocks,
        triggers={key: metadata[key] for key in _TRIGGERS if key in metadata},
        metadata=dict(sorted(metadata.items())),
    )
