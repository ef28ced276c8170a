"""What pictures are held against: the judge, the probe, and true pictures of each caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

import numpy as np

from lcm_arith.embedded import pictures
from lcm_arith.embedded.probe import Judge, Probe, pair_distance, sharpness

VARIANTS: Final = 24
"""True pictures of each drawing that a picture is compared with."""


@dataclass(frozen=True, eq=False)
class TruePictures:
    """What is true of one caption in the target sets.

    Args:
        embeddings: The judge's, unit rows ``[sets · variants, d]``.
        sharpness: Their mean sharpness.
    """

    embeddings: np.ndarray
    sharpness: float

    @cached_property
    def diversity(self) -> float:
        """Mean 1 − cosine over all pairs of two true pictures."""
        return mean_pair_distance(self.embeddings)


def mean_pair_distance(embeddings: np.ndarray) -> float:
    """Mean 1 − cosine over the pairs of unit rows ``[n, d]``; NaN below two."""
    count = len(embeddings)
    if count < 2:
        return float("nan")
    total = (embeddings @ embeddings.T).sum() - np.trace(embeddings @ embeddings.T)
    return float(1 - total / (count * (count - 1)))


@dataclass(eq=False)
class Yardstick:
    """The judge, the probe and the true pictures that a grid is measured with.

    Args:
        judge: Embeds pictures and captions.
        probe: Names a picture's set.
        target_sets: Sets whose drawings count as true; empty leaves the paired metrics NaN.
        style_set: Set that the probe must name; None leaves ``style_accuracy`` NaN.
        prompts: Captions of the grid.
    """

    judge: Judge
    probe: Probe
    target_sets: Sequence[str]
    style_set: str | None
    prompts: Sequence[str]

    def __post_init__(self) -> None:
        known = [concept.caption for concept in pictures.concepts()]
        self._captions = list(dict.fromkeys([*known, *self.prompts]))
        self._shipped = len(known)
        self._true = {p: t for p in self.prompts if (t := self._true_pictures(p)) is not None}

    @cached_property
    def _caption_embeddings(self) -> np.ndarray:
        return self.judge.embed_captions(self._captions)

    def _true_pictures(self, prompt: str) -> TruePictures | None:
        concept = pictures.by_caption().get(prompt)
        if concept is None or not self.target_sets:
            return None
        drawn = [pictures.variants(name, concept, VARIANTS) for name in self.target_sets]
        pixels = np.concatenate(drawn)
        return TruePictures(self.judge.embed_pictures(pixels), float(sharpness(pixels).mean()))

    @property
    def unknown_prompts(self) -> list[str]:
        """Prompts without a true picture: no shipped caption."""
        return [prompt for prompt in self.prompts if prompt not in self._true]

    @property
    def reads_embeddings(self) -> bool:
        """Whether any of its metrics is defined that needs the judge's embeddings."""
        return bool(self._true or self.style_set)

    def picture_metrics(
        self, pixels: np.ndarray, prompts: Sequence[str], teacher: np.ndarray | None = None
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Metrics of each picture and the judge's embeddings.

        Args:
            pixels: uint8 ``[n, H, W, 3]``.
            prompts: One per picture.
            teacher: Embeddings of the teacher's pictures of equal prompt and seed, ``[n, d]``;
                None measures the teacher itself.

        Returns:
            Metric → ``[n]``, NaN where it is not defined, and embeddings ``[n, d]``.
        """
        e = self.judge.embed_pictures(pixels)
        own = np.array([self._captions.index(prompt) for prompt in prompts])
        cosines = e @ self._caption_embeddings.T  # [n, captions]
        score = cosines[np.arange(len(e)), own]
        rivals = cosines[:, : self._shipped].max(axis=1)
        return {
            "prompt_score": score,
            "retrieval_top1": (score >= rivals).astype(float),
            "teacher_distance": distance(e, e if teacher is None else teacher),
            **self.true_metrics(pixels, e, prompts),
        }, e

    def true_metrics(
        self, pixels: np.ndarray, e: np.ndarray, prompts: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Those that need true pictures, from the judge's embeddings ``[n, d]``."""
        truths = [self._true.get(prompt) for prompt in prompts]
        return {
            "style_accuracy": self._style_named(e),
            "pair_distance": np.array(
                [
                    max(pair_distance(row[None], t.embeddings)[0], 0) if t else np.nan
                    for t, row in zip(truths, e, strict=True)
                ]
            ),
            "sharp_ratio": sharpness(pixels)
            / np.array([t.sharpness if t else np.nan for t in truths]),
        }

    def _style_named(self, embeddings: np.ndarray) -> np.ndarray:
        if self.style_set is None:
            return np.full(len(embeddings), np.nan)
        named = self.probe.predict(embeddings)
        return np.array([float(name == self.style_set) for name in named])

    def diversity(self, embeddings: np.ndarray, prompts: Sequence[str]) -> float:
        """Mean 1 − cosine between seeds of one caption over that of the true pictures.

        Args:
            embeddings: ``[captions, seeds, d]``.
            prompts: The captions.

        Returns:
            Ratio of the two means over the captions with true pictures; NaN with one seed.
        """
        known = [(p, rows) for p, rows in zip(prompts, embeddings, strict=True) if p in self._true]
        if embeddings.shape[1] < 2 or not known:
            return float("nan")
        ours = np.mean([mean_pair_distance(rows) for _, rows in known])
        return float(ours / np.mean([self._true[p].diversity for p, _ in known]))


def distance(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """1 − cosine of unit rows, ``[n]``; float32 rounding does not make it negative."""
    return np.asarray(np.maximum(1 - (first * second).sum(axis=1), 0))


def cell_means(metrics: dict[str, np.ndarray]) -> dict[str, Any]:
    """Mean of each metric over its defined values; NaN where there is none."""
    return {
        name: float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
        for name, values in metrics.items()
    }
