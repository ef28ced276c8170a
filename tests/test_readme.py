"""The README's Python does what it says."""

import re
from pathlib import Path

import torch

from lcm_arith import load

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_library_example_runs_and_writes_the_papers_sum(tmp_cwd: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    tau, style, accel = load("x.safetensors"), load("fluent-emoji"), load("lcm")
    assert {tau[module].rank for module in tau} == {32}
    module = tau.modules[0]
    exact = 0.8 * style[module].dense(torch.float64) + accel[module].dense(torch.float64)
    u, s, vh = torch.linalg.svd(exact.flatten(1), full_matrices=False)
    best = ((u[:, :32] * s[:32]) @ vh[:32]).reshape(exact.shape)
    assert float((tau[module].dense() - best).norm() / exact.norm()) < 1e-5
