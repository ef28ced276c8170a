"""Number formats while training: of the frozen weights, and of the network's products.

What is trained, its gradients and the optimizer's state are float32 whatever is chosen here.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Final

import torch

from lcm_arith.errors import UsageError

PRECISIONS: Final = ("auto", "fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Numbers:
    """A choice of number formats.

    Args:
        weights: Of the frozen base.
        products: Of the network's matrix products; None leaves them in the weights'.
        scaled: Whether the loss is scaled up, so that fp16 gradients do not vanish.
    """

    weights: torch.dtype
    products: torch.dtype | None
    scaled: bool = False

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Within it the network computes; its dtype is named, for the default is another one."""
        if self.products is None:
            return nullcontext()
        return torch.autocast(device.type, self.products)

    def scaler(self, device: torch.device) -> torch.amp.GradScaler:
        """Scales the loss where needed, else does nothing."""
        return torch.amp.GradScaler(device.type, enabled=self.scaled)


FULL: Final = Numbers(torch.float32, None)


def numbers(precision: str, device: torch.device) -> Numbers:
    """The formats behind a name.

    Args:
        precision: "auto" is bf16 on a GPU that has it, else fp16 there; on a CPU fp32 weights, with
            bf16 products where the processor multiplies those natively.
        device: Where it is trained.

    Raises:
        UsageError: If the name is unknown.
    """
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r}: one of {', '.join(PRECISIONS)}")
    if precision == "auto" and device.type == "cpu":
        native = torch.cpu._is_amx_tile_supported()
        return Numbers(torch.float32, torch.bfloat16 if native else None)
    if precision == "auto":
        has = device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16" if has else "fp16"
    return {
        "fp32": FULL,
        "bf16": Numbers(torch.bfloat16, torch.bfloat16),
        "fp16": Numbers(torch.float16, torch.float16, scaled=True),
    }[precision]
