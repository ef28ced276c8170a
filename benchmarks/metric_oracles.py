"""Do the metrics of a grid equal those of other libraries, and their published formulas?

    pip install --no-deps torchmetrics lightning-utilities   # no dependency of this project
    python benchmarks/metric_oracles.py

One core, about a CPU minute. Writes ``benchmarks/results/metric_oracles.md``, which begins with the
goals that were missed.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from _page import Section, page
from numpy.typing import NDArray

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from tiny_judges import save_head, tiny_clip, tiny_dino

from lcm_arith.embedded import pictures
from lcm_arith.evaluation.judging import mmd, pixels
from lcm_arith.evaluation.judging.embedders import load_aesthetic, load_clip, load_dino
from lcm_arith.evaluation.judging.embeddings import Embeddings
from lcm_arith.evaluation.judging.preprocessing import read_preprocessing
from lcm_arith.evaluation.judging.references import References

RESULTS: Final = Path(__file__).resolve().parent / "results"
SUBSET: Final = 50  # pictures of a KID subset
HEAD: Final = ("metric", "beside", "on", "ours", "largest difference", "goal")
Rows = NDArray[np.float64]


def drawn(name: str, count: int = 48, seed: int = 0) -> pixels.Pixels:
    """Shipped drawings, two variants each."""
    some = pictures.hash_order(pictures.concepts())[: count // 2]
    return np.concatenate([pictures.variants(name, concept, 2, seed=seed) for concept in some])


def unit(n: int, d: int, seed: int, shift: float = 0.0) -> Rows:
    rows = np.random.default_rng(seed).normal(size=(n, d)) + 1
    rows[:, 0] += shift
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def row(
    section: Section, name: str, beside: str, on: str, ours: Any, other: Any, goal: float
) -> None:
    mine, theirs = np.asarray(ours, float), np.asarray(other, float)
    off = float(np.abs(mine - theirs).max())
    shown = f"{mine.mean():.6g}" + (" (mean)" if mine.size > 1 else "")
    section.rows.append(
        (name, beside, on, shown, section.held(off, goal, f"{name} beside {beside}"), f"{goal:g}")
    )


def of_pixels() -> Section:
    from torchmetrics.functional.image import (
        peak_signal_noise_ratio,
        structural_similarity_index_measure,
    )

    section = Section(
        "Pixels",
        "48 pairs of drawings of the same things in two sets, 64 px, and 8 pairs of noise, 61 × 47 "
        "px, in float64 (torchmetrics' logarithm in float32). Its SSIM goes on where windows reach "
        "over a picture's edge; its map is cut to whole windows, as Wang and others define it.",
        HEAD,
    )
    rng = np.random.default_rng(0)
    pairs = {
        "drawings": (drawn("noto"), drawn("twemoji")),
        "noise": tuple(rng.integers(0, 256, (8, 61, 47, 3), dtype=np.uint8) for _ in "ab"),
    }
    for on, (first, second) in pairs.items():
        x, y = (torch.from_numpy(p).permute(0, 3, 1, 2).double() / 255 for p in (first, second))
        _, each = structural_similarity_index_measure(
            x, y, data_range=1.0, return_full_image=True, reduction="none"
        )
        inside = each[..., 5:-5, 5:-5].mean(dim=(1, 2, 3))
        row(section, "ssim", "torchmetrics", on, pixels.ssim(first, second), inside, 1e-9)
        theirs = peak_signal_noise_ratio(x, y, data_range=1.0, reduction="none", dim=(1, 2, 3))
        row(section, "psnr", "torchmetrics", on, pixels.psnr(first, second), theirs, 1e-5)
    for name in ("noto", "fluent-emoji-high-contrast"):
        held, same = References(drawn(name)), drawn(name)
        for metric, distance in (
            ("color_swd", held.colour_distance), ("texture_swd", held.texture_distance),
        ):  # fmt: skip
            row(section, metric, "0, of equal sets", name, distance(same), 0, 1e-9)
    return section


def published(x: Rows, y: Rows, sigma: float = 10.0) -> float:
    """``cmmd_v``: 1000 × MMD² as google-research/cmmd computes it, each row beside itself too."""
    gamma = 1 / (2 * sigma**2)

    def mean_kernel(a: Rows, b: Rows) -> float:
        squares = np.diag(a @ a.T)[:, None] - 2 * a @ b.T + np.diag(b @ b.T)[None, :]
        return float(np.exp(-gamma * squares).mean())

    return 1000 * (mean_kernel(x, x) + mean_kernel(y, y) - 2 * mean_kernel(x, y))


def loops(x: Rows, y: Rows, sigma: float = 10.0) -> float:
    """``cmmd_u``: 1000 × eq. 4 of Gretton and others 2012, pair by pair."""
    n, total = len(x), 0.0

    def k(a: Rows, b: Rows) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * sigma**2)))

    for i in range(n):
        for j in range(n):
            if i != j:
                total += k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i])
    return 1000 * total / (n * (n - 1))


def of_sets() -> Section:
    section = Section(
        "Sets of embeddings",
        "Unit rows of normal numbers, one axis shifted in the second set. KID is the unbiased MMD² "
        "of independent sets under the kernel (x·y / d + 1)³, FID the squared Fréchet distance of "
        "normal distributions; torchmetrics computes both from a feature module that passes rows "
        "on. Ours of KID is the *unbiased* estimate of `mmd.ESTIMATES` on that kernel, cmmd_v its "
        "*biased* one on ours; FID stands beside its closed form. A grid reports `cmmd_u` alone.",
        HEAD,
    )
    for n, d, shift in ((40, 16, 0.5), (96, 128, 0.2), (64, 768, 0.0)):
        x, y = unit(n, d, 1), unit(n, d, 2, shift)
        on = f"{n} × {d}, shift {shift:g}"
        biased = 1000 * mmd.mmd2(x, y, "biased")
        row(section, "cmmd_v", "the published formula", on, biased, published(x, y), 1e-6)
        row(section, "cmmd_u", "a double loop", on, mmd.cmmd_u(x, y), loops(x, y), 1e-6)
        row(section, "KID", "torchmetrics", on, kid(x, y), their_kid(x, y), 1e-5)
    x, y = np.random.default_rng(0).normal(size=(2, 3000, 6))
    y = y * [1, 2, 1, 0.5, 1, 1] + [0, 0, 1, 0, 0, 0]
    on = "3,000 × 6, two scales and a mean differ"
    row(section, "FID", "torchmetrics", on, frechet(x, y), their_fid(x, y), 1e-4)
    return section


def kid(x: Rows, y: Rows) -> float:
    within, across = mmd.ESTIMATES["unbiased"]

    def kernel(a: Rows, b: Rows) -> Rows:
        return np.asarray((a @ b.T / a.shape[1] + 1) ** 3)

    return within(kernel(x, x)) + within(kernel(y, y)) - 2 * across(kernel(x, y))


def frechet(x: Rows, y: Rows) -> float:
    """Dowson and Landau 1982; the root's trace by eigenvalues of the product."""
    first, second = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.maximum(np.linalg.eigvals(first @ second).real, 0)).sum()
    means = ((x.mean(axis=0) - y.mean(axis=0)) ** 2).sum()
    return float(means + np.trace(first) + np.trace(second) - 2 * root)


class Passed(torch.nn.Module):
    """A feature extractor for torchmetrics: the rows themselves."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """``[n, d]`` as it is; its trial picture gives as many zeros."""
        return rows if rows.ndim == 2 else torch.zeros(len(rows), self.num_features)


def _filled(measure: Any, x: Rows, y: Rows) -> Any:
    measure.set_dtype(torch.float64)
    measure.update(torch.from_numpy(x), real=True)
    measure.update(torch.from_numpy(y), real=False)
    return measure.compute()


def their_kid(x: Rows, y: Rows) -> float:
    from torchmetrics.image.kid import KernelInceptionDistance

    whole = KernelInceptionDistance(feature=Passed(x.shape[1]), subsets=1, subset_size=len(x))
    return float(_filled(whole, x, y)[0])


def their_fid(x: Rows, y: Rows) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    return float(_filled(FrechetInceptionDistance(feature=Passed(x.shape[1])), x, y))


def of_models() -> Section:
    from transformers import CLIPModel, CLIPTokenizer, Dinov2Model
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    section = Section(
        "Judges",
        "CLIP and DINOv2 of random weights in folders as published ones are, 48 drawings and their "
        "captions. Plain transformers prepares pictures with its own classes, pads the captions "
        "and takes all of them at once; ours takes 8 pictures at a time and each caption alone. "
        "Float32 but for the aesthetic head, which both get on the same rows.",
        HEAD,
    )
    shown = drawn("noto")
    captions = [c.caption for c in pictures.hash_order(pictures.concepts())[: len(shown) // 2]]
    with tempfile.TemporaryDirectory() as folder:
        clip, dino = tiny_clip(Path(folder) / "clip"), tiny_dino(Path(folder) / "dino")
        head = load_aesthetic(save_head(Path(folder) / "head.pth"))
        ours, theirs, like = load_clip(clip), CLIPModel.from_pretrained(clip), load_dino(dino)
        tokens = CLIPTokenizer.from_pretrained(clip)(captions, padding=True, return_tensors="pt")
        values = _values(CLIPImageProcessorPil.from_pretrained(clip), shown)
        with torch.inference_mode():
            output = theirs(**tokens, pixel_values=values)
            tokens_of = Dinov2Model.from_pretrained(dino)(
                _values(BitImageProcessorPil.from_pretrained(dino), shown)
            ).pooler_output
        prepared = read_preprocessing(clip)(shown)
    kept = Embeddings()
    rows, texts = kept.of_pictures(ours, shown), kept.of_captions(ours, captions)
    on = f"{len(shown)} drawings"
    row(section, "pixel values", "transformers", on, prepared, values, 1e-6)
    wanted = output.image_embeds @ output.text_embeds.T
    row(section, "prompt_score", "transformers", on, rows @ texts.T, wanted, 1e-6)
    scaled = ours.scale * rows @ texts.T
    row(section, "pickscore", "transformers", on, scaled, output.logits_per_image, 2e-5)
    found = torch.nn.functional.normalize(tokens_of, dim=-1)
    likeness = kept.of_pictures(like, shown)
    row(section, "teacher_dino", "transformers", on, likeness @ likeness.T, found @ found.T, 2e-6)
    with torch.inference_mode():
        rated = _sequential(head)(torch.from_numpy(rows).double())[:, 0]
    row(section, "aesthetic", "torch's Sequential", on, head.score(rows), rated, 1e-9)
    return section


def _values(processor: Any, shown: pixels.Pixels) -> torch.Tensor:
    found: torch.Tensor = processor(
        list(shown), return_tensors="pt", input_data_format="channels_last"
    )["pixel_values"]
    return found


def _sequential(head: Any) -> torch.nn.Sequential:
    """As LAION's code builds it, dropout included."""
    parts: list[torch.nn.Module] = []
    for weight, bias in head.layers:
        linear = torch.nn.Linear(*weight.shape[::-1]).double()
        linear.load_state_dict({"weight": torch.from_numpy(weight), "bias": torch.from_numpy(bias)})
        parts += [linear, torch.nn.Dropout(0.2)]
    return torch.nn.Sequential(*parts[:-1]).eval()


def main() -> None:
    try:
        import torchmetrics  # noqa: F401
    except ImportError:
        sys.exit("torchmetrics is missing: pip install --no-deps torchmetrics lightning-utilities")
    torch.set_num_threads(1)
    began, sections = time.process_time(), []
    tables: tuple[Callable[[], Section], ...] = (of_pixels, of_sets, of_models)
    for table_of in tables:
        sections.append(table_of())
        print(f"{table_of.__name__}: {time.process_time() - began:.0f} s", file=sys.stderr)
    seconds = time.process_time() - began
    libraries = ("numpy", "torch", "transformers", "torchmetrics")
    text = page("The metrics beside others'", "metric_oracles.py", sections, seconds, libraries)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "metric_oracles.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
