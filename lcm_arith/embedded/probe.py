"""The judge: does a picture show its caption, in which artist's style, how near to a true one?

A small CLIP that never conditions the generator embeds pictures and captions; a probe on its
picture embeddings names the set that a picture belongs to. Report each figure beside its ceiling
(``files.ceilings``): the judge is not perfect on true pictures, less so through the VAE.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from lcm_arith.embedded.files import JUDGE, MODEL, write_file
from lcm_arith.embedded.pictures import SIDE, Pixels

if TYPE_CHECKING:
    from transformers import CLIPModel

Rows = NDArray[np.float32]

PROBE: Final = JUDGE / "probe.safetensors"

_CHUNK: Final = 256  # pictures at once: 12 MiB of pixels
_TOKENS: Final = 16
_KERNEL_WIDTH: Final = 8.0  # wide enough to share between pictures of one thing; 3 does as well
_JITTER: Final = 1e-8  # keeps Cholesky possible for rows that nearly coincide


@dataclass(frozen=True)
class Judge:
    """A CLIP for 64 px pictures, with its tokenizer."""

    model: CLIPModel
    tokenizer: Any

    def embed_pictures(self, pictures: Pixels) -> Rows:
        """Unit rows of pictures, float32 ``[n, d]``.

        Args:
            pictures: uint8 ``[n, height, width, 3]``; another size than 64 px is resized.

        Raises:
            ValueError: If the pictures have another shape or dtype.
        """
        if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3:
            shape = list(pictures.shape)
            raise ValueError(f"pictures are {pictures.dtype} {shape}; needs uint8 [n, h, w, 3]")
        parts = [
            self._picture_rows(pictures[start : start + _CHUNK])
            for start in range(0, len(pictures), _CHUNK)
        ]
        return np.concatenate([np.empty((0, self._width), np.float32), *parts])

    def embed_captions(self, captions: Sequence[str]) -> Rows:
        """Unit rows of captions, float32 ``[n, d]``; words beyond 16 tokens are not read."""
        parts = [
            self._caption_rows(captions[start : start + _CHUNK])
            for start in range(0, len(captions), _CHUNK)
        ]
        return np.concatenate([np.empty((0, self._width), np.float32), *parts])

    @property
    def _width(self) -> int:
        return self.model.visual_projection.out_features

    @torch.inference_mode()
    def _picture_rows(self, pictures: Pixels) -> Rows:
        levels = torch.from_numpy(np.ascontiguousarray(pictures)).to(self.model.device)
        pixels = _resized(levels.permute(0, 3, 1, 2).float()) / 127.5 - 1.0  # [n, 3, 64, 64]
        return _unit_rows(self.model.get_image_features(pixel_values=pixels))

    @torch.inference_mode()
    def _caption_rows(self, captions: Sequence[str]) -> Rows:
        tokens = self.tokenizer(
            list(captions),
            padding="max_length",
            max_length=_TOKENS,
            truncation=True,
            return_tensors="pt",
        ).to(self.model.device)
        return _unit_rows(self.model.get_text_features(**tokens))


@dataclass(frozen=True)
class Probe:
    """Names the set of a picture: multinomial logistic regression with a Gaussian kernel.

    A kernel, because no plane need part the artists in the judge's space.

    Args:
        support: Unit rows of the pictures it was fitted to, float32 ``[m, d]``.
        coefficients: float64 ``[m, sets]``.
        names: Set of each column.
    """

    support: Rows
    coefficients: NDArray[np.float64]
    names: tuple[str, ...]

    def predict(self, embeddings: Rows) -> list[str]:
        """The likeliest set of each unit row of float32 ``[n, d]``."""
        logits = kernel(embeddings, self.support) @ self.coefficients  # [n, sets]
        return [self.names[index] for index in logits.argmax(axis=1)]


def load_judge(device: str = "cpu") -> Judge:
    """The shipped judge, float32, ready to embed on ``device``."""
    from transformers import CLIPModel, CLIPTokenizer

    with _no_progress_bars():
        model: Any = CLIPModel.from_pretrained(JUDGE, local_files_only=True)
        tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer", local_files_only=True)
    return Judge(model.float().eval().requires_grad_(False).to(device), tokenizer)


def kernel(left: Rows, right: Rows) -> NDArray[np.float64]:
    """exp(8 (cosine - 1)) of every pair of unit rows: Gaussian on the sphere, ``[n, m]``."""
    products = left.astype(np.float64) @ right.astype(np.float64).T
    similar: NDArray[np.float64] = np.exp(_KERNEL_WIDTH * (products - 1.0))
    return similar


def fit_probe(
    embeddings: Rows, labels: Sequence[int], names: Sequence[str], *, l2: float = 1e-4
) -> Probe:
    """The probe with the least penalised cross-entropy; the problem is convex, so there is one.

    With K the kernel of the rows, logits K C and labels Y (one-hot), it minimises
    ``mean(cross-entropy) + l2 / 2 * trace(C' K C)``, where ``C = (Y - softmax(K C)) / (n l2)``.
    L-BFGS in float64 from zero on W = R'C with K = R R', hence without a random number.

    Args:
        embeddings: Unit rows ``[n, d]``, no two the same.
        labels: Index into ``names`` of each row.
        names: The sets.
        l2: Penalty; must be positive, or separable data have no solution.

    Raises:
        ValueError: If lengths or labels do not fit, or ``l2`` is not positive.
    """
    _check_probe_data(embeddings, labels, names, l2)
    y = torch.tensor(list(labels))  # [n]
    similar = torch.from_numpy(kernel(embeddings, embeddings))  # [n, n]
    similar.diagonal().add_(_JITTER)
    root = torch.linalg.cholesky(similar)  # [n, n], lower
    weight = torch.zeros(len(labels), len(names), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS(
        [weight],
        max_iter=1000,
        history_size=20,
        tolerance_grad=1e-8,
        tolerance_change=0.0,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = F.cross_entropy(root @ weight, y) + l2 / 2 * weight.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        solver.step(loss)
    coefficients = torch.linalg.solve_triangular(root.T, weight.detach(), upper=True)
    return Probe(embeddings, coefficients.numpy(), tuple(names))


def save_probe(probe: Probe, path: Path = PROBE) -> None:
    """Write the probe as safetensors, names in the metadata."""
    # safetensors writes the bytes as they lie: columns first would come back scrambled
    tensors: dict[str, NDArray[Any]] = {
        "support": np.ascontiguousarray(probe.support),
        "coefficients": np.ascontiguousarray(probe.coefficients),
    }
    write_file(path, save(tensors, metadata={"names": json.dumps(probe.names)}))


def load_probe(path: Path = PROBE) -> Probe:
    """The shipped probe."""
    with safe_open(path, framework="numpy") as file:
        names = json.loads(file.metadata()["names"])
        support, coefficients = file.get_tensor("support"), file.get_tensor("coefficients")
        return Probe(support, coefficients, tuple(names))


def own_caption_first(pictures: Rows, captions: Rows, own: Sequence[int]) -> NDArray[np.bool_]:
    """Whether each picture's own caption is the nearest of all; its mean is ``retrieval_top1``.

    Args:
        pictures: Unit rows ``[n, d]``.
        captions: Unit rows ``[m, d]``.
        own: Index of each picture's caption, length n.
    """
    nearest = (pictures @ captions.T).argmax(axis=1)  # [n]
    first: NDArray[np.bool_] = nearest == np.asarray(own)
    return first


def pair_distance(pictures: Rows, true: Rows) -> NDArray[np.float32]:
    """1 - cosine of each picture to the nearest true picture of the same thing in that style.

    Args:
        pictures: Unit rows ``[n, d]``.
        true: Unit rows ``[m, d]`` of the true variants of one concept by one artist.

    Returns:
        float32 ``[n]``, 0 to 2.
    """
    distance: NDArray[np.float32] = 1.0 - (pictures @ true.T).max(axis=1)
    return distance


def sharpness(pictures: Pixels) -> NDArray[np.float64]:
    """Mean squared difference of neighbouring pixels, levels in 0..1; float64 ``[n]``.

    Right and lower neighbours count alike. ``sharp_ratio`` is a picture's sharpness over the mean
    sharpness of its true variants: fog is far below 1, noise and over-guidance above. NaN where a
    side is 1 px.
    """
    if min(pictures.shape[1:3]) < 2:
        return np.full(len(pictures), np.nan)
    levels = pictures.astype(np.float64) / 255.0  # [n, h, w, 3]
    across = np.square(np.diff(levels, axis=2)).mean(axis=(1, 2, 3))
    down = np.square(np.diff(levels, axis=1)).mean(axis=(1, 2, 3))
    mean: NDArray[np.float64] = (across + down) / 2.0
    return mean


def _resized(levels: torch.Tensor) -> torch.Tensor:
    """``[n, 3, h, w]`` to 64 px a side: area mean to shrink, bicubic to enlarge."""
    height, width = levels.shape[-2:]
    if (height, width) == (SIDE, SIDE):
        return levels
    if height >= SIDE and width >= SIDE:
        return F.interpolate(levels, size=(SIDE, SIDE), mode="area")
    enlarged = F.interpolate(levels, size=(SIDE, SIDE), mode="bicubic", align_corners=False)
    return enlarged.clamp(0.0, 255.0)  # bicubic overshoots


def _unit_rows(features: Any) -> Rows:
    """Projected features as unit rows; transformers 5 wraps the tensor in an output object."""
    tensor: torch.Tensor = getattr(features, "pooler_output", features)
    rows: Rows = F.normalize(tensor.float(), dim=-1).cpu().numpy()
    return rows


def _check_probe_data(
    embeddings: Rows, labels: Sequence[int], names: Sequence[str], l2: float
) -> None:
    if embeddings.ndim != 2 or len(embeddings) != len(labels) or len(labels) == 0:
        shape = list(embeddings.shape)
        raise ValueError(f"embeddings are {shape} for {len(labels)} labels; needs [n, d] and n > 0")
    outside = sorted({label for label in labels if not 0 <= label < len(names)})
    if outside:
        raise ValueError(f"labels {outside} are outside 0..{len(names) - 1}, the names' range")
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; it must be positive")


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    """Loading 3 MB needs no progress bar, and a library prints nothing."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
