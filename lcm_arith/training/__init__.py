"""Training: a plan, an adapter on a resident base, the loop, what it keeps and tells.

:mod:`.plan` steps and rates; :mod:`.adapter` LoRA on a network; :mod:`.numbers` number formats;
:mod:`.processes` who trains; :mod:`.checkpoint` what is kept; :mod:`.loop` the steps.
"""

from lcm_arith.training.adapter import (
    adapted,
    adapter_off,
    adapter_vector,
    add_adapter,
    explicit_attention,
)
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.loop import Follower, OnStep, Outcome, Run, Step, fit, step_generator
from lcm_arith.training.plan import Plan, Training

__all__ = [
    "Checkpoint",
    "Follower",
    "OnStep",
    "Outcome",
    "Plan",
    "Run",
    "Step",
    "Training",
    "adapted",
    "adapter_off",
    "adapter_vector",
    "add_adapter",
    "explicit_attention",
    "fit",
    "step_generator",
]
