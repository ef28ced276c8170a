"""report.html: what it holds, and what it does in a browser."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from browser import CHROMIUM, Page, browser
from gridded import METRICS, Tables, gridded
from hostile_strings import HOSTILE
from PIL import Image

from lcm_arith.evaluation.report import csv_bytes
from lcm_arith.evaluation.showing.album import thumbnail
from lcm_arith.evaluation.showing.page import MOST_BYTES, Facts, page
from lcm_arith.evaluation.showing.pareto import front
from lcm_arith.text import clean


def paged(made: Tables, **facts: Any) -> str:
    told = replace(
        Facts("noto + lcm", "pair_distance", ("The best is this.", "And more.")), **facts
    )
    shown = page(
        made.cells, made.images, made.comparisons, told,
        lambda path: thumbnail(made.pictures[path]),
    )  # fmt: skip
    return shown.decode()


class Read(HTMLParser):
    """Elements with their attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.raw: dict[str, str] = {}
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._inside = dict(attrs).get("id") or tag

    def handle_data(self, text: str) -> None:
        self.raw[self._inside] = self.raw.get(self._inside, "") + text

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    @property
    def data(self) -> Any:
        """What the page's script reads."""
        return json.loads(self.raw["data"])


# --- the file ----------------------------------------------------------------------------------


def test_the_page_asks_for_nothing_and_allows_its_own_script_alone() -> None:
    text = paged(gridded(), files=("cells.csv", "a b.csv"))
    assert not re.search(r"(?i)(https?|wss?|ftp):|url\(|@import|\beval\(|innerHTML", text)
    read = Read(text)
    links = [a.get("href") or a.get("src") for _, a in read.elements if "href" in a or "src" in a]
    assert links == ["data:,", "cells.csv", "a%20b.csv"]
    (policy,) = (
        a["content"] for _, a in read.elements if a.get("http-equiv") == "Content-Security-Policy"
    )
    digests = (hashlib.sha256(read.raw[kind].encode()).digest() for kind in ("style", "script"))
    style, script = (base64.b64encode(digest).decode() for digest in digests)
    assert policy == (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )


HOSTILE_TEXTS = (
    *HOSTILE.values(),
    "</script><script>window.hit=1</script>",
    "]]>--><!--<script>",
    "{{script}}{{data}}",
    "long " * 4_000,
)


@pytest.fixture(scope="module")
def hostile() -> str:
    made = gridded(prompts=HOSTILE_TEXTS, seeds=1, steps=(1,), style=HOSTILE_TEXTS[:3],
                   negative=HOSTILE_TEXTS[-5:-2])  # fmt: skip
    title, *rest = (text for text in HOSTILE_TEXTS)
    return paged(made, title=title, lines=rest, notes=rest, files=rest)


def test_hostile_texts_are_texts(hostile: str) -> None:
    read, plain = Read(hostile), Read(paged(gridded(), files=["x"], notes=["x"]))
    assert [t for t, _ in read.elements if t not in ("li", "a")] == [
        t for t, _ in plain.elements if t not in ("li", "a")
    ]
    assert not any(name.startswith("on") for _, attrs in read.elements for name in attrs)
    assert read.raw["script"] == plain.raw["script"]
    assert "\u2028" not in hostile
    assert "\u202e" not in hostile
    shown = [prompt for prompt, _ in read.data["items"]]
    assert shown == [clean(text, 400) for text in HOSTILE_TEXTS]


def test_every_number_of_the_page_is_that_of_the_tables() -> None:
    made = gridded(style=("noto", "twemoji"), left=1)
    cells = made.cells.assign(psnr=np.where(made.cells.role == "teacher", np.inf, made.cells.psnr))
    data = Read(paged(replace(made, cells=cells))).data
    written = pd.read_csv(io.BytesIO(csv_bytes(cells)))
    compared = pd.read_csv(io.BytesIO(csv_bytes(made.comparisons)))
    assert {one["key"] for one in data["metrics"]} == set(METRICS)
    for row, (_, line) in zip(data["rows"], written.iterrows(), strict=True):
        for metric in METRICS:
            expected = [line.get(metric + end, np.nan) for end in ("", "_lo", "_hi")]
            shown = [np.nan if x is None else float(x) for x in row["values"][metric]]
            np.testing.assert_array_equal(shown, expected)
        against = compared[compared.cell_id == line.cell_id].set_index("metric")
        assert set(row["against"]) == set(against.index)
        for metric, values in row["against"].items():
            names = ["diff", "lo", "hi", "p_holm", "p_better"]
            assert values == against.loc[metric, names].tolist()
        assert (row["nfe"], row["pictures"]) == (line.nfe, line.n_images)
        assert row["best"] == (line.in_best_set is True)
        if row["role"] == "cell":
            margin = written.iloc[[row["teacher"], row["control"]]]
            assert margin.role.tolist() == ["teacher", "control"]
            assert (margin["style"] == line["style"]).all()
            assert margin.nfe.iloc[1] == line.nfe


def test_a_hundred_cells_stay_under_five_megabytes_and_say_what_is_left_out() -> None:
    tenths = [f"{n / 10:g}" for n in range(1, 6)]
    made = gridded(prompts=[f"prompt {n}" for n in range(30)], seeds=2, side=0, same=1,
                   l1=tenths, l2=tenths, steps=(1, 2, 4, 8))  # fmt: skip
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).save(out, "PNG")
    small, asked = thumbnail(out.getvalue()), list[str]()

    def thumbnails(path: str) -> bytes:
        asked.append(path)
        return small

    facts = Facts("noto + lcm", "pair_distance")
    shown = page(made.cells, made.images, made.comparisons, facts, thumbnails)
    data = Read(shown.decode()).data
    assert MOST_BYTES * 0.97 < len(shown) < MOST_BYTES
    assert len(asked) == len(set(asked))
    assert len(data["items"]) == 60
    assert data["drawn"] == data["linked"] == 60 * len(made.cells)
    assert [seed for _, seed in data["items"]] == [0] * 30 + [1] * 30
    paths = made.images.set_index(["cell_id", "prompt", "seed"]).path
    for identity, pictures in zip(made.cells.cell_id, data["pictures"], strict=True):
        for (prompt, seed), (_, path, _) in zip(data["items"], pictures, strict=True):
            assert path == paths[identity, prompt, seed]
    inside = np.array([[place for place, _, _ in line] for line in data["pictures"]]) >= 0
    assert data["inside"] == inside.sum()
    whole = int(inside.all(axis=0).sum())
    assert inside[:, :whole].all()
    assert not inside[:, whole + 1 :].any()
    # Of the next one, margins and the likeliest cells; base and teacher share their pictures.
    likeliest = (
        made.cells.p_best.fillna(2).sort_values(ascending=False).index[: inside[:, whole].sum()]
    )
    assert set(np.flatnonzero(inside[:, whole])) == set(likeliest)
    assert len(data["thumbs"]) == data["inside"] - whole - 1


def test_a_thumbnail_is_the_picture_in_small() -> None:
    picture = Image.new("RGB", (512, 256), (200, 40, 90))
    out = io.BytesIO()
    picture.save(out, "PNG")
    with Image.open(io.BytesIO(thumbnail(out.getvalue()))) as small:
        assert (small.size, small.format) == ((128, 64), "WEBP")
        seen = np.asarray(small.convert("RGB")).reshape(-1, 3).mean(axis=0)
    assert seen == pytest.approx([200, 40, 90], abs=3)  # 8-bit YCbCr of a lossy format


# --- in a browser ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture(scope="module")
def made() -> Tables:
    """Of the two last cells one is not there, one could not be drawn."""
    made = gridded(seeds=8, style=("noto", "twemoji"), steps=(1, 2, 4), side=16, left=1)
    return replace(made, cells=made.cells.drop(index=made.cells.index[-2]).reset_index(drop=True))


@pytest.fixture(scope="module")
def shown(window: Page, made: Tables, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("grid") / "report.html"
    path.write_text(paged(made), encoding="utf-8")
    return path


@pytest.fixture
def opened(window: Page, shown: Path) -> Iterator[Page]:
    window.size(1280, 900)
    window.colours("light")
    window.open(shown)
    yield window
    assert window.complaints == []
    assert [url for url in window.requests if not url.startswith("data:")] == [shown.as_uri()]


def test_hostile_texts_do_nothing_in_a_browser(window: Page, hostile: str, tmp_path: Path) -> None:
    shown = tmp_path / "report.html"
    shown.write_text(hostile, encoding="utf-8")
    window.size(390, 844)
    window.open(shown)
    window.run("for (const one of document.querySelectorAll('#map td[data-row]')) one.click()")
    window.run("document.getElementById('album-all').click()")
    assert window.complaints == []
    assert {url.split(":")[0] for url in window.requests} <= {"file", "data"}
    assert window.run("window.hit === undefined && document.querySelectorAll('script').length") == 2
    assert window.run("document.querySelectorAll('#album > figure').length") == len(HOSTILE_TEXTS)
    assert window.run("document.documentElement.scrollWidth") <= 390


def choose(page: Page, name: str, text: str) -> None:
    """In one of the lists over the heat map."""
    page.run(
        f"(() => {{ const list = document.querySelector('[data-name=\"{name}\"]');"
        f"list.value = [...list.options].find(one => one.text.startsWith('{text}')).value;"
        "list.dispatchEvent(new Event('change')) })()"
    )


FOCUS = "document.activeElement.dataset.row ?? document.activeElement.id"


def test_the_keyboard_alone_goes_from_cell_to_pictures_and_back(opened: Page) -> None:
    for _ in range(20):
        opened.press("Tab")
        if opened.run("document.activeElement.tagName") == "TD":
            break
    opened.press("Home")
    first = opened.run(FOCUS)
    assert opened.run("document.getElementById('tip').hidden") is False
    opened.press("ArrowRight", "ArrowDown")
    at = opened.run("rows[document.activeElement.dataset.row].at.join()")
    start = opened.run(f"rows[{first}].at.join()")
    assert [int(b) - int(a) for a, b in zip(start.split(","), at.split(","), strict=True)][:2] == [
        1,
        1,
    ]
    here = opened.run(FOCUS)
    opened.press("Enter")
    assert opened.run(FOCUS) == "album-title"
    own, teacher = (
        opened.run(f"document.querySelector('#album .strip a:nth-child({n})').getAttribute('href')")
        for n in (1, 2)
    )
    assert own == opened.run(f"'./' + data.pictures[{here}][0][1]")
    assert teacher == opened.run(f"'./' + data.pictures[rows[{here}].teacher][0][1]")
    assert opened.run("[...document.images].every(one => one.complete && one.naturalWidth === 16)")
    opened.press("Escape")
    assert opened.run(FOCUS) == here


def test_the_heat_map_shows_the_numbers_of_the_table(opened: Page, made: Tables) -> None:
    cells = made.cells[made.cells.role == "cell"]
    choose(opened, "style", "noto")
    for metric in ("pair_distance", "luma_shift", "clip_frac"):
        choose(opened, "Metric", metric)
        shown = opened.run(
            "Object.fromEntries([...document.querySelectorAll('#map td[data-row]')].map(one =>"
            "[one.dataset.row, one.firstChild.data.replace('−', '-')]))"
        )
        noto = cells[cells["style"] == "noto"]
        assert {int(row): float(text) for row, text in shown.items()} == {
            row: float(f"{float(f'{value:.6g}'):.3g}") for row, value in noto[metric].items()
        }
    best = opened.run("[...document.querySelectorAll('#map td.best')].map(one => +one.dataset.row)")
    assert sorted(best) == noto.index[noto.in_best_set == True].tolist()  # noqa: E712


def test_axes_can_be_exchanged_and_a_cell_without_figures_says_why(opened: Page) -> None:
    choose(opened, "Panels", "style")
    assert opened.run("document.querySelectorAll('#map table').length") == 2
    choose(opened, "Across", "steps")
    choose(opened, "λ₂", "1")
    seen = opened.run(
        "[...document.querySelectorAll('#map td[data-row]')].map(one => rows[one.dataset.row].at)"
    )
    assert {tuple(at[:2]) for at in seen} == {(0, 1), (1, 1)}
    assert len(seen) == 2 * 3 * 2 - 1
    absent = "[...document.querySelectorAll('#map td.absent')]"
    assert opened.run(f"{absent}.map(one => one.textContent)") == ["·", "error"]
    opened.run(f"{absent}[1].click()")
    tiles = "[...document.querySelectorAll('#album .strip')].map(one => one.firstChild.textContent)"
    assert set(opened.run(tiles)) == {"errorthis cell"}


def test_the_front_of_the_page_is_the_column_pareto(opened: Page, made: Tables) -> None:
    for metric in ("pair_distance", "prompt_score", "sharp_ratio", "luma_shift", "clip_frac"):
        found = opened.run(
            "[0, 1].flatMap(group => front(cells.filter(row => row.group === group),"
            f"metrics.find(one => one.key === '{metric}')).map(row => row.index))"
        )
        assert sorted(found) == np.flatnonzero(front(made.cells, metric) == True).tolist()  # noqa: E712


def test_the_table_sorts_both_ways(opened: Page, made: Tables) -> None:
    rows = "[...document.querySelectorAll('#table tbody tr')].map(one => +one.dataset.row)"
    press = "document.querySelectorAll('#table thead button')[%d].click()"
    heads = opened.run(
        "[...document.querySelectorAll('#table thead button')].map(one => one.textContent)"
    )
    number = heads.index("ssim")
    opened.run(press % number)
    ordered = made.cells.ssim.dropna().sort_values().index.tolist()
    missing = made.cells.index[made.cells.ssim.isna()].tolist()
    assert opened.run(rows) == [*ordered, *missing]
    opened.run(press % number)
    assert opened.run(rows) == [*ordered[::-1], *missing]


def test_light_and_dark_follow_the_system_and_the_button(opened: Page) -> None:
    paper = "getComputedStyle(document.body).backgroundColor"
    light = opened.run(paper)
    opened.colours("dark")
    dark = opened.run(paper)
    assert light != dark
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) == light
    opened.run("document.getElementById('theme').click()")
    assert opened.run(paper) == dark


def test_a_phone_needs_no_scrolling_sideways(opened: Page) -> None:
    opened.size(390, 844)
    assert opened.run("document.documentElement.scrollWidth") <= 390
