"""The tables of ``grid.py``."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import mean, median
from typing import Final

from _grid_sides import Plan, Round
from _page import Section

EQUAL: Final = 1e-5
FASTER, FASTER_THAN_PROCESSES, FASTER_ON_GPU = 1.6, 5.0, 2.5
EFFICIENCY: Final = {"cpu": 0.95, "cuda": 0.90}
SD15_OVERHEAD: Final = 0.145
"""What LCM-LoRA and a style of rank 32 add to the FLOPs of SD1.5's UNet, not fused, 512 px."""


@dataclass(frozen=True)
class Raced:
    """Rounds of both sides in turn, and what explains them.

    Args:
        plan: What was drawn.
        batch: Pictures that the script draws at once.
        peer, ours: Rounds.
        efficiency: Of our rounds, as the engine says.
        fused_row: CPU seconds of a row of our UNet at the script's batch.
        rebuild: Seconds of making the weights of a λ pair.
        full_decode: Seconds of a picture in SD1.5's VAE; None where that was drawn with.
        flops: Of a row of the UNet, without and with both adapters beside it.
        single: Seconds of the script's rounds at one picture at once, on a GPU.
        device: "cpu" or "cuda".
    """

    plan: Plan
    batch: int
    peer: list[Round]
    ours: list[Round]
    efficiency: list[float]
    fused_row: float
    rebuild: float
    flops: tuple[float, float]
    full_decode: float | None = None
    single: list[float] = field(default_factory=list)
    device: str = "cpu"

    def seconds(self, rounds: list[Round]) -> float:
        """Median."""
        return median(each.seconds for each in rounds)

    @property
    def ratio(self) -> float:
        """Median of the rounds' ratios."""
        return median(p.seconds / o.seconds for p, o in zip(self.peer, self.ours, strict=True))

    @property
    def network_share(self) -> float:
        """UNet and VAE over all of our CPU time."""
        return median((each.unet_s + each.vae_s) / each.seconds for each in self.ours)

    @property
    def ideal_share(self) -> float:
        """The same if every UNet row were as fast as those of our fastest batch."""
        calls = [call for each in self.ours for call in each.unet]
        best = min(
            median(seconds / rows for rows, seconds in calls if rows == batch)
            for batch in {rows for rows, _ in calls}
        )
        return median((each.rows * best + each.vae_s) / each.seconds for each in self.ours)

    def with_full_vae(self) -> float:
        """The ratio if both sides decode with SD1.5's VAE, by counting."""
        more = self.plan.pictures * (self.full_decode or 0.0)
        return median(
            (p.seconds - p.vae_s + more) / (o.seconds - o.vae_s + more)
            for p, o in zip(self.peer, self.ours, strict=True)
        )


@dataclass(frozen=True)
class Same:
    """How alike the pictures and weights are.

    Args:
        apart: Largest difference of pixels in 0 to 1, ours and the script's.
        levels: The same of stored pictures, of 255.
        share: Of their values that differ at all.
        moved: Largest difference of our own pictures of two λ pairs: the scale of ``apart``.
        weights: Whether the base's weights are the same bytes as before.
    """

    apart: float
    levels: int
    share: float
    moved: float
    weights: bool


@dataclass(frozen=True)
class Processes:
    """One process per cell, and one of ours.

    Args:
        cell: CPU seconds of a process, per number of steps.
        load: Of our process until it draws.
        pair: Of our process's first λ pair, all numbers of steps.
        images: Of a cell.
        levels: Largest difference of stored pictures, of 255.
    """

    cell: dict[int, float]
    load: float
    pair: float
    images: int
    levels: int

    def ratio(self, pairs: int) -> float:
        """All processes over ours, for so many λ pairs."""
        return pairs * sum(self.cell.values()) / (self.load + pairs * self.pair)


def same_section(
    same: Same, processes: Processes, shuffled: dict[str, tuple[int, int, int]]
) -> Section:
    """Are the pictures those of diffusers, and does nothing depend on the order?

    ``shuffled`` is number format → pictures, those whose file differs when λ pairs come in another
    order, different ones among them.
    """
    made = Section(
        "The same pictures",
        "Ours and the script's of the whole grid, before and after rounding to 8 bits; λ pairs in "
        "another order with small networks, for half formats are slow on a CPU.",
        ("", "found", "goal"),
    )
    made.rows.extend((
        ("pixels in [0, 1], float32, largest difference",
         made.held(same.apart, EQUAL, "pixels"), f"≤ {EQUAL:g}"),
        ("beside: our own pictures of two λ pairs, largest difference", f"{same.moved:.1e}", ""),
        ("stored pictures, largest difference, levels of 255", str(same.levels), ""),
        ("stored values that differ at all", f"{same.share:.1e}", ""),
        ("pictures of one process per cell, levels of 255", str(processes.levels), ""),
        ("base weights the same bytes afterwards", "yes" if same.weights else "no", "yes"),
    ))  # fmt: skip
    made.held(float(not same.weights), 0, "weights that changed")
    for dtype, (pictures, differing, distinct) in shuffled.items():
        made.held(float(differing), 0, f"{dtype} in another order")
        made.rows.append(
            (f"{dtype}, files that differ in another order",
             f"{differing} of {pictures} ({distinct} different pictures)", "0")
        )  # fmt: skip
    return made


def race_section(raced: Raced, base: str) -> Section:
    """Time beside the good script."""
    plan, device = raced.plan, raced.device
    kind = "CPU" if device == "cpu" else "wall"
    made = Section(
        f"Beside a good diffusers script, {'CPU' if device == 'cpu' else 'GPU'}",
        f"{base}, {raced.flops[0] / 1e9:.3g} GFLOP a UNet row. {plan.pairs} λ pairs × steps "
        f"{', '.join(map(str, plan.steps))} × {len(plan.items)} pictures. The script loads once, "
        "calls `set_adapters` per cell, has its embeddings cached, draws and decodes "
        f"{raced.batch} pictures at once; both sides write PNG files; loading is not counted. "
        f"Medians of {len(raced.ours)} rounds in turn, {kind} seconds.",
        ("", "script", "ours", "ratio", "goal"),
    )
    peer, ours = raced.seconds(raced.peer), raced.seconds(raced.ours)
    rows = [each[0].rows / (plan.pairs * len(plan.items)) for each in (raced.peer, raced.ours)]
    wanted = sum(plan.steps) - len(plan.steps) + 1
    made.held(abs(rows[1] - wanted), 0, "UNet rows")
    made.rows.extend((
        ("the grid, s", f"{peer:.2f}", f"{ours:.2f}",
         *((made.reached(raced.ratio, FASTER, "ratio"), f"≥ {FASTER:g}")
           if device == "cpu" else (f"{raced.ratio:.2f}", ""))),
        ("UNet rows a picture of all steps", f"{rows[0]:g}", f"{rows[1]:g}",
         f"{rows[0] / rows[1]:.2f}", f"{wanted} of ours"),
    ))  # fmt: skip
    if raced.full_decode is not None:
        told = f"with SD1.5's VAE ({raced.full_decode:.2f} s a picture), by counting"
        made.rows.append((told, "", "", f"{raced.with_full_vae():.2f}", ""))
    if raced.single:
        one = median(raced.single)
        made.rows.append(
            ("the script at one picture at once, s", f"{one:.2f}", f"{ours:.2f}",
             made.reached(one / ours, FASTER_ON_GPU, "at one picture"), f"≥ {FASTER_ON_GPU:g}")
        )  # fmt: skip
    goal = EFFICIENCY[device]
    made.rows.append(
        ("efficiency: UNet and VAE over all of the wall time, as the engine says", "",
         made.reached(median(raced.efficiency), goal, "efficiency"), "", f"≥ {goal:g}")
    )  # fmt: skip
    if device == "cpu":
        share = made.reached(raced.network_share, goal, "efficiency in CPU time")
        made.rows.append(
            ("the same in CPU time, measured from outside", "", share, "", f"≥ {goal:g}")
        )
        told = "beside: if all UNet rows were as fast as those of the fastest batch"
        made.rows.append((told, "", f"{raced.ideal_share:.2f}", "", ""))
    return made


def gain_section(raced: Raced) -> Section:
    """Where the difference of both sides comes from."""
    plan, fused = raced.plan, raced.fused_row
    made = Section(
        "Where the gain comes from",
        "Means of all rounds. A shared row is priced at the script's row, a fused one at the "
        f"difference of both sides' rows in batches of {raced.batch}, the batches are what is left "
        "of our time in the UNet. Unfused, the adapters add "
        f"{raced.flops[1] / raced.flops[0] - 1:.0%} to the FLOPs of this UNet; they are as wide as "
        f"published, the UNet is not: of SD1.5's they are {SD15_OVERHEAD:.1%}. They add more than "
        "that to the time, for small products are slow.",
        ("", "CPU s", "of the gain"),
    )
    peer_s, ours_s = (mean(each.seconds for each in x) for x in (raced.peer, raced.ours))
    peer_unet, ours_unet = (mean(each.unet_s for each in x) for x in (raced.peer, raced.ours))
    peer_vae, ours_vae = (mean(each.vae_s for each in x) for x in (raced.peer, raced.ours))
    rows, wanted = raced.peer[0].rows, raced.ours[0].rows
    row, rebuilds = peer_unet / rows, plan.pairs * raced.rebuild
    gain = peer_s - ours_s
    parts = {
        f"the first step is shared: {rows - wanted} of {rows} rows": (rows - wanted) * row,
        f"fused weights: {wanted} rows at {fused:.3f} instead of {row:.3f} s": wanted
        * (row - fused),
        f"making these weights: {plan.pairs} times {raced.rebuild:.3f} s": -rebuilds,
        f"batches of different timesteps: {len(raced.ours[0].unet)} instead of "
        f"{len(raced.peer[0].unet)} calls": wanted * fused - ours_unet,
        "VAE": peer_vae - ours_vae,
    }
    parts["rest: samplers, `set_adapters`, files"] = gain - sum(parts.values())
    for what, seconds in parts.items():
        made.rows.append((what, f"{seconds:.2f}", f"{seconds / gain:.0%}"))
    made.rows.append(("all", f"{gain:.2f}", "100%"))
    return made


def process_section(found: Processes, pairs: tuple[int, ...]) -> Section:
    """Time beside one process per cell."""
    steps = ", ".join(f"{n} steps {seconds:.1f}" for n, seconds in found.cell.items())
    made = Section(
        "Beside one process per cell",
        f"A fresh Python, `from_pretrained`, `load_lora_weights` twice, {found.images} pictures of "
        f"one cell. Measured are four such processes (CPU s: {steps}) and one of ours that draws "
        f"the four cells of a λ pair ({found.load:.1f} CPU s until it draws, then "
        f"{found.pair:.1f}); grids of more λ pairs by counting.",
        ("λ pairs", "cells", "processes, CPU s", "ours, CPU s", "ratio", "goal"),
    )
    for count in pairs:
        last = count == pairs[-1]
        ratio = found.ratio(count)
        if last:
            made.reached(ratio, FASTER_THAN_PROCESSES, "ratio")
        made.rows.append(
            (str(count), str(count * len(found.cell)), f"{count * sum(found.cell.values()):.0f}",
             f"{found.load + count * found.pair:.0f}", f"{ratio:.1f}",
             f"≥ {FASTER_THAN_PROCESSES:g}" if last else "")
        )  # fmt: skip
    return made


def absent_section() -> Section:
    """The rows that only a GPU fills."""
    made = Section(
        "Beside a good diffusers script, GPU",
        "`python benchmarks/grid.py --device cuda`: SD1.5's size, 512 px, float16.",
        ("", "found", "goal"),
    )
    wanted = {
        "the script at the same batch / ours, wall time": "",
        "the script at one picture at once / ours": f"≥ {FASTER_ON_GPU:g}",
        "efficiency": f"≥ {EFFICIENCY['cuda']:g}",
    }
    made.rows.extend((what, "not run: no GPU", goal) for what, goal in wanted.items())
    return made
