"""Prompts to embeddings, as diffusers' pipelines make them; long ones as kohya's scripts do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lcm_arith.condition import Condition
from lcm_arith.errors import UsageError


@dataclass(frozen=True)
class Reading:
    """How prompts are read.

    Args:
        clip_skip: Layers that are left out at the end, as diffusers counts: 0 is the model's own
            choice (the last layer of SD, the last but one of SDXL). kohya's and A1111's number is
            one higher for SD.
        max_tokens: Tokens that are read, a multiple of what the encoder reads at once (75 of CLIP);
            None is once.

    Raises:
        UsageError: If ``clip_skip`` is negative.
    """

    clip_skip: int = 0
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.clip_skip < 0:
            raise UsageError(f"clip skip {self.clip_skip}: at least 0 layers are left out")

    def chunks(self, tokenizer: Any) -> int:
        """Passes of the encoder that a prompt takes.

        Raises:
            UsageError: If ``max_tokens`` is no multiple of what the encoder reads at once.
        """
        once = room(tokenizer)
        tokens = once if self.max_tokens is None else self.max_tokens
        if tokens < once or tokens % once:
            raise UsageError(
                f"{tokens} tokens: the text encoder reads {once} at once",
                hint=f"take a multiple, such as {once}, {2 * once} or {3 * once}",
            )
        return tokens // once


def room(tokenizer: Any) -> int:
    """Tokens of a prompt that fit beside beginning and end: 75 of CLIP."""
    return int(tokenizer.model_max_length) - 2


def too_long(tokenizer: Any, prompts: Sequence[str], max_tokens: int | None = None) -> list[str]:
    """Prompts of which only the beginning is read."""
    distinct = list(dict.fromkeys(prompts))
    most = max_tokens or room(tokenizer)
    lengths = [len(ids) for ids in tokenizer(distinct, add_special_tokens=False).input_ids]
    return [p for p, length in zip(distinct, lengths, strict=True) if length > most]


def encode_sd(pipeline: Any, prompts: Sequence[str], reading: Reading) -> Condition:
    """``embeds`` ``[B, tokens, width]`` of a ``StableDiffusionPipeline``'s encoder.

    Raises:
        UsageError: If the encoder has no such layer, or as :meth:`Reading.chunks`.
    """
    tokenizer, encoder = pipeline.tokenizer, pipeline.text_encoder
    _check_skip(encoder, reading.clip_skip)
    ids = token_ids(tokenizer, prompts, reading)
    out = _run(encoder, tokenizer, ids, output_hidden_states=bool(reading.clip_skip))
    embeds = out[0]
    if reading.clip_skip:
        norm = getattr(encoder, "text_model", encoder).final_layer_norm  # transformers 5.6 is flat
        embeds = norm(out.hidden_states[-(reading.clip_skip + 1)])
    return {"embeds": stitched(embeds, len(prompts))}


def encode_sdxl(pipeline: Any, prompts: Sequence[str], reading: Reading) -> Condition:
    """``embeds`` of both encoders side by side, ``pooled`` ``[B, width]`` of the second's start.

    Raises:
        UsageError: If an encoder has no such layer, or as :meth:`Reading.chunks`.
    """
    embeds = []
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        _check_skip(encoder, reading.clip_skip + 1)
        ids = token_ids(tokenizer, prompts, reading)
        out = _run(encoder, tokenizer, ids, output_hidden_states=True)
        embeds.append(stitched(out.hidden_states[-(reading.clip_skip + 2)], len(prompts)))
    pooled: Tensor = out[0].unflatten(0, (len(prompts), -1))[:, 0]
    return {"embeds": torch.cat(embeds, dim=-1), "pooled": pooled}


def token_ids(tokenizer: Any, prompts: Sequence[str], reading: Reading) -> Tensor:
    """``[B · chunks, model_max_length]``: beginning, a part of the prompt, end, padding.

    kohya's sd-scripts cut one long row instead (``TokenizeStrategy._get_input_ids``); the rows are
    the same.
    """
    once, chunks = room(tokenizer), reading.chunks(tokenizer)
    found = []
    for ids in tokenizer(list(prompts), add_special_tokens=False).input_ids:
        for at in range(0, once * chunks, once):
            row = [tokenizer.bos_token_id, *ids[at : at + once], tokenizer.eos_token_id]
            found.append(row + [tokenizer.pad_token_id] * (once + 2 - len(row)))
    return torch.tensor(found)


def stitched(states: Tensor, prompts: int) -> Tensor:
    """One row a prompt: first beginning, the middles, last end.

    Args:
        states: ``[prompts · chunks, n, width]``.
        prompts: Their number.

    Returns:
        ``[prompts, chunks · (n − 2) + 2, width]``.
    """
    chunks = states.unflatten(0, (prompts, -1))
    middles = chunks[:, :, 1:-1].flatten(1, 2)
    return torch.cat([chunks[:, 0, :1], middles, chunks[:, -1, -1:]], dim=1)


def _run(encoder: Any, tokenizer: Any, ids: Tensor, *, output_hidden_states: bool) -> Any:
    mask = None
    if getattr(encoder.config, "use_attention_mask", False):
        ends = (ids == tokenizer.eos_token_id).int().argmax(1, keepdim=True)
        mask = (torch.arange(ids.shape[1]) <= ends).long().to(encoder.device)
    return encoder(
        ids.to(encoder.device), attention_mask=mask, output_hidden_states=output_hidden_states
    )


def _check_skip(encoder: Any, skipped: int) -> None:
    layers = encoder.config.num_hidden_layers
    if skipped >= layers:
        raise UsageError(
            f"clip skip: the text encoder has {layers} layers, {skipped} of them would be left out"
        )
