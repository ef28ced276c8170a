"""The model card, ``README.md`` of an exported vector: written, and read where others wrote one.

Everything in it may come from strangers, so every text passes :func:`lcm_arith.text.markdown`, the
front matter is written by YAML's own writer, and the code block holds JSON strings and checked
numbers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.formats.opening import strict_yaml
from lcm_arith.modules import EMBEDDED
from lcm_arith.registry.facts import CARD, Facts, decimal_text, gather
from lcm_arith.registry.licences import of_text
from lcm_arith.registry.recognise import SCHEDULERS
from lcm_arith.registry.rights import SEVERAL, Parent, blocks_push, hub_licence, union
from lcm_arith.text import clean, markdown

_TAGS: Final = ("text-to-image", "diffusers", "lora", "template:sd-lora", "lcm-arith")
# Family → its tag on the hub.
_FAMILY_TAGS: Final = {
    "sd15": "stable-diffusion",
    "sd2": "stable-diffusion",
    "ssd1b": "stable-diffusion-xl",
    "sdxl": "stable-diffusion-xl",
    "flux": "flux",
    "sd3": "sd3",
}
_MOST_SHORT: Final = 200  # characters of a name
_MOST_DESCRIPTION: Final = 2_000
_MOST_BODY: Final = 16_384  # characters of others' cards that are kept


@dataclass(frozen=True, kw_only=True)
class Ingredient:
    """A vector that another was made of.

    Args:
        name: Its title.
        weight: λ, a decimal string, or SEVERAL.
        digest: sha256 of its file, if known.
        licence: As it is named; empty is unknown.
        author: Who made it.
        url: Where it comes from.
    """

    name: str
    weight: str
    digest: str = ""
    licence: str = ""
    author: str = ""
    url: str = ""


@dataclass(frozen=True, kw_only=True)
class CardValues:
    """What a card says.

    Args:
        title: For people.
        kind: acceleration, style, combined …
        family: Base family; a row of :mod:`lcm_arith.families`.
        base: Name of the base model on the hub, or a folder.
        repository: Where diffusers finds it: a name on the hub, or a folder.
        file: Name of its file there.
        description: A paragraph.
        author: Who made it.
        digest: sha256 of the file.
        licence: Of this vector, as its author names it; empty where only the parents' are known.
        triggers: Words that the prompt needs.
        negative_prompt: Recommended.
        weight: Recommended λ, a decimal string.
        sampler: Of :data:`lcm_arith.registry.recognise.SCHEDULERS`; empty is the base's own.
        steps: Recommended; empty is the pipeline's own.
        guidance: Recommended, diffusers' scale; empty is the pipeline's own.
        webui: Whether the file is for A1111 and its like.
        made_of: Its parents.
        tags: More keywords.
    """

    title: str
    kind: str = "unknown"
    family: str = ""
    base: str = ""
    repository: str = "."
    file: str = "pytorch_lora_weights.safetensors"
    description: str = ""
    author: str = ""
    digest: str = ""
    licence: str = ""
    triggers: tuple[str, ...] = ()
    negative_prompt: str = ""
    weight: str = "1"
    sampler: str = ""
    steps: str = ""
    guidance: str = ""
    webui: bool = False
    made_of: tuple[Ingredient, ...] = ()
    tags: tuple[str, ...] = ()


def card(values: CardValues) -> str:
    """The README.md of a vector.

    Raises:
        UsageError: If the weight, steps or guidance is no number, or the sampler unknown.
    """
    parts = (_intro, _use, _made_of, _licence)
    body = "\n\n".join("\n\n".join(part(values)) for part in parts)
    return f"---\n{_front_matter(values)}---\n\n{body}\n"


def _front_matter(values: CardValues) -> str:
    import yaml

    family = _FAMILY_TAGS.get(values.family)
    more = (clean(tag, 60) for tag in (*((family,) if family else ()), values.kind, *values.tags))
    fields: dict[str, Any] = {
        "base_model": clean(values.base, _MOST_SHORT),
        "instance_prompt": clean(", ".join(values.triggers), _MOST_SHORT),
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": list(dict.fromkeys((*_TAGS, *filter(None, more)))),
        **hub_licence(union(_parents(values))),
    }
    # A value stays on its line, for readers that are no YAML parsers.
    return yaml.safe_dump(
        {name: value for name, value in fields.items() if value},
        sort_keys=True,
        allow_unicode=True,
        width=2**32,
    )


def _intro(values: CardValues) -> Iterator[str]:
    yield f"# {_short(values.title) or 'A vector'}"
    if values.description:
        yield markdown(values.description, _MOST_DESCRIPTION)
    base = _short(values.base) or _short(values.family) or "an unknown base model"
    yield f"A LoRA of the kind {_short(values.kind)}, for {base}."
    if values.author:
        yield f"By {_short(values.author)}."
    if values.triggers:
        yield "Trigger words:"
        yield "\n".join(f"- {_short(trigger)}" for trigger in values.triggers)


def _use(values: CardValues) -> Iterator[str]:
    yield "## Use"
    if values.webui:
        word = f"<lora:{Path(values.file).stem}:{_number('weight', values.weight) or '1'}>"
        yield (
            f"In A1111, Forge and their like: put {_short(values.file)} into models/Lora and write "
            f"{_short(word)} into the prompt. In diffusers:"
        )
    yield f"```python\n{code(values)}\n```"
    said = [("weight", values.weight), ("sampler", values.sampler), ("steps", values.steps),
            ("guidance scale", values.guidance)]  # fmt: skip
    yield "Recommended: " + ", ".join(f"{name} {_short(text)}" for name, text in said if text) + "."


def code(values: CardValues) -> str:
    """Lines of Python that draw a picture with diffusers.

    Raises:
        UsageError: As :func:`card`.
    """
    if values.sampler and values.sampler not in SCHEDULERS:
        raise UsageError(
            f"sampler {clean(values.sampler, 40)!r} is unknown",
            hint=f"one of {', '.join(SCHEDULERS)}",
        )
    scheduler, options = SCHEDULERS.get(values.sampler, ("", {}))
    names = ", ".join(filter(None, ("AutoPipelineForText2Image", scheduler)))
    call = {
        "prompt": _text(", ".join((*values.triggers, "a photo of a cat"))),
        "negative_prompt": _text(values.negative_prompt) if values.negative_prompt else "",
        "num_inference_steps": _number("steps", values.steps),
        "guidance_scale": _number("guidance", values.guidance),
    }
    weight = _number("weight", values.weight) or "1"
    ours = values.family == EMBEDDED and not values.base
    base = "str(files.MODEL)" if ours else _text(values.base or "the base model")
    lines = [
        "import torch",
        f"from diffusers import {names}",
        *(["from lcm_arith.embedded import files"] if ours else []),
        "",
        f"base = {base}",
        "pipeline = AutoPipelineForText2Image.from_pretrained(base, torch_dtype=torch.float16)",
        'pipeline.to("cuda")',
        f"pipeline.load_lora_weights({_text(values.repository)}, "
        f'weight_name={_text(values.file)}, adapter_name="vector")',
        f'pipeline.set_adapters("vector", {weight})',
    ]
    if scheduler:
        more = "".join(f", {name}={value!r}" for name, value in options.items())
        lines.append(
            f"pipeline.scheduler = {scheduler}.from_config(pipeline.scheduler.config{more})"
        )
    lines += ["image = pipeline(", *(f"    {n}={v}," for n, v in call.items() if v), ").images[0]"]
    return "\n".join(lines)


def _text(value: str) -> str:
    """A Python string on one line: ASCII, so that nothing in it can end the code block."""
    return json.dumps(clean(value, 1_000))


def _number(name: str, value: str) -> str:
    if not value:
        return ""
    try:
        number = decimal_text(value)
        return str(int(number)) if name == "steps" else number
    except ValueError:
        raise UsageError(f"{name} {clean(value, 40)!r}: a number is needed") from None


def _made_of(values: CardValues) -> Iterator[str]:
    if values.made_of:
        yield "## Made of"
        rows = ["| vector | λ | sha256 | licence |", "| --- | --- | --- | --- |"]
        for part in values.made_of:
            cells = (part.name, _weight(part.weight), part.digest, _named(part.licence))
            rows.append(f"| {' | '.join(map(_short, cells))} |")
        yield "\n".join(rows)
    if values.digest:
        yield f"sha256 of this file: {_short(values.digest)}"


def is_mixed(made_of: Sequence[Ingredient]) -> bool:
    """Whether a vector differs from the one that it was made of, if it was one."""
    return len(made_of) > 1 or any(part.weight == SEVERAL for part in made_of)


def _weight(value: str) -> str:
    """A weight as it was given; a hostile one stays visible as text."""
    try:
        return decimal_text(value)
    except ValueError:
        return value


def _named(licence: str) -> str:
    return of_text(licence).name if licence else "unknown"


def _parents(values: CardValues) -> list[Parent]:
    """Whose licences hold: the parents', and that of the vector itself where it has one."""
    parents = [
        Parent(p.name, of_text(p.licence or "unknown"), p.author, p.url) for p in values.made_of
    ]
    if values.licence or not parents:
        own = of_text(values.licence or "unknown")
        parents.append(Parent(values.title, own, values.author))
    return parents


def _licence(values: CardValues) -> Iterator[str]:
    effective = union(_parents(values), mixed=is_mixed(values.made_of))
    yield "## Licence"
    terms = effective.terms.words()
    asks = ", ".join(terms) if terms else "nothing that is known"
    yield f"The licences of this vector and of what it was made of ask together for: {asks}."
    if effective.unknown:
        yield "At least one of them is not known, and may ask for more."
    for reason in blocks_push(effective):
        yield f"Beware: {markdown(reason)}."
    if effective.attributions:
        yield "\n".join(f"- {markdown(line, 600)}" for line in effective.attributions)


def _short(text: str) -> str:
    return markdown(text, _MOST_SHORT)


_FRONT: Final = re.compile(
    r"\s*---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE
)
_HEADING: Final = re.compile(r"^#[ \t]+(?P<title>.+)$", re.MULTILINE)
_NOTHING: Final = ("", "null", "~", "none")


def read_card(text: str) -> Facts:
    """What a model card says; the source is ``card``.

    Args:
        text: Of README.md, with or without YAML at its beginning.

    Raises:
        InvalidContentError: If its YAML cannot be read, uses aliases, or has values of a wrong
            type.
    """
    front = _FRONT.match(text)
    try:
        fields = strict_yaml(front["yaml"]) if front else {}
        if fields in ("", None):
            fields = {}
        if not isinstance(fields, dict):
            raise ValueError("is no list of names and values")
        rows = [*_of_fields(fields), *_of_inference(fields.get("inference"))]
    except (ValueError, RecursionError) as error:
        raise InvalidContentError(
            f"the YAML at the top of the model card cannot be read: {error}",
            hint="correct it, or leave it unread with --no-sidecars",
        ) from None
    body = text[front.end() :] if front else text
    heading = _HEADING.search(body)
    if heading:
        rows.append(("title", heading["title"].rstrip(" \t\r#")))
    rows.append(("description", body.strip()[:_MOST_BODY]))
    return gather(rows, CARD)


def _of_fields(fields: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, field in (("instance_prompt", "triggers"), ("base_model", "base"), ("tags", "tags")):
        yield from ((field, text) for text in _texts(fields, name))
    licences = [t for n in ("license", "license_name", "license_link") for t in _texts(fields, n)]
    telling = [text for text in licences if text.lower() not in ("other", "unknown")]
    yield from (("licence", text) for text in (telling or licences)[:1])
    for example in _list(fields, "widget"):
        output = example.get("output") if isinstance(example, dict) else None
        if isinstance(output, dict):
            yield from (("previews", text) for text in _texts(output, "url"))


def _of_inference(inference: Any) -> Iterator[tuple[str, str]]:
    """``inference: parameters:`` of older cards."""
    parameters = inference.get("parameters") if isinstance(inference, dict) else None
    if not isinstance(parameters, dict):
        return
    for name, field in (("num_inference_steps", "steps"), ("guidance_scale", "guidance")):
        yield from ((field, decimal_text(text)) for text in _texts(parameters, name))
    yield from (("negative_prompt", text) for text in _texts(parameters, "negative_prompt"))


def _texts(fields: dict[str, Any], name: str) -> list[str]:
    texts = _list(fields, name)
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{name} is neither a text nor a list of texts")
    return [text for text in texts if text.strip().lower() not in _NOTHING]


def _list(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    return value if isinstance(value, list) else [] if value is None else [value]
