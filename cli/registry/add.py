"""``lcm-arith registry add``: files → names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import print_json, stderr, stdout
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

  lcm-arith registry add /nas/big.safetensors --link    (the bytes stay where they are)
"""

_ELSEWHERE: Final = ("http://", "https://", "hf:", "civitai:", "urn:air:")


@dataclass(frozen=True)
class Wish:
    """What is to be said of every file that is added."""

    name: str | None
    settings: Mapping[str, Any]
    tags: tuple[str, ...]
    link: bool
    allow_pickle: bool
    dry_run: bool


def command(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE|FOLDER…",
            help="Adapters: files, PEFT's folders, folders of .safetensors files, or names.",
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
    wish = Wish(name, said, tags, link, allow_pickle, dry_run)
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
    if text.startswith(_ELSEWHERE) or not folder.is_dir() or (folder / CONFIG).is_file():
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
    """Adds one adapter, or says what would be added.

    Raises:
        LcmArithError: As :func:`lcm_arith.registry.adding.add` and :func:`adapters.load`.
    """
    from lcm_arith.registry import adding
    from lcm_arith.registry.names import name_of

    with _file_of(registry, text, wish) as (path, source):
        name = wish.name or name_of(Path(text).name.removesuffix(Path(text).suffix))
        # SIDECARS: what lcm_arith.registry.sidecars reads beside ``path`` goes into the record.
        if wish.dry_run:
            return _foreseen(registry, path, name, source, wish)
        return adding.add(
            registry,
            path,
            name=name,
            settings=wish.settings,
            source=source,
            link=wish.link,
            tags=wish.tags,
        )


@contextmanager
def _file_of(registry: Registry, text: str, wish: Wish) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The file to add, and where it came from; one that was made for it is gone afterwards."""
    from lcm_arith.adapters import load as load_vector
    from lcm_arith.adapters import locate, save
    from lcm_arith.errors import UsageError

    if text.startswith(_ELSEWHERE):
        # DOWNLOADS: lcm_arith.registry.downloads.fetch puts it into a workspace here.
        raise UsageError(f"{text}: is no file", hint="download it, then add the file")
    path = locate(text)
    pickled = wish.allow_pickle and path.is_file() and path.suffix != ".safetensors"
    if not path.is_dir() and not pickled:
        yield path, {"file": path.name} if Path(text).exists() else {"vector": text}
        return
    if wish.link:
        raise UsageError(f"{text}: only a .safetensors file can be linked", hint="leave out --link")
    tau = load_vector(path, allow_pickle=wish.allow_pickle)
    with registry.objects.workspace() as folder:
        written = folder / "rewritten.safetensors"
        save(tau, written)  # PEFT's alphas and a pickle's numbers, in one file that anybody reads
        yield written, {"file": path.name, "rewritten": "true"}


def _foreseen(
    registry: Registry, path: Path, name: str, source: Mapping[str, Any], wish: Wish
) -> Added:
    from lcm_arith.registry import adding
    from lcm_arith.registry.describing import describe
    from lcm_arith.registry.names import check_name
    from lcm_arith.registry.records import check_settings

    own = check_name(name)
    adding.check_free(registry, own)
    record = describe(path, source=source, link=str(path.resolve()) if wish.link else None)
    check_settings(record, wish.settings)
    same = [row.name for row in registry.rows() if row.columns.get("object") == record.object]
    return adding.Added(own, record, tuple(sorted(same)))


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
    columns = added.record.columns(added.record.object)
    return {
        "name": added.name,
        "sha256": added.record.object,
        "family": columns["family"].split("|"),
        "kind": wish.settings.get("kind", columns["kind"]),
        "kind_source": "user" if "kind" in wish.settings else "assumed",
        "network": columns["network"],
        "rank": columns["rank"],
        "licence": wish.settings.get("licence", columns["licence"]),
        "same_file_as": list(added.also),
    }


def line(told: Mapping[str, Any], *, dry_run: bool) -> str:
    """The same for people, in one line."""
    from lcm_arith.registry.text import clean

    kind = told["kind"] + (" (assumed)" if told["kind_source"] == "assumed" else "")
    also = told["same_file_as"]
    same = f"; the same file as {', '.join(also)}" if also else ""
    return clean(
        f"{'would add' if dry_run else 'added'} {told['name']}: "
        f"{arguments.family_text('|'.join(told['family']))}, {kind}, "
        f"{told['network']} of rank {told['rank']}, licence {told['licence']}{same}"
    )
