"""``lcm-arith registry add``: files → names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import Stages, print_json, progress, stderr, stdout
from lcm_arith.cli.registry import arguments
from lcm_arith.cli.registry.folders import expanded

if TYPE_CHECKING:
    from lcm_arith.errors import LcmArithError
    from lcm_arith.registry.adding import Added
    from lcm_arith.registry.records import Record
    from lcm_arith.registry.store import Registry

FEW: Final = 5  # files, for which no bar is drawn
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
    from lcm_arith.errors import UsageError
    from lcm_arith.registry.editing import check_tag
    from lcm_arith.registry.store import Registry

    said = arguments.settings(
        kind=kind, triggers=trigger, licence=licence, weight=weight, sampler=sampler,
        steps=steps, guidance=guidance,
    )  # fmt: skip
    tags = tuple(check_tag(own) for own in tag or [])
    wish = Wish(name, said, tags, link, not no_sidecars, base, allow_pickle, dry_run)
    listings = [expanded(text, allow_pickle=allow_pickle) for text in sources]
    texts = [text for own in listings for text in own.texts]
    if name is not None and len(texts) > 1:
        raise UsageError(f"--name {name}: is one name for {len(texts)} files")
    for told in filter(None, (own.told() for own in listings)):
        stderr.print(told, soft_wrap=True)
    registry, done = Registry.open(), Done(as_json=as_json)
    if len(texts) == 1 and not listings[0].folder:
        done.add(texts[0], add_one(registry, texts[0], wish, done), wish)
        report(done, texts, wish)
        return
    try:
        with _stages() if len(texts) > FEW else nullcontext() as stages:
            for number, text in enumerate(texts):
                if stages:
                    stages("add", number, len(texts))
                take(registry, text, wish, done, stages)
            if stages:
                stages("add", len(texts), len(texts))
    finally:  # also after Ctrl-C: what is done is told
        report(done, texts, wish)
    if done.failed:
        raise typer.Exit(max(error.exit_code for _, error in done.failed))


@dataclass(frozen=True)
class Done:
    """What became of the files so far; for people, each is told at once.

    Args:
        as_json: Whether all is told at the end instead.
        added: Source and what was added.
        already: Source and what is there under the same name with the same bytes.
        failed: Source and why.
    """

    as_json: bool
    added: list[tuple[str, Added]] = field(default_factory=list)
    already: list[tuple[str, str, Record]] = field(default_factory=list)
    failed: list[tuple[str, LcmArithError]] = field(default_factory=list)

    def add(self, text: str, added: Added, wish: Wish, *, live: bool = False) -> None:
        """Keeps and tells what was added, and what beside it cannot be read."""
        self.added.append((text, added))
        if not self.as_json:
            # rich draws a bar on stderr anew below what is printed there, not on stdout
            above = live and stdout.is_terminal and stderr.is_terminal
            console = stderr if above else stdout
            console.print(line(facts(added, wish), dry_run=wish.dry_run), soft_wrap=True)
        for note in unread_notes(added):
            stderr.print(_one_line(f"Note: {text}: {note}"), soft_wrap=True)

    def fail(self, text: str, error: LcmArithError) -> None:
        """Keeps and tells what went wrong."""
        from lcm_arith.text import clean_lines

        self.failed.append((text, error))
        message = clean_lines(error.message.removeprefix(f"{text}: "))
        stderr.print(f"Error: {_one_line(text)}: {message}", soft_wrap=True)
        if error.hint and not self.as_json:
            stderr.print(f"Hint: {clean_lines(error.hint)}", soft_wrap=True)

    def record(self, name: str) -> Record | None:
        """What was added under a name."""
        return next((own.record for _, own in self.added if own.name == name), None)


def unread_notes(added: Added) -> list[str]:
    """What was left out, for it cannot be read: files beside an adapter, values in a listing."""
    from lcm_arith.registry.facts import LISTING, UNREAD

    return [
        note["value"]
        for note in added.record.facts.get("notes", [])
        if note["source"].startswith(("sidecar", LISTING)) and UNREAD in note["value"]
    ]


def _one_line(text: str) -> str:
    from lcm_arith.text import clean

    return clean(text)


def take(registry: Registry, text: str, wish: Wish, done: Done, stages: Stages | None) -> None:
    """Adds one of several; an error is told, and the next one's turn comes."""
    from lcm_arith.errors import LcmArithError, OutputExistsError

    try:
        added = add_one(registry, text, wish, done, stages)
    except OutputExistsError as error:
        found = there(registry, text, wish, done)
        if found is None:
            done.fail(text, error)
        else:
            done.already.append((text, *found))
    except LcmArithError as error:
        done.fail(text, error)
    else:
        done.add(text, added, wish, live=stages is not None)


def there(registry: Registry, text: str, wish: Wish, done: Done) -> tuple[str, Record] | None:
    """The name and record of a file that was added before; None if its name is another's."""
    from lcm_arith.embedded.files import sha256 as file_sha256
    from lcm_arith.errors import LcmArithError
    from lcm_arith.registry.names import check_name

    path = Path(text)
    if not path.exists():
        return None
    name = check_name(wish.name or _name(text, path))
    try:
        record = done.record(name) or registry.find(name).record
        same = path.is_file() and file_sha256(path) == record.object
        if not same and "converted_from" in record.source:
            same = trial(text, wish).record.object == record.object
    except (LcmArithError, OSError):
        return None  # that the name is taken is what is told
    return (name, record) if same else None


def add_one(
    registry: Registry, text: str, wish: Wish, done: Done, stages: Stages | None = None
) -> Added:
    """Adds one adapter; on a trial, to a registry that is thrown away.

    Raises:
        LcmArithError: As :func:`lcm_arith.registry.fetching.add_from`.
    """
    from lcm_arith.errors import OutputExistsError
    from lcm_arith.registry import adding

    if not wish.dry_run:
        return _added(registry, text, wish, stages)
    added = trial(text, wish, stages)
    adding.check_free(registry, added.name)
    if done.record(added.name):
        raise OutputExistsError(
            f"{added.name}: another of these files has that name",
            hint="choose another with --name",
        )
    same = [r.name for r in registry.rows() if r.columns.get("object") == added.record.object]
    return replace(added, also=tuple(sorted({*added.also, *same})))


def trial(text: str, wish: Wish, stages: Stages | None = None) -> Added:
    """What would be added, read where it lies if that can be."""
    from tempfile import TemporaryDirectory

    from lcm_arith.errors import UsageError
    from lcm_arith.registry.store import Registry

    with TemporaryDirectory() as folder:
        registry = Registry.open(Path(folder), f"sqlite:///{folder}/index.db")
        try:
            return _added(registry, text, replace(wish, link=True), stages)
        except UsageError:
            if wish.link:
                raise
        return _added(registry, text, wish, stages)  # it is converted, or comes from elsewhere


@contextmanager
def _stages() -> Iterator[Stages]:
    with progress() as bar:
        yield Stages(bar)


def _name(text: str, path: Path) -> str:
    """The name that is made of a file's."""
    from lcm_arith.registry.names import name_of

    there = Path(text).exists()
    return name_of(path.stem if path.is_file() and there else Path(text).name)


def _added(registry: Registry, text: str, wish: Wish, stages: Stages | None) -> Added:
    from lcm_arith.adapters import locate
    from lcm_arith.errors import UsageError
    from lcm_arith.registry import adding, fetching
    from lcm_arith.registry.downloads import parse_source

    source = parse_source(text)
    if source is not None:
        if wish.link:
            raise UsageError(f"{text}: only a file can be linked", hint="leave out --link")
        with nullcontext(stages) if stages else _stages() as bars:
            return fetching.add_from(
                registry,
                source,
                progress=lambda done, total: bars("download", done, total or done),
                name=wish.name,
                **wish.options(),
            )
    path = locate(text)
    there = Path(text).exists()
    return adding.add(
        registry,
        path,
        name=wish.name or _name(text, path),
        source={"file": path.name} if there else {"vector": text},
        link=wish.link,
        beside=wish.beside and there,
        **wish.options(),
    )


def report(done: Done, texts: Sequence[str], wish: Wish) -> None:
    """What became of every file: all of it as JSON, for people what was not told yet."""
    tried = len(done.added) + len(done.already) + len(done.failed)
    if done.as_json:
        print_json(
            {
                "dry_run": wish.dry_run,
                "added": [{"source": text, **facts(own, wish)} for text, own in done.added],
                "already": [
                    {"source": text, "name": name, "sha256": record.object}
                    for text, name, record in done.already
                ],
                "failed": [
                    {
                        "source": text,
                        "error": error.message,
                        "hint": error.hint,
                        "exit_code": error.exit_code,
                    }
                    for text, error in done.failed
                ],
                "not_tried": list(texts[tried:]),
            }
        )
    if done.already:
        one = len(done.already) == 1
        stderr.print(f"{len(done.already)} {'is' if one else 'are'} there already, unchanged")
    if tried < len(texts):
        stderr.print(f"Stopped: {len(texts) - tried} of {len(texts)} were not tried")


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
