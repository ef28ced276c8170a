"""What the names in a grid stand for: base models, vectors, the picture sets behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from pathlib import Path

import torch

from lcm_arith.adapters import facts, load
from lcm_arith.base_files import PARTS, file_digest, folder_kind, weight_files
from lcm_arith.bases import Base, load_base
from lcm_arith.combination import NONE
from lcm_arith.embedded import files, pictures
from lcm_arith.errors import IncompatibleError, UsageError
from lcm_arith.evaluation.drawing.mixing import mixed, terms
from lcm_arith.evaluation.plans.rows import ONE, Row, style_terms
from lcm_arith.families import Family, check_same_family, embedded, family, misfits
from lcm_arith.formats.container import DTYPES
from lcm_arith.headers import header
from lcm_arith.modules import EMBEDDED
from lcm_arith.sampling import too_long
from lcm_arith.vector import TaskVector

_PUBLISHED_LIKE = "sd"
"""Family whose defaults hold for every base but the embedded one: they have them in common."""

SMALL = 128  # px
_DIGESTS = ("sha256", "config_sha256")  # of a vector's file, and of a configuration beside it


@dataclass(eq=False)
class Sources:
    """Loads each vector once, and one base at a time.

    Args:
        dtype: Number format of the base's weights.
        device: Where it computes.
    """

    dtype: str = "float32"
    device: str = "cpu"
    _vectors: dict[str, TaskVector] = field(default_factory=dict)
    _digests: dict[str, str] = field(default_factory=dict)
    _base: tuple[str, Base] | None = None

    def vector(self, name: str) -> TaskVector:
        """A vector by shipped or registered name, or path.

        Raises:
            NotFoundError, InvalidContentError: As :func:`lcm_arith.adapters.load`.
        """
        if name not in self._vectors:
            self._vectors[name] = load(name)
        return self._vectors[name]

    def base(self, name: str) -> Base:
        """A base model; the one before is let go.

        Raises:
            NotFoundError, InvalidContentError, IncompatibleError, NetworkError: As
                :func:`lcm_arith.bases.load_base`.
        """
        if self._base is None or self._base[0] != name:
            self._base = None
            self._base = (name, self._placed(load_base(None if name == EMBEDDED else name)))
        return self._base[1]

    def _placed(self, base: Base) -> Base:
        """Moved, in the number format; SDXL's VAE stays float32 beside float16, as in diffusers."""
        dtype = DTYPES[self.dtype]
        for part in PARTS[base.kind]:
            wide = part == "vae" and base.kind == "sdxl" and dtype == torch.float16
            wide = wide and bool(base.vae.config.force_upcast)
            module = getattr(base.pipeline, part)
            # diffusers' own warns of layers that it would keep in float32, even if there are none
            torch.nn.Module.to(module, self.device, torch.float32 if wide else dtype)
        return base

    def base_digest(self, name: str) -> str:
        """sha256 over all that a base computes with: weights, configurations, tokenizers.

        Nothing is loaded for it, but a model of a hub, which has to be at hand.

        Raises:
            NotFoundError, InvalidContentError, IncompatibleError, NetworkError: As
                :func:`lcm_arith.bases.load_base`.
        """
        if name not in self._digests:
            self._digests[name] = self._base_digest(name)
        return self._digests[name]

    def _base_digest(self, name: str) -> str:
        folder = embedded().base if name == EMBEDDED else Path(name)
        if folder.is_file():
            return file_digest(folder)[1]
        if folder.is_dir():
            return _folder_digest(folder)
        return _folder_digest(self.base(name).where)

    def side(self, name: str) -> int:
        """Side of a base's pictures, px; a folder's is read from its configurations."""
        folder = embedded().base if name == EMBEDDED else Path(name)
        if not folder.is_dir():
            return self.base(name).size
        unet, vae = (
            json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
            for part in ("unet", "vae")
        )
        return int(unet["sample_size"] * 2 ** (len(vae["block_out_channels"]) - 1))

    def small(self, name: str) -> bool:
        """Whether a base draws pictures of at most :data:`SMALL`; published ones do not."""
        folder = embedded().base if name == EMBEDDED else Path(name)
        return folder.is_dir() and self.side(name) <= SMALL

    def too_long(self, name: str, prompts: Sequence[str]) -> list[str]:
        """Prompts of which a base's text encoder reads only the beginning."""
        folder = embedded().base if name == EMBEDDED else Path(name)
        if not folder.is_dir():
            return too_long(self.base(name).pipeline.tokenizer, prompts)
        from transformers import CLIPTokenizer

        return too_long(CLIPTokenizer.from_pretrained(folder / "tokenizer"), prompts)

    def vector_digest(self, name: str) -> str:
        """sha256 of a vector's file; over weights, files and configurations where that is not all.

        Raises:
            NotFoundError, InvalidContentError: As :func:`lcm_arith.adapters.load`.
        """
        terms = [
            [repr(w), *(source.origin[key] for key in _DIGESTS if key in source.origin)]
            for w, source in self.vector(name).terms
        ]
        if len(terms) == 1 and terms[0][0] == "1.0" and len(terms[0]) == 2:
            return str(terms[0][1])
        return hashlib.sha256(json.dumps(terms).encode()).hexdigest()

    def family(self, base: str) -> Family:
        """Defaults of a base's family."""
        return embedded() if base == EMBEDDED else family(_PUBLISHED_LIKE)

    def grid_points(self, names: Iterable[str]) -> int | None:
        """K that vectors were distilled on, where the files of those that say it agree.

        Raises:
            InvalidContentError: If a file says what is no number.
        """
        headers = (header(name, self.vector(name)) for name in names)
        said = {each["grid_points"] for each in headers if "grid_points" in each}
        return said.pop() if len(said) == 1 else None

    def grid_points_of(self, row: Row) -> int | None:
        """Those of all vectors in a row, whichever part they play: equal weights, equal pictures.

        Raises:
            InvalidContentError: As :meth:`grid_points`.
        """
        names = (t.name for mix in row.mixes for t in terms(mix) if t.weights.overall > 0)
        return self.grid_points(dict.fromkeys(names))

    def style_set(self, style: str) -> str | None:
        """The shipped picture set that a style of one vector was trained on, if it says so."""
        terms = style_terms(style)
        if len(terms) != 1:
            return None
        own = facts(self.vector(terms[0].name)).get("style")
        return own if isinstance(own, str) and own in pictures.sets() else None

    def check(self, rows: Iterable[Row]) -> None:
        """Raises unless vectors can be read, fit their base and be drawn with; no base is loaded.

        Raises:
            NotFoundError, InvalidContentError: If a vector cannot be used, or not by a method.
            IncompatibleError: If one does not fit another, or its base.
            UsageError: If a part of a λ matches nothing, or a vector takes fewer steps.
        """
        ways = tuple(dict.fromkeys(map(_without_sizes, rows)))
        pairs = dict.fromkeys((row.context.base, row.context.style, row.accel) for row in ways)
        for base, style, accel in pairs:
            names = [term.name for term in style_terms(style)]
            names += [accel] if accel != NONE else []
            named = {name: self.vector(name) for name in names}
            check_same_family(named)
            if accel != NONE:
                header(accel, named[accel])
            for name, tau in named.items():
                _check_fits(base, name, tau)
        for mix in dict.fromkeys(mix for row in ways for mix in row.mixes):
            mixed(mix, self.vector)  # reads no numbers
        for row in ways:
            self._check_steps(row)

    def _check_steps(self, row: Row) -> None:
        points = self.grid_points_of(row) if row.sampler == "lcm" else None
        if points is not None and row.steps > points:
            raise UsageError(
                f"steps {row.steps}: lcm takes 1 to {points} steps, on so many grid points were "
                "its vectors distilled",
                hint="fewer steps, or --axis sampler=ddim",
            )


def _without_sizes(row: Row) -> Row:
    """The row with every λ as its sign: whether it can be drawn depends on no more of it."""

    def signs(schedule: Iterable[Decimal]) -> tuple[Decimal, ...]:
        return tuple(weight and ONE.copy_sign(weight) for weight in schedule)

    l1, l2 = signs((row.l1, row.l2))
    return replace(
        row, role="cell", l1=l1, l2=l2, l1_schedule=signs(row.l1_schedule),
        l2_schedule=signs(row.l2_schedule),
    )  # fmt: skip


def _folder_digest(folder: Path) -> str:
    """Over the files of a diffusers folder that its pipeline reads; others may lie beside them."""
    read = {p for part in PARTS[folder_kind(folder)] for p in weight_files(folder / part)}
    index = folder / "model_index.json"
    told = json.loads(index.read_text(encoding="utf-8"))
    parts = [name for name, made in told.items() if isinstance(made, list) and any(made)]
    read |= {
        p for part in parts for end in ("json", "txt") for p in (folder / part).glob(f"*.{end}")
    }
    listed = {
        path.relative_to(folder).as_posix(): files.sha256(path) for path in sorted({index, *read})
    }
    return hashlib.sha256(json.dumps(listed, sort_keys=True).encode()).hexdigest()


def _check_fits(base: str, name: str, tau: TaskVector) -> None:
    """By the headers of a folder's files; other bases tell when they are loaded."""
    folder = embedded().base if base == EMBEDDED else Path(base)
    wrong = misfits(tau, folder) if folder.is_dir() else []
    if wrong:
        raise IncompatibleError(
            f"{name}: does not fit the base model {base}: {len(wrong)} of {len(tau)} modules, "
            f"{wrong[0]} of shape {list(tau.shape_of(wrong[0]))} for one",
            hint="it was made for another architecture; use a base model of its family",
        )
