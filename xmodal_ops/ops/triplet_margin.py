"""The triplet margin loss: schema, implementations, autograd and the public function."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C, _checks
from ._library import define, full_precision, implement
from ._pairs import NativePairs, diagonal, gradient_fakes, poison, two_sets
from .mining import mine_triplets
from .portable import triplets as reference


class TripletStats(NamedTuple):
    """What to log of a triplet loss: scalar tensors, without gradient."""

    active: Tensor  #: int64 triplets with a loss above 0
    triplets: Tensor  #: int64 triplets of anchor, positive and negative; mined ones for "batch_hard"
    anchors: Tensor  #: int64 anchors that have both
    positive_distance: Tensor  #: mean distance to positives, of all pairs or of the mined ones
    negative_distance: Tensor  #: mean distance to negatives


def _fake(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    weight: Tensor | None,
    margin: float,
    triplets: str,
    exclude_diagonal: bool,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, ...]:
    sums = anchor.new_empty(6, anchor.shape[0], dtype=torch.float64)
    return sums, *gradient_fakes(anchor, ref, need_anchor, need_ref)


def _cpu(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    weight: Tensor | None,
    margin: float,
    triplets: str,
    exclude_diagonal: bool,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, ...]:
    native = NativePairs(anchor, ref, anchor_labels, ref_labels, exclude_diagonal, weights=True)
    weight = None if weight is None else weight.detach().double().contiguous()
    sums = torch.empty(_C.PAIR_SUMS, anchor.shape[0], dtype=torch.float64)
    grad_anchor, grad_ref = native.gradients(need_anchor, need_ref)
    loss = _C.TripletMargin(
        triplets=_C.Triplets.__members__[triplets],
        margin=margin,
        weight=0 if weight is None else weight.data_ptr(),
    )
    results = _C.PairSums(sums=sums.data_ptr(), anchor_grad=grad_anchor.data_ptr(), ref_grad=grad_ref.data_ptr())
    _C.triplet_margin(native.pairs, loss, results)
    return sums, grad_anchor, grad_ref


define(
    "triplet_margin(Tensor anchor, Tensor ref, Tensor anchor_labels, Tensor ref_labels, Tensor? weight, float margin, "
    "str triplets, bool exclude_diagonal, bool need_anchor, bool need_ref) -> (Tensor, Tensor, Tensor)",
    reference.triplet_margin,
    _fake,
)
implement("triplet_margin", _cpu, "CPU", "C++")

_REDUCTIONS = ("mean_active", "mean", "sum", "none")


class _TripletMargin(torch.autograd.Function):
    """The reduced loss: its gradient is formed in the forward sweep, and only scaled in backward."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        ref: Tensor,
        al: Tensor,
        rl: Tensor,
        margin: float,
        triplets: str,
        exclude_diagonal: bool,
        reduction: str,
    ) -> tuple[Tensor, Tensor]:
        needs = ctx.needs_input_grad[:2]
        sums, *gradients = torch.ops.xmodal.triplet_margin(
            anchor, ref, al, rl, None, margin, triplets, exclude_diagonal, *needs
        )
        active = sums[1].sum()
        number = {"mean_active": active, "mean": _number(sums), "sum": torch.ones_like(active)}[reduction]
        scale = 1 / number.clamp(min=1)
        ctx.save_for_backward(scale, *gradients)
        ctx.dtype = anchor.dtype
        ctx.mark_non_differentiable(sums)
        return (sums[0].sum() * scale).to(reference.accumulation_dtype(anchor)), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale, *gradients = ctx.saved_tensors
        scale = (scale * grad).to(gradients[0].dtype)
        results = ((g * scale).to(ctx.dtype) if need else None for g, need in zip(gradients, ctx.needs_input_grad))
        return *results, None, None, None, None, None, None


class _TripletMarginPerAnchor(torch.autograd.Function):
    """Every anchor's sum: backward sweeps once more, with the anchors' incoming gradients as weights."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        ref: Tensor,
        al: Tensor,
        rl: Tensor,
        margin: float,
        triplets: str,
        exclude_diagonal: bool,
    ) -> tuple[Tensor, Tensor]:
        ctx.options = margin, triplets, exclude_diagonal
        ctx.save_for_backward(anchor, ref, al, rl)
        sums, _, _ = torch.ops.xmodal.triplet_margin(anchor, ref, al, rl, None, *ctx.options, False, False)
        ctx.mark_non_differentiable(sums)
        return sums[0].to(reference.accumulation_dtype(anchor)), sums

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        anchor, ref, al, rl = ctx.saved_tensors
        needs = ctx.needs_input_grad[:2]
        _, *gradients = torch.ops.xmodal.triplet_margin(anchor, ref, al, rl, grad, *ctx.options, *needs)
        results = (g.to(anchor.dtype) if need else None for g, need in zip(gradients, needs))
        return *results, None, None, None, None, None


def _number(sums: Tensor) -> Tensor:
    """How many triplets there are, in double precision (exact below 2⁵³)."""
    return (sums[2] * sums[3]).sum()


def _batch_hard(
    anchor: Tensor, ref: Tensor, al: Tensor, rl: Tensor, margin: float, exclude_diagonal: bool, reduction: str
) -> tuple[Tensor, TripletStats]:
    mined = mine_triplets(anchor, al, ref, rl, exclude_diagonal=exclude_diagonal)
    terms = (margin + mined.d_ap - mined.d_an).relu().where(mined.valid, 0.0) * poison(anchor, ref)
    active, anchors = (terms > 0).sum(), mined.valid.sum()
    loss = terms if reduction == "none" else terms.sum()
    if reduction.startswith("mean"):
        loss = loss / (active if reduction == "mean_active" else anchors).clamp(min=1)
    one = anchors.clamp(min=1)
    means = (d.detach().where(mined.valid, 0.0).sum() / one for d in (mined.d_ap, mined.d_an))
    return loss, TripletStats(active, anchors, anchors, *means)


@overload
def triplet_margin_loss(
    anchor: Tensor,
    labels: Tensor,
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    triplets: str = "all",
    reduction: str = "mean_active",
    exclude_diagonal: bool | None = None,
    return_stats: Literal[False] = False,
) -> Tensor: ...
@overload
def triplet_margin_loss(
    anchor: Tensor,
    labels: Tensor,
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    triplets: str = "all",
    reduction: str = "mean_active",
    exclude_diagonal: bool | None = None,
    return_stats: Literal[True],
) -> tuple[Tensor, TripletStats]: ...
def triplet_margin_loss(
    anchor: Tensor,
    labels: Tensor,
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    triplets: str = "all",
    reduction: str = "mean_active",
    exclude_diagonal: bool | None = None,
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, TripletStats]:
    """Σ max(0, margin + d(a, p) − d(a, n)) over triplets (FaceNet, Schroff et al., CVPR 2015; Hermans et al., 2017).

    A reference is positive to an anchor that it shares any label with, otherwise negative. Pairs at distance 0
    have the subgradient 0. Batches without a triplet give 0 with zero gradients; a row that is not finite (or
    whose squared norm overflows) gives NaN.

    Args:
        anchor: (m, d) float64, float32, bfloat16 or float16.
        labels: of the anchors: int64 (m,), bool multi-hot (m, C), or packed words (see `pack_labels`).
        ref: (n, d), the other modality; None takes the anchors themselves.
        ref_labels: of the references; None takes `labels`.
        margin: how much farther than positives negatives should be.
        triplets: "all"; "hard", those with d(a, n) < d(a, p); "semihard", those with d(a, p) <= d(a, n) <
            d(a, p) + margin; or "batch_hard", per anchor the farthest positive with the nearest negative.
        reduction: "mean_active" divides by the number of triplets with a loss above 0, "mean" by that of all
            triplets (of valid anchors for "batch_hard"), "sum" by nothing; "none" gives the sum of each anchor.
        exclude_diagonal: leave out the pairs (i, i); None: only where ref is None.
        return_stats: also return TripletStats.

    Returns:
        A scalar, or (m,) for "none"; float32 for half inputs; with `return_stats` a pair.

    Time O(m n (d + log n)) and memory O((m + n) d): neither distances nor triplets are stored or visited one by
    one: per anchor the positives are sorted, and each negative finds its place among them.
    """
    anchor, others, al, rl = two_sets(anchor, labels, ref, ref_labels)
    margin = _checks.non_negative("margin", margin)
    _checks.choice("triplets", triplets, ("all", "hard", "semihard", "batch_hard"))
    _checks.choice("reduction", reduction, _REDUCTIONS)
    exclude = diagonal(exclude_diagonal, ref is None, anchor, others)
    if triplets == "batch_hard":
        loss, stats = _batch_hard(anchor, others, al, rl, margin, exclude, reduction)
        return (loss, stats) if return_stats else loss
    with full_precision(anchor.device):
        if reduction == "none":
            loss, sums = _TripletMarginPerAnchor.apply(anchor, others, al, rl, margin, triplets, exclude)
        else:
            loss, sums = _TripletMargin.apply(anchor, others, al, rl, margin, triplets, exclude, reduction)
    if not return_stats:
        return loss
    positives, negatives, positive_sum, negative_sum = sums[2:].sum(1).unbind()
    return loss, TripletStats(
        sums[1].sum().long(),
        _number(sums).long(),
        ((sums[2] > 0) & (sums[3] > 0)).sum(),
        positive_sum / positives.clamp(min=1),
        negative_sum / negatives.clamp(min=1),
    )
