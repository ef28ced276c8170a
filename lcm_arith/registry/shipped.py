"""The vectors that came with the program, as records that were made when it was built."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

from lcm_arith.embedded import files
from lcm_arith.registry.index import Row
from lcm_arith.registry.records import Record
from lcm_arith.registry.states import State

RECORDS: Final = "records.json"


@cache
def names() -> tuple[str, ...]:
    """Their names, sorted."""
    return files.vector_names()


@cache
def _stored() -> dict[str, Any]:
    path = files.VECTORS / RECORDS
    if not path.is_file():  # a ground that somebody trained and did not list
        return {}
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


@cache
def record(name: str) -> Record:
    """The record of one; made now where the ground has none, which imports torch."""
    if name in _stored():
        return Record.of(_stored()[name], name)
    from lcm_arith.registry.describing import describe

    return describe(files.vector_path(name), source={"shipped": name})


def rows() -> list[Row]:
    """Rows like those of the index."""
    return [
        Row(name, State(record=name), record(name).columns(record(name).object)) for name in names()
    ]


def write() -> None:
    """Makes the records of the shipped vectors anew; ``tools/build_embedded.py manifest``."""
    from lcm_arith.registry.describing import describe

    made = {
        name: describe(files.vector_path(name), source={"shipped": name}).manifest()
        for name in files.vector_names()
    }
    text = json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    files.write_file(files.VECTORS / RECORDS, text)
