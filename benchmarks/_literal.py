"""Both sides of ``distill_step.py``: our step, and Algorithm 1 as one writes it first.

The other side has two whole UNets, the student with PEFT's own LoRA, calls the teacher twice, and
encodes pictures and prompts in its loop. Its loss is ``tests/literal.py``.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from literal import algorithm_1

from lcm_arith.architectures import TEXT_ENCODERS, UNETS, VAES
from lcm_arith.data.drawing import Row, TrainingSet
from lcm_arith.lcd.schedule import Grid, Schedule
from lcm_arith.targets import LCM_TARGETS
from lcm_arith.training.adapter import parameters_of
from lcm_arith.training.denoising import Denoising, denoising
from lcm_arith.training.distillation import Distillation, distillation
from lcm_arith.training.lesson import Lesson
from lcm_arith.training.loop import step_generator
from lcm_arith.training.numbers import Numbers
from lcm_arith.training.plan import Training
from lcm_arith.training.roles import Roles, on_one_base

OMEGA: Final = 7.5
SEED: Final = 0
T: Final = 1000
SCHEDULE: Final = Schedule.from_betas(torch.linspace(0.00085**0.5, 0.012**0.5, T) ** 2)
GRID: Final = Grid.of(T, 50)


@dataclass(frozen=True, eq=False)
class Size:
    """How large the networks and batches are.

    Args:
        unet, vae, text: Options of the three networks; those of the text encoder are sizes.
        batch: Pictures a step.
        side: Of the latents, which are an eighth of the pictures.
        rank: Of the LoRA.
        kind: "sd" or "sdxl".
    """

    unet: dict[str, Any]
    vae: dict[str, Any]
    text: dict[str, Any]
    batch: int
    side: int
    rank: int
    kind: str = "sd"

    @property
    def width(self) -> int:
        """Of a prompt's embedding."""
        return int(self.unet["cross_attention_dim"])

    def make_unet(self) -> Any:
        from diffusers import UNet2DConditionModel

        torch.manual_seed(SEED)
        return UNet2DConditionModel(**self.unet)

    def make_vae(self) -> Any:
        from diffusers import AutoencoderKL

        return AutoencoderKL(**self.vae).requires_grad_(False).eval()

    def make_text(self) -> Any:
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(vocab_size=1000, bos_token_id=0, eos_token_id=1, **self.text)
        return CLIPTextModel(config).requires_grad_(False).eval()


def _vae(channels: tuple[int, ...]) -> dict[str, Any]:
    return {**VAES["sd15"], "block_out_channels": channels, "norm_num_groups": 4}


# The toy's VAE and text encoder are as wide as it takes for SD1.5's ratios of FLOPs.
SIZES: Final = {
    "toy": Size(
        {
            "sample_size": 32, "block_out_channels": (32, 64, 128), "layers_per_block": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 64, "attention_head_dim": 4,
        },
        _vae((12, 28, 56, 56)),
        {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 4,
         "num_attention_heads": 4, "projection_dim": 64},
        batch=2, side=32, rank=16,
    ),
    "sd15": Size(
        dict(UNETS["sd15"]), dict(VAES["sd15"]), dict(TEXT_ENCODERS["sd15"][0]),
        batch=12, side=64, rank=64,
    ),
    "sdxl": Size(dict(UNETS["sdxl"]), {}, {}, batch=1, side=128, rank=64, kind="sdxl"),
}  # fmt: skip


def training_set(size: Size, dtype: torch.dtype) -> TrainingSet:
    """Random latents and embeddings of as many pictures as a batch has."""
    random = torch.Generator().manual_seed(SEED)
    store: Any = {}
    names = [f"picture {n}" for n in range(size.batch)]
    shapes = {"z0": (4, size.side, size.side), "embeds": (77, size.width), "pooled": (1280,)}
    for name in (*names, ""):
        for what, shape in shapes.items():
            store[f"{name}.{what}"] = torch.randn(shape, generator=random).to(dtype)
    px = 8 * size.side
    told = ((px, px, 0, 0, px, px),)
    rows = tuple(Row(name, (px, px), (name,), told, (name,)) for name in names)
    return TrainingSet(rows, {name: name for name in names}, "", store, size.kind, {})


def wide(dtype: torch.dtype) -> torch.dtype:
    """That of latents and embeddings."""
    return torch.promote_types(dtype, torch.float32)


def chosen(dtype: torch.dtype) -> Numbers:
    """As ``lcm_arith.training.numbers.numbers`` says for bfloat16."""
    return Numbers(dtype, dtype if dtype == torch.bfloat16 else None)


@dataclass(frozen=True, eq=False)
class Ours:
    """The production step: roles on one base, cached data."""

    size: Size
    unet: Any
    roles: Roles
    data: TrainingSet
    plan: Training

    @classmethod
    def of(cls, size: Size, device: torch.device, checkpointing: bool, dtype: torch.dtype) -> Ours:
        plan = Training(
            steps=2, batch=size.batch, learning_rate=1e-4, rank=size.rank, warmup=0.0
        )  # fmt: skip
        unet = size.make_unet().to(dtype).to(device)
        if checkpointing:
            unet.enable_gradient_checkpointing()
        roles = on_one_base(unet, plan, chosen(dtype), targets=LCM_TARGETS, seed=SEED)
        if dtype == torch.float64:
            unet.double()  # the LoRA, too, which training keeps in float32
        _begun(parameters_of(unet))
        return cls(size, unet, roles, training_set(size, wide(dtype)), plan)

    def lesson(self) -> Lesson:
        """Latent consistency distillation."""
        return distillation(
            self.roles, self.data, self.plan, Distillation(omega=OMEGA),
            schedule=SCHEDULE, prediction="epsilon", seed=SEED, device=self.unet.device,
        )  # fmt: skip

    def plain_lesson(self) -> Lesson:
        """The standard denoising loss with the same LoRA."""
        return denoising(
            self.unet, self.roles.student, self.roles.teacher, self.data, self.plan,
            Denoising(caption_dropout=0.0), schedule=SCHEDULE, prediction="epsilon", seed=SEED,
            device=self.unet.device,
        )  # fmt: skip


def _begun(factors: list[Any]) -> None:
    """A LoRA that is not zero, for else half of its gradients are."""
    random = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for p in factors:
            p.copy_(torch.randn(p.shape, generator=random) * 0.02)


@dataclass(frozen=True, eq=False)
class Literal:
    """Algorithm 1 with two networks, plain PEFT and PyTorch.

    Args:
        size: Of all.
        student: With PEFT's LoRA.
        teacher: A second whole network.
        numbers: Of the products; weights are in what the networks are in.
        data: Where latents and embeddings are not encoded in the loop.
    """

    size: Size
    student: Any
    teacher: Any
    numbers: Numbers
    data: TrainingSet

    @classmethod
    def of(
        cls, size: Size, device: torch.device, checkpointing: bool, dtype: torch.dtype
    ) -> Literal:
        from peft import LoraConfig

        teacher = size.make_unet().requires_grad_(False).to(device, dtype)
        student = copy.deepcopy(teacher)
        student.add_adapter(
            LoraConfig(r=size.rank, lora_alpha=size.rank, target_modules=list(LCM_TARGETS))
        )
        if checkpointing:
            student.enable_gradient_checkpointing()
        if dtype == torch.float64:
            student.double()
        products = torch.bfloat16 if device.type == "cuda" else None
        held = training_set(size, wide(dtype))
        made = cls(size, student.train(), teacher, Numbers(dtype, products), held)
        _begun(made.trained)
        return made

    @cached_property
    def trained(self) -> list[Any]:
        return [p for p in self.student.parameters() if p.requires_grad]

    @cached_property
    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained, lr=1e-4, weight_decay=0.0, fused=True)

    @cached_property
    def encoders(self) -> tuple[Any, Any]:
        return self._placed(self.size.make_vae()), self._placed(self.size.make_text())

    def _placed(self, module: Any) -> Any:
        return module.to(self.student.device, self.numbers.weights)

    @torch.no_grad()
    def encoded(self, number: int) -> tuple[Tensor, Tensor]:
        """Latents and prompt embeddings of random pictures and tokens."""
        (vae, text), size = self.encoders, self.size
        random, px = step_generator(SEED, number), 8 * size.side
        pixels = torch.rand(size.batch, 3, px, px, generator=random) * 2 - 1
        tokens = torch.randint(1000, (size.batch, 77), generator=random).to(vae.device)
        latents = vae.encode(pixels.to(vae.device, vae.dtype)).latent_dist.sample()
        return latents.float() * vae.config.scaling_factor, text(tokens)[0].float()

    def loss(self, number: int, *, encode: bool = False) -> Tensor:
        """Of a batch, drawn as ours is; ∅ is encoded once beforehand, as everybody does."""
        device = self.student.device
        drawn, random = self.data.batch(number, self.size.batch, SEED), step_generator(SEED, number)
        noise = torch.randn(drawn.z0.shape, generator=random).to(device, drawn.z0.dtype)
        index = torch.randint(len(GRID.start), (self.size.batch,), generator=random)
        ends = [side[index].to(device) for side in (GRID.start, GRID.end)]
        empty = self.data.uncond(drawn.cond)["embeds"].to(device)
        omega = torch.full((self.size.batch,), OMEGA, device=device)
        tables = [table.to(device) for table in (SCHEDULE.alpha_t, SCHEDULE.sigma_t)]
        with self.numbers.autocast(device):
            z0, prompts = (
                self.encoded(number)
                if encode
                else (drawn.z0.to(device), drawn.cond["embeds"].to(device))
            )
            return algorithm_1(
                self.student, self.teacher, tables=(tables[0], tables[1]), prediction="epsilon",
                z0=z0, noise=noise, ends=(ends[0], ends[1]), prompts=(prompts, empty), omega=omega,
            )  # fmt: skip

    def step(self, number: int, *, encode: bool = False) -> None:
        """Loss, gradients, clipping, AdamW."""
        self.loss(number, encode=encode).backward()
        torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
