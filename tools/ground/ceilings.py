"""Stage ``probe``: what names a picture's set, and the ceilings of all metrics."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from ground.clip import is_kept_out
from ground.common import Options, levels, say, to_pixels
from lcm_arith.embedded import files, pictures, probe
from lcm_arith.embedded.pictures import Pixels, concepts, variants
from lcm_arith.embedded.probe import Judge, Probe, Rows

FITTED: Final = 4  # variants of each drawing that the probe is fitted to, through the VAE
FRESH: Final = 2  # variants of each drawing that the ceilings are measured on
TRUE: Final = 24  # variants of each drawing that count as its true pictures

METRICS: Final = ("retrieval_top1", "style_accuracy", "pair_distance", "sharp_ratio")


PARTS: Final = ("A", "B", "seen", "kept out")


def build(options: Options) -> None:
    """Fits the probe that names a picture's set, and measures the ceilings of all metrics.

    Everything is drawn afresh: seed 0 for the true pictures, 1 for the fit, 2 for the ceilings.
    The probe never sees the pairs that were kept out of the judge's training.
    """
    judge, vae = probe.load_judge(), load_vae()
    names, rows, labels = tuple(pictures.sets()), [], []
    for label, name in enumerate(names):
        seen = [c for c in concepts() if not is_kept_out(name, c)]
        fresh = np.concatenate([variants(name, c, FITTED, 1) for c in seen])
        rows.append(judge.embed_pictures(through_vae(vae, fresh)))
        labels += [label] * len(fresh)
    fitted = probe.fit_probe(np.concatenate(rows), labels, names)
    probe.save_probe(fitted)
    found = measure_ceilings(judge, fitted, vae)
    text = json.dumps(found, indent=1, sort_keys=True)
    files.write_file(files.JUDGE / "ceilings.json", text + "\n")
    print(ceilings_table(found))


def measure_ceilings(judge: Judge, fitted: Probe, vae: Any) -> dict[str, Any]:
    """Part (or the pairs that the judge saw or not), target, way, metric: its mean, 4 digits.

    Ways: "real" as drawn, "vae" through it.

    Targets: each set; "base", for which any drawing of a base set is true, as for a model without
    style vector; "mean" of the sets.
    """
    things, names = concepts(), tuple(pictures.sets())
    captions = judge.embed_captions([thing.caption for thing in things])
    found: dict[str, Any] = {part: {} for part in PARTS}
    known = {name: true_pictures(judge, name) for name in names}
    for name, members in (*((name, (name,)) for name in names), ("base", pictures.base_sets())):
        say(f"ceilings: {name}")
        true_rows = np.concatenate([known[member][0] for member in members], axis=1)
        usual = np.concatenate([known[member][1] for member in members], axis=1)
        fresh = all_variants(members, FRESH, seed=2)
        pairs = [(thing, member) for thing in things for member in members for _ in range(FRESH)]
        inside = {
            "A": [thing.part == "A" for thing, _ in pairs],
            "B": [thing.part == "B" for thing, _ in pairs],
            "seen": [not is_kept_out(member, thing) for thing, member in pairs],
            "kept out": [is_kept_out(member, thing) for thing, member in pairs],
        }
        for way, shown in (("real", fresh), ("vae", through_vae(vae, fresh))):
            scores = score(judge, fitted, captions, members, shown, true_rows, usual)
            for part, entry in found.items():
                entry.setdefault(name, {})[way] = {
                    metric: _mean(values[np.array(inside[part])])
                    for metric, values in scores.items()
                }
    for entry in found.values():
        entry["mean"] = {
            way: {m: _mean(np.array([entry[s][way][m] for s in names], float)) for m in METRICS}
            for way in ("real", "vae")
        }
    return found


def _mean(values: NDArray[np.float64]) -> float | None:
    """Four digits; None of nothing, as where no pair of a small set was kept out."""
    return round(float(values.mean()), 4) if len(values) and np.isfinite(values).all() else None


def true_pictures(judge: Judge, name: str) -> tuple[Rows, NDArray[np.float64]]:
    """Embeddings ``[concepts, TRUE, d]`` and sharpness ``[concepts, TRUE]`` of a set."""
    true = all_variants((name,), TRUE, seed=0)
    rows = judge.embed_pictures(true).reshape(len(concepts()), TRUE, -1)
    return rows, probe.sharpness(true).reshape(len(concepts()), TRUE)


def score(
    judge: Judge,
    fitted: Probe,
    captions: Rows,
    members: Sequence[str],
    shown: Pixels,
    true: Rows,
    sharpness: NDArray[np.float64],
) -> dict[str, NDArray[np.float64]]:
    """Every metric of every picture of a target, float64 ``[n]`` each.

    Args:
        judge: Embeds pictures.
        fitted: Names their set.
        captions: Unit rows ``[concepts, d]``.
        members: The sets that count as true and as rightly named.
        shown: uint8 ``[concepts * fresh, 64, 64, 3]``, concept by concept.
        true: Unit rows of the true pictures ``[concepts, known, d]``.
        sharpness: Theirs, ``[concepts, known]``.
    """
    rows = judge.embed_pictures(shown)
    count = len(captions)
    fresh = len(rows) // count
    own = np.repeat(np.arange(count), fresh)
    distances = [
        probe.pair_distance(mine, truth)
        for mine, truth in zip(np.split(rows, count), true, strict=True)
    ]
    values = (
        probe.own_caption_first(rows, captions, own.tolist()),
        np.array([named in members for named in fitted.predict(rows)]),
        np.concatenate(distances),
        probe.sharpness(shown) / sharpness.mean(axis=1).repeat(fresh),
    )
    return {m: v.astype(np.float64) for m, v in zip(METRICS, values, strict=True)}


def all_variants(members: Sequence[str], count: int, *, seed: int) -> Pixels:
    """``count`` variants of every concept in each of the sets, concept by concept."""
    return np.concatenate([variants(name, c, count, seed) for c in concepts() for name in members])


def load_vae() -> Any:
    """The embedded model's VAE, float32."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(files.MODEL / "vae")
    return vae.float().eval().requires_grad_(False)


@torch.inference_mode()
def through_vae(vae: Any, shown: Pixels, batch: int = 64) -> Pixels:
    """Pictures encoded (posterior mean) and decoded again, uint8 ``[n, 64, 64, 3]``."""
    parts = [shown[start : start + batch] for start in range(0, len(shown), batch)]
    return np.concatenate(
        [to_pixels(vae.decode(vae.encode(levels(part)).latent_dist.mean).sample) for part in parts]
    )


def ceilings_table(found: Mapping[str, Any]) -> str:
    """The ceilings for a person: a row a set, real / VAE in each cell."""
    lines = [f"{'part':<10}{'set':<28}" + "".join(f"{metric:>18}" for metric in METRICS)]
    for part, entry in found.items():
        for name in (*pictures.sets(), "mean", "base"):
            values = [[entry[name][way][m] for way in ("real", "vae")] for m in METRICS]
            cells = (" / ".join("-" if v is None else f"{v:.3f}" for v in pair) for pair in values)
            lines.append(f"{part:<10}{name:<28}" + "".join(f"{cell:>18}" for cell in cells))
    return "\n".join(lines)
