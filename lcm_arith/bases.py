"""Base models of every family, ready for training and sampling."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from lcm_arith.base_files import (
    PARTS,
    SCHEDULER_MARKS,
    check_architecture,
    check_complete,
    file_digest,
    file_kind,
    folder_digests,
    folder_kind,
)
from lcm_arith.condition import Condition
from lcm_arith.embedded import files
from lcm_arith.encoders import Reading, encode_sd, encode_sdxl
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from lcm_arith.formats.preflight import SafeFile
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.modules import FAMILIES, table, with_text_model
from lcm_arith.sampling import load_pipeline, pipeline_class, ready

_ENCODE: Final = {"sd": encode_sd, "sdxl": encode_sdxl}
_FAILURES: Final = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
"""By which diffusers and the hub's client say that something is wrong with a model."""
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")


class NotFiniteError(InvalidContentError):
    """The VAE made NaN or infinity of pictures.

    Args:
        rows: Their numbers among the pictures given.
    """

    def __init__(self, rows: Sequence[int]) -> None:
        super().__init__(
            f"the VAE makes NaN or infinity of {len(rows)} pictures (number {rows[0]} for one)",
            hint="leave them out, or use another VAE",
        )
        self.rows = tuple(rows)


@dataclass(frozen=True, eq=False)
class Base:
    """A base model.

    Args:
        pipeline: diffusers' ``StableDiffusionPipeline`` or ``StableDiffusionXLPipeline``, float32.
        digest: sha256 over the weights of UNet, text encoders and VAE.
        parts: Component → its sha256; of a single-file checkpoint that of the file.
        family: Of ``modules.FAMILIES``; of an architecture that is none of them, its kind.
        kind: "sd" or "sdxl".
        where: Folder or file that it was read from; of a hub's model the folder in its cache.
    """

    pipeline: Any
    digest: str
    parts: Mapping[str, str]
    family: str
    kind: str
    where: Path

    @property
    def unet(self) -> Any:
        """The UNet, in the pipeline."""
        return self.pipeline.unet

    @property
    def vae(self) -> Any:
        """The VAE, in the pipeline."""
        return self.pipeline.vae

    @property
    def prediction(self) -> str:
        """What the UNet predicts, a row of ``solver.PREDICTIONS``."""
        return str(self.pipeline.scheduler.config.prediction_type)

    @cached_property
    def schedule(self) -> Schedule:
        """α(t), σ(t) of the training."""
        return Schedule.of_scheduler(self.pipeline.scheduler)

    @property
    def latent_scale(self) -> int:
        """Pixels a latent, along each side."""
        return int(self.pipeline.vae_scale_factor)

    @property
    def size(self) -> int:
        """Side of the pictures it was made for, px."""
        return int(self.unet.config.sample_size) * self.latent_scale

    @property
    def zero_uncond(self) -> bool:
        """Whether ∅ is zeros (``force_zeros_for_empty_prompt`` of SDXL), not the empty prompt."""
        return bool(self.pipeline.config.get("force_zeros_for_empty_prompt", False))

    def encode(
        self,
        prompts: Sequence[str],
        *,
        clip_skip: int = 0,
        max_tokens: int | None = None,
        trained: bool = False,
    ) -> Condition:
        """Prompts as ``embeds`` ``[B, tokens, width]``; for SDXL also ``pooled`` ``[B, width]``.

        Args:
            prompts: At least one.
            clip_skip: Layers left out at the end, see :class:`lcm_arith.encoders.Reading`.
            max_tokens: Tokens that are read, a multiple of what the encoder reads at once.
            trained: Whether gradients reach the text encoders.

        Raises:
            UsageError: If the text encoder cannot do that.
        """
        with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
            return _ENCODE[self.kind](self.pipeline, prompts, Reading(clip_skip, max_tokens))

    def uncond(self, *, clip_skip: int = 0, max_tokens: int | None = None) -> Condition:
        """∅ as one row, read as :meth:`encode` reads prompts."""
        empty = self.encode([""], clip_skip=clip_skip, max_tokens=max_tokens)
        if self.zero_uncond:
            return {name: torch.zeros_like(values) for name, values in empty.items()}
        return empty

    @torch.no_grad()
    def to_latents(self, pixels: np.ndarray | Tensor) -> Tensor:
        """Pictures, uint8 ``[n, H, W, 3]``, as scaled posterior means ``[n, C, h, w]``, float32.

        Raises:
            NotFiniteError: If some are NaN or infinity; it knows which.
        """
        config = self.vae.config
        x = torch.as_tensor(pixels).permute(0, 3, 1, 2).to(self.vae.device).float() / 127.5 - 1
        mean = self.vae.encode(x.to(self.vae.dtype)).latent_dist.mean.float()
        latents: Tensor = (mean - (config.shift_factor or 0)) * config.scaling_factor
        bad = (~latents.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise NotFiniteError(bad)
        return latents


def load_base(path: Path | str | None = None, *, config: Path | None = None) -> Base:
    """A base model, on the CPU in float32.

    Args:
        path: A diffusers folder, a single-file ``.safetensors`` checkpoint, or ``owner/name`` of a
            hub; None is the embedded one.
        config: For a single file: diffusers folder of a model of the same family, of which
            configurations and tokenizers are read; without it diffusers asks the hub.

    Raises:
        NotFoundError: If nothing is there.
        InvalidContentError: If it is no whole model, damaged, or not finite.
        IncompatibleError: If it is no base that can be trained on.
        NetworkError: If the hub is needed and does not answer.
    """
    if path is None:
        return _of_folder(files.MODEL)
    here = Path(path)
    if here.is_dir():
        return _of_folder(here)
    if here.is_file():
        return _of_file(here, config)
    if isinstance(path, str) and _HUB_NAME.fullmatch(path) and here.suffix != ".safetensors":
        return _of_folder(_downloaded(path))
    raise NotFoundError(
        f"{path}: no such model",
        hint="give a diffusers folder, a .safetensors checkpoint, or owner/name of a hub",
    )


def _of_folder(folder: Path) -> Base:
    kind = folder_kind(folder)
    parts = folder_digests(folder, kind)
    try:
        pipeline = load_pipeline(folder, kind)
    except _FAILURES as error:
        raise _unloadable(folder, error) from error
    check_complete(folder, pipeline, kind)
    listed = json.dumps(parts, sort_keys=True).encode()
    return _base(folder, pipeline, hashlib.sha256(listed).hexdigest(), parts, kind)


def _of_file(path: Path, config: Path | None) -> Base:
    from diffusers.loaders.single_file_utils import SingleFileComponentError

    file, digest = file_digest(path)
    kind = file_kind(file)
    if config is not None and folder_kind(config) != kind:
        raise IncompatibleError(
            f"{config}: is of another kind than {path}, which is of kind {kind}",
            hint="give the configuration of a model of the same family",
        )
    cls, options = pipeline_class(kind)
    options |= {"local_files_only": True, "config": str(config)} if config else {}
    try:
        with _quiet():
            pipeline = ready(cls.from_single_file(str(path), **options))
    except (*_FAILURES, SingleFileComponentError) as error:
        if config is None and isinstance(error, OSError):
            raise NetworkError(
                f"{path}: its configuration could not be read from the hub ({_line(error)})",
                hint="give --config DIR, a diffusers folder of a model of the same family",
            ) from error
        raise _unloadable(path, error) from error
    _obey_marks(pipeline, file)
    _check_filled(path, pipeline, kind)
    return _base(path, pipeline, digest, dict.fromkeys(PARTS[kind], digest), kind)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without diffusers' warnings, which here tell of what is checked below."""
    from diffusers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _obey_marks(pipeline: Any, file: SafeFile) -> None:
    """Makes the scheduler what the file says it must be; DDIM's class knows all the options."""
    from diffusers import DDIMScheduler

    for marker in SCHEDULER_MARKS.keys() & set(file):
        pipeline.scheduler = DDIMScheduler.from_config(
            pipeline.scheduler.config, **SCHEDULER_MARKS[marker]
        )


def _base(where: Path, pipeline: Any, digest: str, parts: Mapping[str, str], kind: str) -> Base:
    check_architecture(where, pipeline.unet.config, pipeline.vae.config)
    _check_scheduler(where, pipeline.scheduler)
    return Base(pipeline, digest, parts, _family(pipeline, kind), kind, where)


def _family(pipeline: Any, kind: str) -> str:
    """The family whose table is the pipeline's, module by module."""
    shapes = {
        with_text_model(f"{part}.{key.removesuffix('.weight')}"): tuple(values.shape)
        for part in PARTS[kind]
        if part != "vae"
        for key, values in getattr(pipeline, part).state_dict().items()
        if key.endswith(".weight")
    }
    return next((family for family in FAMILIES if table(family) == shapes), kind)


def _check_scheduler(where: Path, scheduler: Any) -> None:
    try:
        Schedule.of_scheduler(scheduler).check(str(scheduler.config.get("prediction_type")))
    except UsageError as error:
        raise IncompatibleError(f"{where}: {error.message}", hint=error.hint) from error


def _check_filled(path: Path, pipeline: Any, kind: str) -> None:
    """Raises where a single file had no values for a layer; diffusers leaves it on meta."""
    empty = [
        f"{part}.{name}"
        for part in PARTS[kind]
        for name, values in getattr(pipeline, part).state_dict().items()
        if values.is_meta
    ]
    if empty:
        raise InvalidContentError(
            f"{path}: {len(empty)} tensors of the model are missing from it, {empty[0]} for one",
            hint="download it again, or give --config DIR of the family it is of",
        )


def _downloaded(name: str) -> Path:
    """The folder in the hub's cache, filled where it is not."""
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(name, use_safetensors=True))
    except (OSError, ValueError) as error:
        raise NetworkError(
            f"{name}: is no folder here, and the hub did not give it ({_line(error)})",
            hint="check the name, or give a diffusers folder or a .safetensors checkpoint",
        ) from error


def _unloadable(path: Path, error: Exception) -> InvalidContentError:
    return InvalidContentError(
        f"{path}: diffusers cannot load it: {_line(error)}",
        hint="it is damaged, or its configuration is another model's",
    )


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
