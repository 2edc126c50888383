"""Triplet mining: schema, implementations, differentiable distances and the public function."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import _C, _checks
from .._dtypes import accumulation_dtype, full_precision
from ._library import define, implement
from .autograd import apply, differentiable_once
from .pairs import NativePairs, excludes_diagonal, labelled_sets
from .portable import mining as portable
from .portable.mining import TripletMining
from .types import LabelledSets


class MinedTriplets(NamedTuple):
    """One triplet per anchor; every field has the shape (m,)."""

    positive_idx: Tensor  #: int64 row of ref, −1 if the anchor has no positive
    negative_idx: Tensor  #: int64 row of ref, −1 if no negative qualifies
    d_ap: Tensor  #: distance to the positive, 0 if there is none; differentiable
    d_an: Tensor  #: distance to the negative, 0 if there is none; differentiable
    n_pos: Tensor  #: int64 number of positives
    n_neg: Tensor  #: int64 number of negatives
    valid: Tensor  #: bool, whether the anchor has both

    def indices_tuple(self) -> tuple[Tensor, Tensor, Tensor]:
        """(anchors, positives, negatives) of the valid anchors, as pytorch-metric-learning's losses expect."""
        (anchors,) = self.valid.nonzero(as_tuple=True)
        return anchors, self.positive_idx[anchors], self.negative_idx[anchors]


def _fake(sets: LabelledSets, *_: Any) -> tuple[Tensor, ...]:
    m = sets.anchor.shape[0]
    index = sets.anchor_labels.new_empty(m)
    distance = sets.anchor.new_empty(m, dtype=accumulation_dtype(sets.anchor.dtype))
    return tuple(torch.empty_like(t) for t in (index, index, distance, distance, index, index))


define("mine_triplets", portable.mine_triplets, _fake)


@implement("mine_triplets", "CPU", "C++")
def _cpu(sets: LabelledSets, options: TripletMining, seed: Tensor | None) -> tuple[Tensor, ...]:
    native, m = NativePairs(sets, options.exclude_diagonal, weights=False), sets.anchor.shape[0]
    positive_idx, negative_idx, n_pos, n_neg = (torch.empty(m, dtype=torch.int64) for _ in range(4))
    d_ap, d_an = (torch.empty(m, dtype=torch.float64) for _ in range(2))
    mining = _C.Mining(
        positive=_C.Positive.__members__[options.positive],
        negative=_C.Negative.__members__[options.negative],
        beyond_hardest=options.semihard == "hardest_positive",
        margin=options.margin,
        seed=0 if seed is None else int(seed),
        positive_idx=positive_idx.data_ptr(),
        negative_idx=negative_idx.data_ptr(),
        d_ap=d_ap.data_ptr(),
        d_an=d_an.data_ptr(),
        n_pos=n_pos.data_ptr(),
        n_neg=n_neg.data_ptr(),
    )
    _C.mine_triplets(native.pairs, mining)
    return positive_idx, negative_idx, d_ap.to(native.dtype), d_an.to(native.dtype), n_pos, n_neg


class _PairDistance(torch.autograd.Function):
    """Gives the known distances |anchor_i − ref_index(i)| their gradient: 0 at distance 0 and for the index −1."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,  # (m, d)
        ref: Tensor,  # (n, d)
        index: Tensor,  # (m,)
        distance: Tensor,  # (m,)
    ) -> Tensor:
        ctx.save_for_backward(anchor, ref, index, distance)
        return distance.clone()

    @staticmethod
    @differentiable_once("mine_triplets")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        anchor, ref, index, distance = ctx.saved_tensors
        differentiable = (index >= 0) & (distance > 0)
        index = index.clamp(min=0)
        weight = (grad / distance).where(differentiable, 0.0)
        with full_precision(anchor.device):
            slope = weight[:, None] * (anchor.to(weight.dtype) - ref.to(weight.dtype)[index])
            grad_anchor = slope.to(anchor.dtype) if ctx.needs_input_grad[0] else None
            grad_ref = None
            if ctx.needs_input_grad[1]:
                total = torch.zeros_like(ref, dtype=weight.dtype)
                # On CUDA index_add adds in any order; index_put sorts first, and so is deterministic.
                total = total.index_add(0, index, -slope) if ref.is_cpu else total.index_put((index,), -slope, True)
                grad_ref = total.to(ref.dtype)
        return grad_anchor, grad_ref, None, None


def mine_triplets(
    anchor: Tensor,
    labels: Tensor,
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    positive: str = "hard",
    negative: str = "hard",
    semihard: str = "chosen_positive",
    margin: float | None = None,
    seed: int | None = None,
    exclude_diagonal: bool | None = None,
) -> MinedTriplets:
    """Chooses one positive and one negative per anchor, without storing the m × n distances.

    A reference is positive to an anchor that it shares any label with, otherwise negative. Distances are Euclidean and
    compared in fp64 (CUDA kernels treat distances as equal if their squares agree in 36 bits or more). Results are
    deterministic; ties go to the lowest index. A row that is not finite (or whose squared norm overflows) is chosen by
    no anchor, and as an anchor has no positives and no negatives.

    Args:
        anchor: (m, d) float64, float32, bfloat16 or float16.
        labels: labels of the anchors: integers (m,), multi-hot bool or 0/1 (m, C), or packed words (see `pack_labels`).
        ref: (n, d), the other modality; by default the anchors themselves. The wider dtype of both counts.
        ref_labels: labels of the references; by default `labels`.
        positive: "hard", the farthest, or "easy", the nearest.
        negative: "hard", the nearest; "easy", the farthest; "random", any with equal probability; or "semihard", the
            nearest of those strictly farther than a positive.
        semihard: which positive: "chosen_positive", as FaceNet and pytorch-metric-learning's BatchEasyHardMiner, or
            "hardest_positive", farther than all positives.
        margin: semihard negatives are farther than that positive by at most this; by default by any distance.
        seed: seed of random negatives; by default drawn from torch's generator.
        exclude_diagonal: leaves out the pairs (i, i); by default only if `ref` is None.

    Returns:
        MinedTriplets; d_ap and d_an are differentiable, with subgradient 0 at distance 0.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Time O(m n d), memory O((m + n) d).
    """
    sets = labelled_sets(anchor, labels, ref, ref_labels)
    _checks.choice("positive", positive, ("hard", "easy"))
    _checks.choice("negative", negative, ("hard", "semihard", "easy", "random"))
    _checks.choice("semihard", semihard, ("chosen_positive", "hardest_positive"))
    limit = math.inf if margin is None else _checks.non_negative("margin", margin)
    exclude = excludes_diagonal(exclude_diagonal, ref is None, sets)
    options = TripletMining(positive, negative, semihard, limit, exclude)
    state = None
    if negative == "random":
        state = torch.randint(1 << 62, ()) if seed is None else torch.tensor(_checks.integer("seed", seed))
    rows = sets.anchor.detach(), sets.ref.detach()
    with full_precision(anchor.device):
        positive_idx, negative_idx, d_ap, d_an, n_pos, n_neg = torch.ops.xmodal.mine_triplets(
            *rows, *sets[2:], *options, state
        )
        d_ap = apply(_PairDistance, sets.anchor, sets.ref, positive_idx, d_ap)
        d_an = apply(_PairDistance, sets.anchor, sets.ref, negative_idx, d_an)
    valid = (positive_idx >= 0) & (negative_idx >= 0)
    return MinedTriplets(positive_idx, negative_idx, d_ap, d_an, n_pos, n_neg, valid)
