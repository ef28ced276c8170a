"""Training: the loop that every model and vector here is trained by, and LoRA on a UNet.

The batch of a step depends on the seed and the step alone (:func:`step_generator`), so that a
training which was killed goes on from its checkpoint to the same weights.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.embedded.files import write_file
from lcm_arith.errors import DivergedError, IncompatibleError
from lcm_arith.families import Plan
from lcm_arith.vector import Source, TaskVector

_MOST_NONFINITE: Final = 5
_ADAPTER: Final = "default"

OnStep = Callable[[int, float], None]
"""Called after each step with (steps done, loss)."""


@dataclass(frozen=True)
class Checkpoint:
    """Where a training keeps its state, so that it can go on after it was killed.

    Args:
        path: File, replaced as a whole; its folder exists.
        about: What decides the result beside the plan: seed, digests of the data. JSON-ready.
        seconds: Written at least so often, and at the end.
    """

    path: Path
    about: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 240.0


@dataclass(frozen=True)
class Outcome:
    """What a training did.

    Args:
        losses: Of every step, in order.
        skipped: Number of non-finite steps that changed nothing.
    """

    losses: list[float]
    skipped: int

    def write_csv(self, path: Path) -> None:
        """Columns ``step, loss``, one line a step."""
        lines = [f"{step},{loss:.6g}\n" for step, loss in enumerate(self.losses, 1)]
        write_file(path, "step,loss\n" + "".join(lines))


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step, independent of all other steps."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


def learning_rate_factor(step: int, steps: int) -> float:
    """1 after a warm-up over the first 5 %, falling linearly to 0 over the second half."""
    warm = max(1, steps // 20)
    return min((step + 1) / warm, 1.0, 2 * (steps - step) / steps)


class _State:
    """Parameters, their running average and the optimizer, between two steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], plan: Plan) -> None:
        self.plan = plan
        self.parameters = [p for p in parameters if p.requires_grad]
        self.averaged = [p.detach().clone() for p in self.parameters] if plan.ema else []
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=plan.learning_rate, weight_decay=0.0, fused=True
        )
        self.losses: list[float] = []
        self.skipped = self.in_a_row = 0

    def update(self, loss: Tensor) -> None:
        """One step down the gradient of ``loss``, unless it is not finite."""
        step = len(self.losses)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate * learning_rate_factor(step, self.plan.steps)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.plan.max_grad_norm)
        if loss.isfinite() and norm.isfinite():
            self.optimizer.step()
            self.in_a_row = 0
        else:
            self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
            if self.in_a_row >= _MOST_NONFINITE:
                raise DivergedError(
                    f"step {step + 1}: loss {loss.item()} and gradient norm {norm.item()} for "
                    f"{self.in_a_row} steps in a row",
                    hint="the data or the base model holds non-finite numbers, or steps are huge",
                )
        self.optimizer.zero_grad(set_to_none=True)
        if self.averaged:
            # (1 + step) / (10 + step): the average forgets the start as long as it is short.
            decay = min(self.plan.ema, (1 + step) / (10 + step))
            tensors: list[Tensor] = [p.detach() for p in self.parameters]
            torch._foreach_lerp_(self.averaged, tensors, 1 - decay)
        self.losses.append(loss.item())

    def save(self, to: Checkpoint) -> None:
        """Writes everything beside the file, then renames."""
        part = to.path.with_name(to.path.name + ".part")
        content = {
            "key": _key(self.plan, to),
            "parameters": [p.detach() for p in self.parameters],
            "averaged": self.averaged,
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "skipped": self.skipped,
        }
        torch.save(content, part)
        os.replace(part, to.path)

    def restore(self, source: Checkpoint) -> None:
        """Goes on where ``source`` stopped.

        Raises:
            IncompatibleError: If it belongs to another plan, seed or data.
        """
        stored = torch.load(source.path, weights_only=True)
        wanted = _key(self.plan, source)
        if stored["key"] != wanted:
            raise IncompatibleError(
                f"{source.path}: is the checkpoint of another training "
                f"({_difference(stored['key'], wanted)})",
                hint="delete it to start anew, or use the options it was made with",
            )
        with torch.no_grad():
            for own, value in zip(self.parameters, stored["parameters"], strict=True):
                own.copy_(value)
        self.averaged = stored["averaged"]
        self.optimizer.load_state_dict(stored["optimizer"])
        self.losses, self.skipped = stored["losses"], stored["skipped"]


def _key(plan: Plan, checkpoint: Checkpoint) -> dict[str, Any]:
    return {**asdict(plan), **checkpoint.about}


def _difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    names = sorted(k for k in one.keys() | other.keys() if one.get(k) != other.get(k))
    return ", ".join(f"{k}: {one.get(k)} there, {other.get(k)} here" for k in names)


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    plan: Plan,
    on_step: OnStep,
    *,
    checkpoint: Checkpoint | None = None,
) -> Outcome:
    """Minimises ``loss_of(step)`` over the trainable parameters of ``model``.

    AdamW without weight decay, gradient norm clipped. A step whose loss or gradient is not finite
    is skipped. With ``plan.ema`` the model ends with the running average of its parameters.

    Args:
        model: What is trained.
        loss_of: Step → scalar loss; what it draws depends on the step alone.
        plan: Steps, learning rate, average, and the norm to clip at.
        on_step: Told about every step that is made here.
        checkpoint: Kept while training; an earlier one is gone on with, a finished one returned.

    Raises:
        DivergedError: After five non-finite steps in a row.
        IncompatibleError: If the checkpoint is another training's.
    """
    state = _State(model.parameters(), plan)
    if checkpoint and checkpoint.path.exists():
        state.restore(checkpoint)
    saved = time.monotonic()
    model.train()
    while len(state.losses) < plan.steps:
        state.update(loss_of(len(state.losses)))
        ended = len(state.losses) == plan.steps
        if checkpoint and (ended or time.monotonic() - saved >= checkpoint.seconds):
            state.save(checkpoint)
            saved = time.monotonic()
        on_step(len(state.losses), state.losses[-1])
    model.eval()
    with torch.no_grad():
        for own, average in zip(state.parameters, state.averaged, strict=False):
            own.copy_(average)
    return Outcome(state.losses, state.skipped)


def add_adapter(
    unet: Any,
    *,
    rank: int,
    targets: Sequence[str],
    seed: int,
    start: TaskVector | None = None,
) -> None:
    """Puts a LoRA (alpha = rank) on ``unet`` and freezes everything else.

    Args:
        unet: The base.
        rank: Of every module.
        targets: Layers, by the end of their names.
        seed: Of the start.
        start: What the LoRA is in the beginning, of no higher rank; None is ΔW = 0.

    Raises:
        IncompatibleError: If ``start`` has other modules, or a higher rank.
    """
    from peft import LoraConfig

    unet.requires_grad_(False)
    explicit_attention(unet)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        unet.add_adapter(
            LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), _ADAPTER
        )
    if start is not None:
        _begin_from(start, _adapter_layers(unet), rank)


@torch.no_grad()
def _begin_from(start: TaskVector, layers: Mapping[str, Any], rank: int) -> None:
    """Each layer's first directions become the vector's; the others add nothing yet."""
    wanted = {f"unet.{name}": layer.base_layer.weight.shape for name, layer in layers.items()}
    found = {module: start.shape_of(module) for module in start}
    other = sorted({module for module, _ in wanted.items() ^ found.items()})
    higher = [module for module in start if start.rank_of(module) > rank]
    if other or higher:
        raise IncompatibleError(
            f"the vector to start from lacks, or has beside or in another shape, {len(other)} of "
            f"the {len(wanted)} modules that are trained, {other[0]} for one"
            if other
            else f"the vector to start from has rank {start.rank_of(higher[0])} in {higher[0]}, "
            f"more than {rank}",
            hint="start from a vector of the same kind and base, or raise --rank",
        )
    for name, layer in layers.items():
        delta = concatenate([start[f"unet.{name}"]])
        layer.lora_A[_ADAPTER].weight[: delta.rank] = delta.down
        layer.lora_B[_ADAPTER].weight[:, : delta.rank] = delta.up


def explicit_attention(unet: Any) -> None:
    """On a CPU it trains faster than scaled_dot_product_attention, whose backward is slow."""
    from diffusers.models.attention_processor import AttnProcessor

    if unet.device.type == "cpu":
        unet.set_attn_processor(AttnProcessor())


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


def adapted(unet: Any) -> Callable[..., Any]:
    """The UNet with its adapter, to be called as the UNet is.

    On a CPU each weight is merged once a call, W + scale · BA with the graph back to A and B, and
    the plain network runs on it: PEFT's three products per layer take twice as long for a small
    model. Elsewhere it is PEFT's own way, which holds no second copy of W.
    """
    if unet.device.type != "cpu":
        return unet  # type: ignore[no-any-return]  # a module is a callable

    def call(*arguments: Any, **options: Any) -> Any:
        weights = _merged_weights(unet)
        with adapter_off(unet):
            return torch.func.functional_call(unet, weights, arguments, options)

    return call


def _merged_weights(unet: Any) -> dict[str, Tensor]:
    """Parameter name → W + scale · BA of every adapted layer."""
    weights = {}
    for name, layer in _adapter_layers(unet).items():
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        base = layer.base_layer.weight
        delta = (up.flatten(1) @ down.flatten(1)).reshape(base.shape)
        weights[f"{name}.base_layer.weight"] = base + layer.scaling[_ADAPTER] * delta
    return weights


def adapter_vector(unet: Any, origin: dict[str, Any]) -> TaskVector:
    """The trained LoRA of ``unet`` as a task vector; its tensors are copies."""
    deltas = {}
    for name, layer in sorted(_adapter_layers(unet).items()):
        down, up = layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight
        down, up = (factor.detach().float().cpu().clone() for factor in (down, up))
        deltas[f"unet.{name}"] = LowRankDelta(down, up, float(layer.scaling[_ADAPTER]))
    return TaskVector(((1.0, Source(deltas, origin)),))
