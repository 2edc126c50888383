"""The max violation loss of VSE++: the hardest negative of each image and of each text."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .. import _checks
from .._dtypes import accumulation_dtype, full_precision
from .mining import mine_triplets
from .pairs import nan_unless_finite
from .triplet_margin import TripletStats


@overload
def max_violation_loss(
    image: Tensor,
    text: Tensor,
    ids: Tensor | None = None,
    *,
    margin: float = 0.2,
    reduction: str = "mean",
    return_stats: Literal[False] = False,
) -> Tensor: ...
@overload
def max_violation_loss(
    image: Tensor,
    text: Tensor,
    ids: Tensor | None = None,
    *,
    margin: float = 0.2,
    reduction: str = "mean",
    return_stats: Literal[True],
) -> tuple[Tensor, TripletStats]: ...
def max_violation_loss(
    image: Tensor,
    text: Tensor,
    ids: Tensor | None = None,
    *,
    margin: float = 0.2,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, TripletStats]:
    """The max of hinges loss of VSE++ over pairs (image i, text i).

        ℓ_i = max_k max(0, α + s(v_i, t_k) − s(v_i, t_i)) + max_k max(0, α + s(v_k, t_i) − s(v_i, t_i)),   id_k ≠ id_i

    with the cosine similarity s; the most similar negative is the nearest one on the unit sphere. A row that is not
    finite (or whose squared norm overflows) gives NaN; a single pair, which has no negatives, gives 0.

    Args:
        image: (m, d) float64, float32, bfloat16 or float16; normalised here.
        text: (m, d); the wider dtype of both counts.
        ids: (m,) integers, equal for rows that hold the same item, such as two captions of one image: a duplicate is no
            negative. By default all rows differ.
        margin: α.
        reduction: "mean" over pairs, or "sum" as in the paper.
        return_stats: also returns TripletStats; distances are those on the unit sphere.

    Returns:
        A scalar, float32 for half inputs. With `return_stats`, a pair of it and TripletStats.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Time O(m² d), memory O(m d).
    Faghri et al., "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", BMVC 2018, eq. 6.
    """
    image, text = _checks.pair(image, text, 1, ("image", "text"))
    _checks.same_width("text", text, "image", image)
    if ids is None:
        ids = torch.arange(image.shape[0], device=image.device)
    elif _checks.labels("ids", ids, "image", image).ndim != 1:
        raise ValueError(f"ids must have shape (m,), got {tuple(ids.shape)}")
    margin = _checks.non_negative("margin", margin)
    _checks.choice("reduction", reduction, ("mean", "sum"))
    with full_precision(image.device):
        factor = nan_unless_finite(image, text)
        v, t = (normalize(x.to(accumulation_dtype(x.dtype)), dim=1) for x in (image, text))
        similarity = (v * t).sum(1)
        terms, mined = [], []
        for anchor, ref in ((v, t), (t, v)):
            found = mine_triplets(anchor.detach(), ids, ref.detach())
            hardest = (anchor * ref[found.negative_idx.clamp(min=0)]).sum(1)
            terms.append((margin + hardest - similarity).relu().where(found.valid, 0.0))
            mined.append(found)
        loss = (terms[0] + terms[1]).sum() * factor
    if reduction == "mean":
        loss = loss / v.shape[0]
    if not return_stats:
        return loss
    active, valid = torch.cat(terms).detach() > 0, torch.cat([found.valid for found in mined])
    number = valid.sum()
    apart = torch.linalg.vector_norm((v - t).detach(), dim=1)
    distances = [apart.where(found.valid, 0.0) for found in mined], [found.d_an for found in mined]
    means = (torch.cat(d).sum() / number.clamp(min=1) for d in distances)
    return loss, TripletStats(active.sum(), number, mined[0].valid.sum(), *means)
