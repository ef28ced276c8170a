"""A repository of the Hugging Face hub as a remote.

A push is one git commit on top of the version that was read: files and names appear together or not
at all, and the hub refuses a commit whose parent is not the branch's last. Files that were uploaded
for a refused commit stay on the hub's storage, unlisted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from lcm_arith.errors import (
    InvalidContentError,
    NetworkError,
    OutputExistsError,
    UsageError,
    VerificationError,
)
from lcm_arith.registry.downloads.http import download
from lcm_arith.registry.downloads.hub import ask, hub_api, hub_file
from lcm_arith.registry.remotes.places import MOST_NAMES, MOST_OBJECT, check_push, digest_in

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

NAMES: Final = "names.json"
_COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_AT_ONCE: Final = 500  # paths in one question; the hub takes 1,000


@dataclass(frozen=True)
class HubRemote:
    """A model repository on the hub, on one branch. See :class:`remotes.Remote`."""

    repo: str
    branch: str = "main"

    @property
    def url(self) -> str:
        """``hf:org/repo[@branch]``."""
        return f"hf:{self.repo}" + ("" if self.branch == "main" else f"@{self.branch}")

    def __str__(self) -> str:
        return self.url

    def read_names(self) -> tuple[bytes | None, str]:
        """As :meth:`remotes.Remote.read_names`; the version is the branch's last commit."""
        api = hub_api()
        info = ask(
            lambda: api.model_info(self.repo, revision=self.branch, timeout=60), self, "read"
        )
        commit = str(info.sha)
        if not _COMMIT.fullmatch(commit):
            raise InvalidContentError(f"{self}: the hub names no commit")
        if NAMES not in {each.rfilename for each in info.siblings or ()}:
            return None, commit
        return self._read(commit), commit

    def _read(self, commit: str) -> bytes:
        import tempfile

        with tempfile.TemporaryDirectory() as folder:
            wanted = hub_file(self.repo, commit, NAMES, text=True, most=MOST_NAMES)
            return download(wanted, Path(folder)).path.read_bytes()

    def present(self, paths: Iterable[str]) -> frozenset[str]:
        """As :meth:`remotes.Remote.present`."""
        return self._present(paths, self.branch)

    def _present(self, paths: Iterable[str], revision: str) -> frozenset[str]:
        asked = sorted(set(paths))
        for path in asked:
            digest_in(path)
        api, found = hub_api(), set[str]()
        for start in range(0, len(asked), _AT_ONCE):
            some = asked[start : start + _AT_ONCE]

            def call(some: list[str] = some) -> set[str]:
                rows = api.get_paths_info(self.repo, some, revision=revision)
                return {row.path for row in rows}

            found |= ask(call, self, "look for files")
        return frozenset(found & set(asked))

    def get(self, path: str, place: Path, most: int = MOST_OBJECT) -> None:
        """As :meth:`remotes.Remote.get`."""
        digest = digest_in(path)
        if place.exists():
            raise OutputExistsError(f"{place}: exists")
        hub_api()  # raises where the hub must not be asked
        wanted = hub_file(self.repo, self.branch, path, sha256=digest, text=True, most=most)
        download(replace(wanted, name=place.name), place.parent)

    def commit(self, adds: Mapping[str, Path], names: bytes, parent: str) -> str:
        """As :meth:`remotes.Remote.commit`. All of it is one commit of the repository."""
        from huggingface_hub import CommitOperationAdd

        if not _COMMIT.fullmatch(parent):
            raise UsageError(f"{self}: {parent!r} is no version", hint="read the names first")
        check_push(adds, names)
        there = self._present(adds, parent)
        operations = [
            CommitOperationAdd(path, str(local))
            for path, local in sorted(adds.items())
            if path not in there
        ]
        operations.append(CommitOperationAdd(NAMES, names))
        api = hub_api()
        with _quiet():
            made = ask(
                lambda: _uploading(
                    self.url,
                    lambda: api.create_commit(
                        self.repo,
                        operations,
                        commit_message=f"Push {len(operations) - 1} files",
                        revision=self.branch,
                        parent_commit=parent,
                    ),
                ),
                self,
                "push",
                again=False,
            )
        if missing := adds.keys() - self._present(adds, made.oid):
            raise VerificationError(
                f"{self}: the hub left out {len(missing)} of {len(adds)} files, such as "
                f"{min(missing)}",
                hint="see whether the repository has a .gitignore that names them",
            )
        return str(made.oid)


def _uploading(where: str, call: Callable[[], CommitInfo]) -> CommitInfo:
    """Turns what the client's upload threads raise into NetworkError; passes its own errors on."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return call()
    except (HfHubHTTPError, HFValidationError):
        raise
    except (RuntimeError, ValueError) as error:
        cause = error.__cause__ or error
        raise NetworkError(
            f"{where}: an upload failed ({type(cause).__name__}); the names are as they were",
            hint="push again: what has arrived is not sent twice",
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """The client draws no progress bars meanwhile."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()
