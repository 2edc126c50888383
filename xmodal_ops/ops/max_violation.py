"""The max violation loss of VSE++: the hardest negative of each image and of each text."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import _checks
from ._library import full_precision
from ._pairs import poison
from .mining import mine_triplets
from .portable.triplets import accumulation_dtype
from .triplet_margin import TripletStats


@overload
def max_violation_loss(
    image: Tensor,
    text: Tensor,
    *,
    margin: float = 0.2,
    reduction: str = "mean",
    return_stats: Literal[False] = False,
) -> Tensor: ...
@overload
def max_violation_loss(
    image: Tensor, text: Tensor, *, margin: float = 0.2, reduction: str = "mean", return_stats: Literal[True]
) -> tuple[Tensor, TripletStats]: ...
def max_violation_loss(
    image: Tensor,
    text: Tensor,
    *,
    margin: float = 0.2,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, TripletStats]:
    """The max of hinges loss of VSE++ (Faghri et al., BMVC 2018, eq. 6) over pairs (image i, text i).

        ℓ_i = max_k max(0, α + s(v_i, t_k) − s(v_i, t_i)) + max_k max(0, α + s(v_k, t_i) − s(v_i, t_i)),   k ≠ i

    with the cosine similarity s; the most similar negative is the nearest one on the unit sphere. A row that is
    not finite (or whose squared norm overflows) gives NaN; a single pair, which has no negatives, 0.

    Args:
        image: (m, d) float64, float32, bfloat16 or float16; normalised here.
        text: (m, d).
        margin: α.
        reduction: "mean" over pairs, or "sum" as in the paper.
        return_stats: also return TripletStats; distances are those on the unit sphere.

    Returns:
        A scalar, float32 for half inputs; with `return_stats` a pair.

    Time O(m² d), memory O(m d).
    """
    _checks.pair(image, text, 1, ("image", "text"))
    _checks.same_width("text", text, "image", image)
    margin = _checks.non_negative("margin", margin)
    _checks.choice("reduction", reduction, ("mean", "sum"))
    with full_precision(image.device):
        factor = poison(image, text)
        v, t = (normalize(x.to(accumulation_dtype(x)), dim=1) for x in (image, text))
        pair = torch.arange(v.shape[0], device=v.device)
        similar = (v * t).sum(1)
        terms, mined = [], []
        for anchor, ref in ((v, t), (t, v)):
            found = mine_triplets(anchor.detach(), pair, ref.detach())
            negative = (anchor * ref[found.negative_idx.clamp(min=0)]).sum(1)
            terms.append((margin + negative - similar).relu().where(found.valid, 0.0))
            mined.append(found)
        loss = (terms[0] + terms[1]).sum() * factor
    if reduction == "mean":
        loss = loss / v.shape[0]
    if not return_stats:
        return loss
    active = sum((term.detach() > 0).sum() for term in terms)
    number = sum(found.valid.sum() for found in mined)
    assert isinstance(active, Tensor) and isinstance(number, Tensor)
    means = (
        torch.cat([getattr(found, name) for found in mined]).sum() / number.clamp(min=1) for name in ("d_ap", "d_an")
    )
    return loss, TripletStats(active, number, mined[0].valid.sum(), *means)
