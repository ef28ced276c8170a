"""A base is loaded whole or refused; prompts and pictures become what diffusers makes of them."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import pipeline, single_file
from torch import Tensor

from lcm_arith.bases import Base, NotFiniteError, load_base
from lcm_arith.embedded.files import sha256
from lcm_arith.encoders import Reading, token_ids, too_long
from lcm_arith.errors import (
    IncompatibleError,
    InvalidContentError,
    LcmArithError,
    NetworkError,
    NotFoundError,
    UsageError,
)
from lcm_arith.sampling import decode

PROMPTS = ["fox", "", "a red apple! and a cat", "st " * 90]


@pytest.fixture(scope="module")
def sd(tiny_sd15: Path) -> Base:
    return load_base(tiny_sd15)


@pytest.fixture(scope="module")
def v(tiny_sd2v: Path) -> Base:
    return load_base(tiny_sd2v)


@pytest.fixture(scope="module")
def xl(tiny_sdxl: Path) -> Base:
    return load_base(tiny_sdxl)


def test_a_base_says_what_it_is(sd: Base, v: Base, xl: Base) -> None:
    assert [(b.kind, b.family, b.prediction, b.zero_uncond) for b in (sd, v, xl)] == [
        ("sd", "sd", "epsilon", False),
        ("sd", "sd", "v_prediction", False),
        ("sdxl", "sdxl", "epsilon", True),
    ]
    assert {(b.size, b.latent_scale) for b in (sd, v, xl)} == {(64, 8)}
    assert load_base().family == "emoji"


def test_the_schedule_is_the_schedulers(sd: Base, tiny_zsnr: Path) -> None:
    for base in (sd, load_base(tiny_zsnr)):
        bars = base.pipeline.scheduler.alphas_cumprod
        # float32 products of a thousand factors on their side
        torch.testing.assert_close(
            base.schedule.alpha_t.double() ** 2, bars.double(), rtol=1e-5, atol=1e-7
        )
    assert float(base.schedule.alpha_t[-1]) == 0


@pytest.mark.parametrize("clip_skip", [0, 1])
def test_prompts_are_encoded_as_the_pipelines_do_to_the_bit(
    sd: Base, v: Base, xl: Base, clip_skip: int
) -> None:
    for base in (sd, v, xl):
        encoder = base.pipeline.text_encoder
        # transformers 5.6 dropped the name under which diffusers' SD pipeline finds the last norm.
        object.__setattr__(encoder, "text_model", encoder)
        theirs = base.pipeline.encode_prompt(
            PROMPTS,
            device="cpu",
            num_images_per_prompt=1,
            do_classifier_free_guidance=False,
            clip_skip=clip_skip or None,
        )
        object.__delattr__(encoder, "text_model")
        ours = base.encode(PROMPTS, clip_skip=clip_skip)
        assert torch.equal(ours["embeds"], theirs[0])
        assert ours.keys() == ({"embeds", "pooled"} if base is xl else {"embeds"})
        assert base is not xl or torch.equal(ours["pooled"], theirs[2])


def test_the_empty_condition_is_zeros_where_the_pipeline_says_so(sd: Base, xl: Base) -> None:
    assert torch.equal(sd.uncond()["embeds"], sd.encode([""])["embeds"])
    like = xl.encode(["fox"], max_tokens=150)
    for name, values in xl.uncond(max_tokens=150).items():
        assert torch.equal(values, torch.zeros_like(like[name]))


def rows_of_kohya(tokenizer: Any, prompt: str, tokens: int) -> Tensor:
    """What sd-scripts' ``_get_input_ids`` does: one long row, cut."""
    row = tokenizer(
        prompt, padding="max_length", truncation=True, max_length=tokens + 2, return_tensors="pt"
    ).input_ids[0]
    chunks = []
    for at in range(1, tokens + 2 - 77 + 2, 75):
        chunk = torch.cat([row[:1], row[at : at + 75], row[-1:]])
        if tokenizer.pad_token_id != tokenizer.eos_token_id:
            if chunk[-2] not in (tokenizer.eos_token_id, tokenizer.pad_token_id):
                chunk[-1] = tokenizer.eos_token_id
            if chunk[1] == tokenizer.pad_token_id:
                chunk[1] = tokenizer.eos_token_id
        chunks.append(chunk)
    return torch.stack(chunks)


def test_long_prompts_are_cut_as_kohyas_scripts_cut_them(sd: Base, v: Base) -> None:
    prompts = [" ".join(["fox", "red"][i % 2] for i in range(n)) for n in (1, 74, 75, 76, 150, 300)]
    for tokenizer in (sd.pipeline.tokenizer, v.pipeline.tokenizer):
        for tokens in (150, 225):
            ours = token_ids(tokenizer, prompts, Reading(max_tokens=tokens))
            theirs = [rows_of_kohya(tokenizer, prompt, tokens) for prompt in prompts]
            assert torch.equal(ours, torch.cat(theirs))
        assert too_long(tokenizer, prompts, 150) == prompts[-1:]
        assert too_long(tokenizer, prompts) == prompts[3:]


@torch.no_grad()
def test_the_chunks_of_long_prompts_are_read_alone_and_joined(xl: Base) -> None:
    prompt, joined = " ".join(["fox", "red"] * 60), []
    for number in ("", "_2"):
        tokenizer = getattr(xl.pipeline, f"tokenizer{number}")
        encoder = getattr(xl.pipeline, f"text_encoder{number}")
        outs = [
            encoder(row[None], output_hidden_states=True)
            for row in rows_of_kohya(tokenizer, prompt, 225)
        ]
        states = [out.hidden_states[-2] for out in outs]
        middles = [state[:, 1:76] for state in states]
        joined.append(torch.cat([states[0][:, :1], *middles, states[-1][:, -1:]], dim=1))
    ours = xl.encode([prompt, "fox"], max_tokens=225)
    assert ours["embeds"].shape == (2, 227, 40)
    # One row at a time here and six there: the same float32 sums in another order.
    torch.testing.assert_close(ours["embeds"][:1], torch.cat(joined, dim=-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(ours["pooled"][:1], outs[0][0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("told", [{"clip_skip": -1}, {"clip_skip": 2}, {"max_tokens": 100}])
def test_a_reading_that_the_encoder_cannot_do_is_refused(xl: Base, told: Any) -> None:
    with pytest.raises(UsageError):
        xl.encode(["fox"], **told)


@torch.no_grad()
def test_latents_are_scaled_posterior_means_and_decode_undoes_the_scale(tiny_sd15: Path) -> None:
    base = load_base(tiny_sd15)
    base.vae.register_to_config(shift_factor=0.25)
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 32, 3), dtype=np.uint8)
    latents = base.to_latents(pixels)
    mean = base.vae.encode(torch.tensor(pixels).permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mean
    assert latents.shape == (2, 4, 8, 4)
    torch.testing.assert_close(latents, (mean - 0.25) * 0.18215)
    shown = (base.vae.decode(mean).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) * 255
    # half a grey level of rounding, and float32's
    assert float((torch.tensor(decode(base.pipeline, latents)) - shown).abs().max()) < 0.51

    def poison(_: Any, __: Any, out: Tensor) -> Tensor:
        return out.index_fill(0, torch.tensor([1]), torch.nan)

    base.vae.quant_conv.register_forward_hook(poison)
    with pytest.raises(NotFiniteError, match="number 1 ") as caught:
        base.to_latents(pixels)
    assert caught.value.rows == (1,)


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / "copy"))


def test_the_digest_follows_every_weight_and_nothing_else(tiny_sd15: Path, tmp_path: Path) -> None:
    before, folder = load_base(tiny_sd15), copied(tiny_sd15, tmp_path)
    edit(folder / "scheduler/scheduler_config.json", timestep_spacing="trailing")
    assert load_base(folder).digest == before.digest
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.bias"][0] += 1
    save_file(tensors, path, metadata={"format": "pt"})
    after = load_base(folder)
    assert after.digest != before.digest
    assert {part for part in after.parts if after.parts[part] != before.parts[part]} == {"vae"}
    assert after.parts["vae"] == sha256(path)


def test_a_component_in_several_files_is_one_component(tiny_sd15: Path, tmp_path: Path) -> None:
    folder = copied(tiny_sd15, tmp_path)
    whole = load_base(tiny_sd15)
    shutil.rmtree(folder / "unet")
    whole.unet.save_pretrained(folder / "unet", max_shard_size="30KB")
    split = load_base(folder)
    assert len(list((folder / "unet").glob("*.safetensors"))) > 1
    assert_same_weights(split, whole)
    assert split.parts["unet"] != whole.parts["unet"]


def assert_same_weights(one: Base, other: Base) -> None:
    for part in one.parts.keys() | other.parts.keys():
        ours, theirs = (getattr(base.pipeline, part).state_dict() for base in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_a_single_file_is_the_folder_it_was_made_of(kind: str, tmp_path: Path) -> None:
    made = pipeline(kind, layers_per_block=2)
    made.save_pretrained(tmp_path / "folder")
    path = single_file(made, tmp_path / "x.safetensors")
    base = load_base(path, config=tmp_path / "folder")
    assert_same_weights(base, load_base(tmp_path / "folder"))
    assert {base.digest, *base.parts.values()} == {sha256(path)}


def test_a_single_file_may_say_its_prediction_and_must_hold_every_layer(tmp_path: Path) -> None:
    made, folder = pipeline("sd15", layers_per_block=2), tmp_path / "folder"
    made.save_pretrained(folder)
    path = single_file(made, tmp_path / "x.safetensors")
    with pytest.raises(NetworkError, match="--config DIR"):
        load_base(path)
    tensors = load_file(path)
    save_file({**tensors, "v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}, path)
    marked = load_base(path, config=folder)
    assert marked.prediction == "v_prediction"
    assert marked.pipeline.scheduler.config.rescale_betas_zero_snr
    assert float(marked.schedule.alpha_t[-1]) == 0
    lost = next(key for key in tensors if "attn" in key)
    save_file({key: values for key, values in tensors.items() if key != lost}, path)
    with pytest.raises(InvalidContentError, match=r"missing|cannot load"):
        load_base(path, config=folder)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        (["lora_unet_mid_block_x.lora_down.weight"], InvalidContentError, "no whole checkpoint"),
        (["model.diffusion_model.out.0.weight"], InvalidContentError, "first_stage_model"),
        (["model.diffusion_model.joint_blocks.0.x"], IncompatibleError, "Stable Diffusion 3"),
        (["model.diffusion_model.double_blocks.0.x"], IncompatibleError, "Flux"),
        (["conditioner.embedders.0.model.x"], IncompatibleError, "refiner"),
        (["model.diffusion_model.time_embed.cond_proj.weight"], IncompatibleError, "consistency"),
    ],
)
def test_a_file_that_is_no_base_is_refused(
    tmp_path: Path, keys: list[str], error: type[LcmArithError], message: str
) -> None:
    save_file({key: torch.ones(1) for key in keys}, tmp_path / "x.safetensors")
    with pytest.raises(error, match=message):
        load_base(tmp_path / "x.safetensors")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def retensor(path: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def end_in_noise(folder: Path) -> None:
    edit(folder / "model_index.json", scheduler=["diffusers", "DDIMScheduler"])
    told = {"rescale_betas_zero_snr": True, "clip_sample": False}
    edit(folder / "scheduler/scheduler_config.json", **told)


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
REFUSED: dict[str, tuple[Callable[[Path], Any], type[LcmArithError], str]] = {
    "inpainting": (
        lambda f: edit(f / "unet/config.json", in_channels=9),
        IncompatibleError,
        "inpainting",
    ),
    "lcm": (
        lambda f: edit(f / "unet/config.json", time_cond_proj_dim=32),
        IncompatibleError,
        "latent consistency model already",
    ),
    "image prompt": (
        lambda f: edit(f / "unet/config.json", addition_embed_type="image"),
        IncompatibleError,
        "told more",
    ),
    "sd3": (
        lambda f: edit(f / "model_index.json", _class_name="StableDiffusion3Pipeline"),
        IncompatibleError,
        "StableDiffusion3Pipeline",
    ),
    "no text encoder": (
        lambda f: edit(f / "model_index.json", text_encoder=[None, None]),
        InvalidContentError,
        "no text_encoder",
    ),
    "no pipeline": (
        lambda f: (f / "model_index.json").unlink(),
        InvalidContentError,
        "no diffusers pipeline",
    ),
    "noise from pure noise": (
        end_in_noise,
        IncompatibleError,
        "pure noise",
    ),
    "continuous": (
        lambda f: edit(f / "scheduler/scheduler_config.json", prediction_type="flow_prediction"),
        IncompatibleError,
        "prediction type (is )?.?flow_prediction",
    ),
    "pickle": (
        lambda f: (f / WEIGHTS).rename(f / "unet/diffusion_pytorch_model.bin"),
        InvalidContentError,
        r"diffusion_pytorch_model\.bin",
    ),
    "nan": (
        lambda f: retensor(f / WEIGHTS, lambda t: t["conv_in.bias"].fill_(torch.nan)),
        InvalidContentError,
        "NaN",
    ),
    "missing tensor": (
        lambda f: retensor(
            f / "text_encoder/model.safetensors", lambda t: t.pop(next(k for k in t if "fc1" in k))
        ),
        InvalidContentError,
        "fc1",
    ),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_a_folder_that_is_no_base_is_refused_and_told_why(
    tiny_sd15: Path, tmp_path: Path, name: str
) -> None:
    folder, (change, error, message) = copied(tiny_sd15, tmp_path), REFUSED[name]
    change(folder)
    with pytest.raises(error, match=message):
        load_base(folder)


def test_what_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        load_base(tmp_path / "none")
    with pytest.raises(NetworkError, match="owner/name"):
        load_base("owner/name")
    (tmp_path / "x.ckpt").write_bytes(pickle.dumps({}))
    with pytest.raises(InvalidContentError, match="pickle"):
        load_base(tmp_path / "x.ckpt")
