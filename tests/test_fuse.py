"""Live weights: rebuilt from pristine, in any order, to the bit."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import MODULES, random_vector

from lcm_arith.errors import IncompatibleError
from lcm_arith.fuse import LiveWeights
from lcm_arith.vector import TaskVector


def weights(pipeline: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in pipeline.unet.state_dict().items()}


def test_a_weight_is_pristine_plus_delta_rounded_once(live: LiveWeights) -> None:
    before = weights(live.pipeline)
    tau = 0.8 * random_vector(4, 1.0, 1) + random_vector(9, 27.0, 2)
    live.apply(tau)
    after = weights(live.pipeline)
    for module in tau:
        key = f"{module[5:]}.weight"
        assert torch.equal(after[key], before[key] + tau[module].dense())
    untouched = before.keys() - {f"{m[5:]}.weight" for m in tau}
    assert all(torch.equal(after[key], before[key]) for key in untouched)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_visiting_order_does_not_matter_and_nothing_restores_every_bit(
    fresh_pipeline: Callable[[], Any], dtype: torch.dtype
) -> None:
    pipeline = fresh_pipeline()
    pipeline.unet.to(dtype)
    live, pristine = LiveWeights(pipeline), weights(pipeline)
    a, b = random_vector(4, 1.0, 1), random_vector(9, 27.0, 2)
    mixes = [0.1 * step * a + b for step in range(5)]
    live.apply(mixes[3])
    direct = weights(pipeline)
    for mix in (*mixes, -1.0 * a, *reversed(mixes), mixes[3]):
        live.apply(mix)
    again = weights(pipeline)
    assert all(torch.equal(direct[key], again[key]) for key in direct)
    live.apply(TaskVector())
    restored = weights(pipeline)
    assert all(torch.equal(pristine[key], restored[key]) for key in pristine)


def test_repeated_fusing_would_drift_which_is_why_we_rebuild(
    fresh_pipeline: Callable[[], Any],
) -> None:
    pipeline = fresh_pipeline()
    pipeline.unet.to(torch.bfloat16)
    module = next(iter(MODULES))
    weight = pipeline.unet.get_submodule(module[5:]).weight.detach()
    pristine, delta = weight.clone(), random_vector(4, 1.0, 1)[module].dense().bfloat16()
    for _ in range(20):
        weight.copy_((weight + delta) - delta)
    assert not torch.equal(weight, pristine)


def test_a_vector_that_does_not_fit_changes_nothing(live: LiveWeights) -> None:
    before = weights(live.pipeline)
    fitting = dict(MODULES)
    for name, shape in (("unet.no.such", (4, 4)), ("unet.conv_in", (320, 4, 3, 3))):
        with pytest.raises(IncompatibleError, match=name):
            live.apply(random_vector(4, 4.0, 1, {**fitting, name: shape}))
    after = weights(live.pipeline)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_a_second_pair_of_hands_on_one_pipeline_starts_from_pristine(live: LiveWeights) -> None:
    a, b = random_vector(4, 1.0, 1), random_vector(9, 27.0, 2)
    live.apply(b)
    alone = weights(live.pipeline)
    live.apply(a)
    LiveWeights(live.pipeline).apply(b)
    shared = weights(live.pipeline)
    assert all(torch.equal(alone[key], shared[key]) for key in alone)
