"""Training a LoRA on a UNet: what ``finetune`` and ``distill`` share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from lcm_arith.delta import LowRankDelta
from lcm_arith.errors import DivergedError
from lcm_arith.families import Training
from lcm_arith.vector import Source, TaskVector

_MOST_NONFINITE: Final = 5
_ADAPTER: Final = "default"

OnStep = Callable[[int, float], None]
"""Called after each step with (steps done, loss)."""


def add_adapter(unet: Any, *, rank: int, targets: Sequence[str], seed: int) -> None:
    """Puts a fresh LoRA (alpha = rank, ΔW = 0) on ``unet`` and freezes everything else."""
    from diffusers.models.attention_processor import AttnProcessor
    from peft import LoraConfig

    unet.requires_grad_(False)
    if unet.device.type == "cpu":
        # Explicit attention trains faster than scaled_dot_product_attention on a CPU.
        unet.set_attn_processor(AttnProcessor())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), _ADAPTER
        )
    unet.to(memory_format=torch.channels_last)


def _adapter_layers(unet: Any) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in unet.named_modules() if isinstance(layer, LoraLayer)}


@contextlib.contextmanager
def adapter_off(unet: Any) -> Iterator[None]:
    """Within it, ``unet`` is the frozen base: adapter off = teacher.

    It flips PEFT's own flag on each layer: ``disable_adapters`` also walks ``requires_grad`` of
    every parameter, 20 to 60 ms a step on real models.
    """
    layers = list(_adapter_layers(unet).values())
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def adapter_vector(unet: Any, origin: dict[str, Any]) -> TaskVector:
    """The trained LoRA of ``unet`` as a task vector; its tensors are copies."""
    deltas = {}
    for name, layer in sorted(_adapter_layers(unet).items()):
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        down, up = (factor.detach().float().cpu().clone() for factor in (down, up))
        deltas[f"unet.{name}"] = LowRankDelta(down, up, float(layer.scaling[_ADAPTER]))
    return TaskVector(((1.0, Source(deltas, origin)),))


def learning_rate_factor(step: int, steps: int) -> float:
    """1 after a warm-up over the first 5 %, falling linearly to 0 over the second half."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 1.0, 2 * (steps - step) / steps)


def fit(unet: Any, loss_of: Callable[[int], Tensor], plan: Training, on_step: OnStep) -> int:
    """Minimises ``loss_of(step)`` over the trainable parameters of ``unet``.

    AdamW without weight decay, gradient norm clipped. A step whose loss or gradient is not
    finite is skipped.

    Args:
        unet: Model that carries the adapter.
        loss_of: Step → scalar loss.
        plan: Steps, learning rate and the norm to clip at.
        on_step: Told about every step.

    Returns:
        Number of skipped steps.

    Raises:
        DivergedError: After five non-finite steps in a row.
    """
    parameters = [p for p in unet.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=plan.learning_rate, weight_decay=0.0)
    skipped = in_a_row = 0
    unet.train()
    for step in range(plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * learning_rate_factor(step, plan.steps)
        loss = loss_of(step)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(parameters, plan.max_grad_norm)
        if loss.isfinite() and norm.isfinite():
            optimizer.step()
            in_a_row = 0
        else:
            skipped, in_a_row = skipped + 1, in_a_row + 1
            if in_a_row >= _MOST_NONFINITE:
                raise DivergedError(
                    f"step {step + 1}: loss {loss.item()} and gradient norm {norm.item()} for "
                    f"{in_a_row} steps in a row",
                    hint="the data or the base model holds non-finite numbers, or steps are huge",
                )
        optimizer.zero_grad(set_to_none=True)
        on_step(step + 1, loss.item())
    unet.eval()
    return skipped
