"""The triplet margin loss over all triplets in plain torch, without visiting them.

Per anchor, with the key p = d + margin of a positive: let g⁺ be the number of negatives nearer than p, and −g⁻ that of
positives whose key exceeds d⁻. Then Σ max(0, p − d⁻) = Σ g⁺ p + Σ g⁻ d⁻, and its derivative by d is g. With F(margin)
this loss and c(margin) its active triplets, "hard" is F(0) + margin c(0), and "semihard" is F(margin) less that.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..types import LabelledSets, Needs, PairSums
from .pairs import PairGradients, PairSweep


class TripletMargin(NamedTuple):
    """Which triplets count, and how much: the options of a sweep; see `xmodal_ops.triplet_margin_loss`."""

    margin: float
    triplets: str  # "all", "hard", "semihard"
    exclude_diagonal: bool


def triplet_margin(
    sets: LabelledSets,
    weight: Tensor | None,  # (m,) cotangent of the anchors' losses; None: ones
    options: TripletMargin,
    needs: Needs,
) -> tuple[Tensor, Tensor, Tensor]:
    """PairSums of each anchor as (6, m), and the gradients of Σ weight_i loss_i by anchors and by references."""
    margin = options.margin
    sweep = PairSweep(sets, options.exclude_diagonal)
    wide = sweep.anchor.dtype
    gradients = PairGradients(sweep, needs)
    terms = {"all": ((margin, 1),), "hard": ((0.0, 1),), "semihard": ((margin, 1), (0.0, -1))}[options.triplets]
    results = []
    for rows, square, same, other in sweep.chunks():
        d = square.sqrt()
        sorted_positives = d.where(same, torch.inf).sort(1).values
        losses, g, active = d.new_zeros(d.shape[0]), torch.zeros_like(d), d.new_zeros(d.shape[0])
        for shift, sign in terms:
            key = (d + shift).where(same, d)
            rank = torch.searchsorted(sorted_positives + shift, key, right=True)
            after = same.sum(1, keepdim=True) - rank  # may be below 0, but only outside the masks
            count = torch.zeros(d.shape[0], d.shape[1] + 1, dtype=torch.int64, device=d.device)
            count.scatter_add_(1, rank, other.long())
            before = count.cumsum(1).gather(1, (rank - 1).clamp(min=0))
            slope = before.where(same, (-after).where(other, 0)).to(wide)
            found = before.where(same, 0).sum(1).to(wide)
            losses += sign * ((slope * key).sum(1) + (margin - shift) * found)
            active += sign * found
            g += sign * slope
        sums = PairSums(
            loss=losses,
            active=active,
            positives=same.sum(1).to(wide),
            negatives=other.sum(1).to(wide),
            positive_distance=d.where(same, 0.0).sum(1),
            negative_distance=d.where(other, 0.0).sum(1),
        )
        results.append(torch.stack(sums))
        gradients.add(rows, d, g if weight is None else g * weight[rows, None].to(wide))
    sums_of_all = torch.cat(results, 1).where(sweep.finite(), torch.nan)
    return sums_of_all, *gradients.results(sets.anchor)
