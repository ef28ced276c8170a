"""Many pictures in lockstep: equal rows once, and every picture what it is alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from lcm_arith.bases import Base, load_base
from lcm_arith.condition import Condition, joined, rows
from lcm_arith.evaluation.drawing.trajectories import Column, Drawn, draw
from lcm_arith.sampling import SAMPLERS, Sampler, decode, denoise, nfe

PROMPTS = ("fox", "red cat")
SEED = 3


@pytest.fixture(scope="module")
def sd15(tiny_sd15: Path) -> Base:
    return load_base(tiny_sd15)


@pytest.fixture(scope="module")
def told(sd15: Base) -> Condition:
    """Two prompts and ∅."""
    return joined(*(sd15.encode([prompt]) for prompt in PROMPTS), sd15.uncond())


@contextmanager
def batches(base: Base) -> Iterator[list[int]]:
    """The sizes of the UNet's batches."""
    found: list[int] = []
    hook = base.unet.register_forward_pre_hook(lambda _, args: found.append(len(args[0])))
    yield found
    hook.remove()


def column(sampler: str, steps: int, guidance: float = 1.0) -> Column:
    """Both prompts, with seeds of their own."""
    return Column(sampler, steps, guidance, (SEED, SEED + 1), (0, 1), (2, 2))


def alone(base: Base, told: Condition, one: Column) -> torch.Tensor:
    """The pictures of a column without those of others."""
    own, uncond = (rows(told, torch.tensor(each)) for each in (one.cond, one.uncond[:1]))
    return denoise(
        base.pipeline, own, uncond, one.seeds,
        sampler=one.sampler, steps=one.steps, guidance=one.guidance,
    )  # fmt: skip


def run(base: Base, told: Condition, columns: list[Column], batch: int = 8) -> tuple[Drawn, int]:
    with batches(base) as sizes:
        drawn = draw(base.pipeline, columns, lambda step: told, batch=batch)
    assert max(sizes) <= batch
    assert sum(sizes) == drawn.unet_rows
    return drawn, len(sizes)


def test_steps_1_2_4_8_take_12_rows_and_give_the_pictures_of_15(
    sd15: Base, told: Condition
) -> None:
    columns = [column("lcm", steps) for steps in (1, 2, 4, 8)]
    drawn, passes = run(sd15, told, columns, batch=1)
    assert drawn.unet_rows == passes == 12 * len(PROMPTS)
    assert [float(sum(share)) for share in drawn.shares] == [0.5, 2.5, 6.5, 14.5]
    batched, passes = run(sd15, told, columns, batch=4)
    assert passes == 1 + 2 + 2 * 1 + 4 * 1  # 2, 6, 4, 4, 2, 2, 2 and 2 rows in batches of 4
    for one, latents, more in zip(columns, drawn.latents, batched.latents, strict=True):
        each = zip(one.seeds, one.cond, one.uncond, strict=True)
        single = [replace(one, seeds=(s,), cond=(c,), uncond=(u,)) for s, c, u in each]
        own = torch.cat([alone(sd15, told, picture) for picture in single])
        assert torch.equal(latents, own)
        # In their last bits the network's sums depend on how many rows it gets at once.
        assert torch.allclose(more, own, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_every_sampler_guided_or_not_draws_in_company_what_it_draws_alone(
    request: pytest.FixtureRequest, kind: str
) -> None:
    base = load_base(request.getfixturevalue(f"tiny_{kind}"))
    told = joined(*(base.encode([prompt]) for prompt in PROMPTS), base.uncond())
    columns = [column(name, *how) for name in SAMPLERS for how in ((1, 3.0), (2, 1.0), (2, 3.0))]
    drawn, _ = run(base, told, columns)
    for one, latents in zip(columns, drawn.latents, strict=True):
        own = alone(base, told, one)
        assert torch.allclose(latents, own, atol=1e-4, rtol=1e-4)
        pair = [decode(base.pipeline, z).astype(int) for z in (latents, own)]
        assert int(np.abs(pair[0] - pair[1]).max()) <= 1
    unshared = sum(nfe(one.steps, one.guidance) for one in columns)
    # Of lcm, dpm++, ddim and tcd the first steps are equal, of euler those of both step counts: a
    # row for c and one for ∅ remain of each. A second step has a row a picture, guided 2.
    assert drawn.unet_rows == (2 * 2 + len(SAMPLERS) * (1 + 2)) * len(PROMPTS)
    assert unshared == len(SAMPLERS) * (2 + 2 + 4)


def test_what_is_shared_is_decided_by_values_not_by_names(
    sd15: Base, told: Condition, monkeypatch: pytest.MonkeyPatch
) -> None:
    leading = Sampler("DDIMScheduler", {"timestep_spacing": "leading"}, "")
    monkeypatch.setitem(SAMPLERS, "ddim", leading)  # begins at another timestep for each count
    drawn, _ = run(sd15, told, [column("ddim", steps) for steps in (1, 2, 4, 8)])
    assert drawn.unet_rows == 15 * len(PROMPTS)
    monkeypatch.setitem(SAMPLERS, "other", SAMPLERS["lcm"])
    drawn, _ = run(sd15, told, [column("lcm", 2), column("other", 2)])
    assert drawn.unet_rows == 2 * len(PROMPTS)  # LCM's noise between the steps is equal, too
    assert torch.equal(*drawn.latents)
