"""Licences of adapters: what a name, an address or a listing's flags stand for.

No legal advice: a table of what the texts say in six words. What is not known stays unknown, it is
never taken for open. What a mix of several asks is in :mod:`.rights`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from lcm_arith.text import clean

DECLARED: Final = "the listing's declaration"  # CivitAI's flags are often its form's defaults


@dataclass(frozen=True)
class Terms:
    """What a licence asks.

    Args:
        attribution: Name the author and keep the notice.
        share_alike: Pass changed versions on under the same licence.
        non_commercial: No commercial use.
        no_derivatives: No changed versions, which a mix is.
        use_restrictions: Some uses are forbidden, and those who get it must be told.
        source_disclosure: Give the source with it.
    """

    attribution: bool = False
    share_alike: bool = False
    non_commercial: bool = False
    no_derivatives: bool = False
    use_restrictions: bool = False
    source_disclosure: bool = False

    def __or__(self, other: Terms) -> Terms:
        return Terms(*(a or b for a, b in zip(self.flags(), other.flags(), strict=True)))

    def flags(self) -> tuple[bool, ...]:
        """The six in order."""
        return tuple(getattr(self, f.name) for f in fields(self))

    def words(self) -> tuple[str, ...]:
        """Those that hold, such as ``non-commercial``."""
        return tuple(f.name.replace("_", "-") for f in fields(self) if getattr(self, f.name))


@dataclass(frozen=True)
class Licence:
    """A licence, or what is known of one.

    Args:
        id: SPDX's or the hub's id; ``civitai`` for flags, ``other``, ``unknown``.
        name: As people know it, or as it was found where the id does not tell.
        terms: What it surely asks.
        unknown: Whether it may ask more.
        hub: Whether the hub's ``license:`` takes the id.
    """

    id: str
    name: str
    terms: Terms
    unknown: bool = False
    hub: bool = True


def _row(id: str, name: str, *terms: str, hub: bool = True) -> Licence:
    return Licence(id, name, Terms(**dict.fromkeys(terms, True)), hub=hub)


_BY, _SA, _NC, _ND = "attribution", "share_alike", "non_commercial", "no_derivatives"
_USE, _SOURCE = "use_restrictions", "source_disclosure"

_TABLE: Final = (
    _row("mit", "MIT License", _BY),
    _row("apache-2.0", "Apache License 2.0", _BY),
    _row("bsd-3-clause", "BSD 3-Clause License", _BY),
    _row("cc0-1.0", "CC0 1.0"),
    _row("unlicense", "The Unlicense"),
    # RAIL: a copy of the licence and its use restrictions go with every derivative (paragraphs 4,
    # 5 and attachment A of CreativeML OpenRAIL-M). It is not share-alike: further terms are free.
    _row("openrail", "OpenRAIL", _BY, _USE),
    _row("openrail++", "CreativeML Open RAIL++-M", _BY, _USE),
    _row("creativeml-openrail-m", "CreativeML OpenRAIL-M", _BY, _USE),
    _row("bigscience-openrail-m", "BigScience OpenRAIL-M", _BY, _USE),
    _row("gpl-3.0", "GNU GPL 3.0", _BY, _SA, _SOURCE),
    _row("agpl-3.0", "GNU AGPL 3.0", _BY, _SA, _SOURCE),
    # Not verified word by word: the texts of the next four were not at hand.
    _row("faipl-1.0-sd", "Fair AI Public License 1.0-SD", _BY, _SA, _USE, _SOURCE, hub=False),
    _row(
        "flux-1-dev-non-commercial-license",
        "FLUX.1 [dev] Non-Commercial License",
        *(_BY, _NC, _USE),
        hub=False,
    ),
    # Free below a yearly revenue, which is a restriction of use.
    _row("stabilityai-ai-community", "Stability AI Community License", _BY, _USE, hub=False),
    _row("sai-nc-community", "Stability AI Non-Commercial License", _BY, _NC, _USE, hub=False),
)
UNKNOWN: Final = Licence("unknown", "unknown", Terms(), unknown=True)
OTHER: Final = Licence("other", "other", Terms(), unknown=True)
_CC: Final = re.compile(
    r"cc-by(?P<nc>-nc)?(?:(?P<sa>-sa)|(?P<nd>-nd))?-(?P<version>[1-4]\.[05])(?:-[a-z]{2})?"
)
_CC_KINDS: Final = ("", "-sa", "-nc", "-nc-sa", "-nd", "-nc-nd")


def _creative_commons(id: str) -> Licence | None:
    """Any version of the six licences, by its id."""
    found = _CC.fullmatch(id)
    if found is None:
        return None
    terms = Terms(
        attribution=True,
        share_alike=bool(found["sa"]),
        non_commercial=bool(found["nc"]),
        no_derivatives=bool(found["nd"]),
    )
    kind, _, version = found[0].partition(f"-{found['version']}")
    hub = not version and found["version"] in ("2.0", "3.0", "4.0")
    return Licence(found[0], f"{kind[:5].upper().replace('-', ' ')}{kind[5:].upper()} "
                   f"{found['version']}", terms, hub=hub)  # fmt: skip


LICENCES: Final = {
    row.id: row
    for row in (
        *_TABLE,
        *filter(None, (_creative_commons(f"cc-by{kind}-4.0") for kind in _CC_KINDS)),
        OTHER,
        UNKNOWN,
    )
}

# What people write, in small letters with - for every other character → id.
_SPELLINGS: Final = tuple(
    (re.compile(pattern), id)
    for pattern, id in (
        (r"(?:the-)?mit(?:-licen[sc]e)?", "mit"),
        (r"apache(?:-software)?(?:-licen[sc]e)?(?:-version)?-?2(?:\.0)?", "apache-2.0"),
        (r"bsd-3(?:-clause)?(?:-licen[sc]e)?", "bsd-3-clause"),
        (r"(?:cc-?0|cc-zero)(?:-1\.0)?(?:-universal)?", "cc0-1.0"),
        (r"(?:the-)?unlicense", "unlicense"),
        (r"(?:creativeml-)?open-?rail\+\+(?:-m)?(?:-licen[sc]e)?", "openrail++"),
        (r"creativeml-open-?rail-m(?:-licen[sc]e)?", "creativeml-openrail-m"),
        (r"bigscience-open-?rail-m", "bigscience-openrail-m"),
        (r"open-?rail(?:-m)?(?:-licen[sc]e)?", "openrail"),
        (r"(?:gnu-)?gpl-?v?3(?:\.0)?(?:-only|-or-later)?", "gpl-3.0"),
        (r"(?:gnu-)?agpl-?v?3(?:\.0)?(?:-only|-or-later)?", "agpl-3.0"),
        (r"(?:fair-ai-public-licen[sc]e|faipl)-1\.0-sd", "faipl-1.0-sd"),
        (r"flux-?\.?1-+dev-+non-commercial(?:-licen[sc]e)?", "flux-1-dev-non-commercial-license"),
        (r"stability(?:ai)?-ai-community(?:-licen[sc]e)?", "stabilityai-ai-community"),
        (r"(?:sai-nc-community|stability-ai-non-?commercial(?:-.*)?)", "sai-nc-community"),
        (r"other", "other"),
    )
)
# Part of an address, without its beginning → id; {…} of Creative Commons is filled in.
_ADDRESSES: Final = (
    (re.compile(r"creativecommons\.org/publicdomain/zero/1\.0(?:/.*)?"), "cc0-1.0"),
    (re.compile(r"opensource\.org/licenses?/mit(?:-license\.php)?/?"), "mit"),
    (re.compile(r"apache\.org/licenses/license-2\.0(?:\.txt|\.html)?/?"), "apache-2.0"),
    (re.compile(r"opensource\.org/licenses?/apache-2\.0/?"), "apache-2.0"),
    (re.compile(r"gnu\.org/licenses/gpl-3\.0(?:\..*)?"), "gpl-3.0"),
    (re.compile(r"gnu\.org/licenses/agpl-3\.0(?:\..*)?"), "agpl-3.0"),
    (
        re.compile(r"huggingface\.co/spaces/compvis/stable-diffusion-license/?"),
        "creativeml-openrail-m",
    ),
    (
        re.compile(
            r"huggingface\.co/stabilityai/stable-diffusion-xl-base-1\.0/blob/main/license\.md"
        ),
        "openrail++",
    ),
    (re.compile(r"freedevproject\.org/faipl-1\.0-sd/?"), "faipl-1.0-sd"),
    (
        re.compile(r"huggingface\.co/black-forest-labs/flux\.1-dev/blob/main/license\.md"),
        "flux-1-dev-non-commercial-license",
    ),
)
_CC_ADDRESS: Final = re.compile(
    r"creativecommons\.org/licenses/(?P<kind>by(?:-nc)?(?:-sa|-nd)?)/(?P<version>\d\.\d)(?:/.*)?"
)
_CC_WORDS: Final = (
    ("creative-commons", "cc"),
    ("attribution", "by"),
    ("non-commercial", "nc"),
    ("noncommercial", "nc"),
    ("no-derivatives", "nd"),
    ("noderivatives", "nd"),
    ("noderivs", "nd"),
    ("share-alike", "sa"),
    ("sharealike", "sa"),
    ("-international", ""),
    ("-unported", ""),
    ("-license", ""),
)


def of_text(text: str) -> Licence:
    """The licence that a text names: an id, a name, an address, or CivitAI's flags.

    Returns:
        A row of the table. Of a text that is all of none of them, ``unknown`` under its own name:
        "MIT, but …" is not MIT.
    """
    plain = clean(text).lower()
    flags = _civitai_flags(clean(text))
    if flags is not None:
        return of_civitai(flags)
    address = re.fullmatch(r"https?://(?:www\.)?(?P<rest>[^?#]+)[^ ]*", plain)
    if address:
        return _of_address(address["rest"]) or _unknown(text)
    id = re.sub(r"[^a-z0-9.+]+", "-", plain).strip("-.")
    if id in LICENCES:
        return LICENCES[id]
    found = next((known for form, known in _SPELLINGS if form.fullmatch(id)), None)
    if found:
        return LICENCES[found]
    for word, short in _CC_WORDS:
        id = id.replace(word, short)
    return _creative_commons(re.sub(r"^cc-cc-", "cc-", id)) or _unknown(text)


def _of_address(rest: str) -> Licence | None:
    found = _CC_ADDRESS.fullmatch(rest)
    if found:
        return _creative_commons(f"cc-{found['kind']}-{found['version']}")
    id = next((known for form, known in _ADDRESSES if form.fullmatch(rest)), None)
    return LICENCES[id] if id else None


def _unknown(text: str) -> Licence:
    return Licence("unknown", clean(text, 120) or "unknown", Terms(), unknown=True)


_FLAGS: Final = ("allowNoCredit", "allowCommercialUse", "allowDerivatives", "allowDifferentLicense")
_COMMERCIAL: Final = ("Image", "Video", "RentCivit", "Rent", "Sell")
_OTHER_USE: Final = "Other"  # stands for every word that is none of these


def civitai_text(flags: Mapping[str, Any]) -> str:
    """CivitAI's flags as one line of text, which :func:`of_text` reads; empty where none is set.

    A commercial use that is not known becomes ``Other``.

    Raises:
        ValueError: If a flag is of a type that it never has.
    """
    said = []
    for name in _FLAGS:
        value = flags.get(name)
        if value is None:
            continue
        if name == "allowCommercialUse":
            uses = _uses(value)
            said.append(f"{name}={'+'.join(uses) or 'None'}")
        elif isinstance(value, bool):
            said.append(f"{name}={str(value).lower()}")
        else:
            raise ValueError(f"{name} is neither true nor false")
    return f"civitai: {' '.join(said)}" if said else ""


def _uses(value: object) -> tuple[str, ...]:
    """The words that are known, in order; ``Other`` last where there are others."""
    words = _words(value)
    known = tuple(word for word in _COMMERCIAL if word in words)
    return (*known, _OTHER_USE) if unknown_uses(value) else known


def unknown_uses(value: object) -> tuple[str, ...]:
    """Words of ``allowCommercialUse`` that are not known, sorted.

    Raises:
        ValueError: If it is neither a word nor a list of words.
    """
    return tuple(sorted({*_words(value)} - {*_COMMERCIAL, "None"}))


def _words(value: object) -> Sequence[str]:
    """Of a list, of one word, or of ``{Image,Rent}``, as the API has written it in its time."""
    words = re.findall(r"\w+", value) if isinstance(value, str) else value
    if not isinstance(words, list | tuple) or not all(isinstance(word, str) for word in words):
        raise ValueError("allowCommercialUse is neither a word nor a list of words")
    return words


def _civitai_flags(text: str) -> dict[str, Any] | None:
    """The flags of :func:`civitai_text`; None of any other text."""
    if not text.startswith("civitai: "):
        return None
    pairs = [pair.partition("=") for pair in text.removeprefix("civitai: ").split()]
    if any(name not in _FLAGS or not value for name, _, value in pairs):
        return None
    return {
        name: value.split("+") if name == "allowCommercialUse" else value == "true"
        for name, _, value in pairs
    }


def of_civitai(flags: Mapping[str, Any]) -> Licence:
    """What a listing on CivitAI declares.

    Selling pictures alone is a restriction of use; selling the model or its mixes (``Sell``) is
    commercial use without one. A flag that is not there, or a use that is not known, leaves the
    licence unknown.

    Raises:
        ValueError: As :func:`civitai_text`.
    """
    said = civitai_text(flags)
    if not said:
        return UNKNOWN
    complete = all(flags.get(name) is not None for name in _FLAGS)
    uses = _uses(flags["allowCommercialUse"]) if flags.get("allowCommercialUse") is not None else ()
    commercial_known = flags.get("allowCommercialUse") is not None
    terms = Terms(
        attribution=flags.get("allowNoCredit") is False,
        share_alike=flags.get("allowDifferentLicense") is False,
        non_commercial=commercial_known and not uses,
        no_derivatives=flags.get("allowDerivatives") is False,
        use_restrictions=bool(uses) and not {"Sell", _OTHER_USE} & {*uses},
    )
    unknown = not complete or _OTHER_USE in uses
    return Licence("civitai", said, terms, unknown=unknown, hub=False)
