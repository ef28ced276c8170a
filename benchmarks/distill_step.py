"""What does our distillation step cost beside a literal two-UNet transcription of Algorithm 1?

    python benchmarks/distill_step.py [--rounds 5] [--device cuda]

Networks have random weights. On the CPU they are small, of Stable Diffusion's kinds of layers, with
a VAE and a text encoder of SD1.5's share of the FLOPs; with ``--device cuda`` they are SD1.5's size
as well. Each job is a process of its own: in one both steps alternate and are compared before, in
the others one of them alone shows its peak memory. CPU times are one thread's. About six CPU
minutes. Writes ``benchmarks/results/distill_step.md``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from _page import Section, page
from _step_tables import (
    CPU_GOALS,
    EQUAL,
    GPU_GOALS,
    MEMORY_GOAL,
    absent_section,
    memory_section,
    time_section,
)

RESULTS: Final = Path(__file__).resolve().parent / "results"


def clock(device: Any) -> float:
    """Seconds: this thread's on a CPU, a GPU's when its work is done."""
    import torch

    if device.type != "cuda":
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def native(device: Any) -> Any:
    """The format that our side's weights are in."""
    import torch

    return torch.bfloat16 if device.type == "cuda" else torch.float32


def second_step(lesson: Any, plan: Any, device: Any) -> float:
    """Seconds of a step of the production loop, after one that is not counted."""
    from lcm_arith.training.loop import Run, fit
    from lcm_arith.training.numbers import numbers
    from lcm_arith.training.processes import Processes

    marks: list[float] = []
    run = Run(Processes(device), numbers("bf16" if device.type == "cuda" else "fp32", device))
    fit(lesson.model, lesson.loss, plan, lambda _: marks.append(clock(device)), run=run)
    return marks[1] - marks[0]


def second_literal_step(literal: Any, device: Any, *, encode: bool = False) -> float:
    """The same of the transcription."""
    literal.step(0, encode=encode)
    began = clock(device)
    literal.step(1, encode=encode)
    return clock(device) - began


def differences(size: Any, device: Any, checkpointing: bool) -> dict[str, float]:
    """Of the two steps' losses and gradients in float64, relative, and of each to its float32."""
    import torch
    from _literal import Literal, Ours

    from lcm_arith.training.adapter import parameters_of

    def both(dtype: torch.dtype) -> list[tuple[float, Any]]:
        ours = Ours.of(size, device, checkpointing, dtype)
        literal = Literal.of(size, device, checkpointing, dtype)
        sides = (
            (ours.lesson().loss(0), parameters_of(ours.unet)),
            (literal.loss(0), literal.trained),
        )
        found = []
        for loss, parameters in sides:
            gradients = torch.autograd.grad(loss, parameters)
            found.append((float(loss.detach()), torch.cat([g.flatten() for g in gradients])))
        return found

    def apart(gradient: Any) -> float:
        return float((gradient - exact).norm() / exact.norm())

    (loss, gradient), (wanted, exact) = both(torch.float64)
    (_, ours), (_, literal) = both(torch.float32)
    return {
        "loss": abs(loss / wanted - 1),
        "gradient": apart(gradient),
        "ours": apart(ours),
        "literal": apart(literal),
    }


def calls(networks: list[Any], step: Callable[[], Any]) -> list[int]:
    """Forward passes of a step, and pictures in them."""
    seen: list[int] = []
    hooks = [
        network.register_forward_pre_hook(lambda _, arguments: seen.append(len(arguments[0])))
        for network in networks
    ]
    step()
    for hook in hooks:
        hook.remove()
    return [len(seen), sum(seen)]


def syncs(step: Callable[[], Any]) -> int:
    """Times that a step waits for the GPU."""
    import torch

    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in caught)


def time_job(size_name: str, device: Any, checkpointing: bool, rounds: int) -> dict[str, Any]:
    """Both steps and our plain LoRA step in turn, after a look at whether they are equal."""
    import torch
    from _literal import SIZES, Literal, Ours

    size = SIZES[size_name]
    apart = differences(size, device, checkpointing) if device.type == "cpu" else {}
    if max(apart.get("loss", 0), apart.get("gradient", 0)) > EQUAL:
        raise SystemExit(f"the two steps differ: {apart}")
    ours = Ours.of(size, device, checkpointing, native(device))
    literal = Literal.of(size, device, checkpointing, torch.float32)
    lesson, plain = ours.lesson(), ours.plain_lesson()
    jobs: dict[str, Callable[[], float]] = {
        "ours": lambda: second_step(lesson, ours.plan, device),
        "literal": lambda: second_literal_step(literal, device),
        "encoding": lambda: second_literal_step(literal, device, encode=True),
        "plain": lambda: second_step(plain, ours.plan, device),
        "forward": lambda: forward(literal, device),
    }
    taken: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(rounds):
        for name, job in jobs.items():
            taken[name].append(job())
    found: dict[str, Any] = {name: statistics.median(each) for name, each in taken.items()}
    found["difference"], found["work"] = apart, work(size)
    found["calls"] = calls([ours.unet], lambda: lesson.loss(0))
    found["literal_calls"] = calls([literal.student, literal.teacher], lambda: literal.loss(0))
    if device.type == "cuda":
        found["syncs"] = syncs(lambda: lesson.loss(1).backward())
        found["literal_syncs"] = syncs(lambda: literal.step(1))
        ours.unet.compile()
        second_step(lesson, ours.plan, device)
        again = [second_step(lesson, ours.plan, device) for _ in range(rounds)]
        found["compiled"] = statistics.median(again)
    return found


def work(size: Any) -> dict[str, float]:
    """FLOPs of a picture: a UNet's forward pass, and encoders over it."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    def flops(make: Callable[[], Any], call: Callable[[Any], Any]) -> float:
        with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counted:
            call(make())
        return float(counted.get_total_flops())

    px = 8 * size.side
    unet = flops(
        size.make_unet,
        lambda net: net(torch.empty(1, 4, size.side, size.side), 0, torch.empty(1, 77, size.width)),
    )
    vae = flops(size.make_vae, lambda net: net.encode(torch.empty(1, 3, px, px)))
    text = flops(size.make_text, lambda net: net(torch.empty(1, 77, dtype=torch.long)))
    return {"unet": unet, "vae": vae / unet, "text": text / unet}


def forward(literal: Any, device: Any) -> float:
    """Seconds of the teacher's forward pass of a batch."""
    import torch

    size = literal.size
    z = torch.zeros(size.batch, 4, size.side, size.side, device=device)
    c = torch.zeros(size.batch, 77, size.width, device=device)
    began = clock(device)
    with torch.no_grad(), literal.numbers.autocast(device):
        literal.teacher(z, 500, c)
    return clock(device) - began


def resident(unet_bytes: int, apart: list[Any]) -> float:
    """Bytes of all tensors but ``apart``, over those of the UNet's weights."""
    import gc

    import torch

    def storages(tensors: Any) -> dict[int, int]:
        each = (tensor.untyped_storage() for tensor in tensors)
        return {storage.data_ptr(): storage.nbytes() for storage in each}

    gc.collect()
    held = storages(x for x in gc.get_objects() if issubclass(type(x), torch.Tensor))
    return sum(held[at] for at in held.keys() - storages(apart).keys()) / unet_bytes


def peak_job(side: str, size_name: str, device: Any, checkpointing: bool) -> dict[str, Any]:
    """Two steps of one side alone: what is held between steps, and the peak."""
    import torch
    from _literal import SCHEDULE, SIZES, Literal, Ours

    from lcm_arith.training.adapter import parameters_of

    size, found = SIZES[size_name], {}
    if side == "ours":
        ours = Ours.of(size, device, checkpointing, native(device))
        second_step(ours.lesson(), ours.plan, device)
        lora = parameters_of(ours.unet)
        base = [p for p in ours.unet.parameters() if not p.requires_grad]
        held = ours.data
    elif side != "imports":
        weights = torch.float32 if side != "literal in bfloat16" else torch.bfloat16
        literal = Literal.of(size, device, checkpointing, weights)
        second_literal_step(literal, device, encode=side == "encoding")
        lora, held = literal.trained, literal.data
        base = list(literal.teacher.parameters())
        literal.__dict__.pop("optimizer")  # its state is the LoRA's, as in a loop that has ended
    if side in ("ours", "literal"):
        store: Any = held.store  # a mapping here
        known = [*lora, *store.values(), SCHEDULE.alpha_t, SCHEDULE.sigma_t]
        found["resident"] = resident(sum(p.nbytes for p in base), known)
    if device.type == "cuda":
        return {**found, "peak": torch.cuda.max_memory_allocated()}
    return {**found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def largest_job(size_name: str, device: Any) -> dict[str, Any]:
    """The largest batch, a power of two, of which two steps of ours fit."""
    from dataclasses import replace

    import torch
    from _literal import SIZES, Ours

    fits, batch = 0, 1
    while batch <= 256:
        try:
            ours = Ours.of(replace(SIZES[size_name], batch=batch), device, True, native(device))
            second_step(ours.lesson(), ours.plan, device)
        except torch.cuda.OutOfMemoryError:
            break
        fits, batch = batch, 2 * batch
        del ours
        torch.cuda.empty_cache()
    return {"batch": fits}


def job(kind: str, size: str, device_name: str, checkpointing: bool, rounds: int) -> None:
    """One job, in this process; prints what it found as JSON."""
    import torch

    torch.set_num_threads(1)
    device = torch.device(device_name)
    if kind == "time":
        found = time_job(size, device, checkpointing, rounds)
    elif kind == "largest":
        found = largest_job(size, device)
    else:
        found = peak_job(kind, size, device, checkpointing)
    print(json.dumps(found))


def run(kind: str, size: str, device: str, checkpointing: bool, rounds: int) -> dict[str, Any]:
    """A job in a process of its own; this one is small, for a child inherits its peak memory."""
    given = json.dumps([kind, size, device, checkpointing, rounds])
    done = subprocess.run(
        [sys.executable, __file__, "--job", given],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def sections(size: str, device: str, rounds: int) -> list[Section]:
    """Time and memory of one size on one device."""
    both = [run("time", size, device, on, rounds) for on in (False, True)]
    sides = ["imports", "ours", "literal", "encoding"]
    if device == "cuda":
        sides.append("literal in bfloat16")
    peaks = {side: [run(side, size, device, on, 0) for on in (False, True)] for side in sides}
    share, ours, other = (both[0][name] for name in ("work", "calls", "literal_calls"))
    text = (
        f"{'Small UNet' if size == 'toy' else 'SD1.5-size UNet'}: {share['unet'] / 1e9:.2f} GFLOP "
        f"a forward pass and picture; VAE {share['vae']:.3f} and text encoder {share['text']:.4f} "
        "of that (SD1.5: 1.391, 0.0163). Data are cached for our step, the literal one takes "
        f"latents as given or encodes. UNet calls a step: {ours[0]} of {ours[1]} pictures, "
        f"literal {other[0]} of {other[1]}. Medians of {rounds}, in turn."
    )
    where = "CPU" if device == "cpu" else "GPU"
    goals, goal = (CPU_GOALS, None) if device == "cpu" else (GPU_GOALS, MEMORY_GOAL)
    return [
        time_section(f"Time, {where}", text, both, goals),
        memory_section(
            f"Memory, {where}",
            "Above a process that only imports; `encoding` is the literal side with its VAE and "
            "text encoder. Copies count every tensor but the LoRA and the data."
            + ("" if device == "cpu" else " The literal side is in float32 with autocast."),
            peaks,
            goal,
        ),
    ]


def gpu_sections(device: str, rounds: int) -> list[Section]:
    """SD1.5's size, and the largest SDXL batch; without a GPU the rows that are missing."""
    if device == "cuda":
        largest = run("largest", "sdxl", device, True, 0)["batch"]
        made = Section("Largest batch, SDXL-size, 1024 px", "With checkpointing.", ("batch",))
        made.rows.append((str(largest),))
        return [*sections("sd15", device, rounds), made]
    return [absent_section()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job(*json.loads(given.job))
        return
    made = [*sections("toy", "cpu", given.rounds), *gpu_sections(given.device, given.rounds)]
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    text = page(
        "Our distillation step beside a literal Algorithm 1",
        "distill_step.py",
        made,
        usage.ru_utime + usage.ru_stime,
        ("torch", "diffusers", "peft"),
    )
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "distill_step.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
