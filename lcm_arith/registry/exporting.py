"""Export: a vector as a folder for other programs, with a model card that says what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from lcm_arith import durable
from lcm_arith.embedded.files import sha256 as file_sha256
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.registry.card import CardValues, Ingredient, card, is_mixed
from lcm_arith.registry.licences import of_text
from lcm_arith.registry.lineage import Files, Origin, origins
from lcm_arith.registry.rights import Effective, Parent, union
from lcm_arith.registry.store import Found, Registry

FORMATS: Final = ("diffusers", "peft", "kohya")
_DIFFUSERS: Final = "pytorch_lora_weights.safetensors"
_CARD: Final = "README.md"
_MOST_PREVIEWS: Final = 4
# Family → its first model on the hub, for the card's base_model.
_BASES: Final = {
    "sd15": "stable-diffusion-v1-5/stable-diffusion-v1-5",
    "sd2": "stabilityai/stable-diffusion-2-1",
    "ssd1b": "segmind/SSD-1B",
    "sdxl": "stabilityai/stable-diffusion-xl-base-1.0",
}


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        folder: Where.
        file: The weights' name in it.
        copied: Whether they are the registered bytes, since those have the format already.
        effective: What the licences ask together.
    """

    folder: Path
    file: str
    copied: bool
    effective: Effective


def export(
    registry: Registry,
    found: Found,
    out: Path,
    *,
    form: str = "diffusers",
    dtype: str | None = None,
    base: Path | None = None,
    force: bool = False,
) -> Exported:
    """Writes a folder with the weights, a model card and the previews, whole or not at all.

    Args:
        registry: Where its parents are.
        found: The vector.
        out: The folder, to be made.
        form: Of FORMATS.
        dtype: Number format of the weights; as they are by default.
        base: The model that a DoRA was made for, where its format changes.
        force: Replace a folder of this kind.

    Raises:
        UsageError: If there is no such format.
        OutputExistsError: If ``out`` exists, and is none of this kind or ``force`` is off.
        InvalidContentError: If the format cannot hold the vector.
        StorageError: If the disk refuses.
    """
    from lcm_arith.formats import peft_folder
    from lcm_arith.formats.container import whole_folder

    if form not in FORMATS:
        raise UsageError(f"{form}: is no format of an export", hint=f"one of {', '.join(FORMATS)}")
    name = out.name if found.name.startswith("sha256:") else found.name
    file = {"diffusers": _DIFFUSERS, "peft": peft_folder.WEIGHTS}.get(form, f"{name}.safetensors")
    files = Files.of(registry)
    values = card_values(registry, found, file, files)
    effective = rights(registry, found, files)
    copied = dtype is None and found.record.dialect == form
    source = found.path if found.shipped else registry.file_of(found.record)
    with whole_folder(out, force=force, mark=file) as part:
        if copied:
            shutil.copyfile(source, part / file)
        else:
            _write(found, part / file, form=form, dtype=dtype, base=base)
        written = file_sha256(part / file)
        if copied and written != found.record.object:
            raise InvalidContentError(
                f"{source}: was changed on the disk", hint="see: lcm-arith registry verify --deep"
            )
        values = replace(values, digest=written, webui=form == "kohya")
        if form == "peft":
            from lcm_arith.formats.preflight import SafeFile

            text = peft_folder.config_text(SafeFile.open(part / file).metadata)
            durable.write(part / peft_folder.CONFIG, text.encode())
        if form == "kohya":
            durable.write(part / f"{name}.json", _a1111(values).encode())
        durable.write(part / _CARD, card(values).encode())
        for number, own in enumerate(found.record.previews[:_MOST_PREVIEWS]):
            picture = registry.objects.path(own["sha256"], own["suffix"])
            middle = f".preview{number or ''}"
            shutil.copyfile(picture, part / f"{Path(file).stem}{middle}{own['suffix']}")
    return Exported(out, file, copied, effective)


def _write(found: Found, path: Path, *, form: str, dtype: str | None, base: Path | None) -> None:
    from lcm_arith.adapters import load
    from lcm_arith.formats.container import DTYPES
    from lcm_arith.saving import save

    stored = [name for name in found.record.dtypes if name in DTYPES]
    kept = dtype or ("float32" if "float32" in stored or not stored else stored[0])
    tau = load(found.path, base)
    save(tau, path, dtype=DTYPES[kept], form=form)


def card_values(
    registry: Registry, found: Found, file: str, files: Files | None = None
) -> CardValues:
    """What the card of a vector says.

    What nobody says of a mix it has from its parts: the triggers of all, and the sampler, steps and
    guidance of the acceleration.

    Args:
        registry: Where its parents are.
        found: The vector.
        file: The weights' name.
        files: Of the registry, where more is asked of it.
    """
    said = found.record.said(found.state)
    made_of = origins(registry, found, files)
    parts = [origin.said for origin in made_of]
    fast = next((own for own in parts if _text(own, "kind") == "acceleration"), {})
    family = _text(said, "family") or next((name for name, _ in found.record.families), "")
    return CardValues(
        title=_text(said, "title") or found.name,
        kind=_text(said, "kind"),
        family=family,
        base=_text(said, "base") or _BASES.get(family, ""),
        file=file,
        description=_text(said, "description"),
        author=_text(said, "author"),
        digest=found.record.object,
        licence=_text(said, "licence"),
        triggers=tuple(dict.fromkeys(text for own in (said, *parts) for text in _triggers(own))),
        negative_prompt=_text(said, "negative_prompt"),
        weight=_text(said, "weight") or "1",
        sampler=_text(said, "sampler") or _text(fast, "sampler"),
        steps=_text(said, "steps") or _text(fast, "steps"),
        guidance=_text(said, "guidance") or _text(fast, "guidance"),
        made_of=tuple(map(_ingredient, made_of)),
        tags=found.state.tags,
    )


def _triggers(said: Mapping[str, Any]) -> list[str]:
    """Words that somebody says are needed; tags that were frequent in training only suggest."""
    rows = said.get("triggers", ())
    return [str(own["value"]) for own in rows if "suggestion" not in own["source"]]


def _ingredient(origin: Origin) -> Ingredient:
    said = origin.said
    return Ingredient(
        name=_text(said, "title") or origin.name,
        weight=origin.weight,
        digest=origin.sha256,
        licence=_text(said, "licence"),
        author=_text(said, "author"),
        url=_text(said, "url"),
    )


def rights(registry: Registry, found: Found, files: Files | None = None) -> Effective:
    """What the licences of a vector and of all that it was made of ask together.

    Args:
        registry: Where its parents are.
        found: The vector.
        files: Of the registry, where several vectors are asked for.
    """
    said = found.record.said(found.state)
    made_of = [_ingredient(origin) for origin in origins(registry, found, files)]
    parents = [Parent(p.name, of_text(p.licence or "unknown"), p.author, p.url) for p in made_of]
    if _text(said, "licence") or not parents:
        own = of_text(_text(said, "licence") or "unknown")
        parents.append(Parent(found.name, own, _text(said, "author")))
    return union(parents, mixed=is_mixed(made_of))


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    return str(value["value"]) if isinstance(value, Mapping) else ""


def _a1111(values: CardValues) -> str:
    """The file beside an adapter that A1111 and its successors read."""
    try:
        weight = float(values.weight)
    except ValueError:
        raise InvalidContentError(f"the weight {values.weight!r} is no number") from None
    versions = {"sd15": "SD1", "sd2": "SD2", "ssd1b": "SDXL", "sdxl": "SDXL"}
    return json.dumps(
        {
            "description": values.description,
            "sd version": versions.get(values.family, "Unknown"),
            "activation text": ", ".join(values.triggers),
            "preferred weight": weight,
            "negative text": values.negative_prompt,
            "notes": f"made by lcm-arith; see {_CARD}",
        },
        indent=1,
        ensure_ascii=False,
    )
