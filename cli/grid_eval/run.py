"""``lcm-arith grid-eval run``, the verb that need not be typed: the λ1 × λ2 × steps search."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lcm_arith.cli import completion, options
from lcm_arith.cli.grid_eval.showing import say, show, show_drawn
from lcm_arith.cli.output import Stages, progress, reading, stderr

EXAMPLES = """Examples:

  lcm-arith grid-eval

  lcm-arith grid-eval noto lcm --l1 0:1.2:0.2 --l2 0.8,1.0 --steps 1,2,4,8 --prompts 48 --part A

  lcm-arith grid-eval none lcm --l2 0.6:1.2:0.2 --out base-grid --csv base.csv

  lcm-arith grid-eval --noninferior prompt_score:0.02 --confirm 3

  lcm-arith grid-eval --l1 0.8,1.2/1.0/0.6/0.6 --steps 4 --axis sampler=lcm,ddim

  lcm-arith grid-eval --recipe which-sampler --prompts 48

  lcm-arith grid-eval report|status|replay|export|gc DIR     (what was drawn before; -h tells more)

  lcm-arith grid-eval --l1 0:1.4:0.1 --l2 0.5:1.2:0.1 --search tpe --budget 9000 --confirm 3
"""


AXES = (
    "guidance", "sampler", "method", "rank", "te", "style", "accel", "base", "negative", "edit",
)  # fmt: skip
"""lcm_arith.evaluation.plans.axes.AXES, which imports torch."""


def _recipe(context: typer.Context, name: str | None) -> str | None:
    """Reads a recipe, whose options then stand in for those that are not given."""
    if name is None:
        return None
    from lcm_arith.evaluation.plans.recipe import read

    names = {
        option.removeprefix("--"): parameter.name
        for parameter in context.command.params
        for option in parameter.opts
        if option.startswith("--") and option not in ("--help", "--recipe", "--axis")
    }
    context.default_map = {names[key]: text for key, text in read(name, names).options.items()}
    return name


def command(
    style: options.Style = None,
    accel: options.Accel = None,
    l1: Annotated[
        str,
        typer.Option(
            "--l1",
            metavar="LIST",
            help="Weights λ1 of the style vector; 1.2/1.0/0.6/0.6 is one per step.",
        ),
    ] = "0.6,0.8,1.0",
    l2: Annotated[
        str, typer.Option("--l2", metavar="LIST", help="Weights λ2 of the acceleration vector.")
    ] = "0.8,1.0",
    steps: Annotated[str, typer.Option(metavar="LIST", help="Step counts.")] = "1,2,4",
    axis: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=V1,V2",
            help=f"Another axis, repeatable: {', '.join(AXES)}. A list with a semicolon is "
            "separated by semicolons; none is to do without.",
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Options of a recipe (lcm-arith recipes ls) where they are not given here.",
            callback=_recipe,
            is_eager=True,
            autocompletion=completion.recipes,
        ),
    ] = None,
    prompts: Annotated[
        str,
        typer.Option(
            metavar="N|FILE",
            help="First N captions in a fixed order, or a file: a prompt a line, equal ones once.",
        ),
    ] = "16",
    part: Annotated[
        options.PartName,
        typer.Option(help="Captions that the vectors were trained on (A), or not (B)."),
    ] = options.PartName.all,
    seeds: Annotated[int, typer.Option(metavar="N", help="Seeds 0 to N−1 per prompt.")] = 2,
    style_refs: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Pictures of the style, for color_swd, texture_swd and style_cos.",
            show_default="the style's own drawings",
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="CLIP that judges prompts, styles and sets: a folder of transformers'.",
            show_default="the embedded judge, on the embedded base",
        ),
    ] = None,
    dino: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="DINOv2, for teacher_dino, teacher_rel and ref_nn_cos."),
    ] = None,
    pickscore: Annotated[
        Path | None, typer.Option(metavar="DIR", help="PickScore, for pickscore.")
    ] = None,
    aesthetic: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="LAION's head on the --clip ViT-L/14, for aesthetic."),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,…", help="Compute only these (docs/metrics.md).", show_default="all"
        ),
    ] = None,
    require_metric: Annotated[
        str | None,
        typer.Option(metavar="NAME,…", help="Draw nothing if one of these cannot be computed."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder; an earlier grid there is continued.")
    ] = Path("grid"),
    csv: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Table, one row a cell.", show_default="DIR/cells.csv"),
    ] = None,
    best_by: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC",
            help="Metric that decides which cell is best.",
            show_default="the first of pair_distance, prompt_score, ssim that all cells have",
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="L1,L2,STEPS",
            help="Cell that the others are compared with.",
            show_default="0.8,1,4 if the grid has it, else the best cell",
        ),
    ] = None,
    noninferior: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC:DELTA", help="Fewest steps at most DELTA worse than the teacher."
        ),
    ] = None,
    confirm: Annotated[
        int | None,
        typer.Option(metavar="K", help="Measure the K best cells again, on fresh seeds."),
    ] = None,
    search: Annotated[
        str | None,
        typer.Option(
            metavar="tpe|random",
            help="Draw only what a search within --budget asks for, of a grid too large to run.",
        ),
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(metavar="ROWS", help="UNet rows that a search may take, margins included."),
    ] = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="i/N",
            help="Draw part i of N, from 1, and measure nothing: grid-eval report does, when all "
            "parts are in one folder.",
        ),
    ] = None,
    executor: Annotated[
        str, typer.Option(metavar="local|ray", help="Who draws: this process, or a Ray cluster.")
    ] = "local",
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Ray actors.", show_default="one per GPU, else per core"),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Of a Ray cluster.", show_default="a local one"),
    ] = None,
    base: options.Base = None,
    dtype: Annotated[
        options.DtypeName, typer.Option(help="Number format of the base's weights.")
    ] = options.DtypeName.float32,
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")
    ] = "auto",
    fast: Annotated[
        bool,
        typer.Option("--fast", help="bfloat16 products where the processor has them natively."),
    ] = False,
    as_json: options.Json = False,
) -> None:
    """Measure λ1 × λ2 × steps against the many-step teacher and controls of equal cost.

    Lists are 0.4,0.8 or 0:1.2:0.2 (end included). The control of a cell spends the same UNet
    passes without acceleration, in the best of up to four ways.
    """
    options.writable_folder(out)
    with reading():
        from lcm_arith.errors import UsageError
        from lcm_arith.evaluation.asking import Typed, parse
        from lcm_arith.evaluation.drawing.executors.choose import choose as choose_executor
        from lcm_arith.evaluation.drawing.shards import parse_shard
        from lcm_arith.evaluation.drawing.sources import Sources
        from lcm_arith.evaluation.judging.metrics import choose
        from lcm_arith.evaluation.manifest import OTHERS, How, Tools
        from lcm_arith.evaluation.plans.recipe import read
        from lcm_arith.evaluation.report import plan_notes
        from lcm_arith.evaluation.session import Session
        from lcm_arith.training.processes import found_device

        named = [name for name, one in (("style", style), ("accel", accel)) if one is not None]
        named += ["base"] if base is not None else []
        axes = read(recipe).axes_beside(axis or [], named) if recipe else axis or []
        how = How(dtype.value, str(found_device(device)), fast)
        tools = Tools(
            style_refs=style_refs, clip=clip, dino=dino, pickscore=pickscore, aesthetic=aesthetic,
            required=()
            if require_metric is None
            else choose(require_metric, "--require-metric"),
        )  # fmt: skip
        typed = Typed(
            style=style, accel=accel, defaults=options.pair(None, None), l1=l1, l2=l2, steps=steps,
            axes=axes, base=None if base is None else str(base), prompts=prompts, part=part.value,
            seeds=seeds, metrics=metrics, best_by=best_by, baseline=baseline,
            noninferior=noninferior, confirm=confirm, search=search, budget=budget, out=out,
            csv=csv, how=how, tools=tools, argv=tuple(sys.argv[1:]),
        )  # fmt: skip
        if search is not None and (shard is not None or executor != "local"):
            raise UsageError("--search draws one cell after the other: no --shard, no --executor")
        if shard is not None and (confirm is not None or csv is not None):
            raise UsageError(
                "--shard measures nothing: no --confirm, no --csv",
                hint="grid-eval report DIR --csv FILE, or the same grid without --shard, when all "
                "shards are in one folder",
            )
        sources = Sources(how.dtype, how.device)
        manifest = parse(typed, sources)
        drawer = choose_executor(executor, workers=workers, address=ray_address)
    count = len(manifest.grid.prompts)
    if prompts.isdecimal() and count < int(prompts):
        say([f"--prompts {prompts}: there are {count} captions in part {part.value}"])
    said = plan_notes(manifest.grid)
    say(said)
    earlier = set(out.glob(OTHERS))
    with progress() as bar:
        session = Session(manifest, out, sources, Stages(bar), drawer)
        try:
            if shard is not None:
                drawn = session.draw(parse_shard(shard))
            else:
                concluded = session.run()
        except KeyboardInterrupt:
            stderr.print(
                f"Interrupted: finished chunks are kept in {out} (lcm-arith grid-eval status "
                f"{out}); the same command draws the rest",
                soft_wrap=True,
            )
            raise typer.Exit(130) from None
    say(
        f"the folder's earlier question has pictures that this one has not; it is kept: "
        f"lcm-arith grid-eval report {path}"
        for path in sorted(set(out.glob(OTHERS)) - earlier)
    )
    if shard is not None:
        show_drawn(drawn, out, shard, as_json=as_json)
    else:
        show(concluded, as_json=as_json, said=said)
