"""``lcm-arith registry backup`` and ``restore``: the whole registry in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

BACKUP_EXAMPLES = """Examples:

  lcm-arith registry backup vectors.tar
"""
RESTORE_EXAMPLES = """Examples:

  lcm-arith registry restore vectors.tar

  LCM_ARITH_HOME=elsewhere lcm-arith registry restore vectors.tar
"""


def backup(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A tar file to write.")],
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write every name and file into one tar file; linked files stay where they are."""
    from lcm_arith.registry import archive
    from lcm_arith.registry.store import Registry

    made = archive.backup(Registry.open(), file, force=force)
    if as_json:
        print_json({"path": str(file), **vars(made)})
        return
    stdout.print(
        f"wrote {file}: {made.names} names, {made.files} files, {made.bytes / 2**20:.1f} MiB",
        soft_wrap=True,
    )


def restore(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="What backup wrote.")],
    force: Annotated[
        bool, typer.Option("--force", help="Names that are there get the backup's content.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Put a backup's names and files into the registry, all names or none."""
    from lcm_arith.errors import NotFoundError
    from lcm_arith.registry import archive
    from lcm_arith.registry.store import Registry

    if not file.is_file():
        raise NotFoundError(f"{file}: no such file")
    found = archive.restore(Registry.open(), file, force=force)
    if as_json:
        print_json({"path": str(file), **vars(found)})
    else:
        stdout.print(f"{found.names} names; {found.files} files were not there before")
