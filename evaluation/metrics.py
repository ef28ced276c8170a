"""The metrics of a grid: one table, from which columns, directions and docs/metrics.md come."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, Literal

import numpy as np

from lcm_arith.errors import UsageError
from lcm_arith.evaluation import mmd, pixels
from lcm_arith.evaluation.pixels import Pixels, Values
from lcm_arith.evaluation.references import References
from lcm_arith.evaluation.yardstick import Yardstick


@dataclass(eq=False)
class Sample:
    """Pictures of one row of a grid, and what they are measured against.

    Args:
        pixels: uint8 ``[captions · seeds, H, W, 3]``, caption by caption.
        captions: Of the grid.
        yardstick: Judge, probe and true pictures.
        references: Of the style; None leaves the metrics that need them NaN.
        teacher: The same prompts and seeds by the teacher; None measures the teacher itself.
    """

    pixels: Pixels
    captions: tuple[str, ...]
    yardstick: Yardstick
    references: References | None = None
    teacher: Sample | None = None

    @cached_property
    def prompts(self) -> list[str]:
        """Caption of each picture."""
        seeds = len(self.pixels) // len(self.captions)
        return [caption for caption in self.captions for _ in range(seeds)]

    @property
    def other(self) -> Sample:
        """What counts as the teacher."""
        return self.teacher or self

    @cached_property
    def embeddings(self) -> np.ndarray:
        """The judge's, unit rows ``[n, d]``."""
        return self.yardstick.judge.embed_pictures(self.pixels)

    @cached_property
    def judged(self) -> dict[str, np.ndarray]:
        """Metrics of the yardstick."""
        return self.yardstick.metrics_of(
            self.pixels, self.embeddings, self.prompts, self.other.embeddings
        )

    @cached_property
    def lightness(self) -> Values:
        """L*, ``[n, H, W]``."""
        return pixels.lightness(self.pixels)

    @property
    def diversity(self) -> float:
        """Of the seeds of a caption, over that of its true pictures."""
        rows = self.embeddings.reshape(len(self.captions), -1, self.embeddings.shape[1])
        return self.yardstick.diversity(rows, self.captions)

    def against_references(self, distance: Callable[[References, Pixels], float]) -> float:
        """A distance of all pictures whose captions the references show; NaN without any."""
        if self.references is None:
            return float("nan")
        shown = self.references.captions
        use = [shown is None or prompt in shown for prompt in self.prompts]
        return distance(self.references, self.pixels[use]) if any(use) else float("nan")


Better = Literal["high", "low", "one", "zero", "teacher"]
"""Which values are better; ``teacher``: those near the teacher's own."""


@dataclass(frozen=True, eq=False)
class Metric:
    """A column of the tables.

    Args:
        name: Of the column.
        function: Its values, ``[n]``, or one number where ``per`` is cell.
        per: picture (``images.csv``, and the mean in ``cells.csv``) or cell.
        needs: What a picture is compared with.
        better: Which values are better.
        tier: 0 without weights, 1 with the judge.
        meaning: Its definition, and where it is empty.
        source: Where it is from.
        since: Version of the CSV's columns that brought it; newer columns stand behind.
    """

    name: str
    function: Callable[[Sample], Any]
    per: Literal["picture", "cell"]
    needs: Literal["nothing", "caption", "truth", "teacher", "references"]
    better: Better
    tier: Literal[0, 1]
    meaning: str
    source: str = ""
    since: int = 2


def _judged(name: str, *, tier: Literal[0, 1] = 1, **said: Any) -> Metric:
    return Metric(name, lambda s: s.judged[name], "picture", tier=tier, since=1, **said)


_ROWS: Final = (
    _judged(
        "prompt_score", needs="caption", better="high",
        meaning="cosine of a picture and its caption",
    ),
    _judged(
        "retrieval_top1", needs="caption", better="high",
        meaning="share of pictures whose own caption has the highest cosine among all shipped "
        "captions",
    ),
    _judged(
        "style_accuracy", needs="truth", better="high",
        meaning="share of pictures whose set a probe names right: multinomial logistic "
        "regression (Gaussian kernel) on the judge's picture embedding, fitted to every shipped "
        "set passed through the VAE; empty without a style",
    ),
    _judged(
        "pair_distance", needs="truth", better="low",
        meaning="1 − cosine to the nearest true picture of that caption in that style",
    ),
    _judged(
        "teacher_distance", needs="teacher", better="low",
        meaning="1 − cosine to the teacher's picture",
    ),
    _judged(
        "sharp_ratio", needs="truth", better="one", tier=0,
        meaning="mean squared difference of neighbouring pixels, over the mean of the true "
        "pictures",
    ),
    Metric(
        "diversity", lambda s: s.diversity, "cell", "truth", "one", 1,
        "mean 1 − cosine between seeds of one caption, over the same among the true pictures "
        "(ratio of the two means); empty with one seed",
        since=1,
    ),
    Metric(
        "ssim", lambda s: pixels.ssim(s.pixels, s.other.pixels), "picture", "teacher", "high", 0,
        "structural similarity to the teacher's picture, −1 to 1, mean of the three channels: "
        "Gaussian window of 11 px, σ 1.5 px, wholly inside the picture, K₁ 0.01, K₂ 0.03; empty "
        "below 11 px",
        "Wang and others 2004",
    ),
    Metric(
        "psnr", lambda s: pixels.psnr(s.pixels, s.other.pixels), "picture", "teacher", "high", 0,
        "10 log₁₀(255² / mean squared difference from the teacher's picture), dB; `inf` where "
        "both are equal, as of the teacher itself (`null` in JSON)",
    ),
    Metric(
        "luma_shift", lambda s: pixels.luma_shift(s.lightness, s.other.lightness), "picture",
        "teacher", "zero", 0,
        "mean L* (CIE 1976, D65) minus that of the teacher's picture, −100 to 100; above 0 is "
        "lighter",
        "CIE 15:2004",
    ),
    Metric(
        "contrast_ratio", lambda s: pixels.contrast_ratio(s.lightness, s.other.lightness),
        "picture", "teacher", "one", 0,
        "standard deviation of L* over that of the teacher's picture; empty where that is of one "
        "lightness",
        "Peli 1990 (RMS contrast)",
    ),
    Metric(
        "clip_frac", lambda s: pixels.clip_frac(s.pixels), "picture", "nothing", "teacher", 0,
        "share of pixels of which a channel is 0 or 255; drawings on white have many",
    ),
    Metric(
        "color_swd", lambda s: s.against_references(References.colour_distance), "cell",
        "references", "low", 0,
        "sliced Wasserstein-1 between the pixels of all pictures and those of the references, in "
        "L*a*b*: mean over 64 fixed directions, positions rounded to 0.25; a shift of all "
        "colours by d is about d / 2",
        "Bonneel and others 2015",
    ),
    Metric(
        "texture_swd", lambda s: s.against_references(References.texture_distance), "cell",
        "references", "low", 0,
        "sliced Wasserstein-1 between patches of 7 × 7 px, 128 a picture at fixed places of each "
        "level of a Laplacian pyramid down to 16 px, mean over 64 fixed directions and the "
        "levels, in standard deviations of the references' patches; empty below 7 px",
        "Karras and others 2018, with the references' spread for both sets, so that blur counts",
    ),
    Metric(
        "cmmd_u", lambda s: mmd.cmmd_u(s.embeddings, s.other.embeddings), "cell",
        "teacher", "low", 1,
        "1000 × unbiased MMD² to the teacher's pictures on the judge's embeddings, Gaussian "
        "kernel of σ 10; about 0 (below it by chance) for equal distributions; empty under 32 "
        "pictures",
        "Jayasumana and others 2024; Gretton and others 2012, eq. 4",
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


def deciding(means: Callable[[str], Values]) -> str:
    """The first of :data:`DECIDING` that all rows have; ``means`` gives one number a row."""
    return next((name for name in DECIDING if np.isfinite(means(name)).all()), DECIDING[-1])


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
}
_INSTEAD: Final = {"fid": "cmmd_u", "kid": "cmmd_u", "lpips": "teacher_distance"}


def choose(text: str) -> tuple[str, ...]:
    """Metrics that a comma-separated list names, in the order of the table.

    Raises:
        UsageError: If a name is unknown, or that of a metric that is refused.
    """
    asked = [name.strip() for name in text.split(",")]
    for name in asked:
        if name.lower() in REFUSED:
            raise UsageError(
                f"--metrics {name}: {REFUSED[name.lower()]}",
                hint=f"take {_INSTEAD[name.lower()]} instead",
            )
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, 3)
            raise UsageError(
                f"--metrics {name!r}: no such metric",
                hint=f"did you mean {', '.join(near)}?" if near else f"one of {', '.join(METRICS)}",
            )
    return tuple(name for name in METRICS if name in asked)
