"""Pictures as a transformers model wants them, by its folder's ``preprocessor_config.json``.

Written with Pillow and numpy, since transformers' own classes want torchvision or change with it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lcm_arith.errors import IncompatibleError, InvalidContentError
from lcm_arith.evaluation.judging.pixels import Pixels

CONFIG: Final = "preprocessor_config.json"
NEWER_CONFIG: Final = "processor_config.json"  # of a whole processor, pictures' part in it
_PART: Final = "image_processor"
_USUAL: Final[dict[str, Any]] = {
    "do_resize": True, "resample": 3, "do_center_crop": False, "crop_size": None,
    "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True, "do_pad": False,
}  # fmt: skip


@dataclass(frozen=True)
class Preprocessing:
    """What is done to a picture, in this order; None leaves a step out.

    Args:
        shortest: The shorter side becomes this long, px, the other in proportion, rounded down.
        exact: Height and width, px, instead.
        resample: Pillow's number of the filter.
        crop: Height and width of the middle that is kept, px.
        factor: 8-bit levels are multiplied by it.
        mean, std: Of each channel; subtracted, then divided by.
    """

    shortest: int | None
    exact: tuple[int, int] | None
    resample: int
    crop: tuple[int, int] | None
    factor: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Pixels) -> NDArray[np.float32]:
        """uint8 ``[n, H, W, 3]`` as float32 ``[n, 3, h, w]``."""
        fitted = np.stack([self._fitted(picture) for picture in pixels])
        levels = fitted.astype(np.float32) * np.float32(self.factor)
        mean, std = (np.array(values, np.float32) for values in (self.mean, self.std))
        normal = (levels - mean) / std
        return np.ascontiguousarray(np.moveaxis(normal, -1, 1))

    def _fitted(self, picture: Pixels) -> Pixels:
        height, width = self._size(*picture.shape[:2])
        if (height, width) != picture.shape[:2]:
            image = Image.fromarray(picture)
            resized = image.resize((width, height), Image.Resampling(self.resample))
            picture = np.asarray(resized)
        if self.crop is None:
            return picture
        top, left = (height - self.crop[0]) // 2, (width - self.crop[1]) // 2
        return picture[top : top + self.crop[0], left : left + self.crop[1]]

    def _size(self, height: int, width: int) -> tuple[int, int]:
        if self.exact is not None:
            return self.exact
        if self.shortest is None:
            return height, width
        other = int(self.shortest * max(height, width) / min(height, width))
        return (other, self.shortest) if width <= height else (self.shortest, other)


def read_preprocessing(folder: Path) -> Preprocessing:
    """What a model's folder says should be done to a picture.

    A ``size`` that is one number is that of the shorter side where the middle is cropped, as CLIP's
    and DINOv2's are, and of both sides where it is not, as ViT's.

    Raises:
        InvalidContentError: If it says nothing, or what cannot be read.
        IncompatibleError: If it wants what is not done here.
    """
    path, told = _told(folder)
    values = {**_USUAL, **told}
    try:
        resizes, crops = bool(values["do_resize"]), bool(values["do_center_crop"])
        size = values["size"] if resizes else {}
        if isinstance(size, int):
            size = {"shortest_edge": size} if crops else {"height": size, "width": size}
        crop = _sides(values["crop_size"]) if crops else None
        shortest = int(size["shortest_edge"]) if "shortest_edge" in size else None
        exact = _sides(size) if resizes and shortest is None else None
        normal = bool(values["do_normalize"])
        found = Preprocessing(
            shortest, exact, int(Image.Resampling(values["resample"])), crop,
            float(values["rescale_factor"]) if values["do_rescale"] else 1.0,
            _channels(values["image_mean"]) if normal else (0.0,) * 3,
            _channels(values["image_std"]) if normal else (1.0,) * 3,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidContentError(
            f"{path}: cannot be understood ({type(error).__name__}: {error})", hint=_HINT
        ) from None
    least = min(found.exact) if found.exact else found.shortest
    too_large = found.crop and least and max(found.crop) > least
    if values["do_pad"] or "longest_edge" in size or too_large:
        raise IncompatibleError(
            f"{path}: wants pictures to be padded, which is not done here",
            hint="give a model that resizes and crops, such as CLIP or DINOv2",
        )
    return found


_HINT: Final = "download the model's folder again, preprocessor_config.json with it"


def _told(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    for name, part in ((CONFIG, None), (NEWER_CONFIG, _PART)):
        path = folder / name
        if not path.is_file():
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found = found if part is None else found[part]
        except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
            raise InvalidContentError(f"{path}: is not JSON ({error!r:.80})", hint=_HINT) from None
        if isinstance(found, dict):
            return path, found
        raise InvalidContentError(f"{path}: is no JSON object", hint=_HINT)
    raise InvalidContentError(
        f"{folder}: has no {CONFIG}, so that it is not known how it wants pictures", hint=_HINT
    )


def _sides(size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    return int(size["height"]), int(size["width"])


def _channels(values: Any) -> tuple[float, ...]:
    found = tuple(float(value) for value in values)
    if len(found) != 3:
        raise ValueError(f"{len(found)} channels")
    return found
