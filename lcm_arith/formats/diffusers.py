"""The diffusers/PEFT dialect: ``unet.<path>.lora_A.weight``, ``….lora_B.weight``.

alpha lives in the header's ``lora_adapter_metadata`` (a PEFT LoraConfig per component, its keys
prefixed ``unet.``), which diffusers reads since 0.35; ``….alpha`` tensors are read too. A file
without either has alpha = rank, PEFT's own rule.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from torch import Tensor

from lcm_arith.delta import LowRankDelta, concatenate
from lcm_arith.errors import InvalidContentError

ADAPTER_METADATA: Final = "lora_adapter_metadata"
COMPONENTS: Final = ("unet", "text_encoder", "text_encoder_2")
_KEY: Final = re.compile(
    rf"(?P<module>(?:{'|'.join(COMPONENTS)})\..+?)\.(?P<part>lora_A\.weight|lora_B\.weight|alpha)"
)


def parse(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str], where: str
) -> dict[str, LowRankDelta]:
    """Target module → delta from a file's tensors and header.

    Args:
        tensors: Key → tensor.
        metadata: The header's ``__metadata__``.
        where: Named in errors, usually the path.

    Raises:
        InvalidContentError: If a key maps to nothing, or a module lacks one of its two factors.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key)
        if match is None:
            unknown.append(key)
        else:
            parts.setdefault(match["module"], {})[match["part"]] = tensor
    if unknown or not parts:
        raise _not_an_adapter(where, unknown, len(tensors))
    alphas = _Alphas(metadata, where)
    deltas, broken = {}, []
    for module, found in sorted(parts.items()):
        down, up = found.get("lora_A.weight"), found.get("lora_B.weight")
        if down is None or up is None:
            broken.append(f"{module}: lacks {'lora_A' if down is None else 'lora_B'}")
            continue
        try:
            delta = LowRankDelta(down, up)
        except InvalidContentError as error:
            broken.append(f"{module}: {error.message}")
            continue
        stated = found.get("alpha")
        if stated is not None and stated.numel() != 1:
            broken.append(f"{module}: alpha has {stated.numel()} values")
        else:
            alpha = alphas.of(module, delta.rank) if stated is None else float(stated)
            deltas[module] = delta * (alpha / delta.rank)
    if broken:
        raise InvalidContentError(
            f"{where}: {len(broken)} of {len(parts)} target modules cannot be read:\n  "
            + "\n  ".join(broken[:5]),
            hint="the file is damaged or mixes two adapters; export it again",
        )
    return deltas


def _not_an_adapter(where: str, unknown: list[str], count: int) -> InvalidContentError:
    shown = "".join(f"\n  {key}" for key in sorted(unknown)[:5])
    more = f"\n  … and {len(unknown) - 5} more" if len(unknown) > 5 else ""
    return InvalidContentError(
        f"{where}: not an adapter in the diffusers/PEFT format: "
        f"{len(unknown)} of {count} keys map to no target module{':' if unknown else ''}"
        f"{shown}{more}",
        hint="expected keys like unet.<module>.lora_A.weight and unet.<module>.lora_B.weight",
    )


class _Alphas:
    """alpha per module from ``lora_adapter_metadata``; rank where it says nothing."""

    def __init__(self, metadata: Mapping[str, str], where: str) -> None:
        try:
            config = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidContentError(
                f"{where}: {ADAPTER_METADATA} is not JSON ({error})"
            ) from None
        if not isinstance(config, dict):
            raise InvalidContentError(f"{where}: {ADAPTER_METADATA} is not an object")
        self._config: dict[str, Any] = config
        self._where = where

    def of(self, module: str, rank: int) -> float:
        component, path = module.split(".", 1)
        patterns = self._config.get(f"{component}.alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise InvalidContentError(f"{self._where}: alpha_pattern is not an object")
        own = (alpha for pattern, alpha in patterns.items() if self._matches(pattern, path))
        alpha = next(own, self._config.get(f"{component}.lora_alpha", rank))
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise InvalidContentError(f"{self._where}: alpha of {module} is {alpha!r}, no number")
        if self._config.get(f"{component}.use_rslora"):
            return alpha * math.sqrt(rank)  # rsLoRA's scale is alpha / sqrt(rank)
        return float(alpha)

    def _matches(self, pattern: str, path: str) -> bool:
        r"""PEFT's rule, ``(.*\.)?(pattern)$``, for the plain names that writers use.

        A pattern with other regular expressions is refused: it can mean anything, or never end.
        """
        anchored = pattern.startswith("^")
        name = pattern.removeprefix("^").removesuffix("$").replace("\\.", ".")
        if not re.fullmatch(r"[\w.-]+", name):
            raise InvalidContentError(
                f"{self._where}: alpha_pattern {pattern[:60]!r} is a regular expression",
                hint="only module names and their endings are understood",
            )
        return path == name or (not anchored and path.endswith(f".{name}"))


def spell(deltas: Mapping[str, LowRankDelta]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header of ``deltas``: scale folded into ``up``, so alpha = rank everywhere.

    Each module of ``deltas`` is asked for once.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, dict[str, int]] = {}
    for module in deltas:
        delta = concatenate([deltas[module]])
        tensors[f"{module}.lora_A.weight"] = delta.down
        tensors[f"{module}.lora_B.weight"] = delta.up
        component, path = module.split(".", 1)
        ranks.setdefault(component, {})[path] = delta.rank
    config: dict[str, object] = {}
    for component, of in ranks.items():
        common = Counter(of.values()).most_common(1)[0][0]
        others = {f"^{path}": rank for path, rank in sorted(of.items()) if rank != common}
        config |= {
            f"{component}.r": common,
            f"{component}.lora_alpha": common,
            f"{component}.rank_pattern": others,
            f"{component}.alpha_pattern": others,
            f"{component}.target_modules": sorted(of),
        }
    return tensors, {ADAPTER_METADATA: json.dumps(config, sort_keys=True)}
