"""The Hugging Face hub: a revision becomes a commit first, and a repository's file is chosen.

What the hub says comes through its own client, the file itself over plain HTTPS, under the rules of
:mod:`.http`: both ways to a file then refuse the same things.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from lcm_arith.errors import (
    ConflictError,
    InvalidContentError,
    LcmArithError,
    NetworkError,
    NotFoundError,
    StorageError,
    UsageError,
)
from lcm_arith.registry.downloads import cache
from lcm_arith.registry.downloads.answers import PASSING, retry_after
from lcm_arith.registry.downloads.http import download, read_text, retrying
from lcm_arith.registry.downloads.parts import (
    MOST_FILE,
    MOST_TEXT,
    PassingError,
    Wanted,
    secret,
    storing,
)
from lcm_arith.registry.downloads.sources import Fetched, HubSource, Progress, url_fault

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

DIFFUSERS_NAME: Final = "pytorch_lora_weights.safetensors"
PEFT_NAME: Final = "adapter_model.safetensors"
PEFT_CONFIG: Final = "adapter_config.json"
CARD: Final = "README.md"
_SHOWN: Final = 12  # choices in a message
_PATIENCE: Final = 60.0  # seconds
_T = TypeVar("_T")


def fetch_hub(source: HubSource, folder: Path, progress: Progress | None) -> Fetched:
    """One file of a repository, at the commit that its revision now is.

    With HF_HUB_OFFLINE set, from the hub's cache on this machine, as the hub's own programs do.
    Errors as :func:`downloads.fetch`.
    """
    if offline():
        return _fetch_cached(source, folder)
    api = hub_api()
    info = ask(
        lambda: api.model_info(
            source.repo,
            revision=source.revision or None,
            files_metadata=True,
            timeout=_PATIENCE,
        ),
        source,
        "fetch",
    )
    files = {each.rfilename: each for each in info.siblings or ()}
    name, commit = choose(source, tuple(files)), str(info.sha)
    listed = files[name]
    said = {
        Path(beside).name: read_text(
            hub_file(source.repo, commit, beside, text=True, most=MOST_TEXT), folder
        )
        for beside in _beside(name, files)
    }
    wanted = hub_file(source.repo, commit, name, sha256=listed.lfs.sha256 if listed.lfs else "")
    got = download(wanted, folder, progress)
    if PEFT_CONFIG in said:
        _write_beside(got.path, said[PEFT_CONFIG])
    found = {"url": wanted.where, "repo": source.repo, "commit": commit, "file": name}
    return Fetched(got.path, found, said, got.sha256, got.size, checked=bool(wanted.sha256))


def _fetch_cached(source: HubSource, folder: Path) -> Fetched:
    snapshot = cache.snapshot(source)
    files = cache.cached_files(snapshot)
    name = choose(source, files)
    said = {Path(each).name: cache.cached_text(snapshot / each) for each in _beside(name, files)}
    path, sha256, size, checked = cache.copy_cached(snapshot / name, folder, MOST_FILE)
    if PEFT_CONFIG in said:
        _write_beside(path, said[PEFT_CONFIG])
    url = f"{endpoint()}/{source.repo}/resolve/{snapshot.name}/{name}"
    found = {"url": url, "repo": source.repo, "commit": snapshot.name, "file": name}
    return Fetched(path, found, said, sha256, size, checked)


def _beside(name: str, files: Container[str]) -> list[str]:
    """What comes along with a file: PEFT's configuration with its weights, and the card."""
    config = f"{name.rpartition('/')[0]}/{PEFT_CONFIG}".lstrip("/")
    wanted = [config, CARD] if Path(name).name == PEFT_NAME else [CARD]
    return [each for each in wanted if each in files]


def _write_beside(weights: Path, config: str) -> None:
    """PEFT's configuration; where it cannot be written, the weights go, too."""
    path = weights.with_name(PEFT_CONFIG)
    try:
        with storing(path), path.open("x", encoding="utf-8") as file:
            file.write(config)
    except StorageError:
        weights.unlink()
        raise


def choose(source: HubSource, files: Sequence[str]) -> str:
    """The file that is meant: the named one, else the one whose name says so, else the only one.

    Raises:
        NotFoundError: If the repository has none such.
        UsageError: If it has several.
    """
    if source.file:
        if source.file not in files:
            raise NotFoundError(f"{source}: no such file", hint=_listed(files))
        return source.file
    able = [name for name in files if name.endswith(".safetensors")]
    known = [name for name in (DIFFUSERS_NAME, PEFT_NAME) if name in able]
    found = known if known else able
    if not found:
        raise NotFoundError(f"{source}: has no .safetensors file", hint=_listed(files))
    if len(found) > 1:
        raise UsageError(
            f"{source}: has {len(able)} .safetensors files",
            hint=f"name one as {source}:FILE; {_listed(able)}",
        )
    return found[0]


def hub_file(
    repo: str,
    commit: str,
    name: str,
    *,
    sha256: str = "",
    text: bool = False,
    most: int = MOST_FILE,
) -> Wanted:
    """How to get one file of a repository."""
    from huggingface_hub import hf_hub_url

    return Wanted(
        hf_hub_url(repo, name, revision=commit, endpoint=endpoint()),
        token=token(),
        name=Path(name).name,
        sha256=sha256,
        text=text,
        most=most,
        login_hint=_login_hint(repo),
        missing_hint=f"look at {endpoint()}/{repo}/tree/{commit}",
    )


def hub_api() -> HfApi:
    """The hub's client, with the user's token if there is one.

    Raises:
        NetworkError: If HF_HUB_OFFLINE is set.
        UsageError: If HF_ENDPOINT is not https.
    """
    from huggingface_hub import HfApi

    if offline():
        raise _offline()
    return HfApi(endpoint=endpoint(), token=token() or False, library_name="lcm-arith")


def offline() -> bool:
    """Whether the user wants the hub not to be asked: HF_HUB_OFFLINE, now or at the start."""
    from huggingface_hub import constants

    said = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    return said or constants.is_offline_mode()


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or the public one.

    Raises:
        UsageError: If it is not https, where a token would be readable on the way.
    """
    found = os.environ.get("HF_ENDPOINT", "").strip().rstrip("/") or "https://huggingface.co"
    if fault := url_fault(found):
        raise UsageError(f"HF_ENDPOINT: {fault}", hint="give an https:// address")
    return found


def token() -> str:
    """HF_TOKEN, or that of ``hf auth login``; empty if there is none.

    Raises:
        UsageError: If it cannot be a token.
    """
    from huggingface_hub import get_token

    return secret(os.environ.get("HF_TOKEN", "").strip() or get_token() or "", "HF_TOKEN")


def ask(call: Callable[[], _T], about: object, doing: str, *, again: bool = True) -> _T:
    """What a call of the hub's client returns, its errors turned into ours.

    Args:
        call: Of the client.
        about: What it is about, for messages; its ``repo`` for hints.
        doing: What is done, one verb, for messages.
        again: Whether it may be repeated after a passing failure.

    Raises:
        NotFoundError, ConflictError, UsageError, InvalidContentError, NetworkError: As the cause
            is.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    def once() -> _T:
        try:
            return call()
        except LcmArithError:
            raise
        except OfflineModeIsEnabled as error:
            raise _offline() from error
        except HFValidationError as error:
            raise UsageError(f"{about}: {error}", hint="write hf:org/repo") from error
        except HfHubHTTPError as error:
            if again and error.response.status_code in PASSING:
                seconds = retry_after(error.response.headers)
                raise PassingError(_told(error, about, doing), seconds) from error
            raise _ours(error, about, doing) from error
        except httpx2.TransportError as error:
            what = f"{about}: {doing}: no answer from {endpoint()} ({type(error).__name__})"
            if again:
                raise PassingError(what) from error
            raise NetworkError(what, hint="look what arrived before you try again") from error
        except (ValueError, KeyError, TypeError) as error:  # a proxy's page, another server
            raise InvalidContentError(
                f"{about}: {doing}: {endpoint()} does not answer as the hub does "
                f"({type(error).__name__})",
                hint="see what it shows in a browser; a proxy may ask for a login",
            ) from error

    return retrying(once, "the hub may be busy: https://status.huggingface.co")


def _ours(error: HfHubHTTPError, about: Any, doing: str) -> LcmArithError:
    from huggingface_hub.errors import (
        GatedRepoError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what, status = _told(error, about, doing), error.response.status_code
    if isinstance(error, GatedRepoError) or (
        status in (401, 403) and not isinstance(error, RepositoryNotFoundError)
    ):
        return NetworkError(what, hint=_login_hint(about.repo))
    if isinstance(error, RepositoryNotFoundError):
        return NotFoundError(
            what, hint="check the name; a private repository is seen only with HF_TOKEN set"
        )
    if isinstance(error, RevisionNotFoundError | RemoteEntryNotFoundError):
        return NotFoundError(what, hint=f"look at {endpoint()}/{about.repo}/commits/main")
    if status in (409, 412):
        return ConflictError(
            f"{about}: somebody else pushed in between", hint="pull, then push again"
        )
    return NetworkError(what)


def _told(error: HfHubHTTPError, about: object, doing: str) -> str:
    said = " ".join((error.server_message or "").split())[:160]
    return f"{about}: {doing}: the hub answers {error.response.status_code}" + (
        f" ({said})" if said else ""
    )


def _offline() -> NetworkError:
    return NetworkError("HF_HUB_OFFLINE is set: the hub is not asked", hint="unset HF_HUB_OFFLINE")


def _login_hint(repo: str) -> str:
    return (
        f"accept the terms at {endpoint()}/{repo} if it has any, make a token at "
        f"{endpoint()}/settings/tokens, and set HF_TOKEN or run: hf auth login"
    )


def _listed(files: Sequence[str]) -> str:
    shown = sorted(files)[:_SHOWN]
    more = f" and {len(files) - len(shown)} more" if len(files) > len(shown) else ""
    return f"it has {', '.join(map(repr, shown))}{more}" if shown else "it is empty"
