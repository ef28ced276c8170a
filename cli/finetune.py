"""``lcm-arith finetune``: pictures → a style vector."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

from lcm_arith.cli import options
from lcm_arith.cli.choices import option
from lcm_arith.cli.output import Stages
from lcm_arith.cli.train import make, print_planned
from lcm_arith.cli.training import Shared, with_shared

if TYPE_CHECKING:
    from lcm_arith.training.request import Request

STYLE: Final = "Style"
EXAMPLES = """Examples:

  lcm-arith finetune --embedded-style twemoji -o twemoji.safetensors

  lcm-arith finetune --base my-model/ --data my-pictures/ --trigger "my style" --name my-style

  lcm-arith finetune --plan --family sd15

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
        option(
            STYLE,
            "Learn an embedded picture set (its part A).",
            metavar="NAME",
            show_default="fluent-emoji",
        ),
    ] = None,
    timesteps: Annotated[
        Timesteps,
        option(
            STYLE,
            "How noise levels are drawn: uniform, logit-normal, or style-friendly, which is high.",
            metavar="HOW",
        ),
    ] = Timesteps.uniform,
    snr_gamma: Annotated[
        float, option(STYLE, "Most signal-to-noise ratio in the loss's weight.", metavar="γ")
    ] = 5.0,
    snr_floor: Annotated[
        float, option(STYLE, "Least; gives high noise more weight.", metavar="SNR")
    ] = 0.0,
    caption_dropout: Annotated[
        float, option(STYLE, "Share of pictures shown without a caption.", metavar="SHARE")
    ] = 0.1,
    learn_empty: Annotated[
        bool,
        option(
            STYLE,
            "Learn the pictures without a caption, too; else the base's answer stays.",
            "--learn-empty",
        ),
    ] = False,
    text_encoder: Annotated[
        bool, option(STYLE, "Adapt the text encoders, too.", "--text-encoder")
    ] = False,
    with_accel: Annotated[
        str | None,
        option(
            STYLE,
            "Train with this acceleration vector in place, and leave it as it is.",
            metavar="VECTOR",
            autocompletion=options.completion.vectors,
        ),
    ] = None,
) -> None:
    """Train a LoRA style vector: the denoising loss, min-SNR weighting, caption dropout."""
    from lcm_arith.errors import UsageError

    if shared.data is not None and embedded_style is not None:
        raise UsageError("--data and --embedded-style exclude each other")

    if learn_empty and not caption_dropout:
        raise UsageError("--learn-empty: no caption is dropped with --caption-dropout 0")
    if shared.plan:
        if text_encoder:
            raise UsageError("--plan counts the UNet's adapter alone, leave --text-encoder out")
        print_planned(
            shared,
            "finetune",
            timesteps=timesteps.value,
            snr_gamma=snr_gamma,
            snr_floor=snr_floor,
            caption_dropout=caption_dropout,
            learn_empty=learn_empty,
            with_accel=with_accel,
        )
        return

    def sets() -> tuple[str, ...]:
        from lcm_arith.embedded import files

        return (embedded_style or str(files.defaults()["style"]),)

    def train(request: Request, stages: Stages) -> dict[str, Any]:
        from lcm_arith.make_vectors import make_style
        from lcm_arith.training.denoising import Denoising

        how = Denoising(
            timesteps=timesteps.value,
            caption_dropout=caption_dropout,
            keep_empty=not learn_empty,
            gamma=snr_gamma,
            floor=snr_floor,
        )
        (style,) = sets()
        return make_style(
            request, style, stages, how=how, accel=with_accel, text_encoder=text_encoder
        )

    make(shared, "finetune", "style.safetensors", sets, train)
