"""``lcm-arith distill``: a base model → an acceleration vector."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any, Final

from lcm_arith.cli import options
from lcm_arith.cli.choices import number, option
from lcm_arith.cli.output import Stages, stderr
from lcm_arith.cli.train import make, print_planned
from lcm_arith.cli.training import Shared, with_shared

if TYPE_CHECKING:
    from lcm_arith.training.request import Request

RULE: Final = "Algorithm 1"
EXAMPLES = """Examples:

  lcm-arith distill -o lcm.safetensors

  lcm-arith distill --base my-model/ --data my-pictures/ --steps 1000 --name my-lcm

  lcm-arith distill --plan --family sdxl --rank 64

  lcm-arith distill --mode lcf --accel lcm --freeze-accel --data art/ -o fast-style.safetensors
"""


class Mode(StrEnum):
    """lcm_arith.training.distillation.MODES."""

    lora = "lora"
    full = "full"
    lcf = "lcf"


class Timesteps(StrEnum):
    """lcm_arith.training.distillation.TIMESTEPS."""

    grid = "grid"
    literal = "literal"


class Solver(StrEnum):
    """lcm_arith.lcd.solver.SOLVERS."""

    ddim = "ddim"
    dpm = "dpm++2s"


class Loss(StrEnum):
    """lcm_arith.lcd.loss.LOSSES."""

    huber = "huber"
    l2 = "l2"


@with_shared
def command(
    shared: Shared,
    mode: Annotated[
        Mode,
        option(
            RULE,
            "lora: an acceleration vector. full: all weights, a model that is told ω. "
            "lcf: fine-tune an accelerated model on data, without a teacher.",
        ),
    ] = Mode.lora,
    omega: Annotated[
        float | None,
        number(
            RULE, "Guidance of the teacher, the paper's; diffusers' guidance scale is 1 + ω.", "ω"
        ),
    ] = None,
    omega_range: Annotated[
        str | None,
        option(
            RULE,
            "Draw ω from a range, such as 5,15. Mode full is told it, others learn the mean.",
            metavar="LOW,HIGH",
        ),
    ] = None,
    grid_points: Annotated[int | None, number(RULE, "Points of the solver's grid.", "K")] = None,
    stride: Annotated[
        int | None, number(RULE, "Grid points that a solver step goes back.", "POINTS")
    ] = None,
    timesteps: Annotated[
        Timesteps, option(RULE, "Train on the grid that samplers visit, or literally on any t.")
    ] = Timesteps.grid,
    solver: Annotated[
        Solver | None,
        option(
            RULE,
            "The teacher's; dpm++2s is of second order, at twice the passes.",
            show_default="ddim",
        ),
    ] = None,
    loss: Annotated[Loss, option(RULE, "Distance of two predictions.")] = Loss.huber,
    target_decay: Annotated[
        float | None,
        option(
            RULE,
            "Decay of a target that averages the student; 0 is the student itself.",
            metavar="μ",
            show_default="0; 0.95 in mode full",
        ),
    ] = None,
    accel: Annotated[
        str | None,
        option(
            RULE,
            "Mode lcf: the acceleration vector of the model to fine-tune.",
            metavar="VECTOR",
            autocompletion=options.completion.vectors,
        ),
    ] = None,
    freeze_accel: Annotated[
        bool,
        option(
            RULE,
            "Mode lcf: keep it as it is, learn a style vector beside it.",
            "--freeze-accel",
        ),
    ] = False,
    anchor: Annotated[
        float | None,
        option(
            RULE, "Mode lcf: add the distillation loss, so that guidance stays.", metavar="WEIGHT"
        ),
    ] = None,
) -> None:
    """Distil an acceleration vector: Latent Consistency Distillation (Algorithm 1) as a LoRA."""
    from lcm_arith.errors import UsageError
    from lcm_arith.training.request import main_process

    variant: dict[str, Any] = {
        "mode": mode.value,
        "omega": _omega(omega, omega_range),
        "grid_points": grid_points,
        "stride": stride,
        "timesteps": timesteps.value,
        "solver": None if solver is None else solver.value,
        "loss": loss.value,
        "target_decay": target_decay,
        "anchor": anchor,
    }
    if shared.plan:
        print_planned(shared, **variant)
        return
    if mode is Mode.full and shared.name is not None:
        raise UsageError(
            "--name: the registry keeps vectors, and mode full writes a model",
            hint="give a folder with -o",
        )
    if mode is Mode.lcf and not anchor and main_process():
        stderr.print(
            "Note: lcf learns the data as it is, without guidance; a long training takes away what "
            "was distilled of it. Keep it short, or give --anchor."
        )

    def train(request: Request, stages: Stages) -> dict[str, Any]:
        from lcm_arith.make_vectors import make_acceleration

        return make_acceleration(
            request, stages, variant=variant, accel=accel, freeze_accel=freeze_accel
        )

    default = "model" if mode is Mode.full else "acceleration.safetensors"
    make(shared, "distill", default, _sets, train)


def _sets() -> tuple[str, ...]:
    from lcm_arith.embedded.pictures import base_sets

    return base_sets()


def _omega(omega: float | None, drawn_from: str | None) -> float | tuple[float, float] | None:
    from lcm_arith.errors import UsageError

    if drawn_from is None:
        return omega
    if omega is not None:
        raise UsageError("--omega and --omega-range exclude each other")
    try:
        low, high = (float(part) for part in drawn_from.split(","))
    except ValueError as error:
        raise UsageError(f"--omega-range {drawn_from}: two numbers, as in 5,15") from error
    return low, high
