"""Manifests: what is known of a file, as canonical JSON that never changes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lcm_arith import durable
from lcm_arith.errors import InvalidContentError

SCHEMA: Final = 1
MOST_BYTES: Final = 16 * 2**20


def canonical(values: Mapping[str, Any]) -> bytes:
    """Sorted keys, UTF-8, no spaces; the same values give the same bytes.

    Raises:
        TypeError: If there is a float in it: numbers that are not whole are decimal strings.
    """
    _refuse_floats(values)
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"{value!r} in canonical JSON; write it as a string")
    if isinstance(value, Mapping):
        for own in value.values():
            _refuse_floats(own)
    elif isinstance(value, list | tuple):
        for own in value:
            _refuse_floats(own)


def digest(data: bytes) -> str:
    """sha256, hex."""
    return hashlib.sha256(data).hexdigest()


def parse(data: bytes, where: str) -> dict[str, Any]:
    """The values of a manifest or of another JSON object of the registry.

    Raises:
        InvalidContentError: If it is none.
    """
    try:
        values = json.loads(data.decode("utf-8", "surrogatepass"))
    except (ValueError, RecursionError) as error:
        raise InvalidContentError(f"{where}: is not JSON ({str(error)[:80]})") from error
    if not isinstance(values, dict):
        raise InvalidContentError(f"{where}: is no JSON object")
    return values


@dataclass(frozen=True)
class Manifests:
    """The manifests in a folder, by the sha256 of their bytes.

    Args:
        root: The registry's folder.
    """

    root: Path

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self.root / "manifests" / "sha256"

    def path(self, sha256: str) -> Path:
        """Where one lies or would lie."""
        return self.folder / sha256[:2] / f"{sha256}.json"

    def put(self, values: Mapping[str, Any]) -> str:
        """Writes one, if it is not there; its sha256.

        Raises:
            InvalidContentError: If it is too long.
            StorageError: If the disk refuses.
        """
        data = canonical(values)
        if len(data) > MOST_BYTES:
            raise InvalidContentError(
                f"its header and what is said of it have {len(data):,} bytes; a record has at most "
                f"{MOST_BYTES:,}",
                hint="convert it first, which leaves its header out",
            )
        sha256 = digest(data)
        self.put_bytes(sha256, data)
        return sha256

    def put_bytes(self, sha256: str, data: bytes) -> None:
        """Writes the bytes of one whose sha256 was checked."""
        path = self.path(sha256)
        try:
            if path.is_file() and digest(path.read_bytes()) == sha256:
                durable.touch(path)
                return
        except OSError as error:
            raise durable.refusal(path, error) from error
        durable.make_folder(path.parent)
        durable.write(path, data, mode=0o444)

    def get(self, sha256: str) -> dict[str, Any]:
        """The values of one.

        Raises:
            InvalidContentError: If it is missing, or its bytes are not those of its name.
        """
        path = self.path(sha256)
        try:
            with path.open("rb") as file:
                data = file.read(MOST_BYTES + 1)
        except OSError as error:
            raise InvalidContentError(
                f"{path}: cannot be read ({error.strerror})",
                hint="restore a backup, or add the vector again",
            ) from error
        if digest(data) != sha256:
            raise InvalidContentError(
                f"{path}: was changed on the disk (its sha256 is not its name)",
                hint="lcm-arith registry verify --deep puts it aside; then add the vector again",
            )
        return parse(data, str(path))

    def __iter__(self) -> Iterator[str]:
        return (path.stem for path in sorted(self.folder.glob("??/*.json")))
