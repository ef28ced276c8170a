"""Stages ``vae`` and ``decoder``: the autoencoder, 64×64 pictures to 8×8×16 latents and back.

``decoder`` trains only the way back, with the encoder frozen: pictures get sharper and latents stay
what the base was trained on, so that it may run beside or after the base.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ground.common import VARIANTS, Options, digest, drawn, levels, say, to_pixels, train
from lcm_arith.embedded import files, pictures
from lcm_arith.evaluation.report import png_bytes
from lcm_arith.evaluation.showing.sheets import contact_sheet
from lcm_arith.sampling import fast_math
from lcm_arith.training.loop import step_generator
from lcm_arith.training.plan import Plan

CHANNELS: Final = (16, 32, 64, 64)
LATENT_CHANNELS: Final = 16
PLAN: Final = Plan(steps=5200, batch=16, learning_rate=1.5e-3, ema=0.995)
KL_WEIGHT: Final = 1e-4
EDGE_WEIGHT: Final = 1.0
CONTRAST_WEIGHT, CONTRAST_PATCH = 0.5, 4  # of the decoder's training alone
SEED: Final = 11
DECODER_PLAN: Final = Plan(steps=3000, batch=16, learning_rate=1e-3, ema=0.995)
DECODER_SEED: Final = 12
LATENT_NOISE: Final = 0.05  # of the latents' deviation: a UNet's latents are never quite true ones


def build(options: Options) -> None:
    """Trains the autoencoder on every set and writes ``emoji-sd/vae``."""
    vae = untrained().to(options.device)
    names = tuple(pictures.sets())
    pixels = torch.from_numpy(drawn(names, VARIANTS))
    plan = options.shortened(PLAN)

    def loss_of(step: int) -> Tensor:
        generator = step_generator(SEED, step)
        rows = torch.randint(len(pixels), (plan.batch,), generator=generator)
        shown = levels(pixels[rows], vae.device)
        noise = torch.randn((plan.batch, LATENT_CHANNELS, 8, 8), generator=generator)
        with fast_math(vae.device):
            posterior = vae.encode(shown).latent_dist
            z = posterior.mean + posterior.std * noise.to(vae.device)
            decoded = vae.decode(z).sample
        return reconstruction_loss(decoded.float(), shown) + KL_WEIGHT * kl(posterior)

    about = {"seed": SEED, "data": digest(files.DATA)}
    train(
        "vae", vae, loss_of, plan, options, about, lambda step: sheet(vae, f"vae-{step}", options)
    )
    vae.register_to_config(scaling_factor=scaling_factor(vae))
    vae.half().save_pretrained(files.MODEL / "vae")
    say(f"vae: scaling factor {vae.config.scaling_factor:.4f}")


def build_decoder(options: Options) -> None:
    """Trains the decoder further on the frozen encoder's latents; writes ``emoji-sd/vae``."""
    from diffusers import AutoencoderKL

    before: Any = AutoencoderKL.from_pretrained(files.MODEL / "vae").float()
    vae = untrained()  # whose configuration names no folder of the build
    vae.load_state_dict(before.state_dict())
    vae.register_to_config(scaling_factor=before.config.scaling_factor)
    vae.to(options.device).requires_grad_(False)
    for part in (vae.decoder, vae.post_quant_conv):
        part.requires_grad_(True)
    pixels = torch.from_numpy(drawn(tuple(pictures.sets()), VARIANTS))
    means = encoded(vae, pixels)
    plan = options.shortened(DECODER_PLAN)
    deviation = LATENT_NOISE / vae.config.scaling_factor

    def loss_of(step: int) -> Tensor:
        generator = step_generator(DECODER_SEED, step)
        rows = torch.randint(len(pixels), (plan.batch,), generator=generator)
        noise = torch.randn(means[rows].shape, generator=generator)
        z = (means[rows] + deviation * noise).to(vae.device)
        with fast_math(vae.device):
            decoded = vae.decode(z).sample
        decoded, shown = decoded.float(), levels(pixels[rows], vae.device)
        difference = edge_contrast(decoded) - edge_contrast(shown)
        return reconstruction_loss(decoded, shown) + CONTRAST_WEIGHT * difference.abs().mean()

    about = {
        "seed": DECODER_SEED,
        "data": digest(files.DATA),
        "scaling_factor": vae.config.scaling_factor,  # tells one encoder from another
    }
    train(
        "decoder",
        vae,
        loss_of,
        plan,
        options,
        about,
        lambda step: sheet(vae, f"decoder-{step}", options),
    )
    vae.half().save_pretrained(files.MODEL / "vae")


@torch.no_grad()
def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Posterior means of uint8 ``[n, 64, 64, 3]``, on the CPU: ``[n, 16, 8, 8]``, not scaled."""
    with fast_math(vae.device):
        means = [
            vae.encode(levels(part, vae.device)).latent_dist.mean.float().cpu()
            for part in pixels.split(64)
        ]
    return torch.cat(means)


def untrained() -> Any:
    """The autoencoder with seeded random weights."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * len(CHANNELS),
            up_block_types=("UpDecoderBlock2D",) * len(CHANNELS),
            block_out_channels=CHANNELS,
            layers_per_block=1,
            latent_channels=LATENT_CHANNELS,
            norm_num_groups=8,
            mid_block_add_attention=False,
            sample_size=pictures.SIDE,
        )


def reconstruction_loss(decoded: Tensor, shown: Tensor) -> Tensor:
    """L1 + MSE + L1 of the steps between neighbours: the last one keeps edges sharp."""
    difference = decoded - shown
    across, down = difference.diff(dim=3).abs().mean(), difference.diff(dim=2).abs().mean()
    edges = EDGE_WEIGHT * (across + down)
    return difference.abs().mean() + F.mse_loss(decoded, shown) + edges


def edge_contrast(shown: Tensor) -> Tensor:
    """Root mean square step between neighbours in each patch, ``[n, 3, 16, 16]``.

    Where an edge lies is uncertain to the decoder, and the best guess of a pixel is then a smooth
    one; how strong the edges of a patch are is not.
    """
    across, down = shown.diff(dim=3).square(), shown.diff(dim=2).square()
    steps = F.pad(across, (0, 1)) + F.pad(down, (0, 0, 0, 1))
    contrast: Tensor = (F.avg_pool2d(steps, CONTRAST_PATCH) + 1e-4).sqrt()
    return contrast


def kl(posterior: Any) -> Tensor:
    """Mean over all latents of KL(N(mean, var) ‖ N(0, 1)), in nats."""
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence: Tensor = 0.5 * (mean.square() + logvar.exp() - 1.0 - logvar).mean()
    return divergence


@torch.no_grad()
def scaling_factor(vae: Any) -> float:
    """1 / standard deviation of the base sets' latents: the diffusion works at unit variance."""
    shown = torch.from_numpy(drawn(pictures.base_sets(), 1))
    return 1.0 / float(encoded(vae, shown).std())


@torch.no_grad()
def sheet(vae: Any, name: str, options: Options) -> None:
    """``work/NAME.png``: a picture of each set above what the autoencoder makes of it."""
    chosen = pictures.hash_order(pictures.concepts())[:10]
    rows: list[tuple[str, list[np.ndarray]]] = []
    for member in pictures.sets():
        real = np.concatenate([pictures.variants(member, c, 1, seed=3) for c in chosen])
        decoded = to_pixels(
            vae.decode(vae.encode(levels(real, vae.device)).latent_dist.mean).sample
        )
        error = np.abs(real.astype(float) - decoded).mean() / 127.5
        rows += [(member, list(real)), (f"L1 {error:.3f}", list(decoded))]
    page = contact_sheet(rows, [c.caption for c in chosen], name)
    files.write_file(options.work / f"{name}.png", png_bytes(page))
