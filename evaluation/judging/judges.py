"""The models that pictures are judged by, as the options name them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from lcm_arith.errors import IncompatibleError, UsageError
from lcm_arith.evaluation.judging.embedders import (
    Aesthetic,
    EmbeddedClip,
    embedded_clip,
    load_aesthetic,
    load_clip,
    load_dino,
    load_pickscore,
)
from lcm_arith.evaluation.judging.embeddings import Clip, Embedder, Embeddings
from lcm_arith.modules import EMBEDDED


@dataclass(frozen=True, eq=False)
class Judges:
    """What embeds pictures and captions; None where there is none, and its metrics stay empty.

    Args:
        embedded: The shipped judge, which knows the shipped drawings.
        clip: Of prompts, styles and sets.
        dino: Of likeness between pictures.
        pickscore: Of what people prefer.
        aesthetic: Head on ``clip``.
        embeddings: Of all of them.
    """

    embedded: EmbeddedClip = field(default_factory=embedded_clip)
    clip: Clip | None = None
    dino: Embedder | None = None
    pickscore: Clip | None = None
    aesthetic: Aesthetic | None = None
    embeddings: Embeddings = field(default_factory=Embeddings)

    def on(self, base: str) -> Judges:
        """The judges of a base's pictures: the shipped one stands in on the embedded base alone."""
        stands_in = self.clip is None and base == EMBEDDED
        return replace(self, clip=self.embedded) if stands_in else self

    def digests(self) -> dict[str, dict[str, str]]:
        """Name and sha256 of each, by its role."""
        roles = ("embedded", "clip", "dino", "pickscore", "aesthetic")
        models = ((role, getattr(self, role)) for role in roles)
        return {
            role: {"name": model.name, "sha256": model.digest} for role, model in models if model
        }


def load_judges(
    *,
    clip: Path | None = None,
    dino: Path | None = None,
    pickscore: Path | None = None,
    aesthetic: Path | None = None,
    store: Path | None = None,
    device: str = "cpu",
) -> Judges:
    """The judges of the options of these names, before anything is drawn.

    Args:
        clip: Folder on this machine; nothing is downloaded.
        dino: Likewise.
        pickscore: Likewise.
        aesthetic: File.
        store: Folder of the embeddings; None keeps them in memory.
        device: Where they compute.

    Raises:
        NotFoundError, InvalidContentError, IncompatibleError: As of the loaders.
        UsageError: If there is an aesthetic head and no CLIP.
        IncompatibleError: If the head was made for a CLIP of another width.
    """
    if aesthetic is not None and clip is None:
        raise UsageError(
            f"--aesthetic {aesthetic}: reads embeddings of CLIP ViT-L/14, and there is no --clip",
            hint="give its folder with --clip DIR",
        )
    head = load_aesthetic(aesthetic) if aesthetic else None
    model = load_clip(clip, device=device) if clip else None
    if head and model and head.width != model.width:
        raise IncompatibleError(
            f"--aesthetic {aesthetic}: reads {head.width} numbers a picture, and --clip {clip} "
            f"gives {model.width}",
            hint="LAION's head was made for CLIP ViT-L/14 (openai/clip-vit-large-patch14), 768",
        )
    return Judges(
        clip=model,
        dino=load_dino(dino, device=device) if dino else None,
        pickscore=load_pickscore(pickscore, device=device) if pickscore else None,
        aesthetic=head,
        embeddings=Embeddings(store),
    )
