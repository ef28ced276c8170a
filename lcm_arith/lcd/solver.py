"""What a network's output means, and the ODE solver Ψ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

from torch import Tensor


class Level(NamedTuple):
    """A noise level: z = alpha_t · z_0 + sigma_t · ε.

    Args:
        t: What the network is told, ``[B]``.
        alpha_t: Float32 or wider, shaped to multiply z: ``[B, 1, …]``.
        sigma_t: Likewise.
    """

    t: Tensor
    alpha_t: Tensor
    sigma_t: Tensor


Meaning = Callable[[Tensor, Tensor, Level], Tensor]
"""(raw output, z, the level of z) → x₀ or ε, shaped as z."""


@dataclass(frozen=True)
class Prediction:
    """A row of the table of parameterisations.

    Args:
        x0: The clean latents that an output amounts to.
        eps: The noise that it amounts to; needs sigma_t > 0.
        needs_signal: Says nothing of x₀ where alpha_t = 0.
        says: The output in symbols.
    """

    x0: Meaning
    eps: Meaning
    needs_signal: bool
    says: str


PREDICTIONS: Final = {
    "epsilon": Prediction(
        lambda out, z, at: (z - at.sigma_t * out) / at.alpha_t,
        lambda out, z, at: out,
        needs_signal=True,
        says="ε",
    ),
    "v_prediction": Prediction(
        lambda out, z, at: at.alpha_t * z - at.sigma_t * out,
        lambda out, z, at: at.alpha_t * out + at.sigma_t * z,
        needs_signal=False,
        says="α ε − σ z_0, arXiv:2202.00512",
    ),
    "sample": Prediction(
        lambda out, z, at: out,
        lambda out, z, at: (z - at.alpha_t * out) / at.sigma_t,
        needs_signal=False,
        says="z_0",
    ),
    "flow": Prediction(
        lambda out, z, at: z - at.sigma_t * out,
        lambda out, z, at: z + at.alpha_t * out,
        needs_signal=False,
        says="ε − z_0, where alpha_t = 1 − sigma_t, arXiv:2209.03003",
    ),
}

Network = Callable[[Tensor, Level], Tensor]
"""(z, its level) → raw output, guided."""


def ddim(network: Network, row: Prediction, z: Tensor, start: Level, end: Level) -> Tensor:
    """ẑ = α_s x₀ + σ_s ε (the new state; Ψ of Algorithm 1 is the increment ẑ − z).

    For a flow this is Euler's step z + (σ_s − σ_t) · output.
    """
    out = network(z, start)
    return end.alpha_t * row.x0(out, z, start) + end.sigma_t * row.eps(out, z, start)


def dpm_2s(network: Network, row: Prediction, z: Tensor, start: Level, end: Level) -> Tensor:
    """DPM-Solver++(2S) with its inner point at the end of the step (r = 1).

    ẑ = σ_s/σ_t · z + (α_s − σ_s α_t/σ_t) · (x₀(z, t) + x₀(ẑ_ddim, s)) / 2. No logarithm of the
    signal-to-noise ratio, so that alpha_t = 0 at the start and sigma_t = 0 at the end are no
    special cases.
    """
    kept = end.sigma_t / start.sigma_t
    gained = end.alpha_t - kept * start.alpha_t
    x0 = row.x0(network(z, start), z, start)
    z_hat = kept * z + gained * x0
    x0_end = row.x0(network(z_hat, end), z_hat, end)
    return kept * z + gained * (x0 + x0_end) / 2


@dataclass(frozen=True)
class Solver:
    """A row of the table of solvers.

    Args:
        step: (network, prediction, z at the start, start, end) → z at the end.
        passes: Guided passes of the teacher a step, of 2B rows each.
        order: How fast its error falls with the number of steps.
        source: Where it comes from.
    """

    step: Callable[[Network, Prediction, Tensor, Level, Level], Tensor]
    passes: int
    order: int
    source: str


SOLVERS: Final = {
    "ddim": Solver(ddim, passes=1, order=1, source="arXiv:2010.02502, η = 0"),
    "dpm++2s": Solver(dpm_2s, passes=2, order=2, source="arXiv:2211.01095, alg. 1 with r = 1"),
}
