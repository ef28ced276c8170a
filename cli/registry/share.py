"""``lcm-arith registry export``, ``push`` and ``pull``: vectors for others, and theirs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stderr, stdout
from lcm_arith.cli.registry.arguments import Known

if TYPE_CHECKING:
    from lcm_arith.registry.rights import Effective
    from lcm_arith.registry.syncing import Synced

EXPORT_EXAMPLES = """Examples:

  lcm-arith registry export noto                (folder noto-diffusers: weights, a model card)

  lcm-arith registry export ink-fast --format kohya -o for-webui

  lcm-arith registry export ink-fast --format peft --dtype float16
"""
PUSH_EXAMPLES = """Examples:

  lcm-arith registry push /nas/vectors          (all vectors, into a folder)

  lcm-arith registry push hf:me/my-vectors ink-fast     (HF_TOKEN is the key)

  lcm-arith registry push s3://bucket/vectors   (needs the package s3fs)
"""
PULL_EXAMPLES = """Examples:

  lcm-arith registry pull /nas/vectors

  lcm-arith registry pull hf:team/vectors ink-fast
"""


class ExportFormat(StrEnum):
    """What an export can be; the table behind them is lcm_arith.registry.exporting.FORMATS."""

    diffusers = "diffusers"
    peft = "peft"
    kohya = "kohya"


Remote = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER|hf:ORG/REPO|URL", help="A folder, a hub repository, or what fsspec knows."
    ),
]
Names = Annotated[
    list[str] | None, typer.Argument(metavar="NAME…", help="Which.", show_default="all")
]


def export(
    name: Known,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Folder to make.", show_default="NAME-FORMAT")
    ] = None,
    form: Annotated[ExportFormat, typer.Option("--format", help="Whose files.")] = (
        ExportFormat.diffusers
    ),
    dtype: Annotated[
        options.DtypeName | None,
        typer.Option(help="Number format of the weights.", show_default="as they are"),
    ] = None,
    base: options.DoraBase = None,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Write a folder with the weights and a model card: parts, licence, how to use it."""
    from lcm_arith.registry.exporting import export as write
    from lcm_arith.registry.store import Registry

    registry = Registry.open()
    found = registry.find(name)
    folder = out or Path(f"{found.name.replace(':', '-')}-{form.value}")
    number_format = None if dtype is None else dtype.value
    done = write(
        registry, found, folder, form=form.value, dtype=number_format, base=base, force=force
    )
    told = {
        "folder": str(done.folder),
        "file": done.file,
        "copied": done.copied,
        "licence": terms(done.effective),
    }
    if as_json:
        print_json(told)
        return
    how = "the registered bytes" if done.copied else "written anew"
    stdout.print(f"wrote {done.folder}: {done.file} ({how}) and README.md", soft_wrap=True)
    stdout.print(asked(done.effective), soft_wrap=True)


def terms(effective: Effective) -> dict[str, Any]:
    """What the licences ask together, JSON-ready."""
    return {
        "terms": list(effective.terms.words()),
        "unknown": effective.unknown,
        "attributions": list(effective.attributions),
    }


def asked(effective: Effective) -> str:
    """The same for people, in one line."""
    words = ", ".join(effective.terms.words()) or "nothing that is known"
    more = "; one of them is not known and may ask more" if effective.unknown else ""
    return f"the licences ask for: {words}{more}"


def push(
    remote: Remote,
    names: Names = None,
    have_rights: Annotated[
        bool,
        typer.Option(
            "--i-have-rights", help="Push though a parent's licence forbids mixes or commerce."
        ),
    ] = False,
    with_notes: Annotated[
        bool, typer.Option("--with-notes", help="Push notes, too, which may be private.")
    ] = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Put vectors with their names and history where others can pull them; all or none."""
    from lcm_arith.registry import syncing
    from lcm_arith.registry.remotes import open_remote
    from lcm_arith.registry.store import Registry

    there = open_remote(remote)
    done = syncing.push(
        Registry.open(),
        there,
        names or (),
        force=force,
        have_rights=have_rights,
        with_notes=with_notes,
    )
    told("pushed", there.url, done, as_json=as_json)


def pull(
    remote: Remote, names: Names = None, force: options.Force = False, as_json: options.Json = False
) -> None:
    """Get vectors that were pushed; every file is checked and described anew."""
    from lcm_arith.registry import syncing
    from lcm_arith.registry.remotes import open_remote
    from lcm_arith.registry.store import Registry

    there = open_remote(remote)
    done = syncing.pull(Registry.open(), there, names or (), force=force)
    told("pulled", there.url, done, as_json=as_json)


def told(verb: str, url: str, done: Synced, *, as_json: bool) -> None:
    """What was pushed or pulled."""
    if as_json:
        print_json({"remote": url, **vars(done)})
        return
    for name in done.names:
        more = f": {', '.join(done.told[name])}" if name in done.told else ""
        stdout.print(f"{verb} {name}{more}", soft_wrap=True)
    for name, fields in done.other.items():
        stderr.print(f"{name}: said otherwise here than there: {', '.join(fields)}", soft_wrap=True)
    if done.same:
        stderr.print(f"{len(done.same)} were there already: {', '.join(done.same)}", soft_wrap=True)
