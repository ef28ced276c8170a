"""Files that ``exactness.py`` sums: random adapters of every kind, and the shipped vectors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import torch
from _kinds import (
    Draw,
    base_weight,
    cp,
    dora,
    full,
    loha,
    lokr,
    lora,
    meaning,
    rslora,
    stem,
    vector_ending,
)
from _peers import read
from safetensors.torch import save_file
from torch import Tensor

from lcm_arith.embedded import files
from lcm_arith.modules import table

Shapes = Mapping[str, tuple[int, ...]]
LAMBDAS: Final = (0.8, -0.5, 1.3)
RANKS, ALPHAS, FORMS = (3, 8, 5), (8.0, 2.5, 3.25), ("kohya", "kohya-sgm", "comfy")
PRESENT: Final = (7, 3, 6, 1, 5, 4, 2)  # which of the three adapters have a target, as bits
SHIPPED: Final = ("noto", "twemoji", "lcm")
ADAPTED: Final = read(files.vector_path("lcm")).keys()


def layers(kernel: tuple[int, ...], count: int = 14, component: str = "unet") -> Shapes:
    """Layers of SD1.5 with at least 320 channels a side and up to a million numbers."""
    fitting = {
        module: shape
        for module, shape in table("sd15").items()
        if module.startswith(f"{component}.") and "embedding" not in module
        if len(shape) == 2 + len(kernel) and shape[2:] == kernel
        if min(shape[:2]) >= 320 and math.prod(shape) <= 1e6
    }
    return dict(list(fitting.items())[:count])


def lists(count: int = 14) -> Shapes:
    """Weights and biases of norms, and biases of layers, spread over a block of SD1.5."""
    own = {m: s for m, s in table("sd15").items() if m.startswith("unet.down_blocks.0")}
    found = {f"{module}.bias": shape[:1] for module, shape in own.items()}
    found |= {m: s for m, s in own.items() if len(s) == 1}
    return dict(list(found.items())[:: len(found) // count])


SOME: Final = {**layers((), 7), **layers((1, 1), 3), **layers((3, 3), 4)}
# Kind → what is drawn in turn, and the targets.
KINDS: Final[Mapping[str, tuple[tuple[Draw, ...], Shapes]]] = {
    "LoRA, linear": ((lora,), layers(())),
    "LoRA, text encoder": ((lora,), layers((), component="text_encoder")),
    "LoCon 1 × 1": ((lora,), layers((1, 1))),
    "LoCon 3 × 3": ((lora,), layers((3, 3))),
    "CP (Tucker) 3 × 3": ((cp,), layers((3, 3))),
    "LoHa, flat and Tucker": ((loha,), SOME),
    "LoKr, whole, factored and Tucker": ((lokr,), SOME),
    "full difference": ((full,), {**layers((), 4), **layers((3, 3), 3)}),
    "norm and bias difference": ((full,), lists()),
    "DoRA among LoRA, with base": ((dora, dora, lora), SOME),
    "rsLoRA by header": ((rslora,), SOME),
    "mixed: LoRA, LoHa, LoKr, full": ((lora, loha, lokr, full), SOME),
}
SHIPPED_KIND: Final = f"shipped {', '.join(SHIPPED)} (float16)"
# What has no place in a dialect: PEFT's is one component, neither it nor diffusers' reads lists of
# numbers, Stability has no names for the embedded model's layers.
REFUSED: Final = {
    ("LoRA, text encoder", "peft"),
    ("norm and bias difference", "diffusers"),
    ("norm and bias difference", "peft"),
    (SHIPPED_KIND, "kohya-sgm"),
    (SHIPPED_KIND, "comfy"),
}


@dataclass(frozen=True, eq=False)
class Case:
    """Adapters to be summed by LAMBDAS.

    Args:
        names: Of the files.
        shapes: Of all targets.
        truth: Target → Σ λᵢ ΔWᵢ.
        bound: Target → Σ |λᵢ| ‖ΔWᵢ‖.
    """

    names: tuple[str, ...]
    shapes: Shapes
    truth: dict[str, Tensor] = field(default_factory=dict)
    bound: dict[str, float] = field(default_factory=dict)

    def add(self, target: str, weight: float, delta: Tensor) -> None:
        """One more term of a target."""
        self.truth[target] = weight * delta + self.truth.get(target, torch.zeros(()))
        self.bound[target] = abs(weight) * float(delta.norm()) + self.bound.get(target, 0.0)


def drawn(kind: str, folder: Path) -> Case:
    """Three random files in three dialects, of unequal ranks, each without some targets."""
    draws, shapes = KINDS[kind]
    case = Case(tuple(str(folder / f"{i}.safetensors") for i in range(3)), shapes)
    random = torch.Generator().manual_seed(list(KINDS).index(kind))
    for i, (path, rank, alpha) in enumerate(zip(case.names, RANKS, ALPHAS, strict=True)):
        form, header = FORMS[i], None
        if draws == (rslora,):
            form, said = "diffusers", {"unet.use_rslora": True, "unet.lora_alpha": alpha}
            header = {"lora_adapter_metadata": json.dumps(said)}
        tensors = {}
        for j, (target, shape) in enumerate(shapes.items()):
            if not PRESENT[j % len(PRESENT)] >> i & 1:
                continue
            parts, delta = draws[(i + j) % len(draws)](random, shape, rank, alpha)
            case.add(target, LAMBDAS[i], delta)
            for part, tensor in parts.items():
                part = vector_ending(target) if len(shape) == 1 else part
                if form == "diffusers":
                    part = part.replace("lora_down", "lora_A").replace("lora_up", "lora_B")
                tensors[f"{stem(target, form)}.{part}"] = tensor.contiguous()
        save_file(tensors, path, header)
    return case


def shipped() -> Case:
    """The vectors that come with the package."""
    shapes = {module: shape for module, shape in table("emoji").items() if module in ADAPTED}
    case = Case(SHIPPED, shapes)
    for name, weight in zip(SHIPPED, LAMBDAS, strict=True):
        for module, delta in meaning(files.vector_path(name), "diffusers", shapes).items():
            case.add(module, weight, delta)
    return case


def write_base(folder: Path) -> Path:
    """A model in diffusers' layout that has the layers of SOME."""
    path = folder / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir(parents=True)
    weights = {m.removeprefix("unet."): base_weight(shape) for m, shape in SOME.items()}
    save_file({f"{name}.weight": weight for name, weight in weights.items()}, path)
    return folder / "base"


def pairs(folder: Path) -> dict[str, tuple[str, ...]]:
    """Style and acceleration: two random pairs on layers of SD1.5, and the shipped one."""
    shapes = {**layers((), 4), **layers((1, 1), 1), **layers((3, 3), 2)}
    found = {
        " + ".join(f"r {r} α {a:g}" for r, a in terms): trio(folder, shapes, terms, (3, 3, 3))
        for terms in (((16, 8.0), (64, 8.0)), ((16, 4.0), (16, 8.0)))
    }
    shipped = tuple(str(files.vector_path(name)) for name in ("fluent-emoji", "lcm"))
    return {**found, "shipped: fluent-emoji r 16 + lcm r 64": shipped}


def trios(folder: Path) -> dict[str, tuple[str, ...]]:
    """Random adapters of some layers of the embedded model, some on one side only; the shipped."""
    rows = {shape: module for module, shape in table("emoji").items() if module in ADAPTED}
    some = {module: shape for shape, module in list(rows.items())[::3]}
    return {
        "ranks 4, 9, 6": trio(folder, some, ((4, 3.0), (9, 5.0), (6, 6.0)), PRESENT),
        "ranks 40, 64, 50": trio(folder, some, ((40, 9.0), (64, 8.0), (50, 99.0)), PRESENT),
        "shipped": tuple(str(files.vector_path(name)) for name in SHIPPED),
    }


def trio(
    folder: Path, shapes: Shapes, terms: Sequence[tuple[int, float]], present: Sequence[int]
) -> tuple[str, ...]:
    """Random LoRAs in diffusers' dialect, of a rank and alpha each, alpha in the header."""
    names, random = [], torch.Generator().manual_seed(0)
    for i, (rank, alpha) in enumerate(terms):
        tensors = {}
        for j, (module, shape) in enumerate(shapes.items()):
            if present[j % len(present)] >> i & 1:
                parts, _ = lora(random, shape, rank, alpha)
                tensors[f"{module}.lora_A.weight"] = parts["lora_down.weight"]
                tensors[f"{module}.lora_B.weight"] = parts["lora_up.weight"]
        names.append(str(folder / f"{i}-{rank}-{alpha:g}.safetensors"))
        header = {"lora_adapter_metadata": json.dumps({"unet.r": rank, "unet.lora_alpha": alpha})}
        save_file(tensors, names[-1], header)
    return tuple(names)
