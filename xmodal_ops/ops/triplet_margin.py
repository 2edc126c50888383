"""The triplet margin loss: schema, implementations, autograd and the public function."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _C, _checks
from .._dtypes import accumulation_dtype, full_precision, widest_dtype
from ._library import define, implement
from .autograd import apply, differentiable_once
from .mining import mine_triplets
from .pairs import NativePairs, empty_gradients, excludes_diagonal, labelled_sets, nan_unless_finite, pair_sums
from .portable import triplet_margin as portable
from .portable.triplet_margin import TripletMargin
from .types import LabelledSets, Needs, PairSums

TRIPLETS = ("all", "hard", "semihard", "batch_hard")


class TripletStats(NamedTuple):
    """Statistics of a triplet loss, for logging: scalar tensors, without gradient."""

    active: Tensor  #: int64 triplets with a loss above 0
    triplets: Tensor  #: int64 triplets of anchor, positive and negative; mined ones for "batch_hard"
    anchors: Tensor  #: int64 anchors that have both
    positive_distance: Tensor  #: mean distance to positives, of all pairs or of the mined ones
    negative_distance: Tensor  #: mean distance to negatives


def _fake(sets: LabelledSets, weight: Tensor | None, options: TripletMargin, needs: Needs) -> tuple[Tensor, ...]:
    sums = sets.anchor.new_empty(len(PairSums._fields), sets.anchor.shape[0], dtype=widest_dtype(sets.anchor.device))
    return sums, *empty_gradients(sets.anchor, sets.ref, needs)


define("triplet_margin", portable.triplet_margin, _fake)


@implement("triplet_margin", "CPU", "C++")
def _cpu(sets: LabelledSets, weight: Tensor | None, options: TripletMargin, needs: Needs) -> tuple[Tensor, ...]:
    native = NativePairs(sets, options.exclude_diagonal, weights=True)
    weight = None if weight is None else weight.detach().double().contiguous()
    sums = torch.empty(len(PairSums._fields), sets.anchor.shape[0], dtype=torch.float64)
    gradients = native.empty_gradients(needs)
    loss = _C.TripletMargin(
        triplets=_C.Triplets.__members__[options.triplets],
        margin=options.margin,
        weight=0 if weight is None else weight.data_ptr(),
    )
    _C.triplet_margin(native.pairs, loss, pair_sums(sums, gradients))
    return sums, *gradients


class _TripletMargin(torch.autograd.Function):
    """The reduced loss and the anchors' sums: the forward sweep computes the gradients, backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,  # (m, d)
        ref: Tensor,  # (n, d)
        anchor_labels: Tensor,  # (m,) or (m, words)
        ref_labels: Tensor,  # (n,) or (n, words)
        reduction: str,
        *options: Any,  # fields of TripletMargin
    ) -> tuple[Tensor, Tensor]:
        sums, *gradients = torch.ops.xmodal.triplet_margin(
            anchor, ref, anchor_labels, ref_labels, None, *options, *ctx.needs_input_grad[:2]
        )
        of = PairSums(*sums)
        active = of.active.sum()
        number = {"mean_active": active, "mean": of.triplets(), "sum": torch.ones_like(active)}[reduction]
        scale = 1 / number.clamp(min=1)
        ctx.save_for_backward(scale, *gradients, anchor, ref)
        ctx.dtype = anchor.dtype
        ctx.mark_non_differentiable(sums)
        return (of.loss.sum() * scale).to(accumulation_dtype(anchor.dtype)), sums

    @staticmethod
    @differentiable_once("triplet_margin_loss")
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        scale, *gradients, _, _ = ctx.saved_tensors
        scale = (scale * grad).to(gradients[0].dtype)
        needs = ctx.needs_input_grad
        results = ((g * scale).to(ctx.dtype) if need else None for g, need in zip(gradients, needs))
        return *results, *(None,) * (len(needs) - 2)


class _TripletMarginPerAnchor(torch.autograd.Function):
    """The loss of every anchor, and its sums: backward sweeps again, with the incoming gradients as weights."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, ref: Tensor, anchor_labels: Tensor, ref_labels: Tensor, *options: Any
    ) -> tuple[Tensor, Tensor]:
        ctx.options = options
        ctx.save_for_backward(anchor, ref, anchor_labels, ref_labels)
        sums, _, _ = torch.ops.xmodal.triplet_margin(
            anchor, ref, anchor_labels, ref_labels, None, *options, False, False
        )
        ctx.mark_non_differentiable(sums)
        return PairSums(*sums).loss.to(accumulation_dtype(anchor.dtype)), sums

    @staticmethod
    @differentiable_once("triplet_margin_loss")
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        _, *gradients = torch.ops.xmodal.triplet_margin(*ctx.saved_tensors, grad, *ctx.options, *needs[:2])
        dtype = ctx.saved_tensors[0].dtype
        results = (g.to(dtype) if need else None for g, need in zip(gradients, needs))
        return *results, *(None,) * (len(needs) - 2)


def _batch_hard(
    sets: LabelledSets, margin: float, exclude_diagonal: bool, reduction: str
) -> tuple[Tensor, TripletStats]:
    anchor, ref, anchor_labels, ref_labels = sets
    mined = mine_triplets(anchor, anchor_labels, ref, ref_labels, exclude_diagonal=exclude_diagonal)
    terms = (margin + mined.d_ap - mined.d_an).relu().where(mined.valid, 0.0) * nan_unless_finite(anchor, ref)
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
    """The sum of max(0, margin + d(a, p) − d(a, n)) over all triplets of a kind, exact.

    A reference is positive to an anchor that it shares any label with, otherwise negative. Pairs at distance 0 have the
    subgradient 0. Batches without a triplet give 0 with zero gradients; a row that is not finite (or whose squared norm
    overflows) gives NaN.

    Args:
        anchor: (m, d) float64, float32, bfloat16 or float16.
        labels: labels of the anchors: integers (m,), multi-hot bool or 0/1 (m, C), or packed words (see `pack_labels`).
        ref: (n, d), the other modality; by default the anchors themselves. The wider dtype of both counts.
        ref_labels: labels of the references; by default `labels`.
        margin: how much farther than positives negatives should be.
        triplets: "all"; "hard", those with d(a, n) < d(a, p); "semihard", those with d(a, p) <= d(a, n) <
            d(a, p) + margin; or "batch_hard", per anchor the farthest positive with the nearest negative.
        reduction: "mean_active" divides by the number of triplets with a loss above 0, "mean" by that of all triplets
            (of valid anchors for "batch_hard"), "sum" by nothing; "none" returns the sum of each anchor.
        exclude_diagonal: leaves out the pairs (i, i); by default only if `ref` is None.
        return_stats: also returns TripletStats.

    Returns:
        A scalar, or (m,) for "none"; float32 for half inputs. With `return_stats`, a pair of it and TripletStats.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Time O(m n (d + log n)), memory O((m + n) d): neither distances nor triplets are stored or visited one by one. Per
    anchor the positives are sorted, and a search finds the rank of each negative among them.
    Schroff et al., "FaceNet", CVPR 2015; Hermans et al., "In Defense of the Triplet Loss", 2017.
    """
    sets = labelled_sets(anchor, labels, ref, ref_labels)
    margin = _checks.non_negative("margin", margin)
    _checks.choice("triplets", triplets, TRIPLETS)
    _checks.choice("reduction", reduction, ("mean_active", "mean", "sum", "none"))
    exclude = excludes_diagonal(exclude_diagonal, ref is None, sets)
    if triplets == "batch_hard":
        loss, stats = _batch_hard(sets, margin, exclude, reduction)
        return (loss, stats) if return_stats else loss
    options = TripletMargin(margin, triplets, exclude)
    with full_precision(anchor.device):
        if reduction == "none":
            loss, sums = apply(_TripletMarginPerAnchor, *sets, *options)
        else:
            loss, sums = apply(_TripletMargin, *sets, reduction, *options)
    if not return_stats:
        return loss
    of = PairSums(*sums)
    return loss, TripletStats(
        of.active.sum().long(),
        of.triplets().long(),
        ((of.positives > 0) & (of.negatives > 0)).sum(),
        *of.total().mean_distances(),
    )
