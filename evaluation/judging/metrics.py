"""The metrics of a grid: one table, from which columns, directions and docs/metrics.md come."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final, Literal

import numpy as np

from lcm_arith.errors import UsageError
from lcm_arith.evaluation.judging import pixels
from lcm_arith.evaluation.judging.pixels import Values
from lcm_arith.evaluation.judging.references import References
from lcm_arith.evaluation.judging.sample import Sample

Better = Literal["high", "low", "one", "zero", "teacher", "none"]
"""Which values are better; ``teacher``: those near the teacher's own."""
Needs = Literal["nothing", "caption", "truth", "teacher", "references", "unstyled"]
Judge = Literal["", "embedded", "clip", "dino", "pickscore", "aesthetic"]
"""What a metric reads beside pixels; but for the first two, fields of ``judges.Judges`` that
options name. The embedded judge stands in for ``clip`` on the embedded base."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A column of the tables.

    Args:
        name: Of the column.
        function: Its values, ``[n]``, or one number where ``per`` is cell.
        per: picture (``images.csv``, and the mean in ``cells.csv``) or cell.
        needs: What a picture is compared with.
        better: Which values are better.
        judge: What it reads beside pixels.
        meaning: Its definition, and where it is empty.
        source: Where it is from.
        since: Version of the CSV's columns that brought it; newer columns stand behind.
    """

    name: str
    function: Callable[[Sample], Any]
    per: Literal["picture", "cell"]
    needs: Needs
    better: Better
    judge: Judge
    meaning: str
    source: str = ""
    since: int = 2


def _judged(name: str, *, judge: Judge = "clip", **said: Any) -> Metric:
    return Metric(name, attrgetter(name), "picture", judge=judge, since=1, **said)


def _true(name: str, *, judge: Judge = "embedded", **said: Any) -> Metric:
    return Metric(name, lambda s: s.judged[name], "picture", "truth", judge=judge, since=1, **said)


def _newer(name: str, needs: Needs, better: Better, judge: Judge, meaning: str, source: str,
           per: Literal["picture", "cell"] = "picture") -> Metric:  # fmt: skip
    return Metric(name, attrgetter(name), per, needs, better, judge, meaning, source, since=3)


_ROWS: Final = (
    _judged(
        "prompt_score", needs="caption", better="high",
        meaning="cosine of a picture and its caption",
        source="Radford and others 2021",
    ),
    _judged(
        "retrieval_top1", needs="caption", better="high",
        meaning="share of pictures whose own caption has the highest cosine: a shipped caption "
        "among all shipped ones, another among those of the grid; empty where that has one",
    ),
    _true(
        "style_accuracy", better="high",
        meaning="share of pictures whose set a probe names right: multinomial logistic "
        "regression (Gaussian kernel) on the judge's picture embedding, fitted to every shipped "
        "set passed through the VAE; empty without a style",
    ),
    _true(
        "pair_distance", better="low",
        meaning="1 − cosine to the nearest true picture of that caption in that style",
    ),
    _judged(
        "teacher_distance", needs="teacher", better="low",
        meaning="1 − cosine to the teacher's picture",
    ),
    _true(
        "sharp_ratio", better="one", judge="",
        meaning="mean squared difference of neighbouring pixels, over the mean of the true "
        "pictures",
    ),
    Metric(
        "diversity", lambda s: s.diversity, "cell", "truth", "one", "embedded",
        "mean 1 − cosine between seeds of one caption, over the same among the true pictures "
        "(ratio of the two means); empty with one seed",
        since=1,
    ),
    Metric(
        "ssim", lambda s: pixels.ssim(s.pixels, s.other.pixels), "picture", "teacher", "high", "",
        "structural similarity to the teacher's picture, −1 to 1, mean of the three channels: "
        "Gaussian window of 11 px, σ 1.5 px, wholly inside the picture, K₁ 0.01, K₂ 0.03; empty "
        "below 11 px",
        "Wang and others 2004",
    ),
    Metric(
        "psnr", lambda s: pixels.psnr(s.pixels, s.other.pixels), "picture", "teacher", "high", "",
        "10 log₁₀(255² / mean squared difference from the teacher's picture), dB; `inf` where "
        "both are equal, as of the teacher itself (`null` in JSON)",
    ),
    Metric(
        "luma_shift", lambda s: pixels.luma_shift(s.light, s.other.light), "picture",
        "teacher", "zero", "",
        "mean L* (CIE 1976, D65) minus that of the teacher's picture, −100 to 100; above 0 is "
        "lighter",
        "CIE 15:2004",
    ),
    Metric(
        "contrast_ratio", lambda s: pixels.contrast_ratio(s.light, s.other.light),
        "picture", "teacher", "one", "",
        "standard deviation of L* over that of the teacher's picture; empty where that is of one "
        "lightness",
        "Peli 1990 (RMS contrast)",
    ),
    Metric(
        "clip_frac", lambda s: pixels.clip_frac(s.pixels), "picture", "nothing", "teacher", "",
        "share of pixels of which a channel is 0 or 255; drawings on white have many",
    ),
    Metric(
        "color_swd", lambda s: s.against_references(References.colour_distance), "cell",
        "references", "low", "",
        "sliced Wasserstein-1 between the pixels of all pictures and those of the references, in "
        "L*a*b*: mean over 64 fixed directions, positions rounded to 0.25; a shift of all "
        "colours by d is about d / 2",
        "Bonneel and others 2015",
    ),
    Metric(
        "texture_swd", lambda s: s.against_references(References.texture_distance), "cell",
        "references", "low", "",
        "sliced Wasserstein-1 between patches of 7 × 7 px, 128 a picture at fixed places of each "
        "level of a Laplacian pyramid down to 16 px, mean over 64 fixed directions and the "
        "levels, in standard deviations of the references' patches; empty below 7 px",
        "Karras and others 2018, with the references' spread for both sets, so that blur counts",
    ),
    Metric(
        "cmmd_u", lambda s: s.cmmd_u, "cell",
        "teacher", "low", "clip",
        "1000 × unbiased MMD² to the teacher's pictures on the judge's embeddings, Gaussian "
        "kernel of σ 10; about 0 (below it by chance) for equal distributions; empty under 32 "
        "pictures",
        "Jayasumana and others 2024; Gretton and others 2012, eq. 4",
    ),
    _newer(
        "cmmd_n", "teacher", "none", "clip",
        "pictures of each of the two sets that `cmmd_u` is of", "", per="cell",
    ),
    _newer(
        "style_cos", "references", "high", "clip",
        "cosine to the normalised mean of the references' embeddings; empty below 5 references, "
        "and where shipped drawings are of several sets",
        "Somepalli and others 2024 (style similarity to a mean, there by CSD)",
    ),
    _newer(
        "style_gain", "unstyled", "high", "clip",
        "`style_cos` minus that of the picture of equal prompt and seed without the style vector: "
        "of the row that differs in λ1 = 0 alone if the grid has it, else of the base",
        "",
    ),
    _newer(
        "ref_nn_cos", "references", "teacher", "dino",
        "cosine to the nearest reference; near 1 is a copy, not a style",
        "Somepalli and others 2023",
    ),
    _newer(
        "teacher_dino", "teacher", "high", "dino",
        "cosine to the teacher's picture",
        "Oquab and others 2024",
    ),
    _newer(
        "teacher_rel", "teacher", "high", "dino",
        "(`teacher_dino` − b) / (1 − b), b the mean cosine between the teacher's pictures of two "
        "seeds of that caption: 0 is as like as another seed, 1 is equal; empty with one seed",
        "",
    ),
    _newer(
        "pickscore", "caption", "high", "pickscore",
        "cosine of a picture and its caption by PickScore, times its exp(logit_scale) (100 as "
        "published)",
        "Kirstain and others 2023",
    ),
    _newer(
        "aesthetic", "nothing", "high", "aesthetic",
        "LAION's head on CLIP ViT-L/14: a rating of 1 to 10, whatever the caption",
        "Schuhmann and others 2022, improved-aesthetic-predictor",
    ),
)  # fmt: skip
METRICS: Final = {row.name: row for row in _ROWS}


def names(*, per: str | None = None, since: int | None = None) -> tuple[str, ...]:
    """Metrics of a kind and of a version of the columns, in the order of the table."""
    return tuple(row.name for row in _ROWS if per in (None, row.per) and since in (None, row.since))


PICTURE_METRICS: Final = names(per="picture")
BETTER: Final = {row.name: row.better for row in _ROWS}
DECIDING: Final = ("pair_distance", "prompt_score", "ssim")
"""What the best control and, where nobody says otherwise, the best cell are found by: the first
that all have. Measured whatever was chosen."""


def deciding(values: Callable[[str], Values]) -> str:
    """The first of :data:`DECIDING` that all pictures have; ``values`` gives those of all rows.

    One that some prompts lack would decide by the others alone.
    """
    return next((name for name in DECIDING if np.isfinite(values(name)).all()), DECIDING[-1])


_ENDS: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(("retrieval_top1", "style_accuracy", "clip_frac"), (0, 1)),
    **dict.fromkeys(("prompt_score", "style_cos", "teacher_dino", "ref_nn_cos", "ssim"), (-1, 1)),
    **dict.fromkeys(("pair_distance", "teacher_distance"), (0, 2)),
    **dict.fromkeys(("style_gain",), (-2, 2)),
    **dict.fromkeys(("sharp_ratio", "contrast_ratio", "psnr"), (0, np.inf)),
    "luma_shift": (-100, 100),
}


def ends(name: str) -> tuple[float, float]:
    """Lowest and highest value that a metric can have."""
    return _ENDS.get(name, (-np.inf, np.inf))


def measure(
    sample: Sample, chosen: Collection[str] = tuple(METRICS)
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Metrics of each picture, ``[n]``, and those of the whole cell; NaN if not chosen."""
    empty = np.full(len(sample.pixels), np.nan)
    of_pictures, of_cell = {}, {}
    for metric in _ROWS:
        asked = metric.name in chosen or metric.name in DECIDING
        if metric.per == "picture":
            of_pictures[metric.name] = metric.function(sample) if asked else empty
        else:
            of_cell[metric.name] = float(metric.function(sample)) if asked else float("nan")
    return of_pictures, of_cell


REFUSED: Final = {
    "fid": "on fewer than 2,048 pictures a cell FID's covariance of 2,048 features has not full "
    "rank and its value is far too high; and its Inception network is not shipped",
    "kid": "its Inception network is not shipped",
    "lpips": "its network is not shipped",
    "clipscore": "it is 100 × prompt_score, and 0 where that is negative",
}
_INSTEAD: Final = {"fid": "cmmd_u", "kid": "cmmd_u", "lpips": "teacher_distance",
                   "clipscore": "prompt_score"}  # fmt: skip


def choose(text: str, option: str = "--metrics") -> tuple[str, ...]:
    """Metrics that a comma-separated list names, in the order of the table.

    Args:
        text: The list.
        option: What the errors call it.

    Raises:
        UsageError: If a name is unknown, or that of a metric that is refused.
    """
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name.lower() in REFUSED:
            raise UsageError(
                f"{option} {name}: {REFUSED[name.lower()]}",
                hint=f"take {_INSTEAD[name.lower()]} instead",
            )
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 3)
            raise UsageError(
                f"{option} {name!r}: no such metric",
                hint=f"did you mean {', '.join(near)}?" if near else f"one of {', '.join(METRICS)}",
            )
    return tuple(name for name in METRICS if name in asked)
