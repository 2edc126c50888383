"""ACMR's structure preserving loss: schema, implementations, autograd and the public function."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor

from .. import _C, _checks
from .._dtypes import accumulation_dtype, full_precision, widest_dtype
from ._library import define, implement
from .autograd import apply, differentiable_once
from .pairs import NativePairs, empty_gradients, labelled_sets, pair_sums
from .portable import structure_preserving as portable
from .portable.structure_preserving import StructurePreserving, label_weights
from .types import LabelledSets, Needs, PairSums, PairWeights


class StructureStats(NamedTuple):
    """Statistics of a structure preserving loss, for logging: scalar tensors, without gradient."""

    active: Tensor  #: int64 pairs of different labels nearer than the margin
    positive_pairs: Tensor  #: int64
    negative_pairs: Tensor  #: int64
    positive_distance: Tensor  #: mean distance of positive pairs
    negative_distance: Tensor  #: mean distance of negative pairs


def _fake(sets: LabelledSets, options: StructurePreserving, needs: Needs) -> tuple[Tensor, ...]:
    value = sets.anchor.new_empty((), dtype=accumulation_dtype(sets.anchor.dtype))
    stats = sets.anchor.new_empty(len(StructureStats._fields), dtype=widest_dtype(sets.anchor.device))
    return value, stats, *empty_gradients(sets.anchor, sets.ref, needs)


def _weighted_fake(sets: LabelledSets, weights: PairWeights, margin: float, needs: Needs) -> tuple[Tensor, ...]:
    return _fake(sets, StructurePreserving(margin, 0.0, "sum"), needs)


# With weights, a part of the pairs can be weighted by counts over all of them: for xmodal_ops.distributed.
define("structure_preserving", portable.structure_preserving, _fake)
define("weighted_structure_preserving", portable.weighted_structure_preserving, _weighted_fake)


@implement("structure_preserving", "CPU", "C++")
def _cpu(sets: LabelledSets, options: StructurePreserving, needs: Needs) -> tuple[Tensor, ...]:
    return _weighted_cpu(sets, label_weights(sets, options), options.margin, needs)


@implement("weighted_structure_preserving", "CPU", "C++")
def _weighted_cpu(sets: LabelledSets, weights: PairWeights, margin: float, needs: Needs) -> tuple[Tensor, ...]:
    weights = PairWeights(*(w.double().contiguous() for w in weights))
    order = ref_order = None
    if sets.anchor_labels.ndim == 1:
        # Sorted by class, most blocks of pairs have no class in common. Once these are farther apart than the margin,
        # as they soon are, such a block has no gradient and is skipped.
        (anchor_labels, order), (ref_labels, ref_order) = (t.sort(stable=True) for t in sets[2:])
        sets = LabelledSets(sets.anchor.detach()[order], sets.ref.detach()[ref_order], anchor_labels, ref_labels)
        weights = PairWeights(
            weights.pull[order], weights.push[order], weights.pull_ref[ref_order], weights.push_ref[ref_order]
        )
    native = NativePairs(sets, False, weights=True)
    sums = torch.empty(len(PairSums._fields), sets.anchor.shape[0], dtype=torch.float64)
    gradients = native.empty_gradients(needs)
    loss = _C.StructurePreserving(
        anchor_pull=weights.pull.data_ptr(),
        anchor_push=weights.push.data_ptr(),
        ref_pull=weights.pull_ref.data_ptr(),
        ref_push=weights.push_ref.data_ptr(),
        margin=margin,
    )
    _C.structure_preserving(native.pairs, loss, pair_sums(sums, gradients))
    totals = sums.sum(1)
    restored = (
        torch.empty_like(g).index_copy_(0, rows, g) if need and rows is not None else g
        for g, need, rows in zip(gradients, needs, (order, ref_order))
    )
    return totals[0].to(native.dtype), totals[1:].clone(), *restored


class _StructurePreserving(torch.autograd.Function):
    """The loss and its statistics: the forward sweep computes the gradients, backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,  # (m, d)
        text: Tensor,  # (n, d)
        image_labels: Tensor,  # (m,) or (m, words)
        text_labels: Tensor,  # (n,) or (n, words)
        *options: Any,  # fields of StructurePreserving
    ) -> tuple[Tensor, Tensor]:
        value, stats, *gradients = torch.ops.xmodal.structure_preserving(
            image, text, image_labels, text_labels, *options, *ctx.needs_input_grad[:2]
        )
        ctx.save_for_backward(*gradients, image, text)
        ctx.dtype = image.dtype
        ctx.mark_non_differentiable(stats)
        return value, stats

    @staticmethod
    @differentiable_once("structure_preserving_loss")
    def backward(ctx: Any, grad: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad
        gradients = ((g * grad).to(ctx.dtype) if need else None for g, need in zip(ctx.saved_tensors, needs))
        return *gradients, *(None,) * (len(needs) - 2)


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
    """The inter-modal invariance loss L_imi of ACMR, exact over all triplets.

        L_imi,V = Σ_ijk (|v_i − t_j⁺| + γ max(0, μ − |v_i − t_k⁻|)),   L_imi = L_imi,V + L_imi,T (roles exchanged)

    A text is positive to an image that it shares any label with, otherwise negative. Pairs at distance 0 have the
    subgradient 0. Batches without a triplet give 0 with zero gradients; a row that is not finite (or whose squared norm
    overflows) gives NaN.

    Args:
        image: (m, d) float64, float32, bfloat16 or float16.
        text: (n, d); the wider dtype of both counts.
        image_labels: integers (m,), multi-hot bool or 0/1 (m, C), or packed words (see `pack_labels`).
        text_labels: labels of the texts, in the same form; by default `image_labels`.
        margin: μ.
        gamma: γ, the weight of negatives.
        reduction: "mean" divides each direction by the number of its triplets; "sum" is the paper's.
        return_stats: also returns StructureStats.

    Returns:
        A scalar, float32 for half inputs. With `return_stats`, a pair of it and StructureStats.

    Raises:
        ValueError, TypeError: an argument is invalid; the message names it.

    Time O(m n d), memory O((m + n) d): neither distances nor triplets are stored.
    Wang et al., "Adversarial Cross-Modal Retrieval", ACM MM 2017, eq. 4–6.
    """
    names = ("image", "image_labels", "text", "text_labels")
    sets = labelled_sets(image, image_labels, text, text_labels, names)
    margin, gamma = _checks.non_negative("margin", margin), _checks.non_negative("gamma", gamma)
    _checks.choice("reduction", reduction, ("mean", "sum"))
    options = StructurePreserving(margin, gamma, reduction)
    with full_precision(image.device):
        loss, stats = apply(_StructurePreserving, *sets, *options)
    if not return_stats:
        return loss
    of = PairSums(loss, *stats)
    counts = of.active.long(), of.positives.long(), of.negatives.long()
    return loss, StructureStats(*counts, *of.mean_distances())
