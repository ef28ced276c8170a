"""Record: what is known of one adapter file, read from its manifest."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.registry.manifests import SCHEMA
from lcm_arith.registry.states import MANY, SETTINGS, State

KINDS: Final = ("acceleration", "style", "combined", "task")


@dataclass(frozen=True)
class Record:
    """One adapter file. Numbers that are not whole are decimal strings.

    Args:
        object: sha256 of the file.
        bytes: Its size.
        data: sha256 of what follows its header; kohya's ``sshs_model_hash``, CivitAI's AutoV3.
        tensors: sha256 of its tensors in canonical order, whatever the header says.
        dialect: Whose names its keys are.
        network: Kinds of its updates, ``lora``, ``dora`` …, → how many modules.
        families: (family, covered share of its modules), best first; several where shapes tie.
        ranks: Rank → how many modules.
        alphas: Alpha → how many modules.
        dtypes: Number format → how many tensors.
        modules: How many modules it updates.
        parameters: How many numbers it holds.
        components: ``unet``, ``text_encoder`` … that it updates.
        norm: ‖τ‖ over all modules.
        blocks: Block → its share of ‖τ‖².
        guess: Kind and use as guessed: ``kind, accelerator, sampler, steps, guidance, weight`` and
            the ``evidence``.
        facts: What others say of it, :class:`lcm_arith.registry.facts.Facts` as JSON.
        made: What this program wrote into its header: terms, weights, method.
        parents: sha256 of the files that it was made of.
        metadata: The header's own, as it was.
        source: Where it came from.
        link: The file's place outside of the registry, where it was linked.
        previews: Pictures: ``{"sha256", "suffix"}``.
        fingerprint: See :mod:`lcm_arith.registry.fingerprints`.
    """

    object: str
    bytes: int
    data: str
    tensors: str
    dialect: str
    network: Mapping[str, int]
    families: tuple[tuple[str, str], ...]
    ranks: Mapping[str, int]
    alphas: Mapping[str, int]
    dtypes: Mapping[str, int]
    modules: int
    parameters: int
    components: tuple[str, ...]
    norm: str
    blocks: Mapping[str, str]
    guess: Mapping[str, Any]
    facts: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    parents: tuple[str, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    link: str | None = None
    previews: tuple[Mapping[str, str], ...] = ()
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str) -> Record:
        """From a manifest.

        Raises:
            InvalidContentError: If it is none of this version.
        """
        given = dict(values)
        if given.pop("schema", None) != SCHEMA or given.keys() != {f.name for f in fields(cls)}:
            raise InvalidContentError(
                f"{where}: is no manifest of schema {SCHEMA}",
                hint="a newer lcm-arith may read it; else add the vector again",
            )
        try:
            given["families"] = tuple((str(name), str(share)) for name, share in given["families"])
        except (TypeError, ValueError):
            raise InvalidContentError(f"{where}: families are of no such form") from None
        for name in ("components", "parents", "previews"):
            if not isinstance(given[name], list | tuple):
                raise InvalidContentError(f"{where}: {name} are of no such form")
            given[name] = tuple(given[name])
        record = cls(**given)
        wrong = [name for name, kind in _TYPES.items() if not isinstance(given[name], kind)]
        wrong += ["previews"] * (not all(map(_is_preview, record.previews)))
        if wrong or not all(DIGEST.fullmatch(own) for own in record.digests()):
            raise InvalidContentError(
                f"{where}: {', '.join(wrong) or 'a digest'} is not of the form it has"
            )
        if not record.fits():
            raise InvalidContentError(f"{where}: holds what has no place in the index")
        return record

    def fits(self) -> bool:
        """Whether a database takes its columns, and its norm is a number."""
        try:
            row = self.columns("")
            norm = float(self.norm)
        except (TypeError, ValueError, KeyError):
            return False
        return (
            math.isfinite(norm)
            and 0 <= self.modules < 2**31
            and all(0 <= number < 2**63 for number in (self.bytes, self.parameters))
            and all(isinstance(text, str) for text in (*self.components, row["kind"]))
        )

    def digests(self) -> tuple[str, ...]:
        """Every sha256 in it."""
        shown = (own["sha256"] for own in self.previews)
        return (self.object, self.data, self.tensors, *map(str, self.parents), *shown)

    def manifest(self) -> dict[str, Any]:
        """The manifest's values."""
        return {"schema": SCHEMA, **asdict(self)}

    def columns(self, sha256: str) -> dict[str, Any]:
        """The row of the index.

        Args:
            sha256: Of the manifest.
        """
        best = max((share for _, share in self.families), default="")
        ties = [name for name, share in self.families if share == best]
        ranks = sorted(map(int, self.ranks))
        spread = f"{ranks[0]}-{ranks[-1]}" if ranks[1:] else "".join(map(str, ranks))
        row = {
            "sha256": sha256,
            "object": self.object,
            "bytes": self.bytes,
            "tensors": self.tensors,
            "kind": self.guess["kind"],
            "assumed": not self.guess.get("declared", False),
            "family": "|".join(ties) or "unknown",
            "network": "+".join(sorted(self.network)),
            "rank": spread,
            "modules": self.modules,
            "licence": _value(self.facts.get("licence")) or "unknown",
            "link": self.link,
            "words": " ".join(self._words()).lower(),
        }
        return {key: _storable(own) if isinstance(own, str) else own for key, own in row.items()}

    def _words(self) -> list[str]:
        facts = self.facts
        texts = [facts.get(own) for own in ("title", "description", "author", "licence")]
        texts += [*facts.get("triggers", []), *facts.get("tags", [])]
        return [said for said in map(_value, texts) if said] + [
            str(self.source.get(key, "")) for key in ("file", "repo", "url")
        ]

    def said(self, state: State) -> dict[str, Any]:
        """Field → ``{"value", "source"}``, or a list of them: the user, others, the guess.

        Args:
            state: What the user says; it counts more than anything else.
        """
        guessed = {own: self.guess.get(own) for own in USES}
        found: dict[str, Any] = {
            name: {"value": value, "source": "assumed"} for name, value in guessed.items() if value
        }
        declared = "header" if self.guess.get("declared") else "assumed"
        found["kind"] = {"value": self.guess["kind"], "source": declared}
        found |= self.facts
        for name, value in state.settings.items():
            rows = [{"value": own, "source": USER} for own in (value if name in MANY else [value])]
            found[name] = rows if name in MANY else rows[0]
        return found

    def shown(self, state: State) -> dict[str, Any]:
        """Everything that is known and said, JSON-ready."""
        values = self.manifest()
        for name in ("facts", "guess", "schema"):
            values.pop(name)
        return {
            **values,
            "said": self.said(state),
            "evidence": list(self.guess.get("evidence", ())),
            "tags": list(state.tags),
            "notes": list(state.notes),
            "added": state.added,
        }


USER: Final = "user"
USES: Final = ("sampler", "steps", "guidance", "weight")
"""What is recommended for its use."""
SAMPLERS: Final = ("lcm", "dpm++", "ddim", "tcd", "euler", "flow-euler")
"""Of lcm_arith.registry.recognise.SCHEDULERS, which a test compares."""


def _storable(text: str) -> str:
    """Without what a database refuses in a text: NUL, and halves of surrogate pairs."""
    return text.replace("\0", " ").encode("utf-8", "replace").decode()


def _value(said: Any) -> str:
    return str(said["value"]) if isinstance(said, Mapping) else ""


_TEXTS: Final = ("object", "data", "tensors", "dialect", "norm")
_MAPS: Final = (
    "network", "ranks", "alphas", "dtypes", "blocks", "guess", "facts", "made", "metadata",
    "source", "fingerprint",
)  # fmt: skip
_TYPES: Final[dict[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(_MAPS, dict),
    **dict.fromkeys(("bytes", "modules", "parameters"), int),
    "link": (str, type(None)),
}
DIGEST: Final = re.compile(r"[0-9a-f]{64}")
_SUFFIX: Final = re.compile(r"\.[a-z0-9]{1,12}")


def _is_preview(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"sha256", "suffix"}
        and bool(DIGEST.fullmatch(str(value["sha256"])))
        and bool(_SUFFIX.fullmatch(str(value["suffix"])))
    )


def check_settings(record: Record, values: Mapping[str, Any]) -> None:
    """Raises where a record cannot be what a user says of it.

    Raises:
        UsageError: If there is no such setting or kind, or the shapes fit no such family.
    """
    other = sorted(values.keys() - set(SETTINGS))
    if other:
        raise UsageError(f"{other[0]}: cannot be set", hint=f"one of {', '.join(SETTINGS)}")
    kind = values.get("kind")
    if kind is not None and kind not in KINDS:
        raise UsageError(f"{kind}: is no kind of vector", hint=f"one of {', '.join(KINDS)}")
    sampler = values.get("sampler")
    if sampler is not None and sampler not in SAMPLERS:
        raise UsageError(f"{sampler}: is no sampler", hint=f"one of {', '.join(SAMPLERS)}")
    family = values.get("family")
    fitting = [name for name, _ in record.families]
    if family is not None and fitting and family not in fitting:
        raise UsageError(
            f"{family}: its modules do not fit, they are of {' or '.join(fitting)}",
            hint="shapes outrank labels",
        )
