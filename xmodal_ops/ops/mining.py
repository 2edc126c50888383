"""Triplet mining: schema, implementations, differentiable distances and the public function."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C, _checks
from ._library import define, full_precision, implement
from ._pairs import NativePairs, diagonal, two_sets
from .portable import triplets as reference


class MinedTriplets(NamedTuple):
    """One triplet per anchor; every field has the shape (m,)."""

    positive_idx: Tensor  #: int64 row of ref, −1 where the anchor has no positive
    negative_idx: Tensor  #: int64 row of ref, −1 where the anchor has no negative that qualifies
    d_ap: Tensor  #: distance to the positive, 0 where there is none; differentiable
    d_an: Tensor  #: distance to the negative, 0 where there is none; differentiable
    n_pos: Tensor  #: int64 number of positives
    n_neg: Tensor  #: int64 number of negatives
    valid: Tensor  #: bool, whether there are both

    def indices_tuple(self) -> tuple[Tensor, Tensor, Tensor]:
        """(anchors, positives, negatives) of the valid anchors, as pytorch-metric-learning's losses expect."""
        (anchors,) = self.valid.nonzero(as_tuple=True)
        return anchors, self.positive_idx[anchors], self.negative_idx[anchors]


def _fake(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    positive: str,
    negative: str,
    beyond_hardest: bool,
    margin: float,
    seed: Tensor | None,
    exclude_diagonal: bool,
) -> tuple[Tensor, ...]:
    m = anchor.shape[0]
    index, distance = anchor_labels.new_empty(m), anchor.new_empty(m, dtype=reference.accumulation_dtype(anchor))
    return (
        index,
        torch.empty_like(index),
        distance,
        torch.empty_like(distance),
        torch.empty_like(index),
        torch.empty_like(index),
    )


def _cpu(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    positive: str,
    negative: str,
    beyond_hardest: bool,
    margin: float,
    seed: Tensor | None,
    exclude_diagonal: bool,
) -> tuple[Tensor, ...]:
    native = NativePairs(anchor, ref, anchor_labels, ref_labels, exclude_diagonal, weights=False)
    positive_idx, negative_idx, n_pos, n_neg = torch.empty(4, anchor.shape[0], dtype=torch.int64).unbind()
    d_ap, d_an = torch.empty(2, anchor.shape[0], dtype=torch.float64).unbind()
    mining = _C.Mining(
        positive=_C.Positive.__members__[positive],
        negative=_C.Negative.__members__[negative],
        beyond_hardest=beyond_hardest,
        margin=margin,
        seed=0 if seed is None else int(seed),
        positive_idx=positive_idx.data_ptr(),
        negative_idx=negative_idx.data_ptr(),
        d_ap=d_ap.data_ptr(),
        d_an=d_an.data_ptr(),
        n_pos=n_pos.data_ptr(),
        n_neg=n_neg.data_ptr(),
    )
    _C.mine_triplets(native.pairs, mining)
    outputs = positive_idx, negative_idx, d_ap.to(native.dtype), d_an.to(native.dtype), n_pos, n_neg
    return tuple(t.clone() for t in outputs)


define(
    "mine_triplets(Tensor anchor, Tensor ref, Tensor anchor_labels, Tensor ref_labels, str positive, str negative, "
    "bool beyond_hardest, float margin, Tensor? seed, bool exclude_diagonal) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    reference.mine_triplets,
    _fake,
)
implement("mine_triplets", _cpu, "CPU", "C++")


class _PairDistance(torch.autograd.Function):
    """|anchor_i − ref_index(i)|, known already; the subgradient at 0, and where the index is −1, is 0."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ref: Tensor, index: Tensor, distance: Tensor) -> Tensor:
        ctx.save_for_backward(anchor, ref, index, distance)
        return distance.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        anchor, ref, index, distance = ctx.saved_tensors
        counts = (index >= 0) & (distance > 0)
        index = index.clamp(min=0)
        weight = (grad / distance).where(counts, 0.0)
        with full_precision(anchor.device):
            slope = weight[:, None] * (anchor.to(weight.dtype) - ref.to(weight.dtype)[index])
            grad_anchor = slope.to(anchor.dtype) if ctx.needs_input_grad[0] else None
            grad_ref = None
            if ctx.needs_input_grad[1]:
                total = torch.zeros_like(ref, dtype=weight.dtype)
                # On CUDA index_put_ sorts, where index_add_ would add in any order.
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
    """Chooses one positive and one negative per anchor, without ever holding the m × n distances.

    A reference is positive to an anchor that it shares any label with, otherwise negative. Distances are
    Euclidean, and compared in double precision (CUDA kernels take distances as equal whose squares agree in 36
    bits or more). Results are deterministic, ties go to the lowest index. Rows that are not finite (or whose
    squared norm overflows) are chosen by no anchor and, as anchors, have no positives and no negatives.

    Args:
        anchor: (m, d) float64, float32, bfloat16 or float16.
        labels: of the anchors: int64 (m,), bool multi-hot (m, C), or packed words (see `pack_labels`).
        ref: (n, d), the other modality; None takes the anchors themselves.
        ref_labels: of the references; None takes `labels`.
        positive: "hard", the farthest, or "easy", the nearest.
        negative: "hard", the nearest; "easy", the farthest; "random", any, with equal chances; or "semihard",
            the nearest of those strictly farther than a positive.
        semihard: which positive: "chosen_positive" (FaceNet's rule, for the pair of anchor and chosen
            positive), or "hardest_positive" (beyond all positives, as pytorch-metric-learning's BatchEasyHard).
        margin: semihard negatives are farther than that positive by no more than this; None: by any distance.
        seed: of random negatives; None draws one from torch's generator.
        exclude_diagonal: leave out the pairs (i, i); None: only where ref is None.

    Returns:
        MinedTriplets; d_ap and d_an are differentiable, with subgradient 0 at distance 0.

    Time O(m n d), memory O((m + n) d).
    """
    anchor, others, labels, ref_labels = two_sets(anchor, labels, ref, ref_labels)
    _checks.choice("positive", positive, ("hard", "easy"))
    _checks.choice("negative", negative, ("hard", "semihard", "easy", "random"))
    _checks.choice("semihard", semihard, ("chosen_positive", "hardest_positive"))
    bound = math.inf if margin is None else _checks.non_negative("margin", margin)
    exclude = diagonal(exclude_diagonal, ref is None, anchor, others)
    state = None
    if negative == "random":
        state = torch.randint(1 << 62, ()) if seed is None else torch.tensor(seed)
    beyond = semihard == "hardest_positive"
    with full_precision(anchor.device):
        positive_idx, negative_idx, d_ap, d_an, n_pos, n_neg = torch.ops.xmodal.mine_triplets(
            anchor.detach(), others.detach(), labels, ref_labels, positive, negative, beyond, bound, state, exclude
        )
        d_ap = _PairDistance.apply(anchor, others, positive_idx, d_ap)
        d_an = _PairDistance.apply(anchor, others, negative_idx, d_an)
    valid = (positive_idx >= 0) & (negative_idx >= 0)
    return MinedTriplets(positive_idx, negative_idx, d_ap, d_an, n_pos, n_neg, valid)
