"""What does a grid cost beside a good diffusers script, and beside one process per cell?

    python benchmarks/grid.py [--rounds 2] [--device cuda] [--quick]

Networks have random weights: a UNet of 142 M parameters of Stable Diffusion's layers, a tiny VAE, a
tiny text encoder, two adapters that diffusers itself saved. Both sides draw the same pictures in
one process, in turn, one thread each; the pictures are compared. With ``--device cuda`` they draw
at SD1.5's size on a GPU as well. ``--quick`` is a look at toy networks, and writes no page. About
nine CPU minutes. Writes ``benchmarks/results/grid.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from _grid_base import FULL_VAE, Files, make_files
from _grid_sides import Ours, Peer, Plan, flops, repeated, shuffled_files
from _grid_tables import (
    Processes,
    Raced,
    Same,
    absent_section,
    gain_section,
    process_section,
    race_section,
    same_section,
)
from _page import Section, page
from diffusers import AutoencoderKL
from PIL import Image

from lcm_arith.evaluation.drawing.keys import keys_of
from lcm_arith.evaluation.drawing.sources import Sources
from lcm_arith.evaluation.drawing.store import Store

RESULTS: Final = Path(__file__).resolve().parent / "results"
PEERS: Final = Path(__file__).resolve().parent / "_grid_peers.py"
PROMPTS: Final = (
    "a red fox", "a cat", "a street at night", "two boats",
    "a castle", "an old man", "a bowl of fruit", "rain",
)  # fmt: skip
PLAN: Final = Plan(l1=("0.6", "1.0"), l2=("1.0",), prompts=PROMPTS, seeds=(0, 1))
ONE_PAIR: Final = Plan(l1=("1.0",), l2=("1.0",), prompts=PROMPTS[:2])
ORDERS: Final = Plan(("0", "0.8"), ("0.6", "1.0"), PROMPTS[:2], steps=(1, 2))
GPU_PLAN: Final = Plan(("0.6", "1.0"), ("0.8", "1.0"), PROMPTS, seeds=(0, 1))
COUNTED: Final = (1, 5, 25)  # λ pairs
HALVES: Final = ("float16", "bfloat16")


def race(
    files: Files, plan: Plan, rounds: int, folder: Path, device: str = "cpu"
) -> tuple[Raced, Same]:
    """Both sides in turn, in this process."""
    dtype = "float32" if device == "cpu" else "float16"
    peer, ours = Peer(files, plan, device, dtype), Ours(files, plan, device, dtype)
    before, batch = ours.weights(), len(plan.items)
    theirs, own, single, rows = [], [], [], []
    for number in range(rounds):
        theirs.append(peer.round(folder / f"peer-{number}", batch))
        own.append(ours.round(folder / f"ours-{number}"))
        rows.append(ours.row_seconds(batch))
        if device == "cuda":
            single.append(peer.round(folder / f"single-{number}", 1).seconds)
    same = compared(peer, ours, before == ours.weights())
    raced = Raced(
        plan, batch, theirs, own, ours.efficiency,
        fused_row=statistics.median(rows), rebuild=ours.rebuild_seconds(rounds),
        flops=(flops(ours.pipeline.unet), flops(peer.script.pipeline.unet)),
        full_decode=full_decode() if device == "cpu" else None,
        single=single, device=device,
    )  # fmt: skip
    return raced, same


@torch.no_grad()
def full_decode() -> float:
    """CPU seconds of a picture of 128 px in SD1.5's VAE, two at once."""
    vae = AutoencoderKL(**FULL_VAE).eval()
    return repeated(lambda: vae.decode(torch.zeros(2, 4, 16, 16)), 2, "cpu") / 2


def compared(peer: Peer, ours: Ours, weights: bool) -> Same:
    """The pictures of the last rounds."""
    names = list(ours.pictures)
    made = torch.stack([ours.pictures[name] for name in names])
    wanted = torch.stack([peer.pictures[name] for name in names])
    stored = np.stack([ours.shown[name] for name in names]).astype(int)
    apart = np.abs(stored - (wanted * 255).round().permute(0, 2, 3, 1).numpy())
    first, second = ours.plan.l1[:2]
    moved = [
        (ours.pictures[name] - ours.pictures[second, *name[1:]]).abs().max()
        for name in names
        if name[0] == first
    ]
    return Same(
        apart=float((made - wanted).abs().max()),
        levels=int(apart.max()),
        share=float((apart > 0).mean()),
        moved=float(max(moved)),
        weights=weights,
    )


def shuffled(files: Files, folder: Path) -> dict[str, tuple[int, int, int]]:
    """Number format → pictures, those that another order changes, different ones among them."""
    found = {}
    for dtype in HALVES:
        given = list(range(ORDERS.pairs))
        other = torch.randperm(ORDERS.pairs, generator=torch.Generator().manual_seed(1)).tolist()
        first, second = shuffled_files(files, ORDERS, dtype, folder, (given, other))
        differing = sum(a != b for a, b in zip(first, second, strict=True))
        found[dtype] = (len(first), differing, len(set(first)))
    return found


def processes(files: Files, plan: Plan, folder: Path) -> Processes:
    """A process for each cell of a λ pair, and one of ours for all of them."""
    (l1,), (l2,) = plan.l1, plan.l2
    given = {**asdict(files), "l1": l1, "l2": l2, "items": plan.items, "out": str(folder)}
    cell = {n: _run([str(PEERS), json.dumps({**given, "steps": n})]) for n in plan.steps}
    store = folder / "ours"
    ours = _run([__file__, "--job", json.dumps([asdict(files), asdict(plan), str(store)])])
    made = Store(store, keys_of(Sources()))
    apart = 0
    for row in plan.rows(files):
        for number, picture in enumerate(made.pixels(row, plan.items)):
            other = np.asarray(Image.open(folder / f"{l1}-{l2}-{row.steps}-{number}.png"))
            apart = max(apart, int(np.abs(picture.astype(int) - other).max()))
    return Processes(cell, ours["load"], ours["pair"], len(plan.items), apart)


def job(files: dict[str, Any], plan: dict[str, Any], folder: str) -> None:
    """Draws one λ pair; prints this process's CPU seconds until then, and while, as JSON."""
    torch.set_num_threads(1)
    found = Ours(Files(**files), Plan(**plan)).round(Path(folder))
    print(json.dumps({"load": time.process_time() - found.seconds, "pair": found.seconds}))


def _run(arguments: list[str]) -> Any:
    """A Python process of one thread; what it printed last."""
    done = subprocess.run(
        [sys.executable, *arguments],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return json.loads(done.stdout.splitlines()[-1])


def sections(given: argparse.Namespace, folder: Path) -> list[Section]:
    """All tables."""
    toy = make_files(folder, "toy")
    files = toy if given.quick else make_files(folder, "142M")
    raced, same = race(files, PLAN, given.rounds, folder)
    alone = processes(files, ONE_PAIR, folder)
    made = [
        same_section(same, alone, shuffled(toy, folder)),
        race_section(raced, "Toy networks" if given.quick else "UNet of 142 M parameters, 128 px"),
        gain_section(raced),
        process_section(alone, COUNTED),
    ]
    if given.device == "cpu":
        return [*made, absent_section()]
    raced, _ = race(make_files(folder, "sd15"), GPU_PLAN, given.rounds, folder / "gpu", "cuda")
    return [*made, race_section(raced, "SD1.5's size, 512 px, float16")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="toy networks, no page")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job(*json.loads(given.job))
        return
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        made = sections(given, Path(folder))
    usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = sum(used.ru_utime + used.ru_stime for used in usage)
    text = page("A grid beside diffusers", "grid.py", made, seconds, ("torch", "diffusers", "peft"))
    print(text)
    if not given.quick:
        (RESULTS / "grid.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
