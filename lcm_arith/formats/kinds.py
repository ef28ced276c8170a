"""Parts of a module in a file → its update, exactly, as two factors.

==========  =====================================================  ==================
kind        ΔW / scale                                             rank of the factors
==========  =====================================================  ==================
LoRA        up · down                                              r
CP (LoCon)  up · (mid · down), a convolution through three         r
LoHa        (w1_a w1_b) ∘ (w2_a w2_b)                              r²
LoKr        w1 ⊗ w2, each full or a product                        rank(w1) · rank(w2)
full        diff, of a weight, norm or bias                        min(out, in)
==========  =====================================================  ==================

LoHa and LoKr follow LyCORIS (arXiv:2108.06098 and its ``functional``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor

from lcm_arith.delta import LowRankDelta, column
from lcm_arith.errors import InvalidContentError

Parts = Mapping[str, Tensor]


def update(parts: Parts, default_alpha: float | None = None) -> tuple[str, LowRankDelta]:
    """(kind, update) of one module.

    Args:
        parts: Part → tensor.
        default_alpha: Where there is no alpha tensor; None means alpha = rank.

    Raises:
        InvalidContentError: If the parts make up no kind, or do not multiply.
    """
    given = frozenset(parts) - {"alpha"}
    for kind, wanted, optional, function in _KINDS:
        if wanted <= given <= wanted | optional:
            return kind, function(parts, _alpha(parts, default_alpha))
    if not given:
        raise InvalidContentError("has only alpha")
    lacking = min((wanted - given for _, wanted, _, _ in _KINDS if wanted & given), key=len)
    raise InvalidContentError(
        f"has {', '.join(sorted(given))}, lacks {', '.join(sorted(lacking))}"
        if lacking
        else f"{', '.join(sorted(given))} make up no known kind of adapter"
    )


def _alpha(parts: Parts, default: float | None) -> float | None:
    alpha = parts.get("alpha")
    if alpha is None:
        return default
    if alpha.numel() != 1:
        raise InvalidContentError(f"alpha has {alpha.numel()} values")
    return float(alpha)


def _scaled(delta: LowRankDelta, alpha: float | None, rank: int) -> LowRankDelta:
    return delta if alpha is None else delta * (alpha / rank)


def lora(parts: Parts, alpha: float | None) -> LowRankDelta:
    """Two factors; the up factor of a convolution may be stored without its 1×1 kernel."""
    down, up = _matched(parts["down"], parts["up"])
    delta = LowRankDelta(down, up)
    return _scaled(delta, alpha, delta.rank)


def cp(parts: Parts, alpha: float | None) -> LowRankDelta:
    """Up ``[out, r1, 1, 1]``, mid ``[r1, r2, kh, kw]``, down ``[r2, in, 1, 1]``."""
    mid, down = parts["mid"].float(), parts["down"].flatten(1).float()
    _check(mid.ndim == 4 and mid.shape[1] == len(down), parts)
    joined = torch.einsum("rskl,si->rikl", mid, down)  # [r1, in, kh, kw]
    delta = LowRankDelta(*_matched(joined, parts["up"]))
    return _scaled(delta, alpha, len(down))


def loha(parts: Parts, alpha: float | None) -> LowRankDelta:
    """Face-splitting product of the ups, Khatri-Rao product of the downs."""
    ups = [parts[f"hada_w{i}_a"].float() for i in (1, 2)]  # [out, r]
    downs = [parts[f"hada_w{i}_b"].float() for i in (1, 2)]  # [r, in · kh · kw]
    if "hada_t1" in parts:  # Tucker: w_a is [r, out], w_b is [r, in], t is [r, r, kh, kw]
        cores = [parts[f"hada_t{i}"].float() for i in (1, 2)]
        ups = [up.T for up in ups]
        downs = [
            torch.einsum("rskl,si->rikl", core, d) for core, d in zip(cores, downs, strict=True)
        ]
    kernel = downs[0].shape[2:]
    flat = [down.flatten(1) for down in downs]
    rank = ups[0].shape[1]
    _check(ups[0].shape == ups[1].shape and flat[0].shape == flat[1].shape, parts)
    _check(len(flat[0]) == rank, parts)
    if rank**2 >= min(len(ups[0]), flat[0].shape[1]):  # whole it is smaller
        whole = (ups[0] @ flat[0]) * (ups[1] @ flat[1])
        whole = whole.reshape(len(whole), -1, *kernel)
        return _scaled(full_difference({"diff": whole}, None), alpha, rank)
    up = (ups[0][:, :, None] * ups[1][:, None, :]).flatten(1)  # [out, r²]
    down = (flat[0][:, None, :] * flat[1][None, :, :]).flatten(0, 1)  # [r², in]
    down = down.reshape(len(down), -1, *kernel)
    return _scaled(LowRankDelta(*_matched(down, up)), alpha, rank)


def lokr(parts: Parts, alpha: float | None) -> LowRankDelta:
    """Kronecker product; kron(UV, XY) = kron(U, X) · kron(V, Y)."""
    (up1, down1, rank1), (up2, down2, rank2) = (_kronecker_side(parts, i) for i in (1, 2))
    kernel = down2.shape[2:]
    up = torch.kron(up1, up2)  # [out1 · out2, r1 · r2]
    down = torch.einsum("ri,sjk->rsijk", down1, down2.flatten(2) if kernel else down2[..., None])
    down = down.reshape(len(down1) * len(down2), -1, *kernel)
    delta = LowRankDelta(*_matched(down, up))
    rank = rank2 or rank1  # the last one that was factored, as LyCORIS does
    return delta if rank is None else _scaled(delta, alpha, rank)


def _kronecker_side(parts: Parts, side: int) -> tuple[Tensor, Tensor, int | None]:
    """Up ``[out, r]``, down ``[r, in(, kh, kw)]`` and the LoRA rank where there is one."""
    full = parts.get(f"lokr_w{side}")
    if full is not None:
        whole = full_difference({"diff": full}, None)
        return whole.up.flatten(1).float(), whole.down.float(), None
    a, b = parts[f"lokr_w{side}_a"].float(), parts[f"lokr_w{side}_b"].float()
    if side == 2 and "lokr_t2" in parts:  # Tucker: a is [r, out], b is [r, in]
        return a.T.contiguous(), torch.einsum("rskl,si->rikl", parts["lokr_t2"].float(), b), len(b)
    return a, b, a.shape[1]


def full_difference(parts: Parts, alpha: float | None) -> LowRankDelta:
    """A whole ``[out, in(, kh, kw)]`` update as a product with the identity on its shorter side."""
    weight = parts["diff"]
    if weight.ndim == 1:  # a bias or norm: [n, 1] @ [1, 1]
        return column(weight)
    if weight.ndim not in (2, 4):
        raise InvalidContentError(f"diff has shape {list(weight.shape)}")
    out, width = weight.shape[0], weight[0].numel()
    if out <= width:
        eye = torch.eye(out, dtype=weight.dtype, device=weight.device)
        return LowRankDelta(*_matched(weight, eye))
    eye = torch.eye(width, dtype=weight.dtype, device=weight.device)
    eye = eye.reshape(width, *weight.shape[1:])
    return LowRankDelta(*_matched(eye, weight.flatten(1)))


_LOKR_PARTS: Final = tuple(
    (f"LoKr{'' if len(w1 | w2) < 4 else ' (both factored)'}", w1 | w2, frozenset(tucker), lokr)
    for w1 in (frozenset({"lokr_w1"}), frozenset({"lokr_w1_a", "lokr_w1_b"}))
    for w2, tucker in (
        (frozenset({"lokr_w2"}), ()),
        (frozenset({"lokr_w2_a", "lokr_w2_b"}), ("lokr_t2",)),
    )
)
_HADA: Final = frozenset({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"})
_NOTHING: Final[frozenset[str]] = frozenset()

# Kind, its parts, parts that may be there, and what makes an update of them.
_KINDS: Final[
    tuple[
        tuple[str, frozenset[str], frozenset[str], Callable[[Parts, float | None], LowRankDelta]],
        ...,
    ]
] = (
    ("LoRA", frozenset({"down", "up"}), _NOTHING, lora),
    ("CP", frozenset({"down", "up", "mid"}), _NOTHING, cp),
    ("LoHa", _HADA, _NOTHING, loha),
    ("LoHa", _HADA | {"hada_t1", "hada_t2"}, _NOTHING, loha),
    *(("LoKr", parts, optional, function) for _, parts, optional, function in _LOKR_PARTS),
    ("full", frozenset({"diff"}), _NOTHING, full_difference),
)


def _matched(down: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Down and up with equally many axes; a 1×1 kernel is added where only one has it."""
    if down.ndim == 4 and up.ndim == 2:
        up = up[:, :, None, None]
    elif down.ndim == 2 and up.ndim == 4 and tuple(up.shape[2:]) == (1, 1):
        up = up.flatten(1)
    return down, up


def _check(true: bool, parts: Parts) -> None:
    if not true:
        shapes = ", ".join(f"{name} {list(t.shape)}" for name, t in sorted(parts.items()))
        raise InvalidContentError(f"the parts do not multiply ({shapes})")
