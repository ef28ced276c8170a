"""The name of a picture: a digest of all that changes its pixels, and of nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any, Final

from lcm_arith.evaluation.drawing.mixing import plain, terms
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.plans.rows import Item, Mix, Row
from lcm_arith.sampling import SAMPLERS

LENGTH: Final = 32  # hex digits of a name
PACKAGES: Final = ("lcm-arith", "torch", "diffusers", "transformers")
"""What computes the pixels."""


@cache
def _versions() -> dict[str, str]:
    """Of those that are installed."""
    return {name: version(name) for name in PACKAGES}


@dataclass(frozen=True, eq=False)
class Keys:
    """Names pictures.

    Args:
        base: Base model, as rows name it → digest of its weights and configurations.
        vector: Vector, as rows name it → digest of its file.
        dtype: Number format of the base's weights.
        fast: As in ``lcm_arith.sampling.sample``.
        versions: Package → version, of what computes the pixels.
    """

    base: Callable[[str], str]
    vector: Callable[[str], str]
    dtype: str = "float32"
    fast: bool = False
    versions: Mapping[str, str] = field(default_factory=_versions)
    _rows: dict[Row, dict[str, Any]] = field(default_factory=dict)

    def facts(self, row: Row, item: Item) -> dict[str, Any]:
        """All that changes a picture's pixels, JSON-ready; no path, device, batch or time."""
        prompt, seed = item
        if row not in self._rows:
            self._rows[row] = self._row(row)
        return {**self._rows[row], "prompt": row.context.text(prompt), "seed": seed}

    def key(self, row: Row, item: Item) -> str:
        """The name of a picture."""
        return hashlib.sha256(canonical(self.facts(row, item))).hexdigest()[:LENGTH]

    def weights(self, row: Row) -> str:
        """Digest of what a row's weights are made of, by content: equal weights have one name."""
        facts = self.facts(row, ("", 0))
        return hashlib.sha256(canonical([facts["base"], facts["mixes"]])).hexdigest()

    def _row(self, row: Row) -> dict[str, Any]:
        sampler = SAMPLERS[row.sampler]
        return {
            "versions": dict(self.versions),
            "base": self.base(row.context.base),
            "mixes": [self._mix(plain(mix)) for mix in row.mixes],
            "sampler": [sampler.scheduler, sampler.options],
            "steps": row.steps,
            "guidance": repr(float(row.guidance)),
            "negative": row.context.negative if row.guidance > 1 else None,
            "dtype": self.dtype,
            "fast": self.fast,
        }

    def _mix(self, mix: Mix) -> dict[str, Any]:
        return {
            "terms": [[str(term.weights), self.vector(term.name)] for term in terms(mix)],
            "method": mix.method,
            "rank": mix.rank,
            "te": None if mix.te is None else str(mix.te),
        }


def keys_of(sources: Sources, *, fast: bool = False) -> Keys:
    """Names by the files that the names in a grid stand for now."""
    return Keys(sources.base_digest, sources.vector_digest, sources.dtype, fast)


def canonical(facts: Any) -> bytes:
    """JSON of one spelling."""
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="backslashreplace")
