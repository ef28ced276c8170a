"""Judges from local folders, by transformers: CLIP, DINOv2, PickScore, and LAION's aesthetic head.

Nothing is ever asked of a hub. Weights are read as ``.safetensors`` alone, checked first, and a
layer that the files do not fill is an error. The embedded judge answers the same calls.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lcm_arith.base_files import weight_files
from lcm_arith.embedded.files import JUDGE, sha256
from lcm_arith.embedded.probe import Judge, load_judge
from lcm_arith.errors import IncompatibleError, InvalidContentError, NotFoundError
from lcm_arith.evaluation.judging.embeddings import Rows
from lcm_arith.evaluation.judging.pixels import Pixels, Values
from lcm_arith.evaluation.judging.preprocessing import Preprocessing, read_preprocessing
from lcm_arith.formats import pickles
from lcm_arith.formats.preflight import SafeFile

CLS_MODELS: Final = ("dinov2", "dinov2_with_registers", "dinov3_vit", "vit")
"""Architectures whose normalised class token, the first of the last layer, embeds a picture."""
_TEXTS: Final = (".json", ".txt", ".model")  # configurations and tokenizers
_WEIGHTS: Final = ("model.safetensors", "model.safetensors.index.json")
_TOKENIZERS: Final = (("tokenizer.json",), ("vocab.json", "merges.txt"))
_FAILURES: Final = (AttributeError, KeyError, OSError, RuntimeError, TypeError, ValueError)
_AGAIN: Final = "download the model's whole folder again"


@dataclass(frozen=True, eq=False)
class EmbeddedClip:
    """The shipped judge."""

    judge: Judge
    name: str = "the embedded judge"

    @cached_property
    def digest(self) -> str:
        """sha256 of its weights."""
        return sha256(JUDGE / "model.safetensors")

    @cached_property
    def scale(self) -> float:
        """exp(``logit_scale``)."""
        return float(self.judge.model.logit_scale.exp())

    def embed_pictures(self, pixels: Pixels) -> Rows:
        """Unit rows ``[n, d]`` of uint8 ``[n, H, W, 3]``."""
        return self.judge.embed_pictures(pixels)

    def embed_captions(self, captions: Sequence[str]) -> Rows:
        """Unit rows ``[n, d]``."""
        return self.judge.embed_captions(captions)


@dataclass(frozen=True, eq=False)
class VisionModel:
    """A vision transformer whose class token embeds a picture.

    Args:
        name: Its folder's, and the architecture.
        digest: sha256 over its files.
        model: Of transformers.
        preprocessing: Of pictures.
    """

    name: str
    digest: str
    model: Any
    preprocessing: Preprocessing

    @torch.inference_mode()
    def embed_pictures(self, pixels: Pixels) -> Rows:
        """Unit rows ``[n, d]`` of uint8 ``[n, H, W, 3]``."""
        return _unit(self._features(torch.from_numpy(self.preprocessing(pixels))))

    def _features(self, values: Tensor) -> Tensor:
        found: Tensor = self.model(pixel_values=values.to(self.model.device)).last_hidden_state
        return found[:, 0]


@dataclass(frozen=True, eq=False)
class ClipModel(VisionModel):
    """A CLIP with its tokenizer; PickScore is one."""

    tokenizer: Any

    @cached_property
    def scale(self) -> float:
        """exp(``logit_scale``)."""
        return float(self.model.logit_scale.exp())

    @property
    def width(self) -> int:
        """Length of a row."""
        return int(self.model.config.projection_dim)

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str]) -> Rows:
        """Unit rows ``[n, d]``, each as if alone; what the model cannot read of one is cut off."""
        most = self.model.config.text_config.max_position_embeddings
        rows = []
        for caption in captions:
            tokens = self.tokenizer(caption, truncation=True, max_length=most, return_tensors="pt")
            rows.append(_unit(self.model.get_text_features(**tokens.to(self.model.device))))
        return np.concatenate(rows)

    def _features(self, values: Tensor) -> Any:
        return self.model.get_image_features(pixel_values=values.to(self.model.device))


@dataclass(frozen=True, eq=False)
class Aesthetic:
    """LAION's head on CLIP ViT-L/14: what people rated pictures, 1 to 10, from its unit rows.

    Args:
        name: Of its file.
        digest: sha256 of that.
        layers: Weight ``[out, in]`` and bias of each, applied in turn; nothing lies between them.
    """

    name: str
    digest: str
    layers: tuple[tuple[Values, Values], ...]

    @property
    def width(self) -> int:
        """Length of the rows that it reads."""
        return int(self.layers[0][0].shape[1])

    def score(self, rows: Rows) -> Values:
        """Ratings ``[n]`` of unit rows ``[n, d]``."""
        x: Values = rows.astype(np.float64)
        for weight, bias in self.layers:
            x = x @ weight.T + bias
        return x[:, 0]


def embedded_clip() -> EmbeddedClip:
    """The shipped judge, ready to embed."""
    return EmbeddedClip(load_judge())


def load_clip(folder: Path, *, option: str = "--clip", device: str = "cpu") -> ClipModel:
    """A CLIP from the folder that holds its weights, tokenizer and ``preprocessor_config.json``.

    Args:
        folder: On this machine.
        option: What the errors call it.
        device: Where it computes, in float32.

    Raises:
        NotFoundError: If there is no such folder.
        InvalidContentError: If it is no whole model, damaged, not finite, or has no tokenizer.
        IncompatibleError: If it is another architecture.
    """
    from transformers import CLIPModel, CLIPTokenizer

    found = _checked(
        folder, option, ("clip",), "a CLIP model, such as openai/clip-vit-large-patch14"
    )
    if not any(all((folder / name).is_file() for name in names) for names in _TOKENIZERS):
        raise InvalidContentError(
            f"{option} {folder}: has no tokenizer (tokenizer.json, or vocab.json and merges.txt)",
            hint=_AGAIN,
        )
    model = _loaded(CLIPModel, folder, option, device)
    with _quietly():
        tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    return ClipModel(*found.called("clip"), model, found.preprocessing, tokenizer)


def load_dino(folder: Path, *, option: str = "--dino", device: str = "cpu") -> VisionModel:
    """A DINOv2, or another model of :data:`CLS_MODELS`, from its folder.

    Arguments and errors as :func:`load_clip`, without the tokenizer.
    """
    from transformers import AutoModel

    found = _checked(folder, option, CLS_MODELS, "a vision model, such as facebook/dinov2-base")
    model = _loaded(AutoModel, folder, option, device, unused=("pooler.",))
    return VisionModel(*found.called("class token"), model, found.preprocessing)


def load_pickscore(folder: Path, *, device: str = "cpu") -> ClipModel:
    """PickScore, a CLIP, as :func:`load_clip`."""
    return load_clip(folder, option="--pickscore", device=device)


def load_aesthetic(path: Path) -> Aesthetic:
    """LAION's aesthetic head from its state dict, a ``.pth`` (opened under limits) or safetensors.

    Raises:
        NotFoundError: If there is no such file.
        InvalidContentError: If it cannot be read, or is another thing.

    Source:
        christophschuhmann/improved-aesthetic-predictor, ``sac+logos+ava1-l14-linearMSE.pth``: five
        linear layers with dropout between them, which does nothing here, and no activation.
    """
    option = f"--aesthetic {path}"
    if not path.is_file():
        raise NotFoundError(f"{option}: no such file")
    tensors: Mapping[str, Tensor]
    if pickles.is_pickle(path):
        digest, tensors = pickles.read(path)
    else:
        digest, tensors = SafeFile.open(path).checked(keep=True)
    wanted = [f"layers.{at}" for at in _HEAD]
    if tensors.keys() != {f"{name}.{part}" for name in wanted for part in ("weight", "bias")}:
        raise InvalidContentError(
            f"{option}: is no aesthetic head of LAION's, whose tensors are {wanted[0]}.weight to "
            f"{wanted[-1]}.bias; this file has {', '.join(sorted(tensors)[:3])}, …",
            hint="give sac+logos+ava1-l14-linearMSE.pth",
        )
    layers = tuple(
        (tensors[f"{n}.weight"].double().numpy(), tensors[f"{n}.bias"].double().numpy())
        for n in wanted
    )
    ends = [weight.shape[0] for weight, _ in layers]
    starts = [weight.shape[1] for weight, _ in layers if weight.ndim == 2]
    if (
        starts[1:] != ends[:-1]
        or ends[-1] != 1
        or [b.shape for _, b in layers] != [(n,) for n in ends]
    ):
        raise InvalidContentError(
            f"{option}: its layers do not fit one another, "
            f"{', '.join(str(list(weight.shape)) for weight, _ in layers)}"
        )
    return Aesthetic(path.name, digest, layers)


_HEAD: Final = (0, 2, 4, 6, 7)  # places of the linear layers; dropout takes the others


@dataclass(frozen=True)
class _Found:
    """A folder whose files were read through and are whole."""

    folder: Path
    kind: str
    files: Mapping[str, str]
    preprocessing: Preprocessing

    def called(self, use: str) -> tuple[str, str]:
        """Name and digest of the model for a use: one folder may embed in two ways."""
        listed = json.dumps([use, self.files], sort_keys=True).encode()
        return f"{self.folder.resolve().name} ({self.kind})", hashlib.sha256(listed).hexdigest()


def _checked(folder: Path, option: str, kinds: Sequence[str], wanted: str) -> _Found:
    if not folder.is_dir():
        raise NotFoundError(
            f"{option} {folder}: no such folder; models are not downloaded here",
            hint="hf download OWNER/NAME --local-dir DIR, then give DIR",
        )
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        kind = str(told["model_type"])
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise InvalidContentError(
            f"{option} {folder}: is no model of transformers, its config.json cannot be read "
            f"({error!r:.80})",
            hint=f"give the folder of {wanted}",
        ) from None
    if kind not in kinds:
        raise IncompatibleError(
            f"{option} {folder}: is a {kind}, not {' or '.join(kinds)}",
            hint=f"give the folder of {wanted}",
        )
    if not any((folder / name).is_file() for name in _WEIGHTS):
        raise InvalidContentError(
            f"{option} {folder}: holds no {_WEIGHTS[0]}; pickles (.bin, .pth) are not read",
            hint="download the .safetensors of the model, or save it again with save_pretrained",
        )
    preprocessing = read_preprocessing(folder)
    texts = [p for p in folder.iterdir() if p.suffix in _TEXTS and p.is_file()]
    files = {path.name: sha256(path) for path in texts}
    for path in weight_files(folder):
        files[path.name] = SafeFile.open(path, checkpoint=True).checked(keep=False)[0]
    return _Found(folder, kind, files, preprocessing)


def _loaded(cls: Any, folder: Path, option: str, device: str, unused: tuple[str, ...] = ()) -> Any:
    """A model in float32 whose every layer that is used has values in the files."""
    try:
        with _quietly():
            model, told = cls.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
    except _FAILURES as error:
        said = str(error).strip().splitlines()[:1]
        raise InvalidContentError(
            f"{option} {folder}: cannot be loaded ({type(error).__name__}: {' '.join(said)})",
            hint=_AGAIN,
        ) from error
    missing = sorted(key for key in told["missing_keys"] if not key.startswith(unused or "\0"))
    if missing:
        raise InvalidContentError(
            f"{option} {folder}: {len(missing)} tensors of the model are missing from its files, "
            f"{missing[0]} for one",
            hint=_AGAIN,
        )
    return model.float().eval().requires_grad_(False).to(device)


def _unit(features: Any) -> Rows:
    """Projected features as unit rows; transformers 5 wraps the tensor in an output object."""
    tensor: Tensor = getattr(features, "pooler_output", features)
    rows: Rows = F.normalize(tensor.float(), dim=-1).cpu().numpy()
    return rows


@contextmanager
def _quietly() -> Iterator[None]:
    """A library shows no progress bars, and warns of nothing that is checked here."""
    from transformers.utils import logging as untyped

    logging: Any = untyped
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
