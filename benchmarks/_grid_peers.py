"""A good diffusers script of a grid, and one process per cell: ``grid.py``'s other sides.

Run as a program it is the second: it loads, draws one cell, and ends. Nothing of this package is
imported here.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

Item = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Script:
    """One load of model and adapters; prompts are encoded once.

    Args:
        pipeline: diffusers' own, with the LCM sampler.
        embeds: Prompt → its embedding.
    """

    pipeline: Any
    embeds: dict[str, Tensor]

    @classmethod
    def load(
        cls,
        base: str,
        style: str,
        accel: str,
        prompts: Sequence[str],
        *,
        device: str = "cpu",
        dtype: str = "float32",
    ) -> Script:
        """From a diffusers folder and two adapters."""
        import diffusers

        diffusers.utils.logging.set_verbosity_error()
        diffusers.utils.logging.disable_progress_bar()
        warnings.simplefilter("ignore")
        pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            base, dtype=getattr(torch, dtype), local_files_only=True
        ).to(device)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.scheduler = diffusers.LCMScheduler.from_config(pipeline.scheduler.config)
        for name, path in (("style", style), ("accel", accel)):
            pipeline.load_lora_weights(path, adapter_name=name)
        with torch.no_grad():
            embeds = {
                prompt: pipeline.encode_prompt(prompt, device, 1, False)[0] for prompt in prompts
            }
        return cls(pipeline, embeds)

    def weigh(self, l1: float, l2: float) -> None:
        """Makes the next cells those of a λ1 and λ2."""
        self.pipeline.set_adapters(["style", "accel"], [l1, l2])

    def draw(self, items: Sequence[Item], steps: int, batch: int) -> Tensor:
        """Pictures ``[items, 3, H, W]`` in 0 to 1, ``batch`` of them at once."""
        found = []
        for at in range(0, len(items), batch):
            part = items[at : at + batch]
            found.append(
                self.pipeline(
                    prompt_embeds=torch.cat([self.embeds[prompt] for prompt, _ in part]),
                    generator=[torch.Generator().manual_seed(seed) for _, seed in part],
                    num_inference_steps=steps,
                    guidance_scale=1.0,
                    output_type="pt",
                ).images
            )
        return torch.cat(found).float().cpu()


def keep(pictures: Tensor, folder: Path, name: str) -> None:
    """Pictures as PNG files."""
    from PIL import Image

    shown = (pictures * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    for number, picture in enumerate(shown):
        Image.fromarray(picture).save(folder / f"{name}-{number}.png")


def main(
    base: str, style: str, accel: str, l1: str, l2: str, steps: int, items: Sequence[Item], out: str
) -> None:
    """One cell; prints the CPU seconds of this process as JSON."""
    torch.set_num_threads(1)
    items = [(prompt, seed) for prompt, seed in items]
    script = Script.load(base, style, accel, [prompt for prompt, _ in items])
    script.weigh(float(l1), float(l2))
    keep(script.draw(items, steps, len(items)), Path(out), f"{l1}-{l2}-{steps}")
    print(json.dumps(time.process_time()))


if __name__ == "__main__":
    main(**json.loads(sys.argv[1]))
