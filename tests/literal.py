"""Algorithm 1 of arXiv:2310.04378 as printed, with two networks: what our step is held against.

Nothing of ``lcm_arith.lcd`` is used. The tables α, σ are given, ``[T]``; a network is a diffusers
UNet, told prompt embeddings alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def algorithm_1(
    student: Any,
    teacher: Any,
    *,
    tables: tuple[Tensor, Tensor],
    prediction: str,
    z0: Tensor,
    noise: Tensor,
    ends: tuple[Tensor, Tensor],
    prompts: tuple[Tensor, Tensor],
    omega: Tensor,
    loss: str = "huber",
    target: Any = None,
) -> Tensor:
    """d(f_θ(z_{t_{n+k}}), f_θ⁻(ẑ_{t_n})) with DDIM.

    Args:
        student: Its gradients are wanted.
        teacher: Another network.
        tables: α and σ of every timestep.
        prediction: epsilon, v_prediction or sample.
        z0: Clean latents ``[B, C, h, w]``.
        noise: ε.
        ends: t_{n+k} and t_n, ``[B]`` each.
        prompts: Embeddings of c and of ∅.
        omega: ω, ``[B]``.
        loss: Pseudo-huber, or l2.
        target: θ⁻, a third network; None is θ⁻ = stopgrad(θ).
    """
    (t, s), (c, empty) = ends, prompts
    (a_t, s_t), (a_s, s_s) = ([x[i].reshape(-1, 1, 1, 1).to(z0) for x in tables] for i in ends)
    z = a_t * z0 + s_t * noise
    with torch.no_grad():
        increments = []
        for prompt in (c, empty):
            out = teacher(z, t, encoder_hidden_states=prompt).sample
            x0, eps = original(out, z, a_t, s_t, prediction)
            increments.append(a_s * x0 + s_s * eps - z)
        w = omega.reshape(-1, 1, 1, 1).to(z0)
        z_hat = z + (1 + w) * increments[0] - w * increments[1]
        goal = consistency_function(target or student, z_hat, s, c, a_s, s_s, prediction)
    difference = consistency_function(student, z, t, c, a_t, s_t, prediction) - goal
    if loss == "l2":
        return (difference**2).mean()
    return ((difference**2 + 0.001**2) ** 0.5 - 0.001).mean()


def consistency_function(
    network: Any, z: Tensor, t: Tensor, c: Tensor, a: Tensor, s: Tensor, prediction: str
) -> Tensor:
    x0, _ = original(network(z, t, encoder_hidden_states=c).sample, z, a, s, prediction)
    tau = 10.0 * t.reshape(-1, 1, 1, 1).to(z)
    c_skip = 0.5**2 / (tau**2 + 0.5**2)
    c_out = tau / (tau**2 + 0.5**2) ** 0.5
    return c_skip * z + c_out * x0


def original(out: Tensor, z: Tensor, a: Tensor, s: Tensor, prediction: str) -> tuple[Tensor, ...]:
    """The clean latents and the noise that an output amounts to."""
    if prediction == "epsilon":
        return (z - s * out) / a, out
    if prediction == "v_prediction":
        return a * z - s * out, a * out + s * z
    return out, (z - a * out) / s
