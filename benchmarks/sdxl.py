"""Two SDXL adapters of rank 64 (788 modules, 394 MB each in float16): what does a combination cost?

    python benchmarks/sdxl.py [--peer-seconds 150] [--folder DIR]

Each job runs in a process of its own with one thread; CPU seconds exclude imports, memory is the
peak above a process that only imports. PEFT's own ``add_weighted_adapter`` runs on one layer of
each shape, as many shapes as its time allows, the most frequent first; the table says what share of
the modules that covers, and the rest is extrapolated by out · in · min(out, in), what a dense
singular value decomposition costs. Writes ``benchmarks/results/sdxl.md``.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).resolve().parent / "results"
RANK, WEIGHTS = 64, (0.8, 1.0)

# Job → what it does, and what it wants said of it.
JOBS: Final = {
    "imports": "imports only",
    "combine": "`combine`, exact (rank 128), float16",
    "reproject": "`combine --rank 64`, float16",
    "tsv-m": "`combine --method tsv-m --rank 64`, float16",
    "loop": "plain QR loop, rank 64, all in memory",
    "spectra": "all spectra of one more λ, QR kept",
}


def targets() -> dict[str, tuple[int, ...]]:
    """Module → shape of its weight: the layers that LCM-LoRA adapts."""
    from lcm_arith.modules import table
    from lcm_arith.targets import LCM_TARGETS

    return {
        module: shape
        for module, shape in table("sdxl").items()
        if module.startswith("unet.")
        and len(shape) > 1
        and any(module.endswith(f".{target}") for target in LCM_TARGETS)
    }


def make_files(folder: Path) -> tuple[Path, Path]:
    """Two adapters whose singular values fall, 100 to 1."""
    import torch

    from lcm_arith.delta import LowRankDelta
    from lcm_arith.saving import save
    from lcm_arith.vector import Source, TaskVector

    paths = folder / "one.safetensors", folder / "two.safetensors"
    for seed, path in enumerate(paths):
        if path.exists():
            continue
        random = torch.Generator().manual_seed(seed)
        falling = torch.logspace(0, -2, RANK)
        deltas = {}
        for module, shape in targets().items():
            ones = (1,) * (len(shape) - 2)
            up = torch.randn(shape[0], RANK, generator=random) * falling
            down = torch.randn(RANK, *shape[1:], generator=random) / 30
            deltas[module] = LowRankDelta(down.half(), up.reshape(*up.shape, *ones).half())
        save(TaskVector(((1.0, Source(deltas)),)), path, dtype=torch.float16)
    return paths


def job(name: str, one: str, two: str, out: str) -> None:
    """One job, in this process; prints its CPU seconds and its peak memory as JSON."""
    import torch

    from lcm_arith import adapters
    from lcm_arith.budgets import Budget
    from lcm_arith.combination import combine_terms
    from lcm_arith.saving import save
    from lcm_arith.sweep import Sweep
    from lcm_arith.weights import Term, Weights, decimal

    torch.set_num_threads(1)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.linalg.svd(torch.ones(2, 2))
    began = time.process_time()
    terms = [
        Term(path, Weights(decimal(str(weight), "")))
        for path, weight in zip((one, two), WEIGHTS, strict=True)
    ]
    rank = Budget("rank", RANK)
    if name == "combine":
        save(combine_terms(terms), out, dtype=torch.float16, force=True)
    elif name == "reproject":
        save(combine_terms(terms, budget=rank), out, dtype=torch.float16, force=True)
    elif name == "tsv-m":
        tau = combine_terms(terms, method="tsv-m", budget=rank)
        save(tau, out, dtype=torch.float16, force=True)
    elif name == "loop":
        loop(one, two, out)
    elif name == "spectra":
        sweep = Sweep.of([adapters.load(one), adapters.load(two)])
        began = time.process_time()
        sweep.spectra(WEIGHTS)
    seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "peak": peak}))


def loop(one: str, two: str, out: str) -> None:
    """What one writes first: load both, QR, SVD of the core, save."""
    import torch
    from safetensors.torch import load_file, save_file

    first, second, made = load_file(one), load_file(two), {}
    for key in [key for key in first if key.endswith("lora_A.weight")]:
        other = key.replace("lora_A", "lora_B")
        parts = [
            (w, t[other].float(), t[key].float())
            for w, t in zip(WEIGHTS, (first, second), strict=True)
        ]
        up = torch.cat([w * b.flatten(1) for w, b, _ in parts], 1)
        down = torch.cat([a.flatten(1) for _, _, a in parts], 0)
        (q1, r1), (q2, r2) = torch.linalg.qr(up), torch.linalg.qr(down.T)
        u, s, vh = torch.linalg.svd(r1 @ r2.T)
        root = s[:RANK].sqrt()
        made[other] = ((q1 @ u[:, :RANK]) * root).half()
        made[key] = (root[:, None] * (vh[:RANK] @ q2.T)).half()
    save_file(made, out)


def run(name: str, *arguments: str) -> dict[str, float]:
    """A job in a process of its own."""
    command = [sys.executable, __file__, "--job", name, *arguments]
    done = subprocess.run(
        command,
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def peft_seconds(
    shapes: Counter[tuple[int, ...]], allowed: float, **options: Any
) -> tuple[float, float]:
    """(CPU seconds for all modules, share of modules whose shape was measured) of PEFT's svd."""
    import torch
    from peft import LoraConfig, get_peft_model

    torch.set_num_threads(1)
    measured: dict[tuple[int, ...], float] = {}
    began = time.process_time()
    for shape, _ in shapes.most_common():
        if time.process_time() - began > allowed:
            break
        out, width = shape[:2]
        layer = (
            torch.nn.Linear(width, out)
            if len(shape) == 2
            else torch.nn.Conv2d(width, out, shape[2], padding=1)
        )
        model = torch.nn.Sequential()
        model.add_module("x", layer)
        config = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=["x"], init_lora_weights=False)
        peft = get_peft_model(model, config, "one")
        peft.add_adapter("two", config)
        at = time.process_time()
        peft.add_weighted_adapter(
            ["one", "two"], list(WEIGHTS), "sum", "svd", svd_rank=RANK, **options
        )
        measured[shape] = time.process_time() - at

    def work(shape: tuple[int, ...]) -> float:
        out, width = shape[0], math.prod(shape[1:])
        return out * width * min(out, width)

    per_work = sum(measured.values()) / sum(work(shape) for shape in measured)
    total = sum(n * measured.get(shape, per_work * work(shape)) for shape, n in shapes.items())
    return total, sum(n for shape, n in shapes.items() if shape in measured) / shapes.total()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--job", nargs=4, metavar=("NAME", "ONE", "TWO", "OUT"))
    parser.add_argument("--peer-seconds", type=float, default=150.0, help="for each PEFT variant")
    parser.add_argument("--folder", type=Path, help="keeps the two files (800 MB) for another run")
    given = parser.parse_args()
    if given.job:
        job(*given.job)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = given.folder or Path(temporary)
        one, two = make_files(folder)
        found = {
            name: run(name, str(one), str(two), str(folder / "out.safetensors")) for name in JOBS
        }
    shapes = Counter(targets().values())
    page = table(
        found,
        {
            "PEFT `svd`, as it comes": peft_seconds(shapes, given.peer_seconds),
            "PEFT `svd`, svd_full_matrices=False": peft_seconds(
                shapes, given.peer_seconds, svd_full_matrices=False
            ),
        }
        if given.peer_seconds
        else {},
    )
    print(page)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "sdxl.md").write_text(page, encoding="utf-8")


def table(found: dict[str, dict[str, float]], peers: dict[str, tuple[float, float]]) -> str:
    """The page."""
    ours, bare = found["reproject"]["seconds"], found["imports"]["peak"]
    lines = [
        "# Two SDXL adapters of rank 64",
        "",
        f"`python benchmarks/sdxl.py`, {datetime.now(UTC).date().isoformat()}, "
        f"{platform.machine()}, one core.",
        "",
        "| job | CPU s | × `--rank 64` | MB above imports |",
        "| --- | --- | --- | --- |",
    ]
    for name, text in JOBS.items():
        seconds, peak = found[name]["seconds"], (found[name]["peak"] - bare) / 1e6
        lines.append(f"| {text} | {seconds:.2f} | {seconds / ours:.2f} | {peak:.0f} |")
    for text, (seconds, share) in peers.items():
        told = f"{text}; {share:.0%} of the modules measured, the others extrapolated"
        lines.append(f"| {told} | {seconds:.0f} | {seconds / ours:.0f} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
