"""A UNet as a function of (z, t, condition)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lcm_arith.condition import Condition, Model


def network(unet: Any) -> Model:
    """The raw output of a diffusers UNet, float32 or wider.

    Args:
        unet: A ``UNet2DConditionModel``, or what is called like one; with a condition ``omega`` it
            has the UNet's ``config``.
    """

    def call(z: Tensor, t: Tensor, condition: Condition) -> Tensor:
        told: dict[str, Any] = {"encoder_hidden_states": condition["embeds"]}
        if "pooled" in condition:
            told["added_cond_kwargs"] = {
                "text_embeds": condition["pooled"],
                "time_ids": condition["time_ids"],
            }
        if "omega" in condition:
            from lcm_arith.lcd.guidance import omega_embedding

            embedding = omega_embedding(condition["omega"], unet.config.time_cond_proj_dim)
            told["timestep_cond"] = embedding.to(z.dtype)
        out: Tensor = unet(z, t, **told).sample
        return out.to(torch.promote_types(out.dtype, torch.float32))

    return call
