"""What others say of an adapter, and who says it.

Two sources seldom agree. Each value is kept with its source, and :func:`merge` lets the more
trusted one speak: the user, the model card, the file's own header, files beside it, a listing, and
last what a table or a count of training captions suggests.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any, Final

from lcm_arith.errors import InvalidContentError
from lcm_arith.formats.diffusers import ADAPTER_METADATA
from lcm_arith.formats.opening import shown, strict_json

USER: Final = "user"
CARD: Final = "card"
LISTING: Final = "listing"
TABLE: Final = "table"
SUGGESTED: Final = "header ss_tag_frequency (suggestion)"
UNREAD: Final = "cannot be read"  # in notes on what a source holds

# Beginning of a source → the fewer before it, the more it is trusted. A user's word, then the
# card's instance_prompt, modelspec.trigger_phrase, CivitAI's trainedWords (in files beside the
# adapter, or fresh), and tags that were frequent in training.
TRUST: Final = (USER, CARD, "header", "sidecar", LISTING, TABLE, SUGGESTED)

_MOST_DIGITS: Final = 12  # on either side of a number's point
_ROUNDED: Final = Decimal("0.000001")  # what programs write as 0.7000000000000001
_SUGGESTIONS: Final = 5


@dataclass(frozen=True)
class Said:
    """A value and who says it.

    Args:
        value: As it was found; controls included (:func:`lcm_arith.text.clean` for
            display). Numbers are decimal strings.
        source: ``user``, ``card``, ``header modelspec.title``, ``sidecar x.civitai.info``,
            ``listing``, ``table`` …
    """

    value: str
    source: str

    @property
    def trust(self) -> int:
        """Place among the sources; 0 is the most trusted."""
        if self.source == SUGGESTED:
            return len(TRUST) - 1
        named = (i for i, begin in enumerate(TRUST) if self.source.startswith(begin))
        return next(named, len(TRUST))


@dataclass(frozen=True, kw_only=True)
class Facts:
    """All that is said of one adapter: at most one value of a kind, or several.

    Args:
        triggers: Words that the prompt needs.
        previews: Paths or URLs of pictures.
        hashes: ``sha256:…`` of the file, ``data-sha256:…`` of its tensors, ``autov2:…`` …
        notes: What was remarked, also about this reading.
        tags: Keywords.
        negative_prompt: Recommended.
        licence: As it is named there; :func:`lcm_arith.registry.licences.of_text` reads it.
        base: Label of the base model; shapes outrank it.
        weight: Recommended λ.
        weight_min: The smallest that makes sense.
        weight_max: The largest.
        sampler: Recommended, of :mod:`lcm_arith.registry.recognise`.
        steps: Recommended.
        guidance: Recommended, diffusers' scale: 1 is none.
        description: Of any length; HTML in listings.
        author: Who made it.
        title: Its name for people.
        url: Where it comes from.
    """

    triggers: tuple[Said, ...] = ()
    previews: tuple[Said, ...] = ()
    hashes: tuple[Said, ...] = ()
    notes: tuple[Said, ...] = ()
    tags: tuple[Said, ...] = ()
    negative_prompt: Said | None = None
    licence: Said | None = None
    base: Said | None = None
    weight: Said | None = None
    weight_min: Said | None = None
    weight_max: Said | None = None
    sampler: Said | None = None
    steps: Said | None = None
    guidance: Said | None = None
    description: Said | None = None
    author: Said | None = None
    title: Said | None = None
    url: Said | None = None

    def as_json(self) -> dict[str, Any]:
        """JSON-ready values without those that nobody said."""
        return {
            name: [vars(said) for said in value] if isinstance(value, tuple) else vars(value)
            for name, value in vars(self).items()
            if value
        }

    @classmethod
    def from_json(cls, values: object, where: str = "facts") -> Facts:
        """The facts that :meth:`as_json` wrote.

        Raises:
            InvalidContentError: If they are anything else.
        """
        if not isinstance(values, dict) or not values.keys() <= {f.name for f in fields(cls)}:
            raise InvalidContentError(f"{where}: no facts of an adapter")
        found: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, list) is not (name in MANY):
                raise InvalidContentError(f"{where}: {name} is one value or a list, not the other")
            rows = [_said(row, f"{where}: {name}") for row in (value if name in MANY else [value])]
            found[name] = tuple(rows) if name in MANY else rows[0]
        return cls(**found)


MANY: Final = tuple(f.name for f in fields(Facts) if f.default == ())
NUMBERS: Final = ("weight", "weight_min", "weight_max", "steps", "guidance")


def _said(row: object, where: str) -> Said:
    if (
        not isinstance(row, dict)
        or row.keys() != {"value", "source"}
        or not all(isinstance(text, str) for text in row.values())
    ):
        raise InvalidContentError(f"{where}: not a value with its source")
    return Said(row["value"], row["source"])


def merge(*several: Facts) -> Facts:
    """One from several: of a kind the most trusted value, or all, the most trusted first.

    Of equal trust, the earlier argument's comes first. A value that is there twice stays once.
    """
    found: dict[str, Any] = {}
    for field in fields(Facts):
        values = [getattr(facts, field.name) for facts in several]
        if field.name in MANY:
            once: dict[str, Said] = {}
            for said in sorted((s for own in values for s in own), key=lambda s: s.trust):
                once.setdefault(said.value, said)
            found[field.name] = tuple(once.values())
        else:
            found[field.name] = min(filter(None, values), key=lambda s: s.trust, default=None)
    return Facts(**found)


def gather(rows: Iterable[tuple[str, str]], source: str) -> Facts:
    """Facts of one source.

    Args:
        rows: Name of a field and a value; empty values count as not said. Of a field with one
            value, the first counts.
        source: Who says it.
    """
    many: dict[str, list[Said]] = {}
    for name, value in rows:
        if value.strip():
            many.setdefault(name, []).append(Said(value.strip(), source))
    found = {name: tuple(own) if name in MANY else own[0] for name, own in many.items()}
    return Facts(**found)  # type: ignore[arg-type]


def decimal_text(value: object) -> str:
    """A number as a decimal string, as it was written.

    Raises:
        ValueError: If it is no number, not finite, or has more than 12 digits on a side.
    """
    number = _finite(value)
    if _decimals(number) > _MOST_DIGITS or number.adjusted() > _MOST_DIGITS:
        raise ValueError(f"has more than {_MOST_DIGITS} digits")
    return format(number, "f")


def rounded_text(value: object) -> str:
    """The same of what a program wrote: more than 12 decimals are rounded to 6.

    Raises:
        ValueError: As :func:`decimal_text`, also if nothing but zeros would be left.
    """
    number = _finite(value)
    digits = _decimals(number) > _MOST_DIGITS >= number.adjusted()
    if digits and (not number or number.adjusted() >= _ROUNDED.adjusted()):
        number = number.quantize(_ROUNDED).normalize()
    return decimal_text(number)


def _finite(value: object) -> Decimal:
    if isinstance(value, bool) or not isinstance(value, int | Decimal | str):
        raise ValueError("is no number")
    try:
        number = Decimal(value.strip() if isinstance(value, str) else value)
    except InvalidOperation:
        raise ValueError("is no number") from None
    if not number.is_finite():
        raise ValueError("is not finite")
    return number


def _decimals(number: Decimal) -> int:
    return -int(number.as_tuple().exponent)


# Key of a header → the field it fills, most trusted first where two fill one.
_HEADER: Final = (
    ("modelspec.trigger_phrase", "triggers"),
    ("instance_prompt", "triggers"),
    ("ss_trigger_words", "triggers"),
    ("modelspec.title", "title"),
    ("ss_output_name", "title"),
    ("modelspec.author", "author"),
    ("modelspec.description", "description"),
    ("modelspec.license", "licence"),
    ("modelspec.architecture", "base"),
    ("ss_base_model_version", "base"),
    ("modelspec.lora_default_weight", "weight"),  # SwarmUI's
    ("modelspec.usage_hint", "notes"),
    ("ss_training_comment", "notes"),
    ("modelspec.hash_sha256", "hashes"),
    ("sshs_model_hash", "hashes"),
)


def from_header(metadata: Mapping[str, str]) -> Facts:
    """What a file's own header says: ``modelspec.*``, ``ss_*``, PEFT's, and ours.

    A part that cannot be read becomes a note; the numbers of the file do not depend on it.
    """
    found = [_of_key(metadata, key, field) for key, field in _HEADER if key in metadata]
    tags = [("tags", tag) for tag in metadata.get("modelspec.tags", "").split(",")]
    found.append(gather(tags, "header modelspec.tags"))
    for key, read in _NESTED.items():
        if key in metadata:
            try:
                found.append(read(strict_json(metadata[key])))
            except (ValueError, RecursionError) as error:
                found.append(unread(key, error, f"header {key}"))
    return merge(*found)


def _of_key(metadata: Mapping[str, str], key: str, field: str) -> Facts:
    value = metadata[key]
    if field == "hashes" and value:
        value = f"data-sha256:{value.lower().removeprefix('0x')}"
    if field in NUMBERS and value.strip():
        try:
            value = rounded_text(value)
        except ValueError as error:
            return unread(key, error, f"header {key}")
    return gather([(field, value)], f"header {key}")


def unread(what: str, why: Exception | str, source: str) -> Facts:
    """The note that a part of a source cannot be read, and why."""
    return gather([("notes", f"{what} {UNREAD}: {shown(str(why), 160)}")], source)


def _own(values: Any) -> Facts:
    """Of this package: the style that ``finetune`` was told to learn."""
    style = values.get("style") if isinstance(values, dict) else None
    rows = [("title", style)] if isinstance(style, str) else []
    return gather(rows, "header lcm_arith")


def _adapter(values: Any) -> Facts:
    """Of diffusers and PEFT: the base that the adapter was trained on."""
    if not isinstance(values, dict):
        raise ValueError("is no object")
    names = [v for k, v in values.items() if k.endswith("base_model_name_or_path")]
    rows = [("base", name) for name in names if isinstance(name, str)]
    return gather(rows, f"header {ADAPTER_METADATA}")


def _tag_frequency(values: Any) -> Facts:
    """Of kohya: the tags that most captions had; they suggest triggers and are no more."""
    if not isinstance(values, dict):
        raise ValueError("is no object")
    counts: Counter[str] = Counter()
    for folder in values.values():
        if not isinstance(folder, dict):
            raise ValueError("is no object of folders")
        for tag, count in folder.items():
            if isinstance(count, bool) or not isinstance(count, int):
                raise ValueError("counts with something that is no whole number")
            counts[tag.strip()] += count
    rows = [("triggers", tag) for tag, _ in counts.most_common(_SUGGESTIONS)]
    return gather(rows, SUGGESTED)


_NESTED: Final = {
    "lcm_arith": _own,
    ADAPTER_METADATA: _adapter,
    "ss_tag_frequency": _tag_frequency,
}


def from_user(**values: str | tuple[str, ...]) -> Facts:
    """What the user says, by names of fields.

    Raises:
        ValueError: If a number is none.
    """
    rows = []
    for name, value in values.items():
        for each in (value,) if isinstance(value, str) else value:
            rows.append((name, decimal_text(each) if name in NUMBERS and each else each))
    return gather(rows, USER)
