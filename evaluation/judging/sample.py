"""Pictures of one row of a grid, and what they are measured against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import numpy as np

from lcm_arith.embedded import pictures
from lcm_arith.evaluation.judging import mmd, pixels
from lcm_arith.evaluation.judging.embeddings import Clip, Embedder, Rows
from lcm_arith.evaluation.judging.judges import Judges
from lcm_arith.evaluation.judging.pixels import Light, Pixels, Values
from lcm_arith.evaluation.judging.references import References
from lcm_arith.evaluation.judging.yardstick import Yardstick, distance

FEWEST_REFERENCES: Final = 5
"""Below which their mean is too much of single pictures to stand for a style."""
_NO_ROOM: Final = 1e-6  # of 1 − b: then all seeds give one picture, up to float32's rounding


@dataclass(eq=False)
class Sample:
    """Pictures of one row of a grid, and what they are measured against.

    Each metric is ``[n]``, or one number of all pictures; NaN where it is not defined, or where
    there is no judge of it.

    Args:
        pixels: uint8 ``[captions · seeds, H, W, 3]``, caption by caption.
        captions: Of the grid.
        yardstick: Judge, probe and true pictures.
        judges: Of this base.
        references: Of the style; None leaves the metrics that need them NaN.
        teacher: The same prompts and seeds by the teacher; None measures the teacher itself.
        unstyled: Gives ``style_cos`` of the same without the style vector; None where these are
            such pictures.
    """

    pixels: Pixels
    captions: tuple[str, ...]
    yardstick: Yardstick
    judges: Judges
    references: References | None = None
    teacher: Sample | None = None
    unstyled: Callable[[], Values] | None = None
    _rows: dict[str, Rows] = field(default_factory=dict)

    @cached_property
    def prompts(self) -> list[str]:
        """Caption of each picture."""
        return [caption for caption in self.captions for _ in range(self.seeds)]

    @property
    def seeds(self) -> int:
        """Pictures of a caption."""
        return len(self.pixels) // len(self.captions)

    @property
    def other(self) -> Sample:
        """What counts as the teacher."""
        return self.teacher or self

    def rows(self, model: Embedder) -> Rows:
        """A judge's embeddings, unit rows ``[n, d]``."""
        if model.digest not in self._rows:
            self._rows[model.digest] = self.judges.embeddings.of_pictures(model, self.pixels)
        return self._rows[model.digest]

    # --- true pictures ---

    @cached_property
    def judged(self) -> dict[str, np.ndarray]:
        """Metrics of the yardstick."""
        return self.yardstick.true_metrics(self.pixels, self._embedded, self.prompts)

    @property
    def diversity(self) -> float:
        """Of the seeds of a caption, over that of its true pictures."""
        return self.yardstick.diversity(self._by_caption(self._embedded), self.captions)

    @property
    def _embedded(self) -> Rows:
        """The embedded judge's rows; empty ones where the yardstick does not look at them."""
        if not self.yardstick.reads_embeddings:
            return np.empty((len(self.pixels), 0), np.float32)
        return self.rows(self.judges.embedded)

    def _by_caption(self, rows: Rows) -> Rows:
        """``[captions, seeds, d]``."""
        return rows.reshape(len(self.captions), self.seeds, rows.shape[1])

    # --- pixels ---

    @cached_property
    def light(self) -> Light:
        """Of L*."""
        return Light.of(map(pixels.lightness, self.pixels))

    def against_references(self, distance: Callable[[References, Pixels], float]) -> float:
        """A distance of all pictures whose captions the references show; NaN without any."""
        if self.references is None or not self._shown.any():
            return float("nan")
        return distance(self.references, self.pixels[self._shown])

    @cached_property
    def _shown(self) -> np.ndarray:
        """Whether the references show the caption of each picture."""
        known = self.references.captions if self.references else frozenset()
        return np.array([known is None or prompt in known for prompt in self.prompts])

    # --- captions ---

    @property
    def prompt_score(self) -> Values:
        """Cosine to the own caption by ``clip``."""
        return self._caption_cosines(self.judges.clip)

    @property
    def pickscore(self) -> Values:
        """The same by ``pickscore``, times its scale."""
        model = self.judges.pickscore
        return self._caption_cosines(model) * (model.scale if model else 1)

    def _caption_cosines(self, model: Clip | None) -> Values:
        if model is None:
            return self._empty()
        return _cosines(self.rows(model), self._captions(model, self.prompts))

    @property
    def retrieval_top1(self) -> Values:
        """Whether no other caption has a higher cosine than the own one, 0 or 1."""
        found, clip = self._empty(), self.judges.clip
        if clip is None:
            return found
        shipped = [concept.caption for concept in pictures.concepts()]
        known = np.array([prompt in pictures.by_caption() for prompt in self.prompts])
        for use, rivals in ((known, shipped), (~known, list(self.captions))):
            if use.any() and len(rivals) > 1:
                cosines = self.rows(clip)[use] @ self._captions(clip, rivals).T
                own = [rivals.index(p) for p, used in zip(self.prompts, use, strict=True) if used]
                score = cosines[np.arange(len(own)), own]
                found[use] = score >= cosines.max(axis=1)
        return found

    def _captions(self, model: Clip, captions: Sequence[str]) -> Rows:
        return self.judges.embeddings.of_captions(model, captions)

    @property
    def aesthetic(self) -> Values:
        """The head's rating."""
        head, clip = self.judges.aesthetic, self.judges.clip
        return head.score(self.rows(clip)) if head and clip else self._empty()

    # --- the teacher's pictures ---

    @property
    def teacher_distance(self) -> Values:
        """1 − cosine by ``clip``."""
        clip = self.judges.clip
        return distance(self.rows(clip), self.other.rows(clip)) if clip else self._empty()

    @property
    def cmmd_u(self) -> float:
        """Unbiased CMMD by ``clip``."""
        clip = self.judges.clip
        return mmd.cmmd_u(self.rows(clip), self.other.rows(clip)) if clip else float("nan")

    @property
    def cmmd_n(self) -> float:
        """Pictures a set that :attr:`cmmd_u` is of."""
        enough = len(self.pixels) >= mmd.FEWEST
        return float(len(self.pixels)) if self.judges.clip and enough else float("nan")

    @property
    def teacher_dino(self) -> Values:
        """Cosine by ``dino``."""
        model = self.judges.dino
        return _cosines(self.rows(model), self.other.rows(model)) if model else self._empty()

    @property
    def teacher_rel(self) -> Values:
        """The same, 0 at the teacher's mean cosine between seeds of the caption, 1 at 1."""
        model = self.judges.dino
        if model is None or self.seeds < 2:
            return self._empty()
        groups = self._by_caption(self.other.rows(model)).astype(float)
        sums = np.einsum("csd,ctd->c", groups, groups) - np.einsum("csd,csd->c", groups, groups)
        between = np.repeat(sums / (self.seeds * (self.seeds - 1)), self.seeds)
        room = 1 - between
        some = room > _NO_ROOM
        share = (self.teacher_dino - between) / np.where(some, room, 1)
        return np.where(some, share, np.nan)

    # --- style references ---

    @cached_property
    def style_cos(self) -> Values:
        """Cosine by ``clip`` to the normalised mean of the references' rows."""
        found = self._empty()
        held, clip = self.references, self.judges.clip
        of_one = held and (held.captions is None or self.yardstick.style_set is not None)
        if held and clip and of_one and len(held.pixels) >= FEWEST_REFERENCES:
            rows = self.judges.embeddings.of_pictures(clip, held.pixels)
            mean = rows.mean(axis=0, dtype=float)
            use = self._shown
            found[use] = self.rows(clip)[use] @ (mean / np.linalg.norm(mean))
        return found

    @property
    def style_gain(self) -> Values:
        """:attr:`style_cos` minus that without the style vector."""
        return self.style_cos - (self.unstyled() if self.unstyled else self.style_cos)

    @property
    def ref_nn_cos(self) -> Values:
        """Cosine by ``dino`` to the nearest reference."""
        found, model = self._empty(), self.judges.dino
        if self.references and model:
            held = self.judges.embeddings.of_pictures(model, self.references.pixels)
            use = self._shown
            found[use] = (self.rows(model)[use] @ held.T).max(axis=1, initial=-1)
        return found

    def _empty(self) -> Values:
        return np.full(len(self.pixels), np.nan)


def _cosines(first: Rows, second: Rows) -> Values:
    return np.asarray(np.einsum("nd,nd->n", first.astype(float), second.astype(float)))
