"""What the file of a grid's picture says of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from lcm_arith.adapters import locate
from lcm_arith.errors import LcmArithError
from lcm_arith.evaluation.drawing.keys import Keys
from lcm_arith.evaluation.drawing.mixing import terms
from lcm_arith.evaluation.drawing.pngs import Lora, Told, lora_hash, told_of_loras
from lcm_arith.evaluation.plans.rows import ZERO, Item, Row, mean, shown


@dataclass(frozen=True, eq=False)
class Teller:
    """Tells of pictures; no folder's path is told.

    Args:
        keys: Names them.
    """

    keys: Keys
    _rows: dict[Row, Told] = field(default_factory=dict)
    _hashes: dict[str, str] = field(default_factory=dict)

    def told(self, row: Row, item: Item) -> Told:
        """What a picture says of itself."""
        prompt, seed = item
        if row not in self._rows:
            self._rows[row] = self._row(row)
        text = row.context.text(prompt)
        return {**self._rows[row], "prompt": text, "seed": seed, "key": self.keys.key(row, item)}

    def _row(self, row: Row) -> Told:
        chosen = {"method": row.method, "rank": row.rank, "te": row.te}
        return {
            "sampler": row.sampler,
            "steps": row.steps,
            "guidance": row.guidance,
            "model": Path(row.context.base).name,
            "model_hash": self.keys.base(row.context.base)[:10],
            **({"negative": row.context.negative} if row.guidance > 1 else {}),
            **{name: str(value) for name, value in chosen.items() if value not in ("linear", None)},
            **told_of_loras(self._loras(row)),
        }

    def _loras(self, row: Row) -> list[Lora]:
        """The vectors of a row, with λ of each step where it changes."""
        steps = [{term.name: term.weights.overall for term in terms(mix)} for mix in row.mixes]
        found = []
        for name in dict.fromkeys(name for step in steps for name in step):
            if name not in self._hashes:  # a file is read once
                self._hashes[name] = _hash(name)
            weights = tuple(step.get(name, ZERO) for step in steps)
            schedule = shown(ZERO, weights) if len(set(weights)) > 1 else ""
            found.append(Lora(name, str(mean(weights)), self._hashes[name], schedule))
        return found


def _hash(name: str) -> str:
    """Of the adapter's file; empty of a folder, and of a vector that is only in memory."""
    try:
        path = locate(name)
    except LcmArithError:
        return ""
    return lora_hash(path) if path.suffix == ".safetensors" else ""
