"""Hostile texts and the model card: on no way out does a stranger's text do anything."""

from __future__ import annotations

import ast
import csv
import html
import io
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile_strings import HOSTILE
from markdown_it import MarkdownIt
from rich.console import Console
from rich.text import Text

from lcm_arith import text
from lcm_arith.errors import InvalidContentError, UsageError
from lcm_arith.formats import opening
from lcm_arith.registry.card import CardValues, Ingredient, card, code, read_card
from lcm_arith.registry.recognise import SCHEDULERS

EACH = pytest.mark.parametrize("bad", HOSTILE.values(), ids=HOSTILE)


def draws_only(line: str) -> bool:
    """Whether nothing in a line steers a terminal: no control, format, surrogate or line end."""
    return not any(unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") for c in line)


@EACH
def test_a_clean_text_is_one_line_that_steers_no_terminal(bad: str) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system="truecolor", width=10_000)
    console.print(Text(text.clean(bad)))
    printed = out.getvalue()
    assert printed.endswith("\n")
    assert draws_only(printed[:-1])
    assert printed.encode()


def test_clean_keeps_what_can_be_read() -> None:
    assert text.clean("\x1b[31mred\x1b[0m") == "[31mred[0m"
    assert text.clean("a\u202eb\u200bc\n\n d") == "abc d"
    assert text.clean("Tiếng Việt, ภาษาไทย น้ำ, اردو") == "Tiếng Việt, ภาษาไทย น้ำ, اردو"
    assert text.clean("[link=file:///x]y[/link]") == "[link=file:///x]y[/link]"
    assert text.clean("n" * 50, 10) == "n" * 9 + "…"
    assert text.clean("\x00" * 1_000_000 + "x", 10) == "…"
    assert len(text.clean(HOSTILE["combining marks"])) == 1 + 4 + len("algo")


@EACH
def test_a_cell_is_no_formula_and_comes_back_whole(bad: str) -> None:
    out = io.StringIO()
    csv.writer(out).writerow([text.csv_cell(bad), "next"])
    stored = out.getvalue().encode()  # a lone surrogate would raise here
    rows = list(csv.reader(io.StringIO(stored.decode(), newline="")))
    assert rows[0][1] == "next"
    cell = rows[0][0]
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d"))
    assert "\0" not in cell
    harmless = bad.replace("\0", "").encode("utf-8", "replace").decode()
    assert cell.removeprefix("'") == harmless.removeprefix("'")


def test_numbers_stay_numbers_in_a_cell() -> None:
    assert [text.csv_cell(t) for t in ("-0.5", "+1e-3", "12", "-x", "", "x=1", "\u200b=1")] == [
        "-0.5",
        "+1e-3",
        "12",
        "'-x",
        "",
        "x=1",
        "'\u200b=1",
    ]


@EACH
def test_a_file_name_is_a_plain_file_in_its_folder(bad: str, tmp_path: Path) -> None:
    name = text.file_name(bad)
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(b"x")
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.safetensors"]
    assert path.resolve().parent == tmp_path.resolve()
    assert draws_only(name)
    assert not set(name) & set('/\\:*?"<>|')
    assert not name.startswith((".", "-"))
    assert not name.endswith((".", " "))
    assert len(name.encode()) <= 200
    stem = name.split(".")[0].upper()
    assert stem not in {"CON", "PRN", "AUX", "NUL"}
    assert not (stem[:3] in {"COM", "LPT"} and stem[3:].isdigit())


def test_file_names_stay_readable() -> None:
    assert text.file_name("My Style v1.2") == "My-Style-v1.2"
    assert text.file_name("../../etc/passwd") == "etc-passwd"
    assert text.file_name("lpt1.txt") == "lpt1_.txt"
    assert text.file_name("con") == "con_"
    assert text.file_name("COM\u00b9") == "COM1_"
    assert text.file_name("/.") == "unnamed"
    assert text.file_name("語" * 300) == "語" * 66


MARKDOWN = MarkdownIt("commonmark", {"html": True}).enable("table")


def tokens(page: str) -> list[Any]:
    """All tokens of a page, those inside of lines too."""
    found = []
    for token in MARKDOWN.parse(page):
        found += [token, *(token.children or [])]
    return found


@EACH
def test_escaped_markdown_is_text_and_nothing_else(bad: str) -> None:
    for page in (text.markdown(bad), f"- {text.markdown(bad)}"):
        kinds = {token.type for token in tokens(page)}
        item = {"bullet_list_open", "list_item_open", "list_item_close", "bullet_list_close"}
        allowed = {"paragraph_open", "paragraph_close", "inline", "text", "text_special"}
        assert kinds <= (allowed | item if page.startswith("- ") else allowed)
    shown = "".join(t.content for t in tokens(text.markdown(bad)) if t.type == "text")
    assert shown == text.clean(bad)


@EACH
def test_escaped_markdown_is_harmless_html_too(bad: str) -> None:
    written = text.markdown(bad)
    assert not set(written) & set("<>\"'")
    assert html.unescape(written).replace("\\", "") == text.clean(bad).replace("\\", "")


def hostile_card(bad: str) -> CardValues:
    parent = Ingredient(name=bad, weight=bad, digest=bad, licence=bad, author=bad, url=bad)
    return CardValues(
        title=bad,
        kind=bad,
        family=bad,
        base=bad,
        repository=bad,
        file=bad,
        description=bad,
        author=bad,
        digest=bad,
        licence=bad,
        triggers=(bad,),
        negative_prompt=bad,
        weight="0.8",
        sampler="lcm",
        steps="4",
        guidance="1.5",
        made_of=(parent, parent),
        tags=(bad,),
    )


@EACH
def test_a_card_of_hostile_texts_has_the_shape_of_any_card(bad: str) -> None:
    def shape(page: str) -> list[str]:
        plain = ("text", "text_special", "inline")
        return [t.type for t in tokens(page.split("---\n\n", 1)[1]) if t.type not in plain]

    page = card(hostile_card(bad))
    assert page.encode()
    assert draws_only(page.replace("\n", ""))
    good = shape(card(hostile_card("word")))
    bare = [kind for kind in good if kind not in ("paragraph_open", "paragraph_close")]
    assert [k for k in shape(page) if k not in ("paragraph_open", "paragraph_close")] == bare
    assert not {"html_block", "html_inline", "link_open", "image"} & set(shape(page))


@EACH
def test_the_front_matter_of_a_hostile_card_holds_its_texts_as_texts(bad: str) -> None:
    front = card(hostile_card(bad)).split("---\n")[1]
    fields = yaml.safe_load(front)
    known = {"base_model", "instance_prompt", "library_name", "license", "license_name",
             "pipeline_tag", "tags"}  # fmt: skip
    assert fields.keys() <= known
    assert fields["license"] == "unknown"
    assert fields.get("instance_prompt", "") == text.clean(bad, 200)
    assert all(isinstance(tag, str) for tag in fields["tags"])


@EACH
def test_the_code_of_a_hostile_card_is_the_same_calls_with_other_strings(bad: str) -> None:
    def skeleton(source: str) -> str:
        tree = ast.parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                node.value = ""
        return ast.dump(tree)

    def filled(triggers: str) -> CardValues:
        values = vars(hostile_card(triggers))
        return CardValues(**{**values, "negative_prompt": triggers or "x", "base": triggers or "x"})

    assert skeleton(code(filled(bad))) == skeleton(code(filled("word")))


def test_a_card_says_how_to_use_the_vector() -> None:
    values = CardValues(
        title="Fluffy, fast",
        kind="combined",
        family="sdxl",
        base="stabilityai/stable-diffusion-xl-base-1.0",
        repository="someone/fluffy-fast",
        triggers=("fluffy style",),
        weight="0.9",
        sampler="euler",
        steps="4",
        guidance="1",
        made_of=(
            Ingredient(
                name="fluffy", weight="0.8", digest="ab" * 32, licence="CC BY 4.0", author="Al"
            ),
            Ingredient(name="lcm", weight="1.0", licence="openrail++"),
        ),
    )
    page = card(values)
    assert yaml.safe_load(page.split("---\n")[1]) == {
        "base_model": "stabilityai/stable-diffusion-xl-base-1.0",
        "instance_prompt": "fluffy style",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "other",
        "license_name": "several-see-below",
        "tags": [
            "text-to-image",
            "diffusers",
            "lora",
            "template:sd-lora",
            "lcm-arith",
            "stable-diffusion-xl",
            "combined",
        ],
    }
    assert f"| fluffy | 0.8 | {'ab' * 32} | CC BY 4.0 |" in page
    assert "- fluffy by Al\\: CC BY 4.0" in page
    assert "ask together for: attribution, use-restrictions." in page
    calls = {
        ast.unparse(node)
        for node in ast.walk(ast.parse(code(values)))
        if isinstance(node, ast.Call)
    }
    assert "pipeline.set_adapters('vector', 0.9)" in calls
    assert (
        "EulerDiscreteScheduler.from_config(pipeline.scheduler.config, timestep_spacing='trailing')"
        in calls
    )
    assert (
        "pipeline(prompt='fluffy style, a photo of a cat', num_inference_steps=4, guidance_scale=1)"
        in calls
    )


def test_a_card_reads_back() -> None:
    facts = read_card(card(hostile_card("word")))
    assert [s.value for s in facts.triggers] == ["word"]
    assert facts.title is not None
    assert facts.title.value == "word"
    assert facts.base is not None
    assert (facts.base.value, facts.base.source) == ("word", "card")
    assert "template:sd-lora" in {tag.value for tag in facts.tags}


def test_a_card_refuses_what_is_no_number_and_no_sampler() -> None:
    for field, value in (("weight", "a lot"), ("steps", "1e9999"), ("guidance", "nan"),
                         ("sampler", "__import__('os')")):  # fmt: skip
        with pytest.raises(UsageError, match=field):
            code(CardValues(title="x", **{field: value}))  # type: ignore[arg-type]


def test_samplers_are_those_of_sampling_and_of_diffusers() -> None:
    import diffusers

    from lcm_arith.sampling import SAMPLERS

    for name, row in SAMPLERS.items():
        assert SCHEDULERS[name] == (row.scheduler, row.options)
    assert all(hasattr(diffusers, scheduler) for scheduler, _ in SCHEDULERS.values())


def test_a_card_of_others_is_read() -> None:
    facts = read_card(
        "---\nlicense: other\nlicense_name: faipl-1.0-sd\nbase_model:\n- a/b\n- c/d\n"
        "instance_prompt: null\ntags: [lora, lcm]\nwidget:\n- text: x\n  output:\n    url: 1.png\n"
        "inference:\n  parameters:\n    num_inference_steps: 7\n    guidance_scale: 3\n"
        "    negative_prompt: blurry\n---\n# A title #\n\nText.\n"
    )
    assert facts.licence is not None
    assert facts.licence.value == "faipl-1.0-sd"
    assert facts.base is not None
    assert facts.base.value == "a/b"
    assert facts.triggers == ()
    assert [s.value for s in facts.previews] == ["1.png"]
    assert facts.steps is not None
    assert facts.steps.value == "7"
    assert facts.negative_prompt is not None
    assert facts.negative_prompt.value == "blurry"
    assert facts.title is not None
    assert facts.title.value == "A title"


BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{b}: &{b} [{','.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED_YAML = {
    "alias bomb": (BOMB, "alias"),
    "nested lists": ("[" * 5_000 + "]" * 5_000, "levels"),
    "nested mappings": ("{a: " * 2_000 + "}" * 2_000, "levels"),
    "too many values": ("- x\n" * 20_000, "10000 values"),
    "too long": ("# x\n" * 100_000, "256 KiB"),
    "a name twice": ("license: mit\nlicense: other\n", "license"),
    "a list as a key": ("? [a]\n: b\n", "unhashable"),
    "open quote": ("a: 'b\n", "unexpected end|end of"),
    "control": ("a: \x07\n", "special characters"),
    "tab": ("a:\n\t- b\n", "cannot start"),
    "number for a prompt": ("instance_prompt: {a: b}\n", "instance_prompt"),
    "a list": ("- a\n", "names and values"),
    "no number of steps": ("inference: {parameters: {num_inference_steps: many}}\n", "no number"),
    "endless guidance": ("inference: {parameters: {guidance_scale: 1e999999}}\n", "digits"),
}


@pytest.mark.parametrize(("front", "why"), REFUSED_YAML.values(), ids=REFUSED_YAML)
def test_hostile_yaml_is_refused_with_our_words(front: str, why: str) -> None:
    with pytest.raises(InvalidContentError, match=why) as caught:
        read_card(f"---\n{front}\n---\n# x\n")
    assert "--no-sidecars" in caught.value.hint


def test_yaml_tags_and_types_come_out_as_text() -> None:
    values = opening.strict_yaml("a: !!python/object/apply:os.system ['x']\nb: 0x1F\nc: no\nd: ~\n")
    assert values == {"a": ["x"], "b": "0x1F", "c": "no", "d": "~"}


@EACH
def test_a_prompt_that_others_wrote_well_is_kept_as_it_is(bad: str) -> None:
    front = yaml.safe_dump({"instance_prompt": bad.encode("utf-8", "replace").decode()})
    said = [s.value for s in read_card(f"---\n{front}---\n").triggers]
    kept = bad.encode("utf-8", "replace").decode().strip()
    assert said == ([kept] if kept else [])


@EACH
def test_hostile_text_in_place_of_yaml_is_no_trigger(bad: str) -> None:
    try:
        facts = read_card(f"---\n{bad}\n---\n")
    except InvalidContentError:
        facts = None
    assert facts is None or facts.triggers == ()
