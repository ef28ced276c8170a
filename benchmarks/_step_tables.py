"""The tables of ``distill_step.py``: time, memory, and what a machine without a GPU leaves out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from _page import Section

EQUAL: Final = 1e-10  # in float64
CPU_GOALS: Final = {"bare": 1.05, "end": 0.85, "plain": 2.4}
GPU_GOALS: Final = {"bare": 0.85, "end": 0.55, "plain": 2.4, "compiled": 0.70}
MEMORY_GOAL: Final = 0.60
RESIDENT_GOAL: Final = 1.02
APART: Final = {
    "loss": "losses of the two in float64, relative difference",
    "gradient": "gradients of the two in float64, relative difference",
    "ours": "our gradient in float32, to that",
    "literal": "the literal gradient in float32, to that",
}
ABSENT: Final = "not run: no GPU"


def time_section(title: str, text: str, both: list[dict[str, Any]], goals: Any) -> Section:
    """A column without and one with gradient checkpointing."""
    made = Section(title, text, ("", "no checkpointing", "checkpointing", "goal"))
    seconds = {
        "ours": "our step, s",
        "literal": "literal step, s",
        "encoding": "literal step with VAE and text encoder, s",
        "plain": "our plain LoRA step, s",
        "forward": "UNet forward of the batch, s",
    }
    for name, what in seconds.items():
        made.rows.append((what, *(f"{found[name]:.3f}" for found in both), ""))

    def row(what: str, goal: float, ratio: Callable[[dict[str, Any]], float]) -> None:
        cells = []
        for found, kind in zip(both, made.head[1:], strict=False):
            made.held(ratio(found), goal, f"{what}, {kind}")
            cells.append(f"{ratio(found):.2f}")
        made.rows.append((what, *cells, f"≤ {goal:g}"))

    def evenly(found: dict[str, Any]) -> float:
        """Encoders as fast as the UNet: their FLOPs, at its speed."""
        encoders = (found["work"]["vae"] + found["work"]["text"]) * found["forward"]
        return float(found["ours"] / (found["literal"] + encoders))

    row("ours / literal", goals["bare"], lambda found: found["ours"] / found["literal"])
    row("ours / literal with encoders", goals["end"], lambda f: f["ours"] / f["encoding"])
    row("the same, encoders at the UNet's FLOP/s", goals["end"], evenly)
    row("ours / our plain LoRA step", goals["plain"], lambda found: found["ours"] / found["plain"])
    if "compiled" in goals:
        row("compiled / literal", goals["compiled"], lambda f: f["compiled"] / f["literal"])
        for name, whose in (("syncs", "our"), ("literal_syncs", "literal")):
            what = f"waits for the GPU in {whose} step"
            made.rows.append((what, *(str(found[name]) for found in both), ""))
    for name, what in APART.items() if both[0]["difference"] else ():
        cells = [f"{found['difference'][name]:.0e}" for found in both]
        made.rows.append((what, *cells, f"≤ {EQUAL:g}" if "of the two" in what else ""))
    return made


def memory_section(
    title: str, text: str, peaks: dict[str, list[dict[str, Any]]], goal: float | None
) -> Section:
    """Peak of each side; what a process has that only imports is taken off on a CPU."""
    made = Section(title, text, ("", "no checkpointing", "checkpointing", "goal"))
    bare = [found["peak"] for found in peaks["imports"]]
    net = {
        side: [found["peak"] - less for found, less in zip(each, bare, strict=True)]
        for side, each in peaks.items()
        if side != "imports"
    }
    for side, each in net.items():
        made.rows.append((f"peak, {side}, MB", *(f"{peak / 1e6:.0f}" for peak in each), ""))
    for side in net.keys() - {"ours"}:
        ratios = [own / other for own, other in zip(net["ours"], net[side], strict=True)]
        wanted = goal if side == "encoding" else None
        made.rows.append(
            (f"peak, ours / {side}", *(f"{ratio:.2f}" for ratio in ratios),
             f"≤ {wanted:g} with checkpointing" if wanted else "")
        )  # fmt: skip
        if wanted:
            made.held(ratios[1], wanted, "peak memory")
    for side in ("ours", "literal"):
        shares = [found["resident"] for found in peaks[side]]
        wanted = RESIDENT_GOAL if side == "ours" else None
        made.rows.append(
            (f"copies of the UNet's weights between steps, {side}",
             *(f"{share:.3f}" for share in shares), f"≤ {wanted:g}" if wanted else "")
        )  # fmt: skip
        if wanted:
            made.held(max(shares), wanted, "copies of the weights")
    return made


def absent_section() -> Section:
    """The rows that only a GPU fills."""
    made = Section(
        "GPU, SD1.5-size, B = 12, 512 px, bfloat16, checkpointing",
        "`python benchmarks/distill_step.py --device cuda`.",
        ("", "found", "goal"),
    )
    wanted = {
        "ours / literal": GPU_GOALS["bare"],
        "compiled / literal": GPU_GOALS["compiled"],
        "ours / literal with encoders": GPU_GOALS["end"],
        "ours / our plain LoRA step": GPU_GOALS["plain"],
        "peak memory, ours / literal with encoders": MEMORY_GOAL,
    }
    made.rows.extend((what, ABSENT, f"≤ {goal:g}") for what, goal in wanted.items())
    others = ("waits for the GPU in our step", "largest batch, SDXL-size, 1024 px")
    made.rows.extend((what, ABSENT, "") for what in others)
    return made
