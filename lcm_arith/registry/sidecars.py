"""Files that other programs leave beside an adapter, and what they say of it.

Each row of :data:`READERS` is one program's file; a row of its table is a place in the JSON and the
field that it fills. Where two files differ, the earlier row counts. What cannot be read is left out
and noted: the adapter does not depend on it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

from lcm_arith.errors import LcmArithError
from lcm_arith.formats.opening import Opened, shown, strict_json
from lcm_arith.registry.card import read_card
from lcm_arith.registry.facts import UNREAD, Facts, gather, merge, rounded_text, unread
from lcm_arith.registry.licences import civitai_text, unknown_uses

MOST_BYTES: Final = 2**20
CARD_NAME: Final = "README.md"
PEFT_WEIGHTS: Final = "adapter_model.safetensors"  # lcm_arith.formats.peft_folder imports torch
# Whose README.md is their model card: the names that diffusers and PEFT give.
_WITH_CARD: Final = ("pytorch_lora_weights.safetensors", PEFT_WEIGHTS)
_PREVIEWS: Final = tuple(
    f"{middle}.{ending}" for middle in (".preview", "") for ending in ("png", "jpg", "jpeg", "webp")
)
MOST_PICTURE: Final = 16 * 2**20  # bytes
# PNG, JPEG and WebP; programs save one under the ending of another.
_PICTURE: Final = re.compile(rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|RIFF....WEBP", re.DOTALL)
_UNSAID_BASES: Final = ("unknown", "other")


def sidecars(path: Path) -> Facts:
    """What the files beside an adapter say of it.

    Args:
        path: Of the adapter: a file, or a PEFT folder.

    Returns:
        Also a note on each that is unreadable, too large, no JSON, YAML or picture, no regular
        file, or a link that leads elsewhere, and on each value of a wrong type.
    """
    if path.is_dir():
        path = path / PEFT_WEIGHTS
    found = []
    for ending, read in READERS:
        beside = path.with_name(f"{path.stem}{ending}")
        if os.path.lexists(beside) and beside != path:
            found.append(_noted(path, beside, partial(_of_json, read)))
    card = path.with_name(CARD_NAME)
    if os.path.lexists(card) and _has_card(path):
        found.append(_noted(path, card, _card))
    for ending in _PREVIEWS:
        picture = path.with_name(f"{path.stem}{ending}")
        if os.path.lexists(picture):
            found.append(_noted(path, picture, _preview))
    return merge(*found)


def _noted(path: Path, beside: Path, read: Callable[[Path, Path, str], Facts]) -> Facts:
    """What a file says, or the note that it cannot be read."""
    name = os.fsencode(beside.name).decode("utf-8", "replace")
    try:
        return read(path, beside, f"sidecar {name}")
    except LcmArithError as error:
        why = error.message.removeprefix(f"{beside}: ").removeprefix(f"{UNREAD} ")
    except (ValueError, OSError) as error:
        why = str(error)
    return unread(name, why, f"sidecar {name}")


def _has_card(path: Path) -> bool:
    """Whether README.md beside it is about this file and no other."""
    return path.name in _WITH_CARD or len(list(path.parent.glob("*.safetensors"))) == 1


def _card(path: Path, card: Path, _: str) -> Facts:
    text = _text(card, path)
    if not text.startswith("---") and path.name not in _WITH_CARD:
        return Facts()  # the README of a program or of a folder of downloads
    return read_card(text)


def _preview(path: Path, picture: Path, _: str) -> Facts:
    _check_place(picture, path)
    with Opened(picture) as (descriptor, found):
        if found.st_size > MOST_PICTURE:
            raise ValueError(f"has {found.st_size:,} bytes, at most {MOST_PICTURE:,} are kept")
        if not _PICTURE.match(os.read(descriptor, 16)):
            raise ValueError("is no picture")
    return gather([("previews", str(picture))], "sidecar picture")


def _check_place(beside: Path, path: Path) -> None:
    """Raises where a link leads out of the adapter's folder: to /etc/passwd, to a private key.

    In the hub's cache the adapter and its card are both links into one folder, which is well.
    """
    real = [Path(os.path.realpath(p)) for p in (beside, path, path.parent)]  # loops end, too
    if real[0].parent not in (real[1].parent, real[2]):
        raise ValueError("is a link that leads to another folder")


def _text(beside: Path, path: Path) -> str:
    """The text of a small file."""
    _check_place(beside, path)
    with Opened(beside) as (descriptor, found):
        if found.st_size > MOST_BYTES:
            raise ValueError(f"has more than {MOST_BYTES >> 20} MiB")
        data = b""
        while len(data) <= MOST_BYTES and (more := os.read(descriptor, MOST_BYTES + 1)):
            data += more
    if len(data) > MOST_BYTES:
        raise ValueError("grew while it was read")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"is no UTF-8 ({error.reason})") from None


def _of_json(read: Reader, path: Path, beside: Path, source: str) -> Facts:
    text = _text(beside, path)
    try:
        values = strict_json(text, decimals=True)
    except (ValueError, ArithmeticError, RecursionError) as error:  # Decimal has its limits
        raise ValueError(f"is not JSON ({shown(str(error), 60)})") from None
    if not isinstance(values, dict):
        raise ValueError("is no object of names and values")
    return read(source, values)


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
    return [] if value == "" else [rounded_text(value)]


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


def _no_other_use(value: Any) -> list[str]:
    """Nothing; the licence leaves out a use that is not known, and this has it noted."""
    unknown = unknown_uses(value)
    if unknown:
        raise ValueError(f"has {', '.join(unknown)}")
    return []


Row = tuple[str, tuple[str, ...], Callable[[Any], list[str]]]
Reader = Callable[[str, Mapping[str, Any]], Facts]  # of the source and its JSON

# A model version of CivitAI's API: what .civitai.info holds, and part of .metadata.json.
CIVITAI: Final[tuple[Row, ...]] = (
    ("triggers", ("trainedWords",), _list),
    ("base", ("baseModel",), _base),
    ("title", ("model", "name"), _words),
    ("tags", ("model", "tags"), _list),
    ("licence", ("model",), _flags),
    ("notes", ("model", "allowCommercialUse"), _no_other_use),
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


def read_rows(values: Mapping[str, Any], rows: tuple[Row, ...], source: str) -> Facts:
    """Facts from JSON by a table; null counts as not said, a value of a wrong type is noted.

    Args:
        values: The JSON; fractions as Decimal.
        rows: Field, place, way of reading.
        source: Who says it.
    """
    found, notes = [], []
    for field, at, read in rows:
        name = ".".join(at)
        try:
            value = _at(values, at)
            found += [(field, text) for text in (read(value) if value is not None else [])]
        except ValueError as error:
            notes.append(unread(f"{source.removeprefix('sidecar ')}: {name}", error, source))
    return merge(gather(found, source), *notes)


def _at(values: Any, at: tuple[str, ...]) -> Any:
    for name in at:
        if values is None:
            return None
        if not isinstance(values, dict):
            raise ValueError("lies in something that is no object")
        values = values.get(name)
    return values


def civitai_version(source: str, values: Mapping[str, Any]) -> Facts:
    """Facts from a model version as CivitAI's API gives it.

    Args:
        source: ``listing``, or the file that kept it.
        values: The JSON of ``/api/v1/model-versions/ID``; fractions as Decimal.
    """
    said = read_rows(values, CIVITAI, source)
    return merge(said, gather(_address(values), source))


def _address(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    model, version = values.get("modelId"), values.get("id")
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in (model, version)):
        return []
    return [("url", f"https://civitai.com/models/{model}?modelVersionId={version}")]


def _of_lora_manager(source: str, values: Mapping[str, Any]) -> Facts:
    said = read_rows(values, _LORA_MANAGER, source)
    listed = values.get("civitai")
    url = gather(_address(listed) if isinstance(listed, dict) else [], source)
    tips = values.get("usage_tips") or "{}"
    try:
        parsed = strict_json(tips, decimals=True) if isinstance(tips, str) else None
    except (ValueError, ArithmeticError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        what = f"{source.removeprefix('sidecar ')}: usage_tips"
        return merge(said, url, unread(what, "is no JSON object in a text", source))
    return merge(said, url, read_rows(parsed, _TIPS, source))


def _by_table(rows: tuple[Row, ...]) -> Reader:
    return lambda source, values: read_rows(values, rows, source)


# Ending of the name → its reader, the most trusted first.
READERS: Final = (
    (".metadata.json", _of_lora_manager),
    (".cm-info.json", _by_table(_STABILITY_MATRIX)),
    (".civitai.info", civitai_version),
    (".json", _by_table(_A1111)),
    (".swarm.json", _by_table(_SWARM)),
)
