"""Stage ``base``: the UNet, a crowd of artists under captions that name none of them."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from ground.common import VARIANTS, Options, digest, say, train
from lcm_arith.bases import Base
from lcm_arith.data.drawing import TrainingSet
from lcm_arith.data.drawings import embedded_pictures
from lcm_arith.data.prepare import prepare
from lcm_arith.embedded import files, pictures
from lcm_arith.evaluation.report import png_bytes
from lcm_arith.evaluation.showing.sheets import contact_sheet
from lcm_arith.lcd.schedule import Schedule
from lcm_arith.sampling import encode_prompts, sample
from lcm_arith.training.adapter import explicit_attention
from lcm_arith.training.denoising import denoising_loss
from lcm_arith.training.loop import step_generator
from lcm_arith.training.numbers import numbers
from lcm_arith.training.plan import Plan
from lcm_arith.training.roles import in_numbers

SEED: Final = 41
PLAN: Final = Plan(steps=10000, batch=64, learning_rate=1e-3, ema=0.999)
CHANNELS: Final = (128, 192)
HEADS: Final = 4
EMPTY, TAGGED = 0.1, 0.15  # shares of pictures without caption, and with a tag for it


def build(options: Options) -> None:
    """Trains the UNet on every thing of the base's sets; completes the folder ``emoji-sd``.

    Not compiled: torch 2.13's inductor on a CPU gives no gradient to anything below the upsampler.
    """
    pipeline = assemble(options)
    unet, schedule = pipeline.unet, Schedule.of_scheduler(pipeline.scheduler)
    explicit_attention(unet)
    uncached = {"vae": "", "text_encoder": ""}
    base = Base(pipeline, "", uncached, "emoji", "sd", files.MODEL)
    data = prepare(base, embedded_pictures(pictures.base_sets(), "all", VARIANTS))
    all_z0 = torch.stack([data.z0(picture) for picture in range(data.pictures)])
    tags = TagEmbeddings(base, data)
    model = in_numbers(unet, numbers("auto", unet.device), unet.device)
    plan = options.shortened(PLAN)

    def loss_of(step: int) -> Tensor:
        generator = step_generator(SEED, step)
        rows = torch.randint(data.pictures, (plan.batch,), generator=generator)
        z0, c = all_z0[rows], tags.draw(rows, generator)
        t = torch.randint(len(schedule.alpha_t), (plan.batch,), generator=generator)
        noise = torch.randn(z0.shape, generator=generator)
        z0, noise, c = (x.to(unet.device) for x in (z0, noise, c))
        return denoising_loss(model, schedule, z0, noise, t, {"embeds": c})

    def on_quarter(step: int) -> None:
        unet.eval()
        sheet(pipeline, step, options)
        unet.train()

    about = {
        "seed": SEED,
        "data": digest(files.DATA, files.MODEL / "text_encoder"),
        "scaling_factor": pipeline.vae.config.scaling_factor,  # tells one encoder from another
    }
    train("base", unet, loss_of, plan, options, about, on_quarter)
    unet.half().save_pretrained(files.MODEL / "unet")  # the other parts are written already
    pipeline.scheduler.save_pretrained(files.MODEL / "scheduler")
    pipeline.save_config(files.MODEL)
    say(f"wrote {files.MODEL}")


def assemble(options: Options) -> Any:
    """The pipeline of the finished autoencoder and text tower with an untrained UNet."""
    from diffusers import (
        AutoencoderKL,
        DDIMScheduler,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextModel, CLIPTokenizer

    folder = files.MODEL
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    text: Any = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        unet = UNet2DConditionModel(
            sample_size=pictures.SIDE // 8,
            in_channels=vae.config.latent_channels,
            out_channels=vae.config.latent_channels,
            block_out_channels=CHANNELS,
            down_block_types=("CrossAttnDownBlock2D",) * len(CHANNELS),
            up_block_types=("CrossAttnUpBlock2D",) * len(CHANNELS),
            layers_per_block=1,
            cross_attention_dim=text.config.hidden_size,
            attention_head_dim=HEADS,  # the number of heads, against its name
            norm_num_groups=16,
        )
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipeline = StableDiffusionPipeline(
        vae=vae.float(),
        text_encoder=text.float(),
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        unet=unet,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    for part in (pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False)
    return pipeline.to(options.device)


class TagEmbeddings:
    """Embeddings of every caption with those of its tags, to draw from."""

    def __init__(self, base: Base, data: TrainingSet) -> None:
        things = pictures.concepts()
        captions = tuple(thing.caption for thing in things)
        place = {caption: at for at, caption in enumerate(captions)}
        self._thing = torch.tensor([place[row.captions[0]] for row in data.rows])
        self._captions = data.embeddings(captions)["embeds"]
        self._empty = data.uncond({"embeds": self._captions[:1]})["embeds"]
        tags = sorted({tag for thing in things for tag in thing.tags})
        self._tags = base.encode(tags)["embeds"].cpu() if tags else self._empty
        number = {tag: index for index, tag in enumerate(tags)}
        self._own = [[number[tag] for tag in thing.tags] for thing in things]

    def draw(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        """Condition of each picture: its caption, at times one of its tags, or nothing."""
        things = self._thing[rows]
        c = self._captions[things].clone()
        chance = torch.rand(len(rows), generator=generator)
        which = torch.rand(len(rows), generator=generator)
        for row in (chance < EMPTY + TAGGED).nonzero().flatten().tolist():
            own = self._own[int(things[row])]
            if chance[row] < EMPTY:
                c[row] = self._empty[0]
            elif own:
                c[row] = self._tags[own[int(which[row] * len(own))]]
        return c


def sheet(pipeline: Any, step: int, options: Options) -> None:
    """``work/base-STEP.png``: three seeds of a few captions, above true pictures."""
    chosen = [c.caption for c in pictures.hash_order(pictures.concepts())[:10]]
    embeds, uncond = encode_prompts(pipeline, chosen), encode_prompts(pipeline, [""])
    rows: list[tuple[str, list[np.ndarray]]] = []
    for seed in range(3):
        seeds = [100 * seed + i for i in range(len(chosen))]
        shown = sample(pipeline, embeds, uncond, seeds, sampler="dpm++", steps=25, guidance=2.0)
        rows.append((f"dpm++ 25, s=2\nseed {seed}", list(shown)))
    by_caption = pictures.by_caption()
    for name in pictures.base_sets():
        true = [pictures.variants(name, by_caption[c], 1, seed=3)[0] for c in chosen]
        rows.append((name, true))
    page = contact_sheet(rows, chosen, f"Base, step {step}")
    files.write_file(options.work / f"base-{step}.png", png_bytes(page))
