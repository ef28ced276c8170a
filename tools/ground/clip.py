"""Stages ``clip`` and ``judge``: two CLIPs, the generator's text tower and the one that scores.

They share their code and nothing else: another seed, other sets. The judge never conditions the
generator.
"""

from __future__ import annotations

import hashlib
import json
import random
import string
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ground.common import VARIANTS, Options, digest, drawn, levels, say, train
from lcm_arith.embedded import files, pictures
from lcm_arith.sampling import fast_math
from lcm_arith.training.loop import step_generator
from lcm_arith.training.plan import Plan

WIDTH: Final = 128
TOKENS: Final = 16
VOCABULARY: Final = 2048
START, END = "<|startoftext|>", "<|endoftext|>"
POOL: Final = 512  # captions that a picture is told from in one step
TEXT_SEED, JUDGE_SEED = 21, 31
TEXT_PLAN: Final = Plan(steps=1500, batch=96, learning_rate=1e-3, ema=0.99)
JUDGE_PLAN: Final = Plan(steps=3400, batch=96, learning_rate=1e-3, ema=0.998)
STYLE_WEIGHT: Final = 0.3
TAGGED: Final = 0.25  # share of the text tower's captions that are a tag of the thing


@dataclass(frozen=True)
class Lesson:
    """What a CLIP is taught with.

    Args:
        sets: Picture sets.
        seed: Of everything random.
        tags: Share of captions replaced by a tag.
        style_weight: Of the head that names the set from the picture's embedding; 0 has none.
        disturbed: Share of pictures that are disturbed from half of the steps on, growing from 0.
        kept_out: Whether a tenth of the (set, thing) pairs is left out.
    """

    sets: tuple[str, ...]
    seed: int
    tags: float = 0.0
    style_weight: float = 0.0
    disturbed: float = 0.0
    kept_out: bool = False


def build_text_tower(options: Options) -> None:
    """Trains tokenizer and CLIP on the base's sets; writes the generator's text encoder."""
    from transformers import CLIPTextModel

    tokenizer = train_tokenizer(all_texts())
    tokenizer.save_pretrained(files.MODEL / "tokenizer")
    for path in (files.MODEL / "tokenizer").iterdir():
        if path.name not in ("tokenizer.json", "tokenizer_config.json"):
            path.unlink()
    lesson = Lesson(pictures.base_sets(), TEXT_SEED, tags=TAGGED)
    clip = teach("clip", lesson, options.shortened(TEXT_PLAN), tokenizer, options)
    text: Any = CLIPTextModel(clip.config.text_config)
    text.load_state_dict(clip.text_model.state_dict())
    save_half(text, files.MODEL / "text_encoder")


def build_judge(options: Options) -> None:
    """Trains the judge on all sets with their variation, a tenth of the pairs kept out."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(files.MODEL / "tokenizer", local_files_only=True)
    names = tuple(pictures.sets())
    lesson = Lesson(names, JUDGE_SEED, style_weight=STYLE_WEIGHT, disturbed=0.7, kept_out=True)
    clip = teach("judge", lesson, options.shortened(JUDGE_PLAN), tokenizer, options)
    save_half(clip, files.JUDGE)


def is_kept_out(set_name: str, concept: pictures.Concept) -> bool:
    """Whether the judge never sees this pair: a tenth, by a fixed hash."""
    text = f"kept out:{set_name}/{concept.hexcode}"
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % 10 == 0


def teach(stage: str, lesson: Lesson, plan: Plan, tokenizer: Any, options: Options) -> Any:
    """A trained ``CLIPModel``: each picture is told from all captions of a pool."""
    learner = Learner(untrained(tokenizer, lesson.seed), len(lesson.sets)).to(options.device)
    things = pictures.concepts()
    shown = torch.from_numpy(drawn(lesson.sets, VARIANTS)).unflatten(
        0, (len(lesson.sets), len(things), VARIANTS)
    )
    seen = torch.tensor(
        [[not (lesson.kept_out and is_kept_out(s, c)) for c in things] for s in lesson.sets]
    )

    def loss_of(step: int) -> Tensor:
        generator = step_generator(lesson.seed, step)
        pool = torch.randperm(len(things), generator=generator)[:POOL]
        pairs = seen[:, pool].nonzero()  # [pairs, 2]: set, place in the pool
        drawn_pairs = pairs[torch.randint(len(pairs), (plan.batch,), generator=generator)]
        style, place = drawn_pairs[:, 0], drawn_pairs[:, 1]
        variant = torch.randint(VARIANTS, (plan.batch,), generator=generator)
        x = levels(shown[style, pool[place], variant])
        share = lesson.disturbed * min(1.0, 2 * step / plan.steps)
        x = torch.where(chance(x, share, generator), disturbed(x, generator), x) if share else x
        texts, own = texts_of([things[i] for i in pool.tolist()], lesson, step)
        tokens = tokenizer(
            texts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
        ).to(learner.clip.device)
        with fast_math(learner.clip.device):
            logits, styles = learner(x.to(learner.clip.device), tokens)
        loss = F.cross_entropy(logits.float(), own[place].to(logits.device))
        if lesson.style_weight:
            named = F.cross_entropy(styles.float(), style.to(styles.device))
            loss = loss + lesson.style_weight * named
        return loss

    about = {"seed": lesson.seed, "data": digest(files.DATA)}
    train(stage, learner, loss_of, plan, options, about)
    return learner.clip.eval()


class Learner(nn.Module):
    """A CLIP with a head that names the set from the unit row of a picture.

    The head is thrown away: it only keeps the style in the embedding, which things alone would not.
    """

    def __init__(self, clip: Any, sets: int) -> None:
        super().__init__()
        self.clip = clip
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.head = nn.Linear(WIDTH, sets)

    def forward(self, x: Tensor, tokens: Any) -> tuple[Tensor, Tensor]:
        """Logits of each picture over the texts, and over the sets."""
        rows = unit(self.clip.get_image_features(pixel_values=x))  # [B, d]
        texts = unit(self.clip.get_text_features(**tokens))  # [n, d]
        scale = self.clip.logit_scale.exp()
        return scale * rows @ texts.T, self.head(rows * scale)


def unit(features: Any) -> Tensor:
    """Unit rows; transformers 5 wraps the tensor in an output object."""
    tensor: Tensor = getattr(features, "pooler_output", features)
    return F.normalize(tensor.float(), dim=-1)


def texts_of(
    things: Sequence[pictures.Concept], lesson: Lesson, step: int
) -> tuple[list[str], Tensor]:
    """Distinct texts, and which of them is each thing's: its caption or, at times, a tag."""
    rng = random.Random(f"{lesson.seed}/{step}")
    chosen = [
        rng.choice(thing.tags) if thing.tags and rng.random() < lesson.tags else thing.caption
        for thing in things
    ]
    place = {text: index for index, text in enumerate(dict.fromkeys(chosen))}
    return list(place), torch.tensor([place[text] for text in chosen])


def disturbed(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures turned, moved, recoloured, covered in part, noisy and soft, each with some chance.

    Without it the judge learns the drawings by heart: it then names 36 % of the pairs that were
    kept out, and would not know a thing in an imperfect picture either.
    """
    return softened(covered(recoloured(moved(x, generator), generator), generator), generator)


def chance(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Which pictures something happens to, ``[n, 1, 1, 1]``."""
    return torch.rand((len(x), 1, 1, 1), generator=generator) < share


def uniform(x: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    """A number a picture, ``[n]``."""
    return low + (high - low) * torch.rand(len(x), generator=generator)


def moved(x: Tensor, generator: torch.Generator) -> Tensor:
    """Two in three turned by up to 17 degrees, scaled by 0.8 to 1.25 and shifted by up to 6 px."""
    angle, scale = uniform(x, -0.3, 0.3, generator), uniform(x, 0.8, 1.25, generator)
    shift = [uniform(x, -0.19, 0.19, generator) for _ in range(2)]
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = (torch.stack([cosine, -sine, shift[0]], 1), torch.stack([sine, cosine, shift[1]], 1))
    grid = F.affine_grid(torch.stack(rows, 1), list(x.shape), align_corners=False)
    turned = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return torch.where(chance(x, 0.67, generator), turned, x)


def recoloured(x: Tensor, generator: torch.Generator) -> Tensor:
    """A third with other gains of the channels, a quarter grey, one in ten as a negative."""
    gain = 0.6 + 0.8 * torch.rand((len(x), 3, 1, 1), generator=generator)
    x = torch.where(chance(x, 0.33, generator), ((x + 1) * gain - 1).clamp(-1, 1), x)
    x = torch.where(chance(x, 0.25, generator), x.mean(1, keepdim=True).expand_as(x), x)
    return torch.where(chance(x, 0.1, generator), -x, x)


def covered(x: Tensor, generator: torch.Generator) -> Tensor:
    """A third with a grey square of 16 px, a third with noise of 0.1."""
    row, column = torch.randint(48, (2, len(x), 1, 1, 1), generator=generator)
    at = torch.arange(x.shape[-1])
    down, across = at[None, None, :, None] - row, at[None, None, None, :] - column
    inside = (down >= 0) & (down < 16) & (across >= 0) & (across < 16)
    x = torch.where(inside & chance(x, 0.33, generator), torch.zeros(()), x)
    noise = 0.1 * torch.randn(x.shape, generator=generator)
    return torch.where(chance(x, 0.33, generator), x + noise, x)


def softened(x: Tensor, generator: torch.Generator) -> Tensor:
    """A quarter of the pictures averaged over 3×3 px, a quarter at half the resolution."""
    kind = torch.randint(4, (len(x), 1, 1, 1), generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    coarse = F.interpolate(F.avg_pool2d(x, 2), scale_factor=2, mode="bilinear")
    return torch.where(kind == 0, blurred, torch.where(kind == 1, coarse, x))


def untrained(tokenizer: Any, seed: int) -> Any:
    """A small CLIP with seeded random weights; explicit attention, whose backward is faster."""
    from transformers import CLIPConfig, CLIPModel

    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **shared,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": TOKENS,
            "num_hidden_layers": 3,
            "projection_dim": WIDTH,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            **shared,
            "image_size": pictures.SIDE,
            "patch_size": 8,
            "num_hidden_layers": 4,
            "projection_dim": WIDTH,
        },
        projection_dim=WIDTH,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: Any = CLIPModel(config)
    model.set_attn_implementation("eager")
    return model


def all_texts() -> list[str]:
    """Captions and tags of every thing."""
    return [text for c in pictures.concepts() for text in (c.caption, *c.tags)]


def train_tokenizer(texts: Sequence[str]) -> Any:
    """A CLIP tokenizer of at most 2,048 tokens with the words of ``texts``.

    Every printable character is a word of the corpus too, so that none is unknown at a word's end.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    like = CLIPTokenizer().backend_tokenizer
    backend = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    backend.normalizer, backend.pre_tokenizer = like.normalizer, like.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    backend.train_from_iterator([*texts, *string.printable.strip()], trainer)
    model = json.loads(backend.to_str())["model"]
    return CLIPTokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],  # type: ignore[misc]  # pairs, not str
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=TOKENS,
    )


def save_half(model: Any, folder: Path) -> None:
    """Writes a transformers model in float16, without the folder's name in its config."""
    model.half().save_pretrained(folder)
    say(f"wrote {folder}")
