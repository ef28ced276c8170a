"""``lcm-arith registry``: vectors with names, one verb each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import typer

from lcm_arith.cli.registry import (
    add,
    archive,
    compare,
    edit,
    gc,
    lineage,
    ls,
    names,
    share,
    show,
    verify,
)

app = typer.Typer(
    help="Keep vectors under names, with what is known of them and what they were made of; every "
    "command takes the names. Files lie in LCM_ARITH_HOME, the index where LCM_ARITH_DB says.",
    no_args_is_help=True,
)
Verb = tuple[str, Callable[..., None], str]
"""Its name, the command, and its examples."""
VERBS: Final[dict[str, tuple[Verb, ...]]] = {
    "Vectors": (
        ("add", add.command, add.EXAMPLES),
        ("ls", ls.command, ls.EXAMPLES),
        ("search", ls.search, ls.SEARCH_EXAMPLES),
        ("show", show.command, show.EXAMPLES),
        ("path", show.path, show.PATH_EXAMPLES),
        ("rm", names.rm, names.RM_EXAMPLES),
    ),
    "What is said of them": (
        ("set", edit.set_values, edit.SET_EXAMPLES),
        ("tag", edit.tag, edit.TAG_EXAMPLES),
        ("untag", edit.untag, edit.UNTAG_EXAMPLES),
        ("note", edit.note, edit.NOTE_EXAMPLES),
        ("alias", names.alias, names.ALIAS_EXAMPLES),
        ("rename", names.rename, names.RENAME_EXAMPLES),
    ),
    "Where they come from, and what is alike": (
        ("lineage", lineage.command, lineage.EXAMPLES),
        ("rebuild", lineage.rebuild, lineage.REBUILD_EXAMPLES),
        ("similar", compare.similar, compare.SIMILAR_EXAMPLES),
        ("diff", compare.diff, compare.DIFF_EXAMPLES),
        ("dedup", compare.dedup, compare.DEDUP_EXAMPLES),
    ),
    "For others, and from them": (
        ("export", share.export, share.EXPORT_EXAMPLES),
        ("push", share.push, share.PUSH_EXAMPLES),
        ("pull", share.pull, share.PULL_EXAMPLES),
    ),
    "Upkeep": (
        ("verify", verify.command, verify.EXAMPLES),
        ("gc", gc.command, gc.EXAMPLES),
        ("reindex", verify.reindex, verify.REINDEX_EXAMPLES),
        ("backup", archive.backup, archive.BACKUP_EXAMPLES),
        ("restore", archive.restore, archive.RESTORE_EXAMPLES),
    ),
}
for _panel, _verbs in VERBS.items():
    for _name, _command, _examples in _verbs:
        app.command(_name, epilog=_examples, rich_help_panel=_panel)(_command)
