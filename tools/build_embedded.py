"""Build the ground that every claim stands on: data, models, judge, vectors, and their figures.

    python tools/build_embedded.py                          # everything, in order
    python tools/build_embedded.py vae clip                 # only these stages
    python tools/build_embedded.py --data my-pictures --out my-ground    # of your own pictures

Stages, each of which reads what those before it wrote:

    data          captions and drawings -> data/ (npm packages, or --data STYLE/x.png + x.txt)
    vae           the autoencoder
    decoder       its way back to pictures once more, latents unchanged
    clip          the tokenizer and the text tower
    base          the UNet
    judge         the CLIP that scores, trained on other random numbers
    probe         what names a picture's set, and the ceilings of all metrics
    guidance      which guidance suits the base -> defaults.json
    styles        the style vectors, by the code of ``lcm-arith finetune``
    acceleration  the acceleration vector, by the code of ``lcm-arith distill``
    pictures      what the report measures
    report        docs/embedded.md with every figure, the README's table, the sheets
    manifest      records of the vectors for the registry, sha256 of every file

A training that was killed goes on from its checkpoint in --work; there lie its log of losses and
its sample sheets, too. Needs the extra "build"; ``data`` needs npm. Use a ground of your own with
every command: ``LCM_ARITH_EMBEDDED=my-ground lcm-arith grid-eval``.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Final

# Stage → (module, function); imported when it runs, after --out has said where the ground lies.
STAGES: Final = {
    "data": ("packages", "build"),
    "vae": ("vae", "build"),
    "decoder": ("vae", "build_decoder"),
    "clip": ("clip", "build_text_tower"),
    "base": ("base", "build"),
    "judge": ("clip", "build_judge"),
    "probe": ("ceilings", "build"),
    "guidance": ("vectors", "build_guidance"),
    "styles": ("vectors", "build_styles"),
    "acceleration": ("vectors", "build_acceleration"),
    "pictures": ("report", "draw"),
    "report": ("report", "build"),
    "manifest": ("common", "build_manifest"),
}
CACHE: Final = Path.home() / ".cache" / "lcm-arith"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stages", nargs="*", metavar="STAGE", help="default: all, in order")
    parser.add_argument("--data", type=Path, metavar="DIR", help="STYLE/x.png + x.txt of your own")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the ground (needed with --data)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="checkpoints, logs, sheets")
    parser.add_argument("--packages", type=Path, metavar="DIR", default=CACHE / "npm")
    parser.add_argument(
        "--only", nargs="+", metavar="STYLE", default=(), help="of stages styles and pictures"
    )
    parser.add_argument("--threads", type=int, metavar="N", default=os.cpu_count())
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--shorter", type=int, metavar="N", default=1, help="divide all steps by N, for a trial"
    )
    parser.add_argument(
        "--prompts",
        type=int,
        metavar="N",
        default=200,
        help="a part, in the report; in guidance, of part A",
    )
    parser.add_argument("--seeds", type=int, metavar="N", default=4, help="a prompt, in the report")
    parser.add_argument(
        "--seconds", type=float, metavar="S", default=240.0, help="between two checkpoints"
    )
    given = parser.parse_args(arguments)
    unknown = [stage for stage in given.stages if stage not in STAGES]
    if unknown:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    if given.data is not None and given.out is None:
        parser.error("--data needs --out: the folder of your own ground")
    if given.data is not None and not given.data.is_dir():
        parser.error(f"--data {given.data}: no such folder")
    if min(given.shorter, given.threads, given.prompts, given.seeds) < 1:
        parser.error("--shorter, --threads, --prompts and --seeds are at least 1")
    return given


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the stages; 1 if one fails."""
    given = parse(arguments)
    if given.out is not None:
        given.out.mkdir(parents=True, exist_ok=True)
        os.environ["LCM_ARITH_EMBEDDED"] = str(given.out.resolve())
    import torch
    from ground.common import BuildError, Options

    from lcm_arith.errors import LcmArithError

    torch.set_num_threads(given.threads)
    name = given.out.resolve().name if given.out else "embedded"
    options = Options(
        work=given.work or CACHE / "build" / name,
        packages=given.packages,
        data=given.data,
        device=given.device,
        shorter=given.shorter,
        seconds=given.seconds,
        only=tuple(given.only),
        prompts=given.prompts,
        seeds=given.seeds,
    )
    for stage in given.stages or STAGES:
        module, function = STAGES[stage]
        if stage == "data" and given.data is not None:
            module = "folder"
        run: Any = getattr(import_module(f"ground.{module}"), function)
        try:
            run(options)
        except (BuildError, LcmArithError) as error:
            print(f"{stage}: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
