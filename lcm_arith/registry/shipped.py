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
_MIXED: Final = "CC-BY-4.0"  # of drawings under Apache-2.0, MIT and CC-BY-4.0, which asks most
# Vector → licence of the drawings that it was made from, and whose they are; see NOTICE.
_RIGHTS: Final = {
    "noto": ("Apache-2.0", "Google (Noto Emoji)"),
    "twemoji": ("CC-BY-4.0", "Twitter and contributors (Twemoji)"),
    "fluent-emoji": ("MIT", "Microsoft (Fluent Emoji)"),
    "fluent-emoji-high-contrast": ("MIT", "Microsoft (Fluent Emoji)"),
    "lcm": (_MIXED, "Google, Twitter, EmojiOne, Microsoft and contributors"),
}


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
    return _described(name)


def rows() -> list[Row]:
    """Rows like those of the index."""
    return [
        Row(name, State(record=name), record(name).columns(record(name).object)) for name in names()
    ]


def write() -> None:
    """Makes the records of the shipped vectors anew; ``tools/build_embedded.py manifest``."""
    made = {name: _described(name).manifest() for name in files.vector_names()}
    text = json.dumps(made, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    files.write_file(files.VECTORS / RECORDS, text)


def _described(name: str) -> Record:
    from lcm_arith.registry.describing import describe
    from lcm_arith.registry.facts import gather

    licence, author = _RIGHTS.get(name, ("", ""))
    facts = gather([("licence", licence), ("author", author)], "NOTICE of lcm-arith")
    return describe(files.vector_path(name), source={"shipped": name}, facts=facts, name=name)
