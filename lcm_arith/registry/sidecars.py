"""Files that other programs leave beside an adapter, and what they say of it.

Each row of :data:`READERS` is one program's file; a row of its table is a place in the JSON and the
field that it fills. Where two files differ, the earlier row counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from lcm_arith.errors import InvalidContentError, NotFoundError, StorageError
from lcm_arith.formats.opening import Opened, shown, strict_json
from lcm_arith.registry.card import read_card
from lcm_arith.registry.facts import Facts, decimal_text, gather, merge
from lcm_arith.registry.licences import civitai_text

MOST_BYTES: Final = 2**20
CARD_NAME: Final = "README.md"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"  # lcm_arith.formats.peft_folder imports torch
# Whose README.md is their model card: the names that diffusers and PEFT give.
_WITH_CARD: Final = ("pytorch_lora_weights.safetensors", PEFT_WEIGHTS)
_PREVIEWS: Final = tuple(
    f"{middle}.{ending}" for middle in (".preview", "") for ending in ("png", "jpg", "jpeg", "webp")
)
_HINT: Final = "correct it or move it away, or leave such files unread with --no-sidecars"
_UNSAID_BASES: Final = ("unknown", "other")


def sidecars(path: Path) -> Facts:
    """What the files beside an adapter say of it.

    Args:
        path: Of the adapter: a file, or a PEFT folder.

    Raises:
        InvalidContentError: If one of them is unreadable, too large, no JSON or YAML, has a value
            of a wrong type, is no regular file, or is a link that leads elsewhere.
    """
    if path.is_dir():
        path = path / PEFT_WEIGHTS
    found = []
    for ending, read in READERS:
        beside = path.with_name(f"{path.stem}{ending}")
        if os.path.lexists(beside) and beside != path:
            found.append(read(beside, f"sidecar {beside.name}", _json(beside, path)))
    card = path.with_name(CARD_NAME)
    if os.path.lexists(card) and _has_card(path):
        found.append(_card(card, path))
    found.append(gather((("previews", str(p)) for p in _previews(path)), "sidecar picture"))
    return merge(*found)


def _has_card(path: Path) -> bool:
    """Whether README.md beside it is about this file and no other."""
    return path.name in _WITH_CARD or len(list(path.parent.glob("*.safetensors"))) == 1


def _card(card: Path, path: Path) -> Facts:
    text = _text(card, path)
    if not text.startswith("---") and path.name not in _WITH_CARD:
        return Facts()  # the README of a program or of a folder of downloads
    try:
        return read_card(text)
    except InvalidContentError as error:
        raise InvalidContentError(f"{card}: {error.message}", hint=_HINT) from None


def _previews(path: Path) -> Iterator[Path]:
    for ending in _PREVIEWS:
        picture = path.with_name(f"{path.stem}{ending}")
        if os.path.lexists(picture):
            _check_place(picture, path)
            with _Beside(picture):
                yield picture


def _check_place(beside: Path, path: Path) -> None:
    """Raises where a link leads out of the adapter's folder: to /etc/passwd, to a private key.

    In the hub's cache the adapter and its card are both links into one folder, which is well.
    """
    real = [Path(os.path.realpath(p)) for p in (beside, path, path.parent)]  # loops end, too
    if real[0].parent not in (real[1].parent, real[2]):
        raise InvalidContentError(f"{beside}: is a link that leads to another folder", hint=_HINT)


class _Beside(Opened):
    """The open file; what is none is invalid content here, for the adapter itself is there."""

    def __enter__(self) -> tuple[int, os.stat_result]:
        try:
            return super().__enter__()
        except (NotFoundError, StorageError) as error:
            raise InvalidContentError(error.message, hint=_HINT) from None


def _text(beside: Path, path: Path) -> str:
    """The text of a small file."""
    _check_place(beside, path)
    with _Beside(beside) as (descriptor, found):
        if found.st_size > MOST_BYTES:
            raise InvalidContentError(f"{beside}: has more than {MOST_BYTES >> 20} MiB", hint=_HINT)
        data = b""
        while len(data) <= MOST_BYTES and (more := os.read(descriptor, MOST_BYTES + 1)):
            data += more
    if len(data) > MOST_BYTES:
        raise InvalidContentError(f"{beside}: grew while it was read", hint=_HINT)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidContentError(f"{beside}: is no UTF-8 ({error.reason})", hint=_HINT) from None


def _json(beside: Path, path: Path) -> Mapping[str, Any]:
    text = _text(beside, path)
    try:
        values = strict_json(text, decimals=True)
    except (ValueError, RecursionError) as error:
        raise InvalidContentError(
            f"{beside}: is not JSON ({shown(str(error))})", hint=_HINT
        ) from None
    if not isinstance(values, dict):
        raise InvalidContentError(f"{beside}: is no object of names and values", hint=_HINT)
    return values


# How a value is read: each gives the texts in it, or raises ValueError with what it is instead.


def _words(value: Any) -> list[str]:
    if not isinstance(value, str):
        raise ValueError("is no text")
    return [value]


def _list(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError("is no list of texts")
    return value


def _commas(value: Any) -> list[str]:
    return _list(value) if isinstance(value, list) else _words(value)[0].split(",")


def _number(value: Any) -> list[str]:
    return [] if value == "" else [decimal_text(value)]


def _weight(value: Any) -> list[str]:
    """A1111 and its like write 0 where nothing was set."""
    return [text for text in _number(value) if text.strip("0.")]


def _base(value: Any) -> list[str]:
    return [text for text in _words(value) if text.lower() not in _UNSAID_BASES]


def _sha256(value: Any) -> list[str]:
    return [f"sha256:{text.lower()}" for text in _words(value) if text]


def _hashes(value: Any) -> list[str]:
    if not isinstance(value, dict):
        raise ValueError("is no object of hashes")
    return [f"{name.lower()}:{_words(v)[0].lower()}" for name, v in value.items() if v]


def _files(value: Any) -> list[str]:
    """Hashes of a listing's file: of the one that is marked, or of the only one."""
    files = _objects(value)
    marked = [file for file in files if file.get("primary") is True]
    chosen = marked or files
    return _hashes(chosen[0].get("hashes") or {}) if len(chosen) == 1 else []


def _images(value: Any) -> list[str]:
    return [_words(image["url"])[0] for image in _objects(value) if image.get("url")]


def _objects(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise ValueError("is no list of objects")
    return value


def _flags(value: Any) -> list[str]:
    if not isinstance(value, dict):
        raise ValueError("is no object")
    return [civitai_text(value)]


Row = tuple[str, tuple[str, ...], Callable[[Any], list[str]]]

# A model version of CivitAI's API: what .civitai.info holds, and part of .metadata.json.
CIVITAI: Final[tuple[Row, ...]] = (
    ("triggers", ("trainedWords",), _list),
    ("base", ("baseModel",), _base),
    ("title", ("model", "name"), _words),
    ("tags", ("model", "tags"), _list),
    ("licence", ("model",), _flags),
    ("description", ("model", "description"), _words),
    ("description", ("description",), _words),
    ("author", ("creator", "username"), _words),
    ("hashes", ("files",), _files),
    ("previews", ("images",), _images),
    ("notes", ("air",), _words),
)
# Source: docs/metadata-json-schema.md of willmiao/ComfyUI-Lora-Manager.
_LORA_MANAGER: Final[tuple[Row, ...]] = (
    ("title", ("model_name",), _words),
    ("base", ("base_model",), _base),
    ("notes", ("notes",), _words),
    ("tags", ("tags",), _list),
    ("description", ("modelDescription",), _words),
    ("hashes", ("sha256",), _sha256),
    *((field, ("civitai", *at), read) for field, at, read in CIVITAI),
)
_TIPS: Final[tuple[Row, ...]] = (
    ("weight", ("strength",), _weight),
    ("weight_min", ("strength_min",), _number),
    ("weight_max", ("strength_max",), _number),
)
# Source: ConnectedModelInfo.cs of LykosAI/StabilityMatrix.
_STABILITY_MATRIX: Final[tuple[Row, ...]] = (
    ("title", ("UserTitle",), _words),
    ("title", ("ModelName",), _words),
    ("triggers", ("TrainedWords",), _list),
    ("base", ("BaseModel",), _base),
    ("tags", ("Tags",), _list),
    ("description", ("ModelDescription",), _words),
    ("hashes", ("Hashes",), _hashes),
    ("previews", ("ThumbnailImageUrl",), _words),
)
# Source: extensions-builtin/Lora/ui_edit_user_metadata.py of AUTOMATIC1111/stable-diffusion-webui.
_A1111: Final[tuple[Row, ...]] = (
    ("triggers", ("activation text",), _words),
    ("negative_prompt", ("negative text",), _words),
    ("weight", ("preferred weight",), _weight),
    ("base", ("sd version",), _base),
    ("description", ("description",), _words),
    ("notes", ("notes",), _words),
)
# Source: T2IModelHandler.cs of mcmonkeyprojects/SwarmUI, which takes both spellings of a key.
_SWARM: Final[tuple[Row, ...]] = tuple(
    (field, (f"{prefix}{key}",), read)
    for prefix in ("modelspec.", "")
    for field, key, read in (
        ("triggers", "trigger_phrase", _words),
        ("title", "title", _words),
        ("author", "author", _words),
        ("description", "description", _words),
        ("licence", "license", _words),
        ("base", "architecture", _base),
        ("tags", "tags", _commas),
        ("weight", "lora_default_weight", _weight),
        ("notes", "usage_hint", _words),
    )
)


def read_rows(values: Mapping[str, Any], rows: tuple[Row, ...], source: str, where: str) -> Facts:
    """Facts from JSON by a table; null counts as not said.

    Args:
        values: The JSON; fractions as Decimal.
        rows: Field, place, way of reading.
        source: Who says it.
        where: Named in errors.

    Raises:
        InvalidContentError: If a value is of a wrong type.
    """
    found = []
    for field, at, read in rows:
        name = ".".join(at)
        try:
            value = _at(values, at)
            found += [(field, text) for text in (read(value) if value is not None else [])]
        except ValueError as error:
            raise InvalidContentError(f"{where}: {name} {error}", hint=_HINT) from None
    return gather(found, source)


def _at(values: Any, at: tuple[str, ...]) -> Any:
    for name in at:
        if values is None:
            return None
        if not isinstance(values, dict):
            raise ValueError("lies in something that is no object")
        values = values.get(name)
    return values


def civitai_version(values: Mapping[str, Any], source: str, where: str) -> Facts:
    """Facts from a model version as CivitAI's API gives it.

    Args:
        values: The JSON of ``/api/v1/model-versions/ID``; fractions as Decimal.
        source: ``listing``, or the file that kept it.
        where: Named in errors.

    Raises:
        InvalidContentError: If a value is of a wrong type.
    """
    said = read_rows(values, CIVITAI, source, where)
    return merge(said, gather(_address(values), source))


def _address(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, version = values.get("modelId"), values.get("id")
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in (model, version)):
        return []
    return [("url", f"https://civitai.com/models/{model}?modelVersionId={version}")]


def _of_lora_manager(beside: Path, source: str, values: Mapping[str, Any]) -> Facts:
    said = read_rows(values, _LORA_MANAGER, source, str(beside))
    listed = values.get("civitai")
    url = gather(_address(listed) if isinstance(listed, dict) else [], source)
    tips = values.get("usage_tips") or "{}"
    try:
        parsed = strict_json(tips, decimals=True) if isinstance(tips, str) else None
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise InvalidContentError(f"{beside}: usage_tips is no JSON object in a text", hint=_HINT)
    return merge(said, url, read_rows(parsed, _TIPS, source, f"{beside}: usage_tips"))


def _by_table(rows: tuple[Row, ...]) -> Callable[[Path, str, Mapping[str, Any]], Facts]:
    return lambda beside, source, values: read_rows(values, rows, source, str(beside))


def _of_civitai(beside: Path, source: str, values: Mapping[str, Any]) -> Facts:
    return civitai_version(values, source, str(beside))


# Ending of the name → its reader, the most trusted first.
READERS: Final = (
    (".metadata.json", _of_lora_manager),
    (".cm-info.json", _by_table(_STABILITY_MATRIX)),
    (".civitai.info", _of_civitai),
    (".json", _by_table(_A1111)),
    (".swarm.json", _by_table(_SWARM)),
)
