"""The loop that every model and vector here is trained by.

The batches of a step depend on the seed and the step alone (:func:`step_generator`), so that a
training which was killed goes on from its checkpoint to the same weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lcm_arith.embedded.files import write_file
from lcm_arith.errors import DivergedError, InterruptedTraining, UsageError
from lcm_arith.lcd.ema import Average
from lcm_arith.training.checkpoint import Checkpoint
from lcm_arith.training.numbers import FULL, Numbers
from lcm_arith.training.plan import Plan
from lcm_arith.training.processes import ALONE, Processes

_MOST_UNSCALED = 25  # steps in a row: fp16's scale of the loss starts at 2^16 and halves each time


@dataclass(frozen=True)
class Step:
    """What a step did.

    Args:
        number: Steps done, from 1.
        loss: Mean over its batches and processes.
        grad_norm: Before clipping.
        learning_rate: AdamW's.
        skipped: Whether it was not finite and changed nothing.
    """

    number: int
    loss: float
    grad_norm: float
    learning_rate: float
    skipped: bool


OnStep = Callable[[Step], None]
"""Called after each step that is made here."""


@dataclass(frozen=True)
class Outcome:
    """What a training did.

    Args:
        steps: All of them, in order, those before it was interrupted too.
    """

    steps: list[Step]

    @property
    def losses(self) -> list[float]:
        """Of every step, in order."""
        return [step.loss for step in self.steps]

    @property
    def skipped(self) -> int:
        """Number of non-finite steps that changed nothing."""
        return sum(step.skipped for step in self.steps)

    def write_csv(self, path: Path) -> None:
        """Columns ``step, loss``, one line a step."""
        lines = [f"{step.number},{step.loss:.6g}\n" for step in self.steps]
        write_file(path, "step,loss\n" + "".join(lines))


@dataclass(frozen=True)
class Look:
    """Something done after every so many steps and after the last, with the average in place."""

    every: int
    do: Callable[[int], None]

    def due(self, step: int, steps: int) -> bool:
        """Whether it is done after ``step`` of ``steps``."""
        return step % self.every == 0 or step == steps


@dataclass(frozen=True)
class Run:
    """How and where a training runs; what does not belong to its plan.

    Args:
        processes: That share each step's batches.
        numbers: Number formats.
        checkpoint: Kept while training; an earlier one is gone on with, a finished one returned.
        averages: Running ones beside the plan's own, such as θ⁻.
        looks: What else is done after steps.
        stop: Asked after each step; whether to save and end now.
    """

    processes: Processes = ALONE
    numbers: Numbers = FULL
    checkpoint: Checkpoint | None = None
    averages: Sequence[Average] = ()
    looks: Sequence[Look] = ()
    stop: Callable[[], bool] = field(default=lambda: False)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random numbers of one step (or batch), independent of all others."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)


class _State:
    """Parameters, their running averages and the optimizer, between two steps."""

    def __init__(self, parameters: Iterable[nn.Parameter], plan: Plan, run: Run) -> None:
        self.plan, self.run = plan, run
        self.parameters: list[Any] = [p for p in parameters if p.requires_grad]
        self.kept = _kept(self.parameters, plan.ema) if plan.ema else None
        self.averages = [*run.averages, *([self.kept] if self.kept else [])]
        self.optimizer = _optimizer(self.parameters, plan)
        self.scaler = run.numbers.scaler(run.processes.device)
        self.steps: list[Step] = []

    def update(self, loss_of: Callable[[int], Tensor]) -> Step:
        """One step down the mean gradient of its batches, unless that is not finite."""
        plan, processes, step = self.plan, self.run.processes, len(self.steps)
        rate = plan.rate_at(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total = torch.zeros((), device=processes.device)
        for part in range(plan.accumulation):
            number = (step * plan.accumulation + part) * processes.count + processes.process_rank
            loss = loss_of(number) / plan.accumulation
            self.scaler.scale(loss).backward()
            total += loss.detach()
        (total,) = processes.mean([total])
        self._share_gradients()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.parameters, plan.max_grad_norm)
        loss_value, norm_value = torch.stack([total.float(), norm.float()]).tolist()
        finite = math.isfinite(loss_value) and math.isfinite(norm_value)
        if finite:
            self.optimizer.step()
            for average in self.run.averages:
                average.update()
            if self.kept:  # as long as it is short it forgets the start
                self.kept.update(min(plan.ema, (1 + step) / (10 + step)))
        self.scaler.update(None if finite else self.scaler.get_scale() / 2)
        self.optimizer.zero_grad(set_to_none=True)
        self.steps.append(Step(step + 1, loss_value, norm_value, rate, not finite))
        return self.steps[-1]

    def _share_gradients(self) -> None:
        if self.run.processes.count == 1:
            return
        own = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        for parameter, mean in zip(self.parameters, self.run.processes.mean(own), strict=True):
            parameter.grad = mean

    @property
    def diverged(self) -> int:
        """Steps in a row, up to the last, that were not finite; 0 while they may go on."""
        most = self.plan.max_nonfinite + (_MOST_UNSCALED if self.run.numbers.scaled else 0)
        in_a_row = sum(1 for _ in takewhile(lambda step: step.skipped, reversed(self.steps)))
        return in_a_row if in_a_row >= most else 0

    def _key(self) -> dict[str, Any]:
        assert self.run.checkpoint
        return {
            **asdict(self.plan),
            "processes": self.run.processes.count,
            "weights": str(self.run.numbers.weights),
            "products": str(self.run.numbers.products),
            **self.run.checkpoint.about,
        }

    def save(self, to: Checkpoint) -> float:
        """The main process alone writes; the others are ahead by no more than their batches.

        They do not wait here: when a checkpoint is due is no common decision. Returns the seconds
        that it took.
        """
        if not self.run.processes.main:
            return 0.0
        return to.write(
            {
                "key": self._key(),
                "parameters": [p.detach() for p in self.parameters],
                "averages": [average.state() for average in self.averages],
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "steps": [asdict(step) for step in self.steps],
            }
        )

    def restore(self, source: Checkpoint) -> None:
        """Goes on where ``source`` stopped.

        Raises:
            InvalidContentError, IncompatibleError: As :meth:`Checkpoint.read`.
        """
        stored = source.read(self._key())
        _copy(self.parameters, stored["parameters"])
        for average, values in zip(self.averages, stored["averages"], strict=True):
            _copy(average.state(), values)
        self.optimizer.load_state_dict(stored["optimizer"])
        self.scaler.load_state_dict(stored["scaler"])
        self.steps = [Step(**step) for step in stored["steps"]]

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it the parameters are the average that is kept in the end."""
        if not self.kept:
            yield
            return
        plain = [p.detach().clone() for p in self.parameters]
        _copy(self.parameters, self.kept.target)
        try:
            yield
        finally:
            _copy(self.parameters, plain)


@torch.no_grad()
def _copy(to: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for own, value in zip(to, values, strict=True):
        own.copy_(value)


def _kept(parameters: Sequence[Tensor], decay: float) -> Average:
    plain = [p.detach() for p in parameters]
    return Average([p.clone() for p in plain], plain, decay)


def _optimizer(parameters: list[Any], plan: Plan) -> torch.optim.Optimizer:
    options: dict[str, Any] = {"lr": plan.learning_rate, "weight_decay": plan.weight_decay}
    if plan.optimizer == "adamw":
        return torch.optim.AdamW(parameters, fused=True, **options)
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise UsageError(
            "optimizer adamw8bit: bitsandbytes is not installed",
            hint='pip install "lcm-arith[8bit]", or use adamw',
        ) from error
    made: torch.optim.Optimizer = AdamW8bit(parameters, **options)
    return made


def fit(
    model: nn.Module,
    loss_of: Callable[[int], Tensor],
    plan: Plan,
    on_step: OnStep,
    *,
    run: Run | None = None,
) -> Outcome:
    """Minimises ``loss_of(batch)`` over the trainable parameters of ``model``.

    AdamW, gradient norm clipped. A step whose loss or gradient is not finite is skipped. With
    ``plan.ema`` the model ends with the running average of its parameters.

    Args:
        model: What is trained: all of its parameters that require gradients.
        loss_of: Number of the batch → scalar loss; what it draws depends on the number alone. A
            step takes ``accumulation`` × processes of them.
        plan: Steps, learning rate, average, and the norm to clip at.
        on_step: Told about every step that is made here.
        run: Processes, number formats, checkpoint, averages; None is plain and keeps nothing.

    Raises:
        DivergedError: After ``plan.max_nonfinite`` non-finite steps in a row.
        IncompatibleError: If the checkpoint is another training's.
        InterruptedTraining: If ``run.stop`` said so; the checkpoint is written.
    """
    run = run or Run()
    state = _State(model.parameters(), plan, run)
    checkpoint = run.checkpoint
    if checkpoint and checkpoint.path.exists():
        state.restore(checkpoint)
    saved, took = time.monotonic(), 0.0
    model.train()
    while len(state.steps) < plan.steps:
        done = state.update(loss_of)
        on_step(done)
        for look in run.looks:
            if look.due(done.number, plan.steps):
                with state.averaged():
                    look.do(done.number)
        stopping, ended = run.processes.any(run.stop()), done.number == plan.steps
        leaving = ended or stopping or bool(state.diverged)
        if checkpoint and (leaving or checkpoint.due(done.number, saved, took)):
            took = state.save(checkpoint)
            saved = time.monotonic()
        if leaving:  # who leaves first has the others ended by torchrun
            run.processes.wait()
        if state.diverged:
            raise DivergedError(
                f"step {done.number}: loss {done.loss} and gradient norm {done.grad_norm} for "
                f"{state.diverged} steps in a row",
                hint="the data or the base model holds non-finite numbers, or steps are huge",
            )
        if stopping and not ended:
            raise InterruptedTraining(
                f"stopped after step {done.number} of {plan.steps}",
                hint="the same command goes on from there" if checkpoint else "",
            )
    model.eval()
    if state.kept:
        _copy(state.parameters, state.kept.target)
    return Outcome(state.steps)
