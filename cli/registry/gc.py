"""``lcm-arith registry gc``: what no name needs goes."""

from __future__ import annotations

from lcm_arith.cli import options
from lcm_arith.cli.ages import DryRun, OlderThan, seconds
from lcm_arith.cli.output import print_json, stdout

EXAMPLES = """Examples:

  lcm-arith registry gc --dry-run

  lcm-arith registry gc --older-than 7d
"""


def command(
    older_than: OlderThan = "24h",
    dry_run: DryRun = False,
    as_json: options.Json = False,
) -> None:
    """Remove files that no name needs, and pieces of killed programs; it does not ask.

    What named vectors were made of stays, so that rebuild and lineage go on to work.
    """
    from lcm_arith.registry import upkeep
    from lcm_arith.registry.store import Registry

    age = seconds(older_than)
    swept = upkeep.gc(Registry.open(), older_than=age, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **vars(swept)})
        return
    for path in (*swept.files, *swept.pieces):
        stdout.print(path, soft_wrap=True)
    count = len(swept.files) + len(swept.pieces)
    done = "would be removed" if dry_run else "removed"
    stdout.print(f"{count} file{'' if count == 1 else 's'} {done}, {swept.bytes / 2**20:.1f} MiB")
