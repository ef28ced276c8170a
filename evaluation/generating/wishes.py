"""What ``generate`` is asked for, with every default resolved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from lcm_arith.adapters import facts, load
from lcm_arith.combination import NONE
from lcm_arith.embedded import pictures
from lcm_arith.errors import UsageError
from lcm_arith.evaluation.plans.lists import parse_schedule
from lcm_arith.families import embedded
from lcm_arith.headers import FAST, header

DOZEN: Final = 12
_FEW: Final = 4  # steps where a vector accelerates
_FEW_STEPS: Final = ("lcm", "tcd")  # samplers that are for few


_NOTES: Final = {
    "sampler": "sampler {}",
    "grid_points": "{} grid points",
    "omega": "distilled with guidance ω = {}",
}


@dataclass(frozen=True)
class Wish:
    """What to draw.

    Args:
        prompts: None of them empty.
        vectors: (name or path, λ as a decimal string or one per step, ``1.2/1/0.6``).
        sampler, steps, guidance, seed: As in ``lcm_arith.sampling.sample``.
        negative: What guidance leads away from.
        grid_points: K that the acceleration vector was distilled on; None is the sampler's own.
        headers: Acceleration vector → what its file says of how it is sampled.
    """

    prompts: tuple[str, ...]
    vectors: tuple[tuple[str, str], ...]
    sampler: str
    steps: int
    guidance: float
    seed: int
    negative: str
    grid_points: int | None
    headers: Mapping[str, Mapping[str, Any]]

    @classmethod
    def resolve(
        cls,
        prompts: Sequence[str],
        vectors: Sequence[str],
        *,
        sampler: str | None,
        steps: int | None,
        guidance: float | None,
        seed: int,
        negative: str = "",
    ) -> Wish:
        """Fills in what the user left open, from the vectors' headers where they tell.

        Few unguided LCM steps where a vector accelerates; as many steps as a λ per step has parts.

        Raises:
            UsageError: If a prompt is empty, a weight no number, there is another number of them
                than of steps, or a negative prompt without guidance.
            NotFoundError, InvalidContentError: If a vector cannot be read.
        """
        if any(not prompt.strip() for prompt in prompts):
            raise UsageError("a prompt is empty", hint="leave it out to draw a dozen captions")
        named = tuple(split_weight(text) for text in vectors)
        taus = {name: load(name) for name, _ in named if name != NONE}
        fast = {name: tau for name, tau in taus.items() if facts(tau).get("kind") in FAST}
        headers = {name: header(name, tau) for name, tau in fast.items()}
        chosen = sampler or _agreed(headers, "sampler") or ("lcm" if fast else "dpm++")
        family = embedded()
        few = _FEW if chosen in _FEW_STEPS else family.teacher_steps
        dozen = [c.caption for c in pictures.hash_order(pictures.concepts())[:DOZEN]]
        scale = (1.0 if fast else family.guidance) if guidance is None else guidance
        if negative.strip() and not scale > 1:
            raise UsageError(
                f"--negative {negative!r}: guidance {scale:g} does not use it",
                hint="add --guidance with more than 1, such as 2",
            )
        return cls(
            tuple(prompts) or tuple(dozen),
            named,
            chosen,
            _steps(named, steps, few),
            scale,
            seed,
            negative,
            _agreed(headers, "grid_points"),
            {name: said for name, said in headers.items() if said},
        )

    @property
    def mixes(self) -> tuple[tuple[Decimal, ...], ...]:
        """λ of each vector: once where it is the same in all steps, else step by step."""
        schedules = [parse_schedule(weight, name) for name, weight in self.vectors]
        longest = max((len(each) for each in schedules), default=1)
        return tuple(
            tuple(each[step % len(each)] for each in schedules)
            for step in range(self.steps if longest > 1 else 1)
        )

    def facts(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return asdict(self)


def header_notes(wish: Wish) -> list[str]:
    """What the files of acceleration vectors say of how they are sampled, a line each."""
    notes = []
    for name, said in wish.headers.items():
        listed = ", ".join(text.format(said[key]) for key, text in _NOTES.items() if key in said)
        notes.append(f"the file of {name} says: {listed}")
    if wish.grid_points is None and any("grid_points" in said for said in wish.headers.values()):
        notes.append("they say different numbers of grid points; the sampler takes its own")
    return notes


def split_weight(text: str) -> tuple[str, str]:
    """``NAME:λ`` as (name, λ); λ is 1 where it is left out. A path may hold colons.

    Raises:
        UsageError: If the name is missing or λ is no number, nor one per step.
    """
    name, colon, weight = text.rpartition(":")
    if not colon or Path(text).exists():
        name, weight = text, "1"
    what = f"--vector {text!r}"
    if not name:
        raise UsageError(f"{what}: lacks a name", hint="write NAME:λ, fluent-emoji:0.8")
    return name, "/".join(map(str, parse_schedule(weight, what)))


def _steps(named: Sequence[tuple[str, str]], asked: int | None, usual: int) -> int:
    """The steps asked for, else as many as the schedules have parts, else the usual number."""
    counts = {f"{name}:{parts}": parts.count("/") + 1 for name, parts in named if "/" in parts}
    steps = next(iter(counts.values()), usual) if asked is None else asked
    wrong = [f"{text} has {count} weights" for text, count in counts.items() if count != steps]
    if wrong:
        raise UsageError(
            f"--vector {', '.join(wrong)} for {steps} steps",
            hint="one λ for all steps, 0.8, or one a step with slashes, 1.2/1.0/0.6",
        )
    return steps


def _agreed(headers: Mapping[str, Mapping[str, Any]], key: str) -> Any:
    """What the headers say, if those that say it say the same; else None."""
    said = {each[key] for each in headers.values() if key in each}
    return said.pop() if len(said) == 1 else None
