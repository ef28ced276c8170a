"""``lcm-arith finetune``: pictures → a style vector."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lcm_arith.cli import options
from lcm_arith.cli.output import Stages
from lcm_arith.cli.training import Shared, make, with_shared

if TYPE_CHECKING:
    from lcm_arith.training.request import Request

EXAMPLES = """Examples:

  lcm-arith finetune --embedded-style twemoji -o twemoji.safetensors

  lcm-arith finetune --base my-model/ --data my-pictures/ --trigger "my style" --name my-style

  lcm-arith finetune --data art/ --with-accel lcm --timesteps style-friendly -o fast.safetensors
"""


class Timesteps(StrEnum):
    """lcm_arith.training.denoising.DRAWS."""

    uniform = "uniform"
    logit_normal = "logit-normal"
    style_friendly = "style-friendly"


@with_shared
def command(
    shared: Shared,
    embedded_style: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Learn an embedded picture set (its part A).",
            show_default="fluent-emoji",
        ),
    ] = None,
    timesteps: Annotated[
        Timesteps,
        typer.Option(help="How noise levels are drawn; style-friendly ones are high."),
    ] = Timesteps.uniform,
    snr_gamma: Annotated[
        float, typer.Option(metavar="γ", help="Most signal-to-noise ratio in the loss's weight.")
    ] = 5.0,
    snr_floor: Annotated[
        float, typer.Option(metavar="SNR", help="Least; gives high noise more weight.")
    ] = 0.0,
    caption_dropout: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of pictures shown without a caption.")
    ] = 0.1,
    learn_empty: Annotated[
        bool,
        typer.Option(
            "--learn-empty",
            help="Learn the pictures without a caption, too; else the base's answer stays.",
        ),
    ] = False,
    text_encoder: Annotated[
        bool, typer.Option("--text-encoder", help="Adapt the text encoders, too.")
    ] = False,
    with_accel: Annotated[
        str | None,
        typer.Option(
            metavar="VECTOR",
            help="Train with this acceleration vector in place, and leave it as it is.",
            autocompletion=options.completion.vectors,
        ),
    ] = None,
) -> None:
    """Train a LoRA style vector: the denoising loss, min-SNR weighting, caption dropout."""
    from lcm_arith.errors import UsageError

    if shared.data is not None and embedded_style is not None:
        raise UsageError("--data and --embedded-style exclude each other")

    def train(request: Request, stages: Stages) -> dict[str, Any]:
        from lcm_arith.embedded import files
        from lcm_arith.make_vectors import make_style
        from lcm_arith.training.denoising import Denoising

        how = Denoising(
            timesteps=timesteps.value,
            caption_dropout=caption_dropout,
            keep_empty=not learn_empty,
            gamma=snr_gamma,
            floor=snr_floor,
        )
        style = embedded_style or str(files.defaults()["style"])
        return make_style(
            request, style, stages, how=how, accel=with_accel, text_encoder=text_encoder
        )

    make(shared, "finetune", "style.safetensors", train)
