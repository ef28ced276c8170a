"""``lcm-arith registry add``: files → names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import Stages, print_json, progress, stderr, stdout
from lcm_arith.cli.registry import arguments

if TYPE_CHECKING:
    from lcm_arith.errors import LcmArithError
    from lcm_arith.registry.adding import Added
    from lcm_arith.registry.store import Registry

EXAMPLES = """Examples:

  lcm-arith registry add my-style.safetensors

  lcm-arith registry add downloads/             (every .safetensors in it)

  lcm-arith registry add x.safetensors --name ink --kind style --trigger "ink drawing" --tag mine

  lcm-arith registry add noto --name my-noto    (a shipped vector, to be described otherwise)

  lcm-arith registry add hf:latent-consistency/lcm-lora-sdv1-5 --name lcm-sd15

  lcm-arith registry add /nas/big.safetensors --link    (the bytes stay where they are)
"""


@dataclass(frozen=True)
class Wish:
    """What is to be said of every file that is added."""

    name: str | None
    settings: Mapping[str, Any]
    tags: tuple[str, ...]
    link: bool
    beside: bool
    base: Path | None
    allow_pickle: bool
    dry_run: bool

    def options(self) -> dict[str, Any]:
        """What every way of adding takes."""
        names = ("settings", "tags", "base", "allow_pickle")
        return {name: getattr(self, name) for name in names}


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|FOLDER|URL…",
            help="Files, PEFT's folders, folders of .safetensors files, names; https://…, "
            "hf:org/repo@revision:file, civitai:VERSION.",
            autocompletion=completion.vectors,
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="Of the vector.", show_default="the file's")
    ] = None,
    kind: arguments.Kind = None,
    trigger: arguments.Trigger = None,
    licence: arguments.Licence = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Word to find it by; repeatable.")
    ] = None,
    weight: arguments.Weight = None,
    sampler: arguments.Sampler = None,
    steps: arguments.Steps = None,
    guidance: arguments.Guidance = None,
    link: Annotated[
        bool, typer.Option("--link", help="Leave the bytes where they are; remember the place.")
    ] = False,
    no_sidecars: Annotated[
        bool,
        typer.Option(
            "--no-sidecars", help="Leave files beside it unread: .civitai.info, README.md …"
        ),
    ] = False,
    base: options.DoraBase = None,
    allow_pickle: options.AllowPickle = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be added, and add nothing.")
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Register adapters under names; a bad file among many does not stop the others."""
    from lcm_arith.errors import LcmArithError, UsageError
    from lcm_arith.registry.editing import check_tag
    from lcm_arith.registry.store import Registry

    said = arguments.settings(
        kind=kind, triggers=trigger, licence=licence, weight=weight, sampler=sampler,
        steps=steps, guidance=guidance,
    )  # fmt: skip
    tags = tuple(check_tag(own) for own in tag or [])
    wish = Wish(name, said, tags, link, not no_sidecars, base, allow_pickle, dry_run)
    texts = [own for text in sources for own in expanded(text, allow_pickle=allow_pickle)]
    if name is not None and len(texts) > 1:
        raise UsageError(f"--name {name}: is one name for {len(texts)} files")
    registry = Registry.open()
    done: list[tuple[str, Added]] = []
    failed: list[tuple[str, LcmArithError]] = []
    for text in texts:
        try:
            done.append((text, add_one(registry, text, wish)))
        except LcmArithError as error:
            if len(texts) == 1:
                raise
            failed.append((text, error))
    report(done, failed, wish, as_json=as_json)
    if failed:
        raise typer.Exit(max(error.exit_code for _, error in failed))


def expanded(text: str, *, allow_pickle: bool) -> list[str]:
    """The adapters that a source stands for: the files in a folder, or itself.

    Raises:
        NotFoundError: If a folder holds none.
    """
    from lcm_arith.errors import NotFoundError
    from lcm_arith.formats.peft_folder import CONFIG

    folder = Path(text)
    if not folder.is_dir() or (folder / CONFIG).is_file():
        return [text]
    endings = {".safetensors"} | ({".bin", ".pt", ".pth", ".ckpt"} if allow_pickle else set())
    found = sorted(path for path in folder.iterdir() if path.suffix in endings)
    found += sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
    if not found:
        raise NotFoundError(
            f"{folder}: holds no .safetensors file", hint="folders in it are not looked into"
        )
    return [str(path) for path in found]


def add_one(registry: Registry, text: str, wish: Wish) -> Added:
    """Adds one adapter; on a trial, to a registry that is thrown away.

    Raises:
        LcmArithError: As :func:`lcm_arith.registry.fetching.add_from`.
    """
    if not wish.dry_run:
        return _added(registry, text, wish)
    from tempfile import TemporaryDirectory

    from lcm_arith.registry import adding
    from lcm_arith.registry.store import Registry

    with TemporaryDirectory() as folder:
        trial = Registry.open(Path(folder), f"sqlite:///{folder}/index.db")
        added = _added(trial, text, wish)
    adding.check_free(registry, added.name)
    same = [r.name for r in registry.rows() if r.columns.get("object") == added.record.object]
    return replace(added, also=tuple(sorted(same)))


def _added(registry: Registry, text: str, wish: Wish) -> Added:
    from lcm_arith.adapters import locate
    from lcm_arith.errors import UsageError
    from lcm_arith.registry import adding, fetching
    from lcm_arith.registry.downloads import parse_source
    from lcm_arith.registry.names import name_of

    source = parse_source(text)
    if source is not None:
        if wish.link:
            raise UsageError(f"{text}: only a file can be linked", hint="leave out --link")
        with progress() as bar:
            stages = Stages(bar)
            return fetching.add_from(
                registry,
                source,
                progress=lambda done, total: stages("download", done, total or done),
                name=wish.name,
                **wish.options(),
            )
    path = locate(text)
    there = Path(text).exists()
    return adding.add(
        registry,
        path,
        name=wish.name or name_of(path.stem if path.is_file() and there else Path(text).name),
        source={"file": path.name} if there else {"vector": text},
        link=wish.link,
        beside=wish.beside and there,
        **wish.options(),
    )


def report(
    done: list[tuple[str, Added]],
    failed: list[tuple[str, LcmArithError]],
    wish: Wish,
    *,
    as_json: bool,
) -> None:
    """What became of every file."""
    if as_json:
        print_json(
            {
                "dry_run": wish.dry_run,
                "added": [{"source": text, **facts(own, wish)} for text, own in done],
                "failed": [
                    {
                        "source": text,
                        "error": error.message,
                        "hint": error.hint,
                        "exit_code": error.exit_code,
                    }
                    for text, error in failed
                ],
            }
        )
    else:
        for _, own in done:
            stdout.print(line(facts(own, wish), dry_run=wish.dry_run), soft_wrap=True)
    for text, error in failed:
        stderr.print(f"Error: {text}: {error.message.removeprefix(f'{text}: ')}", soft_wrap=True)
        if error.hint and not as_json:
            stderr.print(f"Hint: {error.hint}", soft_wrap=True)


def facts(added: Added, wish: Wish) -> dict[str, Any]:
    """What is told of an added vector, JSON-ready."""
    from lcm_arith.registry.states import State

    columns = added.record.columns(added.record.object)
    said = added.record.said(State(settings=wish.settings))
    return {
        "name": added.name,
        "sha256": added.record.object,
        "family": columns["family"].split("|"),
        "kind": said["kind"],
        "network": columns["network"],
        "rank": columns["rank"],
        "licence": said.get("licence", {"value": "unknown", "source": "nobody"}),
        "same_file_as": list(added.also),
    }


def line(told: Mapping[str, Any], *, dry_run: bool) -> str:
    """The same for people, in one line."""
    from lcm_arith.text import clean

    kind, licence = told["kind"], told["licence"]
    assumed = " (assumed)" if kind["source"] == "assumed" else ""
    also = told["same_file_as"]
    same = f"; the same file as {', '.join(also)}" if also else ""
    return clean(
        f"{'would add' if dry_run else 'added'} {told['name']}: "
        f"{arguments.family_text(told['family'])}, {kind['value']}{assumed}, "
        f"{told['network']} of rank {told['rank']}, licence {licence['value']}{same}"
    )
