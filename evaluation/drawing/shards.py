"""Parts of a grid that machines draw without knowing of one another.

What a shard draws follows from the plan and the content of the files alone: not from names, paths,
or what is drawn already. So shards may run in any order, at once, into one folder or into folders
that are copied together, and what they leave is what one run would have left.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.drawing.engine import units
from lcm_arith.evaluation.drawing.keys import Keys
from lcm_arith.evaluation.plans.rows import Row


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``count``, from 1."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def rows(self, rows: Sequence[Row], keys: Keys) -> tuple[Row, ...]:
        """The rows that fall to it: all of those that are drawn with the same weights, or none."""
        return tuple(
            row
            for unit in units(rows)
            for row in unit.rows
            if int(keys.weights(row), 16) % self.count == self.number - 1
        )


WHOLE: Final = Shard(1, 1)


def parse_shard(text: str) -> Shard:
    """The shard of ``i/N``, from ``1/N`` to ``N/N``.

    Raises:
        UsageError: If it is none.
    """
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    shard = Shard(*map(int, found.groups())) if found else Shard(0, 0)
    if not 1 <= shard.number <= shard.count:
        raise UsageError(
            f"shard {text!r}: a number and how many there are, from 1",
            hint="of three machines, the first runs --shard 1/3, the last --shard 3/3",
        )
    return shard
