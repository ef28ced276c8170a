"""Diffusion transformers, Flux and SD3: their layers in two spellings, by rule.

Their publishers' code and diffusers name the same layers differently, and cut them differently:
Flux's ``double_blocks.0.img_attn.qkv`` is ``to_q``, ``to_k`` and ``to_v`` of diffusers'
``transformer_blocks.0.attn``, one below the other. Canonical modules keep the spelling of their
file, ``transformer.double_blocks.…`` or ``transformer.transformer_blocks.…``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

Shape = tuple[int, ...]

COMPONENT: Final = "transformer"
OWN: Final = "own"  # as the publisher's code, kohya and ComfyUI spell it
DIFFUSERS: Final = "diffusers"


@dataclass(frozen=True)
class Layer:
    """A layer of the publisher's code.

    Args:
        own: Its path there.
        parts: diffusers' paths of what it is made of, from the top row on.
        rows: Outputs of each part.
        inputs: Of all parts; of a convolution ``(in, kh, kw)``.
        swapped: Whether diffusers has its lower half (a scale) above its upper one (a shift).
    """

    own: str
    parts: tuple[str, ...]
    rows: tuple[int, ...]
    inputs: Shape
    swapped: bool = False


@dataclass(frozen=True)
class Size:
    """One published model.

    Args:
        width: Features of a token.
        blocks: Blocks of two streams, picture and text.
        single: Blocks of one stream.
        dual: The first blocks, whose picture stream has a second attention.
    """

    width: int
    blocks: int
    single: int = 0
    dual: int = 0


# Stream: diffusers' names of query, key, value, output, feed-forward and modulation.
_PICTURE: Final = ("to_q", "to_k", "to_v", "to_out.0", "ff", "norm1")
_TEXT: Final = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "ff_context",
                "norm1_context")  # fmt: skip


def _flux(size: Size) -> Iterator[Layer]:
    """Black Forest Labs' ``flux/model.py``."""
    h = size.width
    for at in range(size.blocks):
        to = f"transformer_blocks.{at}"
        for stream, (q, k, v, out, ff, norm) in (("img", _PICTURE), ("txt", _TEXT)):
            own = f"double_blocks.{at}.{stream}"
            qkv = tuple(f"{to}.attn.{part}" for part in (q, k, v))
            yield Layer(f"{own}_attn.qkv", qkv, (h, h, h), (h,))
            yield Layer(f"{own}_attn.proj", (f"{to}.attn.{out}",), (h,), (h,))
            yield Layer(f"{own}_mlp.0", (f"{to}.{ff}.net.0.proj",), (4 * h,), (h,))
            yield Layer(f"{own}_mlp.2", (f"{to}.{ff}.net.2",), (h,), (4 * h,))
            yield Layer(f"{own}_mod.lin", (f"{to}.{norm}.linear",), (6 * h,), (h,))
    for at in range(size.single):
        own, to = f"single_blocks.{at}", f"single_transformer_blocks.{at}"
        joined = tuple(f"{to}.{part}" for part in ("attn.to_q", "attn.to_k", "attn.to_v"))
        yield Layer(f"{own}.linear1", (*joined, f"{to}.proj_mlp"), (h, h, h, 4 * h), (h,))
        yield Layer(f"{own}.linear2", (f"{to}.proj_out",), (h,), (5 * h,))
        yield Layer(f"{own}.modulation.lin", (f"{to}.norm.linear",), (3 * h,), (h,))
    yield Layer("img_in", ("x_embedder",), (h,), (64,))
    yield Layer("txt_in", ("context_embedder",), (h,), (4096,))
    for own, to, width in (("time", "timestep", 256), ("vector", "text", 768),
                           ("guidance", "guidance", 256)):  # fmt: skip
        to = f"time_text_embed.{to}_embedder.linear"
        yield Layer(f"{own}_in.in_layer", (f"{to}_1",), (h,), (width,))
        yield Layer(f"{own}_in.out_layer", (f"{to}_2",), (h,), (h,))
    yield from _last(h)


def _sd3(size: Size) -> Iterator[Layer]:
    """Stability's ``mmditx.py``; in the last block the text stream ends at its attention."""
    h = size.width
    for at in range(size.blocks):
        to, ends = f"transformer_blocks.{at}", at == size.blocks - 1
        for stream, (q, k, v, out, ff, norm) in (("x", _PICTURE), ("context", _TEXT)):
            own, short = f"joint_blocks.{at}.{stream}_block", ends and stream == "context"
            qkv = tuple(f"{to}.attn.{part}" for part in (q, k, v))
            yield Layer(f"{own}.attn.qkv", qkv, (h, h, h), (h,))
            shifts = 2 if short else 9 if stream == "x" and at < size.dual else 6
            modulation = f"{own}.adaLN_modulation.1"
            yield Layer(modulation, (f"{to}.{norm}.linear",), (shifts * h,), (h,), short)
            if short:
                continue
            yield Layer(f"{own}.attn.proj", (f"{to}.attn.{out}",), (h,), (h,))
            yield Layer(f"{own}.mlp.fc1", (f"{to}.{ff}.net.0.proj",), (4 * h,), (h,))
            yield Layer(f"{own}.mlp.fc2", (f"{to}.{ff}.net.2",), (h,), (4 * h,))
            if shifts == 9:
                second = tuple(f"{to}.attn2.{part}" for part in (q, k, v))
                yield Layer(f"{own}.attn2.qkv", second, (h, h, h), (h,))
                yield Layer(f"{own}.attn2.proj", (f"{to}.attn2.{out}",), (h,), (h,))
    yield Layer("x_embedder.proj", ("pos_embed.proj",), (h,), (16, 2, 2))
    yield Layer("context_embedder", ("context_embedder",), (h,), (4096,))
    for own, to, width in (("t", "timestep", 256), ("y", "text", 2048)):
        to = f"time_text_embed.{to}_embedder.linear"
        yield Layer(f"{own}_embedder.mlp.0", (f"{to}_1",), (h,), (width,))
        yield Layer(f"{own}_embedder.mlp.2", (f"{to}_2",), (h,), (h,))
    yield from _last(h)


def _last(h: int) -> Iterator[Layer]:
    modulation = "final_layer.adaLN_modulation.1"
    yield Layer(modulation, ("norm_out.linear",), (2 * h,), (h,), swapped=True)
    yield Layer("final_layer.linear", ("proj_out",), (64,), (h,))


# Family → the rule of its layers, and its published sizes.
_MODELS: Final[Mapping[str, tuple[Callable[[Size], Iterator[Layer]], tuple[Size, ...]]]] = {
    "flux": (_flux, (Size(3072, 19, single=38),)),
    "sd3": (_sd3, (Size(1536, 24), Size(1536, 24, dual=13), Size(2432, 38))),
}
TRANSFORMERS: Final = tuple(_MODELS)


@cache
def layers(family: str) -> tuple[tuple[Layer, ...], ...]:
    """The layers of each published size."""
    rule, sizes = _MODELS[family]
    return tuple(tuple(rule(size)) for size in sizes)


def spelled(model: Iterable[Layer], spelling: str) -> dict[str, Shape]:
    """Canonical module → shape of its weight, of one size in one spelling."""
    shapes: dict[str, Shape] = {}
    for layer in model:
        names = (layer.own,) if spelling == OWN else layer.parts
        rows = (sum(layer.rows),) if spelling == OWN else layer.rows
        shapes |= {
            f"{COMPONENT}.{name}": (out, *layer.inputs)
            for name, out in zip(names, rows, strict=True)
        }
    return shapes


_NUMBERED: Final = re.compile(r"(?P<kind>\w*blocks)[._](?P<number>\d+)[._](?P<rest>[\w.]+)")


@cache
def _names() -> Mapping[str, Mapping[str, str]]:
    """Spelling → path with underscores → path; of blocks with a 0 for their number."""
    known: dict[str, dict[str, str]] = {OWN: {}, DIFFUSERS: {}}
    for family in TRANSFORMERS:
        for model in layers(family):
            for spelling, found in known.items():
                paths = (m.split(".", 1)[1] for m in spelled(model, spelling))
                found |= {_first(path).replace(".", "_"): _first(path) for path in paths}
    return known


def _first(path: str) -> str:
    """The path of the same layer in block 0."""
    block = _NUMBERED.fullmatch(path)
    return f"{block['kind']}.0.{block['rest']}" if block else path


def dotted(name: str) -> str | None:
    """The path that an underscored one stands for, in a block of any number; None if unknown."""
    block = _NUMBERED.fullmatch(name)
    first = f"{block['kind']}_0_{block['rest']}" if block else name
    path = next((found[first] for found in _names().values() if first in found), None)
    if path is None or block is None:
        return path
    return f"{block['kind']}.{block['number']}.{path.split('.', 2)[2]}"


def is_named(path: str, spelling: str) -> bool:
    """Whether a spelling has a layer of that path, in a block of any number."""
    first = _first(path)
    return _names()[spelling].get(first.replace(".", "_")) == first


@cache
def _tops() -> Mapping[str, frozenset[str]]:
    """Beginning of a path → the spellings that have it."""
    found: dict[str, set[str]] = {}
    for spelling, known in _names().items():
        for path in known.values():
            found.setdefault(path.partition(".")[0], set()).add(spelling)
    return {top: frozenset(own) for top, own in found.items()}


def spellings(path: str) -> frozenset[str]:
    """The spellings whose paths begin so; none where it is no path of these models."""
    return _tops().get(path.partition(".")[0], frozenset())


def spellings_of(modules: Iterable[str]) -> dict[str, str]:
    """Spelling → one of the modules that only it can have."""
    found: dict[str, str] = {}
    for module in modules:
        component, _, path = module.partition(".")
        own = spellings(path) if component == COMPONENT else frozenset()
        if len(own) == 1:
            found.setdefault(next(iter(own)), module)
    return found


RESPELL: Final = (
    "write both in one spelling; lcm-arith convert FILE --format diffusers respells Flux and SD3"
)


def two_spellings(found: Mapping[str, str]) -> str:
    """What to say of modules of both spellings: together they would be two halves of one model."""
    return (
        f"one model is spelled in two ways, {found[OWN]} as in its own code and "
        f"{found[DIFFUSERS]} as in diffusers"
    )
