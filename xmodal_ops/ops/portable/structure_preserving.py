"""ACMR's structure preserving loss in plain torch, as a weighted sum over pairs.

    Σ_ijk (d_ij + γ h_ik) = Σ_i (N⁻_i Σ_j d_ij + γ N⁺_i Σ_k h_ik),   h = max(0, margin − d)

N⁺ and N⁻ are the numbers of positives and negatives of an anchor: a weight for its positive and one for its negative
pairs. The other direction has the roles exchanged, so each pair has a weight from either side.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from ..types import LabelledSets, Needs, PairWeights
from .pairs import PairGradients, PairSweep, count_positives


class StructurePreserving(NamedTuple):
    """Options of `xmodal_ops.structure_preserving_loss`."""

    margin: float
    gamma: float
    reduction: str  # "mean", "sum"


def pair_weights(
    of_anchors: Tensor,  # (m,) positives of each anchor
    of_refs: Tensor,  # (n,) positives of each reference
    options: StructurePreserving,
) -> PairWeights:
    """The weights of pairs in float64; for "mean" divided by the number of triplets of their direction."""

    def weights(same: Tensor, others: int) -> tuple[Tensor, Tensor]:
        pull, push = (others - same).double(), options.gamma * same.double()
        triplets = (same * (others - same)).sum().clamp(min=1)
        return (pull / triplets, push / triplets) if options.reduction == "mean" else (pull, push)

    return PairWeights(*weights(of_anchors, of_refs.shape[0]), *weights(of_refs, of_anchors.shape[0]))


def label_weights(sets: LabelledSets, options: StructurePreserving) -> PairWeights:
    """The weights of pairs from the labels of both sets."""
    return pair_weights(*count_positives(sets.anchor_labels, sets.ref_labels), options)


def structure_preserving(
    sets: LabelledSets, options: StructurePreserving, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """L_imi; (active, positive pairs, negative pairs, Σ d⁺, Σ d⁻); gradients of anchors and of references."""
    return weighted_structure_preserving(sets, label_weights(sets, options), options.margin, needs)


def weighted_structure_preserving(
    sets: LabelledSets, weights: PairWeights, margin: float, needs: Needs
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with given weights: for a part of the pairs, weighted by counts over all of them."""
    sweep = PairSweep(sets, exclude_diagonal=False)
    wide = sweep.anchor.dtype
    pull, push, pull_ref, push_ref = (w.to(wide) for w in weights)
    gradients = PairGradients(sweep, needs)
    value, stats = sweep.anchor.new_zeros(()), sweep.anchor.new_zeros(5)
    for rows, square, same, other in sweep.chunks():
        d = square.sqrt()
        pulled, pushed = pull[rows, None] + pull_ref, push[rows, None] + push_ref
        near = other & (d < margin)
        value += (pulled * d).where(same, 0.0).sum() + (pushed * (margin - d)).where(near, 0.0).sum()
        sums = near.sum(), same.sum(), other.sum(), d.where(same, 0.0).sum(), d.where(other, 0.0).sum()
        stats += torch.stack([s.to(wide) for s in sums])
        gradients.add(rows, d, pulled.where(same, (-pushed).where(near, 0.0)))
    value = value.where(sweep.finite(), torch.nan).to(accumulation_dtype(sets.anchor.dtype))
    return value, stats, *gradients.results(sets.anchor)
