"""LoRA on a network: one resident base that is teacher, student and target in turn.

Adapters are PEFT's, by name: ``default`` is trained, ``target`` is its running average, ``accel``
a vector that stays in place. A pass uses some of them (:func:`using`); none is the frozen base.
Outside of a pass the student's are on, because gradient checkpointing runs the student's layers
once more during the backward pass.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import IncompatibleError
from lcm_arith.modules import with_text_model
from lcm_arith.vector import Source, TaskVector

TRAINED: Final = "default"
TARGET: Final = "target"
ACCEL: Final = "accel"
_EXPLICIT_UP_TO: Final = 8  # latents along a side
_MERGED_UP_TO: Final = 10_000  # parameters per latent position of a batch


def add_adapter(
    network: Any,
    *,
    rank: int,
    targets: Sequence[str],
    seed: int,
    alpha: float | None = None,
    start: TaskVector | None = None,
    component: str = "unet",
) -> None:
    """Puts a LoRA on ``network`` and freezes everything else.

    Args:
        network: The base's UNet or text encoder.
        rank: Of every module.
        targets: Layers, by the end of their names.
        seed: Of the start.
        alpha: scale · rank; None is the rank.
        start: What the LoRA is in the beginning, of no higher rank; None is ΔW = 0.
        component: Of the base that ``network`` is.

    Raises:
        IncompatibleError: If ``start`` has other modules, or a higher rank.
    """
    network.requires_grad_(False)
    explicit_attention(network)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network.add_adapter(_configuration(rank, alpha, targets), TRAINED)
    _in_float32(network)
    if start is not None:
        _begin_from(start, adapter_layers(network), rank, component)


def _configuration(rank: int, alpha: float | None, targets: Sequence[str]) -> Any:
    from peft import LoraConfig

    scale: Any = alpha or rank  # PEFT says int, and takes any number
    return LoraConfig(r=rank, lora_alpha=scale, target_modules=list(targets))


def add_frozen(network: Any, tau: TaskVector, *, weight: float, name: str = ACCEL) -> None:
    """Puts ``weight`` · τ in place as a second adapter that is not trained.

    Args:
        network: A UNet that has its own adapter.
        tau: A vector of UNet modules.
        weight: λ of it.
        name: Of the adapter.

    Raises:
        IncompatibleError: If the network lacks one of its modules, or has it in another shape.
    """
    from peft import LoraConfig

    paths = {module.removeprefix("unet."): module for module in tau}
    if wrong := misfits(network, tau, tau):
        raise IncompatibleError(
            f"{len(wrong)} of {len(tau)} modules of the vector to keep in place do not fit the "
            f"base model, {wrong[0]} for one",
            hint="give a vector of this family whose modules are all layers of the UNet",
        )
    deltas = {path: concatenate([tau[module]]) for path, module in paths.items()}
    ranks = {path: delta.rank for path, delta in deltas.items()}
    config = LoraConfig(r=1, lora_alpha=1, target_modules=list(paths), rank_pattern=ranks)
    config.alpha_pattern = dict(ranks)
    with warnings.catch_warnings():  # PEFT warns of a second adapter, which is meant
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        network.add_adapter(config, name)
    _in_float32(network)
    found = adapter_layers(network)
    with torch.no_grad():
        for path, delta in deltas.items():
            found[path].lora_A[name].weight.copy_(delta.down)
            found[path].lora_B[name].weight.copy_(weight * delta.scale * delta.up)
            found[path].scaling[name] = 1.0
    set_adapters(network, (name, TRAINED))


def misfits(network: Any, tau: TaskVector, among: Iterable[str]) -> list[str]:
    """Those of these modules of ``tau`` that a UNet lacks, or has in another shape."""
    layers = dict(network.named_modules())
    paths = {module: module.removeprefix("unet.") for module in among}
    return [
        module
        for module, path in paths.items()
        if path not in layers or _shape(layers[path]) != tuple(tau.shape_of(module))
    ]


def add_average(network: Any, *, rank: int, targets: Sequence[str], alpha: float | None) -> None:
    """Puts a copy of the trained adapter beside it, for the target θ⁻ to be averaged in."""
    on = _active(network)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Already found a `peft_config`")
        network.add_adapter(_configuration(rank, alpha, targets), TARGET)
    _in_float32(network)
    with torch.no_grad():
        for own, followed in zip(
            parameters_of(network, TARGET), parameters_of(network, TRAINED), strict=True
        ):
            own.copy_(followed)
    set_adapters(network, on)


def parameters_of(network: Any, name: str = TRAINED) -> list[nn.Parameter]:
    """The factors of an adapter, layer by layer."""
    return [
        factors[name].weight
        for layer in adapter_layers(network).values()
        if name in layer.lora_A
        for factors in (layer.lora_A, layer.lora_B)
    ]


def set_adapters(network: Any, names: Sequence[str]) -> None:
    """These are on outside of a pass; only the trained one gets gradients."""
    network.set_adapters(list(names))
    for layer in adapter_layers(network).values():
        for name in layer.lora_A:
            layer.lora_A[name].requires_grad_(name == TRAINED)
            layer.lora_B[name].requires_grad_(name == TRAINED)


def _in_float32(network: Any) -> None:
    for layer in adapter_layers(network).values():
        layer.lora_A.float()
        layer.lora_B.float()


def _shape(layer: nn.Module) -> tuple[int, ...]:
    base = getattr(layer, "base_layer", layer)
    return tuple(base.weight.shape) if isinstance(base.weight, Tensor) else ()


@torch.no_grad()
def _begin_from(start: TaskVector, layers: Mapping[str, Any], rank: int, component: str) -> None:
    """Each layer's first directions become the vector's; the others add nothing yet."""
    wanted = {_canonical(component, name): layer for name, layer in layers.items()}
    shapes = {module: _shape(layer) for module, layer in wanted.items()}
    own = [module for module in start if module.startswith(f"{component}.")]
    found = {module: tuple(start.shape_of(module)) for module in own}
    other = sorted({module for module, _ in shapes.items() ^ found.items()})
    higher = [module for module in own if start.rank_of(module) > rank]
    if other or higher:
        raise IncompatibleError(
            f"the vector to start from lacks, or has beside or in another shape, {len(other)} of "
            f"the {len(wanted)} modules that are trained, {other[0]} for one"
            if other
            else f"the vector to start from has rank {start.rank_of(higher[0])} in {higher[0]}, "
            f"more than {rank}",
            hint="start from a vector of the same kind and base, or raise --rank",
        )
    for module, layer in wanted.items():
        delta = concatenate([start[module]])
        layer.lora_A[TRAINED].weight[: delta.rank] = delta.down
        layer.lora_B[TRAINED].weight[:, : delta.rank] = delta.up / layer.scaling[TRAINED]


def _canonical(component: str, path: str) -> str:
    return with_text_model(f"{component}.{path}")


def explicit_attention(unet: Any) -> None:
    """On a CPU, softmax and products one by one, where there are few latents.

    With 8 × 8 of them both ways take the same time in float32. With 32 × 32 a step by PyTorch's
    scaled_dot_product_attention, which the UNet comes with, takes two thirds of the time.
    """
    side = getattr(unet.config, "sample_size", None)
    few = isinstance(side, int) and side <= _EXPLICIT_UP_TO
    if unet.device.type == "cpu" and few and hasattr(unet, "set_attn_processor"):
        from diffusers.models.attention_processor import AttnProcessor

        unet.set_attn_processor(AttnProcessor())


def adapter_layers(network: Any) -> dict[str, Any]:
    """Name → PEFT's layer."""
    from peft.tuners.lora import LoraLayer

    return {name: layer for name, layer in network.named_modules() if isinstance(layer, LoraLayer)}


def trained_layers(network: Any) -> dict[str, Any]:
    """Those that are trained: a vector that stays in place may have others."""
    found = adapter_layers(network)
    return {name: layer for name, layer in found.items() if TRAINED in layer.lora_A}


def _active(network: Any) -> tuple[str, ...]:
    names = (tuple(layer.active_adapters) for layer in adapter_layers(network).values())
    return max(names, key=len, default=())


@contextlib.contextmanager
def using(network: Any, names: Sequence[str]) -> Iterator[None]:
    """Within it only these adapters are on; none of them is the frozen base.

    It sets PEFT's own flags on each layer: ``disable_adapters`` also walks ``requires_grad`` of
    every parameter, 20 to 60 ms a step on real models.
    """
    layers = list(adapter_layers(network).values())
    before = [(layer._active_adapter, layer._disable_adapters) for layer in layers]
    for layer in layers:
        layer._active_adapter = list(names) or layer._active_adapter
        layer._disable_adapters = not names
    try:
        yield
    finally:
        for layer, (active, disabled) in zip(layers, before, strict=True):
            layer._active_adapter, layer._disable_adapters = active, disabled


def adapter_off(network: Any) -> contextlib.AbstractContextManager[None]:
    """Within it, ``network`` is the frozen base: adapter off = teacher."""
    return using(network, ())


def adapted(network: Any, names: Sequence[str] = (TRAINED,)) -> Callable[..., Any]:
    """The network with these adapters, to be called as the network is.

    On a CPU each weight is merged once a call, W + scale · BA with the graph back to A and B, and
    the plain network runs on it, where that pays: it costs time and a copy by the size of W, PEFT's
    three products per layer cost time by the batch. Forward and backward in float32, merged over
    PEFT's: 0.77 with 3M parameters and 4096 positions, 0.99 with 11M and 1024, 1.29 with 256, 1.70
    with 135M and 1024. Elsewhere, and where layers are run again in the backward pass, it is PEFT's
    own way.
    """
    parameters = sum(p.numel() for p in network.parameters())
    merges = bool(names) and network.device.type == "cpu"

    def call(z: Tensor, *arguments: Any, **options: Any) -> Any:
        again = torch.is_grad_enabled() and getattr(network, "is_gradient_checkpointing", False)
        positions = z.numel() // z.shape[1]
        if again or not merges or parameters > _MERGED_UP_TO * positions:
            with using(network, names):
                return network(z, *arguments, **options)
        weights = _merged_weights(network, names)
        with adapter_off(network):
            return torch.func.functional_call(network, weights, (z, *arguments), options)

    return call


def _merged_weights(network: Any, names: Sequence[str]) -> dict[str, Tensor]:
    """Parameter name → W + Σ scale · BA of every layer that has one of the adapters."""
    weights = {}
    for path, layer in adapter_layers(network).items():
        weight = base = layer.base_layer.weight
        for name in (name for name in names if name in layer.lora_A):
            down, up = layer.lora_A[name].weight, layer.lora_B[name].weight
            delta = (up.flatten(1) @ down.flatten(1)).reshape(base.shape)
            weight = weight + layer.scaling[name] * delta.to(base.dtype)
        if weight is not base:
            weights[f"{path}.base_layer.weight"] = weight
    return weights


def adapter_vector(networks: Mapping[str, Any], origin: dict[str, Any]) -> TaskVector:
    """The trained LoRA of all networks as one task vector; its tensors are copies.

    Args:
        networks: Component of the base → the network that carries its adapter.
        origin: How it was made.
    """
    deltas = {}
    for component, network in networks.items():
        for name, layer in sorted(trained_layers(network).items()):
            factors = (layer.lora_A[TRAINED].weight, layer.lora_B[TRAINED].weight)
            down, up = (factor.detach().float().cpu().clone() for factor in factors)
            module = _canonical(component, name)
            deltas[module] = LowRankDelta(down, up, float(layer.scaling[TRAINED]))
    return TaskVector(((1.0, Source(deltas, origin)),))
