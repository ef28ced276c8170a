"""Keys of adapter files in every dialect → (canonical module, part).

A key is a stem, which names the module, and a suffix, which names the part (``down``, ``alpha`` …).
Dotted stems are canonical but for their prefix; underscored ones (kohya, with diffusers' or with
Stability's block names) and numbered ones (cloneofsimo) are looked up in the families' tables.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Final

from lcm_arith import dit
from lcm_arith.modules import (
    BIAS,
    FAMILIES,
    PUBLISHED,
    sgm_names,
    spellings,
    table,
    with_text_model,
)

# Suffix → (part, dialect), tried in this order; {0} is the stem.
_SUFFIXES: Final = tuple(
    (re.compile(rf"(?P<stem>.+){pattern}"), part)
    for pattern, part in (
        (r"\.lora_A(?:\.\w+)?\.weight", "down"),
        (r"\.lora_B(?:\.\w+)?\.weight", "up"),
        (r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?", "magnitude"),
        (r"(?:\.|_)lora_down\.weight", "down"),
        (r"(?:\.|_)lora_up\.weight", "up"),
        (r"\.lora_mid\.weight", "mid"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight", "down"),
        (r"(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight", "up"),
        (r":down", "down"),
        (r":up", "up"),
        (r"(?:\.|_lora\.)alpha", "alpha"),
        (r"\.dora_scale", "dora_scale"),
        (r"\.(?P<part>hada_(?:w[12]_[ab]|t[12]))", ""),
        (r"\.(?P<part>lokr_(?:w[12](?:_[ab])?|t2))", ""),
        (r"\.diff", "diff"),
        (r"\.diff_b", "bias"),
        (r"\.w_norm", "diff"),
        (r"\.b_norm", "bias"),
    )
)
# Kinds that cannot be summed as updates of weights, known by their parts.
REFUSED: Final = {
    r".*\.lora_B(?:\.\w+)?\.bias": "LoRA with trained biases (lora_bias)",
    r".*\.(?:oft_\w+|lora_ortho\w*|boft_\w+)(?:\..*)?": "OFT",
    r".*\.(?:ia3_l.*|on_input)": "IA3",
    r".*\.(?:a1|a2|b1|b2|c1)\.weight": "GLoRA",
    r".*\.vera_lambda_.*": "VeRA",
    r".*\.(?:bundle_emb.*|string_to_param.*|emb_params)": "a textual inversion",
}
_REFUSED: Final = re.compile("|".join(REFUSED))
_EMBEDDING: Final = re.compile(r"<[^<>]{1,64}>")
_ATTENTION_TYPES: Final = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Sorted:
    """The keys of one file.

    Args:
        parts: Canonical module → part → key.
        embeddings: Keys of token embeddings of a textual inversion.
        refused: Key → the kind of adapter it belongs to, which is none of ours.
        unknown: Keys that map to nothing.
    """

    parts: Mapping[str, Mapping[str, str]]
    embeddings: tuple[str, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    unknown: tuple[str, ...] = ()
    twice: tuple[str, ...] = ()


def sort_keys(keys: Iterable[str]) -> Sorted:
    """Every key of a file in its place; none is dropped."""
    parts: dict[str, dict[str, str]] = {}
    embeddings, refused, unknown, twice = [], {}, [], []
    for key in keys:
        if _EMBEDDING.fullmatch(key):
            embeddings.append(key)
            continue
        if _REFUSED.fullmatch(key):
            refused[key] = next(kind for own, kind in REFUSED.items() if re.fullmatch(own, key))
            continue
        found = split(key)
        if found is None:
            unknown.append(key)
        elif found[1] in parts.setdefault(found[0], {}):
            twice.append(key)
        else:
            parts[found[0]][found[1]] = key
    return Sorted(parts, tuple(embeddings), refused, tuple(unknown), tuple(twice))


@lru_cache(2**15)
def split(key: str) -> tuple[str, str] | None:
    """(canonical module or bias, part) of one key; None where it maps to nothing."""
    for pattern, part in _SUFFIXES:
        match = pattern.fullmatch(key)
        if match:
            module = canonical(match["stem"])
            if module is not None and part == "bias":
                return module + BIAS, "diff"
            return None if module is None else (module, part or match["part"])
    return None


# Prefix → what it stands for, longest first; "" is looked up as a bare path of the UNet.
_PREFIXES: Final = (
    ("unet.base_model.model.", "unet."),
    ("base_model.model.unet.", "unet."),
    ("base_model.model.text_model.", "text_encoder.text_model."),
    ("base_model.model.encoder.layers.", "text_encoder.text_model.encoder.layers."),
    ("base_model.model.", "unet."),
    ("text_encoders.clip_l.transformer.", "text_encoder."),
    ("text_encoders.clip_h.transformer.", "text_encoder."),
    ("text_encoders.clip_g.transformer.", "text_encoder_2."),
    ("text_encoder_2.", "text_encoder_2."),
    ("text_encoder.", "text_encoder."),
    ("unet.", "unet."),
    ("transformer.base_model.model.", "transformer."),
    ("transformer.", "transformer."),
)
_PATH: Final = re.compile(r"[A-Za-z0-9_]+(?:\.[A-Za-z0-9_]+)*")
_UNET_TOP: Final = re.compile(
    r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|time_embedding)\b"
)


def canonical(stem: str) -> str | None:
    """The canonical module that a stem names, or None."""
    if ":" in stem:
        return _numbered().get(stem)
    if stem.startswith(("lora_unet_", "lora_te", "lora_transformer_")):
        found = _underscored().get(stem.replace("lora_unet_unet_", "lora_unet_", 1))
        return found or _of_transformer(_UNDERSCORED.sub("", stem), dit.dotted)
    if stem.startswith("diffusion_model."):
        path = stem.removeprefix("diffusion_model.")
        return _dotted_sgm().get(path) or _of_transformer(path, _known_top)
    bare = _of_transformer(stem.removeprefix("base_model.model."), _known_top)
    if bare is not None:
        return bare
    for prefix, component in _PREFIXES:
        if stem.startswith(prefix):
            return _tidy(component, stem.removeprefix(prefix))
    return _tidy("unet.", stem) if _UNET_TOP.match(stem) else None


_UNDERSCORED: Final = re.compile(r"^lora_(?:unet|transformer)_")


def _of_transformer(name: str, path_of: Callable[[str], str | None]) -> str | None:
    """The module of Flux or SD3 that a name without its prefix stands for."""
    path = path_of(name)
    return None if path is None else _tidy(f"{dit.COMPONENT}.", path)


def _known_top(path: str) -> str | None:
    return path if dit.spellings(path) else None


_OLD_TEXT_ATTENTION: Final = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out": "out_proj",
    "to_out.0": "out_proj",
}


def _tidy(component: str, path: str) -> str | None:
    """The names of today, and ``text_model.`` in those of a text encoder.

    Old diffusers' attention processors left out the output layer's number, and it named the layers
    of the text encoders' attention like the UNet's.
    """
    path = path.replace(".processor.", ".")
    block, attention, layer = path.rpartition(".self_attn.")
    if attention and layer in _OLD_TEXT_ATTENTION:
        path = block + attention + _OLD_TEXT_ATTENTION[layer]
    elif path.endswith(".to_out"):
        path += ".0"
    return with_text_model(f"{component}{path}") if _PATH.fullmatch(path) else None


@cache
def _underscored() -> Mapping[str, str]:
    """All families' kohya names; equal names mean equal modules everywhere."""
    merged: dict[str, str] = {}
    for family in FAMILIES:
        for name, module in spellings(family).items():
            if merged.setdefault(name, module) != module:
                raise ValueError(f"{name} is {merged[name]} and {module}")
    return merged


@cache
def _dotted_sgm() -> Mapping[str, str]:
    """ComfyUI's names without ``diffusion_model.``."""
    return {path: module for family in PUBLISHED for module, path in sgm_names(family).items()}


@cache
def _numbered() -> Mapping[str, str]:
    """Cloneofsimo's ``unet:N`` and ``text_encoder:N`` of SD1.5: places in the walk of 2022.

    Then a transformer block held attn1, ff, attn2 in this order, and CLIP's attention k, v, q, out.
    """
    blocks, layers = [], []
    for module in table("sd15"):
        if module.endswith(".attn1.to_q"):
            blocks.append(module.removesuffix(".attn1.to_q"))
        elif module.endswith(".self_attn.k_proj"):
            layers.append(module.removesuffix(".k_proj"))
    kinds = (
        *(f"attn1.{t}" for t in _ATTENTION_TYPES),
        "ff.net.0.proj",
        *(f"attn2.{t}" for t in _ATTENTION_TYPES),
    )
    unet = [f"{block}.{kind}" for block in blocks for kind in kinds]
    text = [f"{at}.{p}" for at in layers for p in ("k_proj", "v_proj", "q_proj", "out_proj")]
    return {f"unet:{i}": m for i, m in enumerate(unet)} | {
        f"text_encoder:{i}": m for i, m in enumerate(text)
    }


# Dialect → what one of its keys looks like, in the order in which they are tried.
_DIALECTS: Final = (
    ("cloneofsimo", re.compile(r"\w+:\d+:(?:up|down)")),
    ("kohya-sgm", re.compile(r"lora_unet_(?:input|middle|output)_block.*")),
    ("kohya", re.compile(r"lora_(?:unet|transformer|te\d?)_.*")),
    ("comfy", re.compile(r"(?:diffusion_model|text_encoders)\..*")),
    ("diffusers-scripts", re.compile(r"unet\.base_model\.model\..*")),
    ("peft", re.compile(r"base_model\.model\..*")),
    ("diffusers", re.compile(r"(?:unet|transformer|text_encoder(?:_2)?)\..+\.lora_[AB]\b.*")),
    ("old diffusers", re.compile(r".*lora.*\.(?:up|down)\.weight")),
)


def dialect(keys: Iterable[str]) -> str:
    """The dialects of a file's keys, joined by + where there are several."""
    found: dict[str, None] = {}
    for key in keys:
        name = next((name for name, form in _DIALECTS if form.fullmatch(key)), None)
        if name:
            found[name] = None
    return " + ".join(found) or "unknown"
