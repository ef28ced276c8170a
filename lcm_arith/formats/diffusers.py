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

from lcm_arith.errors import InvalidContentError

ADAPTER_METADATA: Final = "lora_adapter_metadata"
_TEXT_MODEL: Final = "text_model."
_MOST_ALPHA: Final = 1e30
_ABSENT: Final = object()  # null is a value, and a wrong one


class Alphas:
    """alpha per module from ``lora_adapter_metadata``; None where it says nothing."""

    def __init__(self, metadata: Mapping[str, str], where: str) -> None:
        try:
            config = json.loads(metadata.get(ADAPTER_METADATA, "{}"))
        except (ValueError, RecursionError) as error:
            raise InvalidContentError(
                f"{where}: {ADAPTER_METADATA} is not JSON ({str(error)[:80]})"
            ) from None
        if not isinstance(config, dict):
            raise InvalidContentError(f"{where}: {ADAPTER_METADATA} is not an object")
        self._config: dict[str, Any] = config
        self._where = where
        self._patterns: dict[str, dict[tuple[bool, str], tuple[int, Any]]] = {}

    def of(self, module: str, rank: int) -> float | None:
        """The alpha of a module; with rsLoRA the one that gives its scale by alpha / rank."""
        component, path = module.split(".", 1)
        rslora = self._config.get(f"{component}.use_rslora")
        alpha = self._config.get(f"{component}.lora_alpha", rank if rslora else _ABSENT)
        alpha = self._of_pattern(component, path, alpha)
        if alpha is _ABSENT:
            return None
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not abs(alpha) < _MOST_ALPHA
        ):
            raise InvalidContentError(
                f"{self._where}: alpha of {module} is {str(alpha)[:40]}, no number below 1e30"
            )
        if rslora:
            return alpha * math.sqrt(rank)  # rsLoRA's scale is alpha / sqrt(rank)
        return float(alpha)

    def _of_pattern(self, component: str, path: str, default: Any) -> Any:
        r"""The alpha of the first pattern that matches by PEFT's rule, ``(.*\.)?(pattern)$``."""
        if component not in self._patterns:
            self._patterns[component] = self._read_patterns(component)
        known = self._patterns[component]
        found = []
        for own in {path, path.removeprefix(_TEXT_MODEL)}:
            parts = own.split(".")
            found += [known[True, own]] if (True, own) in known else []
            endings = (".".join(parts[i:]) for i in range(len(parts)))
            found += [known[False, end] for end in endings if (False, end) in known]
        return min(found, key=lambda at: at[0])[1] if found else default

    def _read_patterns(self, component: str) -> dict[tuple[bool, str], tuple[int, Any]]:
        """(Whether it is the whole path, name) → place and alpha of each pattern.

        Understood are the names that writers use, and several with ``|`` between them. A pattern
        with other regular expressions is refused: it can mean anything, or never end.
        """
        patterns = self._config.get(f"{component}.alpha_pattern") or {}
        if not isinstance(patterns, dict):
            raise InvalidContentError(f"{self._where}: alpha_pattern is not an object")
        known: dict[tuple[bool, str], tuple[int, Any]] = {}
        for place, (pattern, alpha) in enumerate(patterns.items()):
            for each in pattern.split("|"):
                name = each.removeprefix("^").removesuffix("$").replace("\\.", ".")
                if not re.fullmatch(r"[\w.-]+", name):
                    raise InvalidContentError(
                        f"{self._where}: alpha_pattern {pattern[:60]!r} is a regular expression",
                        hint="only module names and their endings are understood",
                    )
                known.setdefault((each.startswith("^"), name), (place, alpha))
        return known


def adapter_metadata(ranks: Mapping[str, int], *, dora: bool = False) -> dict[str, str]:
    """The header that says rank and alpha = rank of every module, for each component.

    A text encoder's modules are named from ``encoder.`` on: PEFT finds them by the ends of their
    names, whether the installed transformers has ``text_model.`` before it or not.
    """
    by_component: dict[str, dict[str, int]] = {}
    for module, rank in ranks.items():
        component, path = module.split(".", 1)
        by_component.setdefault(component, {})[path] = rank
    config: dict[str, object] = {}
    for component, of in by_component.items():
        common = Counter(of.values()).most_common(1)[0][0]
        by_rank: dict[int, list[str]] = {}
        for path, rank in sorted(of.items()):
            by_rank.setdefault(rank, []).append(_pattern(path))
        # One pattern a rank: PEFT tries every pattern on every module, and compiles each anew.
        others = {"|".join(own): rank for rank, own in by_rank.items() if rank != common}
        config |= {
            f"{component}.r": common,
            f"{component}.lora_alpha": common,
            f"{component}.rank_pattern": others,
            f"{component}.alpha_pattern": others,
            f"{component}.target_modules": sorted(path.removeprefix(_TEXT_MODEL) for path in of),
        }
        if dora:
            config[f"{component}.use_dora"] = True
    return {ADAPTER_METADATA: json.dumps(config, sort_keys=True)}


def _pattern(path: str) -> str:
    """What PEFT's rule matches with this module alone."""
    ending = path.removeprefix(_TEXT_MODEL)
    return f"^{path}" if ending == path else ending
