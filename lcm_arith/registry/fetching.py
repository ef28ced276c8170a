"""Adapters from the network into the registry, with what is said of them there."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any, Final

from lcm_arith.errors import InvalidContentError
from lcm_arith.formats.opening import strict_json
from lcm_arith.registry.adding import Added, add
from lcm_arith.registry.card import read_card
from lcm_arith.registry.downloads import Fetched, Progress, Source, fetch
from lcm_arith.registry.facts import LISTING, Facts, gather, merge
from lcm_arith.registry.sidecars import civitai_version
from lcm_arith.registry.store import Registry

_PEFT_CONFIG: Final = "adapter_config.json"
# What programs call every adapter that they write.
_GENERIC: Final = frozenset(
    {
        "adapter_model", "diffusion_pytorch_model", "lora", "lora_weights", "model",
        "pytorch_lora_weights", "pytorch_model", "weights",
    }
)  # fmt: skip


def add_from(
    registry: Registry,
    source: Source,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Added:
    """Downloads an adapter and registers it; the record keeps the commit or version it came from.

    Args:
        registry: Where.
        source: From :func:`lcm_arith.registry.downloads.parse_source`.
        progress: Called with the bytes that have come and those that will, if that is known.
        **options: Of :func:`lcm_arith.registry.adding.add`; there is nothing to link.

    Raises:
        NetworkError: If the server refuses, cannot be reached, or cuts the transfer.
        NotFoundError, InvalidContentError, OutputExistsError, UsageError, StorageError: As
            :func:`lcm_arith.registry.downloads.fetch` and :func:`lcm_arith.registry.adding.add`.
    """
    with registry.objects.workspace() as folder:
        fetched = fetch(source, folder, progress)
        path = fetched.path
        if (path.parent / _PEFT_CONFIG).is_file():
            path = path.parent
        return add(
            registry,
            path,
            name=options.pop("name", None) or _name(fetched),
            source={"file": fetched.path.name, **fetched.origin},
            facts=facts_of(fetched),
            beside=False,  # what came along is read as what it is, below
            **options,
        )


def facts_of(fetched: Fetched) -> Facts:
    """What the hub's card or the listing says.

    Raises:
        InvalidContentError: If one of them cannot be read.
    """
    found = [gather([("url", str(fetched.origin.get("url", "")))], LISTING)]
    if "README.md" in fetched.said:
        found.append(read_card(fetched.said["README.md"]))
    if "civitai.json" in fetched.said:
        try:
            values = strict_json(fetched.said["civitai.json"], decimals=True)
        except (ValueError, RecursionError) as error:
            raise InvalidContentError(f"the listing on CivitAI cannot be read: {error}") from error
        found.append(civitai_version(LISTING, values))
    return merge(*found)


def _name(fetched: Fetched) -> str | None:
    """Of a file on the hub its own name, or its repository's and folder's if that says nothing."""
    repo = str(fetched.origin.get("repo", ""))
    if not repo:
        return None
    from lcm_arith.registry.names import name_of

    file = PurePosixPath(str(fetched.origin.get("file", "")))
    if file.stem and file.stem.lower() not in _GENERIC:
        return name_of(file.stem)
    return name_of("-".join((PurePosixPath(repo).name, *file.parts[:-1])))
