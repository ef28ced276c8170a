"""``lcm-arith generate``: prompts → PNGs and a sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.output import Stages, print_json, progress, stderr, stdout

EXAMPLES = """Examples:

  lcm-arith generate                                        (a dozen of the learnt captions)

  lcm-arith generate fox --vector fluent-emoji:0.8 --vector lcm:1.0 --steps 4

  lcm-arith generate fox --vector fluent-emoji:1.2/1.0/0.6/0.6 --vector lcm (λ1 step by step)

  lcm-arith generate "red apple" tiger --vector combined.safetensors --sampler lcm --steps 2

  lcm-arith generate fox --vector noto --negative tail
"""


def command(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="[PROMPT]…", help="What to draw.")
    ] = None,
    vector: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME:λ",
            help="Vector and its weight (1 where left out), or one per step: NAME:1.2/1/0.6/0.6. "
            "Repeatable.",
            autocompletion=completion.vectors,
        ),
    ] = None,
    sampler: Annotated[
        options.SamplerName | None,
        typer.Option(help="Sampler.", show_default="lcm with an acceleration vector, else dpm++"),
    ] = None,
    steps: Annotated[
        int | None,
        typer.Option(
            metavar="STEPS",
            help="Sampling steps.",
            show_default="one per λ of a vector, else 4 with lcm or tcd, else 25",
        ),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(
            help="diffusers' guidance scale, 1 + ω.",
            show_default="1 with an acceleration vector, else the family's",
        ),
    ] = None,
    negative: Annotated[
        str, typer.Option(metavar="TEXT", help="What guidance leads away from.", show_default=False)
    ] = "",
    seed: options.Seed = 0,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for the pictures.")] = Path(
        "generated"
    ),
    as_json: options.Json = False,
) -> None:
    """Draw prompts with any mix of vectors."""
    from lcm_arith.evaluation.generating.pictures import draw, nearest_captions
    from lcm_arith.evaluation.generating.wishes import Wish, header_notes

    wish = Wish.resolve(
        prompts or [],
        vector or [],
        sampler=sampler.value if sampler else None,
        steps=steps,
        guidance=guidance,
        seed=seed,
        negative=negative,
    )
    for prompt, near in nearest_captions(wish.prompts).items():
        stderr.print(
            f"Note: the embedded model never learnt {prompt!r}; nearest: {', '.join(near)}",
            soft_wrap=True,
        )
    stderr.print(
        f"{wish.sampler}, {wish.steps} steps, "
        f"guidance {wish.guidance:g} (ω = {wish.guidance - 1:g})"
    )
    for note in header_notes(wish):
        stderr.print(f"Note: {note}", soft_wrap=True)
    with progress() as bar:
        drawn = draw(wish, out, Stages(bar))
    for prompt in drawn.cut_prompts:
        stderr.print(f"Note: {prompt!r} is too long: its end is not read")
    if as_json:
        pictures = [str(path) for path in drawn.pictures]
        print_json({**wish.facts(), "pictures": pictures, "sheet": str(drawn.sheet)})
        return
    for path in (*drawn.pictures, drawn.sheet):
        stdout.print(str(path), soft_wrap=True)
