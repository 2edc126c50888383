"""ACMR's structure preserving loss: schema, implementations, autograd and the public function."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _C, _checks
from ._library import define, full_precision, implement
from ._pairs import NativePairs, gradient_fakes, two_sets
from .portable import triplets as reference


class StructureStats(NamedTuple):
    """What to log of a structure preserving loss: scalar tensors, without gradient."""

    active: Tensor  #: int64 pairs of different labels nearer than the margin
    positive_pairs: Tensor  #: int64
    negative_pairs: Tensor  #: int64
    positive_distance: Tensor  #: mean distance of positive pairs
    negative_distance: Tensor  #: mean distance of negative pairs


def _fake(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    margin: float,
    gamma: float,
    mean: bool,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, ...]:
    value = anchor.new_empty((), dtype=reference.accumulation_dtype(anchor))
    stats = anchor.new_empty(5, dtype=torch.float64)
    return value, stats, *gradient_fakes(anchor, ref, need_anchor, need_ref)


def _fake_weighted(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    pull: Tensor,
    push: Tensor,
    pull_ref: Tensor,
    push_ref: Tensor,
    margin: float,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, ...]:
    return _fake(anchor, ref, anchor_labels, ref_labels, margin, 0.0, False, need_anchor, need_ref)


def _cpu(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    margin: float,
    gamma: float,
    mean: bool,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, ...]:
    weights = reference.structure_weights(*reference.count_pairs(anchor_labels, ref_labels), gamma, mean)
    return _cpu_weighted(anchor, ref, anchor_labels, ref_labels, *weights, margin, need_anchor, need_ref)


def _cpu_weighted(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    pull: Tensor,
    push: Tensor,
    pull_ref: Tensor,
    push_ref: Tensor,
    margin: float,
    need_anchor: bool,
    need_ref: bool,
) -> tuple[Tensor, ...]:
    weights = tuple(w.double().contiguous() for w in (pull, push, pull_ref, push_ref))
    by_class = anchor_labels.ndim == 1
    if by_class:
        # With classes side by side, most blocks of pairs are of different classes altogether; where these are
        # farther apart than the margin, as they soon are, such a block has no gradient and is passed over.
        (anchor_labels, order), (ref_labels, ref_order) = anchor_labels.sort(stable=True), ref_labels.sort(stable=True)
        anchor, ref = anchor.detach()[order], ref.detach()[ref_order]
        weights = (weights[0][order], weights[1][order], weights[2][ref_order], weights[3][ref_order])
    native = NativePairs(anchor, ref, anchor_labels, ref_labels, False, weights=True)
    sums = torch.empty(_C.PAIR_SUMS, anchor.shape[0], dtype=torch.float64)
    grad_anchor, grad_ref = native.gradients(need_anchor, need_ref)
    loss = _C.StructurePreserving(
        anchor_pull=weights[0].data_ptr(),
        anchor_push=weights[1].data_ptr(),
        ref_pull=weights[2].data_ptr(),
        ref_push=weights[3].data_ptr(),
        margin=margin,
    )
    results = _C.PairSums(sums=sums.data_ptr(), anchor_grad=grad_anchor.data_ptr(), ref_grad=grad_ref.data_ptr())
    _C.structure_preserving(native.pairs, loss, results)
    totals = sums.sum(1)
    if by_class and need_anchor:
        grad_anchor = torch.empty_like(grad_anchor).index_copy_(0, order, grad_anchor)
    if by_class and need_ref:
        grad_ref = torch.empty_like(grad_ref).index_copy_(0, ref_order, grad_ref)
    return totals[0].to(native.dtype), totals[1:].clone(), grad_anchor, grad_ref


define(
    "structure_preserving(Tensor anchor, Tensor ref, Tensor anchor_labels, Tensor ref_labels, float margin, "
    "float gamma, bool mean, bool need_anchor, bool need_ref) -> (Tensor, Tensor, Tensor, Tensor)",
    reference.structure_preserving,
    _fake,
)
implement("structure_preserving", _cpu, "CPU", "C++")

# A part of the pairs with weights that count all of them: for xmodal_ops.distributed.
define(
    "weighted_structure_preserving(Tensor anchor, Tensor ref, Tensor anchor_labels, Tensor ref_labels, Tensor pull, "
    "Tensor push, Tensor pull_ref, Tensor push_ref, float margin, bool need_anchor, bool need_ref) "
    "-> (Tensor, Tensor, Tensor, Tensor)",
    reference.weighted_structure_preserving,
    _fake_weighted,
)
implement("weighted_structure_preserving", _cpu_weighted, "CPU", "C++")


class _StructurePreserving(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, il: Tensor, tl: Tensor, margin: float, gamma: float, mean: bool
    ) -> tuple[Tensor, Tensor]:
        need_image, need_text = ctx.needs_input_grad[:2]
        value, stats, *gradients = torch.ops.xmodal.structure_preserving(
            image, text, il, tl, margin, gamma, mean, need_image, need_text
        )
        ctx.save_for_backward(*gradients)
        ctx.dtype = image.dtype
        ctx.mark_non_differentiable(stats)
        return value, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        gradients = (
            (g * grad).to(ctx.dtype) if need else None for g, need in zip(ctx.saved_tensors, ctx.needs_input_grad)
        )
        return *gradients, None, None, None, None, None


@overload
def structure_preserving_loss(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    gamma: float = 0.05,
    reduction: str = "mean",
    return_stats: Literal[False] = False,
) -> Tensor: ...
@overload
def structure_preserving_loss(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    gamma: float = 0.05,
    reduction: str = "mean",
    return_stats: Literal[True],
) -> tuple[Tensor, StructureStats]: ...
def structure_preserving_loss(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    gamma: float = 0.05,
    reduction: str = "mean",
    return_stats: bool = False,
) -> Tensor | tuple[Tensor, StructureStats]:
    """The inter-modal invariance loss L_imi of ACMR (Wang et al., ACM MM 2017, eq. 4–6), exact over all triplets.

        L_imi,V = Σ_ijk (|v_i − t_j⁺| + γ max(0, μ − |v_i − t_k⁻|)),   L_imi = L_imi,V + L_imi,T (roles exchanged)

    A text is positive to an image that it shares any label with, otherwise negative. Pairs at distance 0 have the
    subgradient 0. Batches without a triplet give 0 with zero gradients; a row that is not finite (or whose squared
    norm overflows) gives NaN.

    Args:
        image: (m, d) float64, float32, bfloat16 or float16.
        text: (n, d).
        image_labels: int64 (m,), bool multi-hot (m, C), or packed words (see `pack_labels`).
        text_labels: the same for texts; None takes `image_labels`.
        margin: μ.
        gamma: γ, the weight of negatives.
        reduction: "mean" divides either direction by the number of its triplets; "sum" is the paper's.
        return_stats: also return StructureStats.

    Returns:
        A scalar, float32 for half inputs; with `return_stats` a pair.

    Time O(m n d) and memory O((m + n) d): the m × n distances are not stored, triplets not visited.
    """
    image, text, il, tl = two_sets(
        image, image_labels, text, text_labels, ("image", "image_labels", "text", "text_labels")
    )
    margin, gamma = _checks.non_negative("margin", margin), _checks.non_negative("gamma", gamma)
    _checks.choice("reduction", reduction, ("mean", "sum"))
    with full_precision(image.device):
        loss, stats = _StructurePreserving.apply(image, text, il, tl, margin, gamma, reduction == "mean")
    if not return_stats:
        return loss
    active, positives, negatives, positive_sum, negative_sum = stats.unbind()
    return loss, StructureStats(
        active.long(),
        positives.long(),
        negatives.long(),
        positive_sum / positives.clamp(min=1),
        negative_sum / negatives.clamp(min=1),
    )
