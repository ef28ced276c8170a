"""What kind of vector a file holds, guessed from its name, its header, its card and its layers.

A guess is never silent: it comes with what speaks for it and how strongly. A row of
:data:`ACCELERATORS` is one published way of acceleration, with what its authors recommend.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lcm_arith.formats.opening import shown, strict_json
from lcm_arith.modules import BIAS, FAMILIES, GAIN, MAGNITUDE, table
from lcm_arith.registry.facts import TABLE, Facts, gather

KINDS: Final = ("acceleration", "style", "combined", "task", "unknown")
_MOST_NAME: Final = 300  # characters of a name, and _MOST_TAGS tags, that are looked at
_MOST_TAGS: Final = 50
COVERED: Final = 0.9
"""Share of a family's layers above which an adapter looks like an acceleration."""

# Sampler → diffusers' class and what differs from the base's configuration. The first five are
# those of lcm_arith.sampling, which imports torch.
SCHEDULERS: Final[dict[str, tuple[str, dict[str, Any]]]] = {
    "lcm": ("LCMScheduler", {}),
    "dpm++": ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing"}),
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "tcd": ("TCDScheduler", {}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {}),
}


@dataclass(frozen=True)
class Accelerator:
    """A published way of acceleration.

    Args:
        id: Its name here.
        pattern: What a name of it has; ``-`` stands for every separator, and between words.
        sampler: Of :data:`SCHEDULERS`.
        steps: Recommended, unless the name says (``8steps``).
        guidance: Recommended, diffusers' scale; 1 is none, where cards also write 0.
        weight: Recommended λ.
        source: Where that comes from.
        note: What else its authors say.
    """

    id: str
    pattern: str
    sampler: str
    steps: str
    guidance: str
    weight: str
    source: str
    note: str = ""


_HUB: Final = "https://huggingface.co/"
_HYPER: Final = f"{_HUB}ByteDance/Hyper-SD"
_PCM: Final = f"{_HUB}wangfuyun/PCM_Weights"
_XL: Final = r"sd-?(?:xl|15|1-5|2-1|21|3|v1-?5|xl-1-0)?"

# The first row that fits counts. "Not verified": the card was not at hand.
ACCELERATORS: Final = (
    Accelerator(
        "hyper-flux", r"hyper-flux", "flow-euler", "8", "3.5", "0.125", _HYPER, "8 or 16 steps"
    ),
    Accelerator(
        "hyper-sd3-cfg", r"hyper-sd-?3\b.*cfg", "flow-euler", "8", "5", "0.125", _HYPER,
        "guidance 3, 5, 7 at 4, 8, 16 steps",
    ),
    Accelerator(
        "hyper-sd-cfg", rf"hyper-{_XL}\b.*\bcfg\b", "ddim", "8", "5", "1", _HYPER,
        "keeps guidance: 5 to 8",
    ),
    Accelerator(
        "hyper-sd-1step", rf"hyper-{_XL}\b.*\b1-?steps?", "tcd", "1", "1", "1", _HYPER,
        "eta 1; also for 2 to 8 steps",
    ),
    Accelerator("hyper-sd", rf"hyper-{_XL}\b", "ddim", "4", "1", "1", _HYPER),
    # steps from the name; one step exists as a whole model only
    Accelerator(
        "sdxl-lightning",
        r"(?:sd-?xl-lightning|lightning.*\b[248]-?steps?|lightning-lora)",
        "euler", "4", "1", "1", f"{_HUB}ByteDance/SDXL-Lightning",
    ),
    Accelerator(
        "dmd2", r"dmd-?2(?![0-9])", "lcm", "4", "1", "1", f"{_HUB}tianweiy/DMD2",
        "timesteps 999, 749, 499, 249; less weight on fine-tuned bases",
    ),
    Accelerator(
        "pcm-normalcfg-4step", r"pcm\b.*normal-?cfg.*\b4-?steps?", "ddim", "4", "3", "1", _PCM,
        "guidance 2.5 to 3.5",
    ),
    Accelerator(
        "pcm-normalcfg", r"pcm\b.*normal-?cfg", "ddim", "8", "4.5", "1", _PCM, "guidance 3 to 6"
    ),
    Accelerator(
        "pcm-smallcfg", r"pcm\b.*small-?cfg", "ddim", "4", "1.5", "1", _PCM, "guidance 1 to 2"
    ),
    Accelerator("pcm-lcm-like", r"pcm\b.*lcm-?like", "lcm", "4", "1", "1", _PCM),
    Accelerator(
        "pcm", r"(?:pcm\b.*\b(?:sd-?xl|sd-?(?:v1-?5|15)|deterministic|stochastic|lora)"
        r"|phased-consistency)", "ddim", "4", "1.5", "1", _PCM, "not LCM's sampler",
    ),
    Accelerator(
        "tcd", r"(?:tcd\b.*\b(?:lora|sd-?xl|sd-?15|sd-?21)|trajectory-consistency|lora-tcd)",
        "tcd", "4", "1", "1", f"{_HUB}h1t/TCD-SDXL-LoRA", "eta 0.3, more at more steps",
    ),
    # Not verified: guidance; the card of RED-AIGC/TDD.
    Accelerator(
        "tdd", r"(?:sd-?xl-tdd|tdd-(?:sd-?xl|lora|flux))", "tcd", "4", "1.7", "1",
        f"{_HUB}RED-AIGC/TDD",
    ),
    # Not verified: steps and guidance of LoRAs that others took out of the whole models.
    Accelerator(
        "sdxl-turbo", r"(?:sd-?xl-turbo|turbo-(?:sd-?xl|xl))", "euler", "4", "1", "1",
        f"{_HUB}stabilityai/sdxl-turbo", "1 to 4 steps",
    ),
    Accelerator(
        "sd-turbo", r"(?:sd-turbo|sd-?2-?1?-turbo)", "euler", "4", "1", "1",
        f"{_HUB}stabilityai/sd-turbo", "1 to 4 steps",
    ),
    # Not verified: the card of alimama-creative.
    Accelerator(
        "flux-turbo", r"flux\b.*\bturbo-alpha", "flow-euler", "8", "3.5", "1",
        f"{_HUB}alimama-creative/FLUX.1-Turbo-Alpha",
    ),
    # Not verified: the cards of jasperai.
    Accelerator(
        "flash", r"(?:flash-(?:sd-?xl|sd3|sd|pixart)|flash-diffusion)\b", "lcm", "4", "1", "1",
        f"{_HUB}jasperai/flash-sdxl",
    ),
    Accelerator(
        "sdxl-flash", r"sd-?xl-flash", "dpm++", "7", "3", "0.55",
        f"{_HUB}sd-community/sdxl-flash-lora",
    ),
    Accelerator(
        "nitro", r"nitro-?(?:sd|fusion)", "lcm", "1", "1", "1", f"{_HUB}ChenDY/NitroFusion",
        "1 to 4 steps with shifted timesteps, which no sampler here has",
    ),
    # Not verified: the card of hansyan; it is rectified flow in pieces with a scheduler of its own.
    Accelerator(
        "perflow", r"perflow", "euler", "4", "4.5", "1", f"{_HUB}hansyan/perflow-sd15-dreamshaper"
    ),
    Accelerator(
        "lcm",
        r"(?:(?<![^ ])lcm\b|lcm-?lora\b|lora-lcm\b|sd-?(?:xl|15|v1-?5)-lcm\b|animate-?lcm\b"
        r"|latent-consistency\b)", "lcm", "4", "1", "1",
        f"{_HUB}latent-consistency/lcm-lora-sdxl", "2 to 8 steps; guidance 1 to 2",
    ),
)  # fmt: skip
# Words that alone prove nothing: a storm of lightning, a turbo engine → what they may mean.
_WEAK: Final = {
    "lightning": "sdxl-lightning",
    "turbo": "sdxl-turbo",
    "hyper": "hyper-sd",
    "flash": "flash",
    "dmd": "dmd2",
    "tcd": "tcd",
    "pcm": "pcm",
    "lcm": "lcm",
}
_BY_ID: Final = {row.id: row for row in ACCELERATORS}


@dataclass(frozen=True)
class Outline:
    """The layers of an adapter.

    Args:
        family: Its base family, if one fits.
        modules: Canonical names of its targets.
        text_encoder: Whether it has any of a text encoder.
    """

    family: str | None
    modules: frozenset[str]
    text_encoder: bool


@dataclass(frozen=True)
class Guess:
    """An assumption with its reasons.

    Args:
        kind: Of :data:`KINDS`.
        accelerator: Which, of an acceleration, if it can be told.
        sampler: Recommended, of :data:`SCHEDULERS`; empty where nothing is.
        steps: Recommended.
        guidance: Recommended, diffusers' scale.
        weight: Recommended λ.
        evidence: What speaks for it and against it; weak signs begin with ``weak:``.
        source: Where the recommendation comes from.
        declared: Whether the file itself says its kind; all else is assumed.
    """

    kind: str
    accelerator: str | None = None
    sampler: str = ""
    steps: str = ""
    guidance: str = ""
    weight: str = ""
    evidence: tuple[str, ...] = ()
    source: str = ""
    declared: bool = False

    def as_json(self) -> dict[str, Any]:
        """JSON-ready values without those that are empty."""
        values = {name: value for name, value in vars(self).items() if value}
        return {**values, "evidence": list(self.evidence)}

    def facts(self) -> Facts:
        """The recommendation, to be merged with what was really said: that counts more."""
        names = ("sampler", "steps", "guidance", "weight")
        return gather([(n, getattr(self, n)) for n in names], f"{TABLE} {self.source}".strip())


@dataclass(frozen=True)
class _Sign:
    points: int
    text: str
    id: str = ""


# Points of the signs; two make an acceleration.
_ENOUGH, _STRONG, _FAINT = 2, 2, 1


def guess_kind(
    name: str,
    outline: Outline | None,
    metadata: Mapping[str, str],
    facts: Facts,
) -> Guess:
    """The kind of a vector and how to use it.

    Args:
        name: Of the file.
        outline: Its layers; None where they were not read.
        metadata: Of its header.
        facts: What is said of it.
    """
    declared = _declared(metadata)
    signs = [*_of_names(name, metadata, facts), *_of_layers(outline), *_of_triggers(facts)]
    evidence = tuple(f"weak: {s.text}" if abs(s.points) <= _FAINT else s.text for s in signs)
    if declared:
        own = "lcm" if declared == "acceleration" else None
        return _guess(declared, own, (f"its header says {declared}",), declared=True)
    points = sum(sign.points for sign in signs)
    if points >= _ENOUGH:
        named = max((s for s in signs if s.id), key=lambda s: s.points, default=None)
        steps = _steps(name) or _steps(metadata.get("ss_output_name", ""))
        return _guess("acceleration", named.id if named else None, evidence, steps=steps)
    if outline is None and not signs:
        return Guess("unknown", evidence=("nothing is known of its layers",))
    return _guess("style", None, evidence or ("nothing speaks for an acceleration",))


def _guess(
    kind: str,
    id: str | None,
    evidence: tuple[str, ...],
    *,
    steps: str = "",
    declared: bool = False,
) -> Guess:
    row = _BY_ID.get(id or "")
    if row is None:
        return Guess(kind, None, evidence=evidence, declared=declared)
    return Guess(
        kind, row.id, row.sampler, steps or row.steps, row.guidance, row.weight,
        evidence + ((row.note,) if row.note else ()), row.source, declared,
    )  # fmt: skip


def _declared(metadata: Mapping[str, str]) -> str | None:
    """The kind that this package wrote into the file."""
    try:
        own = strict_json(metadata.get("lcm_arith", "{}"))
    except (ValueError, RecursionError):
        return None  # facts.from_header notes that it cannot be read
    kind = own.get("kind") if isinstance(own, dict) else None
    return kind if kind in KINDS else None


_CAMEL: Final = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


def words(text: str) -> str:
    """A name in small letters, ``-`` between its words: ``LCMTurboMix_v1`` → ``lcm-turbo-mix-v1``.

    Where capitals part words the name stands there twice, once without.
    """
    text = text[:_MOST_NAME]
    parted = re.sub(r"[^a-z0-9]+", "-", _CAMEL.sub("-", text).lower()).strip("-")
    whole = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return whole if parted == whole else f"{whole} {parted}"


def accelerator_of(text: str) -> Accelerator | None:
    """The row that a name surely speaks of."""
    plain = words(text)
    return next((r for r in ACCELERATORS if re.search(rf"(?<![a-z0-9]){r.pattern}", plain)), None)


_WHEN_STEPS: Final = re.compile(r"(?<![a-z0-9])(\d{1,2})-?steps?\b")


def _steps(text: str) -> str:
    found = _WHEN_STEPS.search(words(text))
    return found[1] if found else ""


def _of_names(name: str, metadata: Mapping[str, str], facts: Facts) -> Iterator[_Sign]:
    """One strong sign at most, from a name; else one weak sign, from a word."""
    title = facts.title.value if facts.title else ""
    names = {
        "its name": Path(name).name.removesuffix(".safetensors"),
        "ss_output_name": metadata.get("ss_output_name", ""),
        "modelspec.title": metadata.get("modelspec.title", ""),
        "its title": title,
    }
    for where, text in names.items():
        row = accelerator_of(text)
        if row:
            yield _Sign(_STRONG, f"{where} says {row.id} ({shown(text, 60)})", row.id)
            return
    # The label of a base or a tag may only say what a style is to be used with.
    labels = {"its base's label": facts.base.value if facts.base else ""}
    labels |= {f"tag {i + 1}": tag.value for i, tag in enumerate(facts.tags[:_MOST_TAGS])}
    for where, text in {**names, **labels}.items():
        for word, id in _WEAK.items():
            if re.search(rf"(?<![a-z0-9]){word}(?![a-z0-9])", words(text)):
                yield _Sign(_FAINT, f"{where} has the word {word} ({shown(text, 60)})", id)
                return


def _of_layers(outline: Outline | None) -> Iterator[_Sign]:
    if outline is None:
        return
    if outline.text_encoder:
        yield _Sign(-_STRONG, "it changes a text encoder, which no acceleration does")
    if outline.family not in FAMILIES:
        return
    whole, broad = coverage(outline)
    said = f"{whole:.0%} of the UNet's layers, {broad:.0%} of its convolutions and time embeddings"
    if min(whole, broad) >= COVERED:
        yield _Sign(_STRONG, f"it changes {said}; a style that was trained on all looks the same")
    else:
        yield _Sign(0, f"it changes {said}; accelerations change nearly all")


def _of_triggers(facts: Facts) -> Iterator[_Sign]:
    said = [s for s in facts.triggers if s.source.startswith(("user", "card", "header modelspec"))]
    if said:
        yield _Sign(-_FAINT, f"it has a trigger ({shown(said[0].value, 60)}), as styles do")


def coverage(outline: Outline) -> tuple[float, float]:
    """Shares of a family's layers that an adapter changes: of all, and of those beside attention.

    All are the 278, 423 or 788 layers of SD1.5, SSD-1B and SDXL that LCM-LoRA adapts; those beside
    attention are convolutions and time embeddings, which few styles touch.
    """
    if outline.family not in FAMILIES:
        raise ValueError(f"{outline.family}: no table of layers")
    layers = layers_of(outline.family)
    beside = {m for m in layers if "conv" in m or m.endswith("time_emb_proj")}
    own = {m for m in outline.modules if not m.endswith((BIAS, GAIN, MAGNITUDE))}
    return len(own & layers) / len(layers), len(own & beside) / len(beside)


def layers_of(family: str) -> frozenset[str]:
    """The layers in the blocks of a family's UNet; norms and what is outside of blocks are none."""
    return frozenset(
        module
        for module, shape in table(family).items()
        if len(shape) > 1 and re.match(r"unet\.(?:down_blocks|mid_block|up_blocks)\.", module)
    )
