"""``lcm-arith inspect``: what an adapter file holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lcm_arith.cli import options
from lcm_arith.cli.output import print_json, stdout

if TYPE_CHECKING:
    from lcm_arith.inspection import Inspection

EXAMPLES = """Examples:

  lcm-arith inspect                             (the embedded lcm)

  lcm-arith inspect my-style.safetensors

  lcm-arith inspect downloaded.safetensors --json
"""

_SHOWN = 12  # lines of metadata


def command(
    adapter: options.Vector = "lcm",
    base: options.DoraBase = None,
    as_json: options.Json = False,
) -> None:
    """Show an adapter's format, family, ranks, norms, trigger words and metadata."""
    from lcm_arith.adapters import is_dora
    from lcm_arith.inspection import inspect

    options.check_base(base, map(is_dora, [adapter]))
    found = inspect(adapter, base)
    if as_json:
        print_json(found.as_json())
        return
    for name, value in lines(found):
        stdout.print(f"{name:<12} {value}", soft_wrap=True)


def lines(found: Inspection) -> list[tuple[str, str]]:
    """What is shown, a name and a value a line."""
    from lcm_arith.text import clean

    kinds = ", ".join(f"{count} {kind}" for kind, count in found.kinds.items())
    families = ", ".join(f"{name} ({share:.0%} of its kind)" for name, share in found.families)
    alphas = ", ".join(f"{alpha} in {n}" for alpha, n in list(found.alphas.items())[:4])
    if found.without_alpha:
        alphas += f"; not in the file for {found.without_alpha}: taken to be the rank"
    rows = [
        ("file", f"{found.path}"),
        ("format", f"{found.dialect}; {', '.join(found.dtypes)}; sha256 {found.sha256[:16]}"),
        ("modules", f"{kinds}; {found.parameters / 1e6:.2f} M numbers"),
        ("family", families or "none that is known"),
        ("rank", ", ".join(f"{rank} in {count}" for rank, count in found.ranks.items())),
        ("alpha", alphas),
        ("norm", f"{found.norm:.4g} (Frobenius, all modules)"),
    ]
    rows += [(f"  {share:.0%}", block) for block, share in found.blocks.items()]
    rows += [("trigger", f"{text} ({source})") for source, text in found.triggers.items()]
    metadata = list(found.metadata.items())
    rows += [("metadata", f"{key}: {value[:200]}") for key, value in metadata[:_SHOWN]]
    if len(metadata) > _SHOWN:
        rows.append(("", f"… and {len(metadata) - _SHOWN} more, with --json"))
    return [(name, clean(value)) for name, value in rows]
