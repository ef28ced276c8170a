"""Module tables of the base families, from their published configurations on the meta device.

Writes ``lcm_arith/tables/FAMILY.json.xz``: canonical module → shape of its weight, and
``parameters.json`` beside them: family → component → number of parameters. No weights are needed
and none are made.

    python tools/build_tables.py
"""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any, Final

import torch

from lcm_arith.architectures import PARAMETERS, meta_parts
from lcm_arith.modules import PUBLISHED

FOLDER: Final = Path(__file__).resolve().parents[1] / "lcm_arith" / "tables"


def table(parts: dict[str, Any]) -> dict[str, list[int]]:
    """Canonical module → shape of its weight, for UNet and text encoders, in traversal order."""
    return {
        f"{name}.{canonical(path) if name != 'unet' else path}": list(module.weight.shape)
        for name, part in parts.items()
        if name != "vae"
        for path, module in part.named_modules()
        if isinstance(getattr(module, "weight", None), torch.Tensor)
    }


def canonical(path: str) -> str:
    """A text encoder's path as published files have it; transformers 5 dropped ``text_model.``."""
    if path.startswith(("text_model.", "text_projection")):
        return path
    return f"text_model.{path}"


def parameters(parts: dict[str, Any]) -> dict[str, int]:
    """Component → number of its parameters."""
    return {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}


def packed(rows: dict[str, list[int]]) -> bytes:
    """The bytes of a table's file; the same rows give the same bytes."""
    text = json.dumps(rows, separators=(",", ":"))
    return lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    counts = {}
    for family in PUBLISHED:
        parts = meta_parts(family)
        rows, counts[family] = table(parts), parameters(parts)
        path = FOLDER / f"{family}.json.xz"
        path.write_bytes(packed(rows))
        print(f"{path.name}: {len(rows)} modules, {path.stat().st_size / 1024:.1f} KiB")
    (FOLDER / PARAMETERS).write_text(json.dumps(counts, indent=1) + "\n", encoding="utf-8")
    print(f"{PARAMETERS}: {counts}")


if __name__ == "__main__":
    main()
