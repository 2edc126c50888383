"""Losses over the triplets of all processes.

Anchors stay on their process. The processes broadcast their references in turn, and a reduction returns the gradients
of each such block to its owner. A loss that is a sum over pairs (`structure_preserving_loss`), or over the farthest and
the nearest (`triplets="batch_hard"`), thus needs memory for its own rows and one block, O(m d / world). The margin loss
over all triplets ranks all references of an anchor, and gathers them, O(m d).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _checks
from .._dtypes import accumulation_dtype, dtype_name, full_precision, widest_dtype
from ..ops.autograd import apply, differentiable_once
from ..ops.pairs import labelled_sets, nan_unless_finite
from ..ops.portable.mining import TripletMining
from ..ops.portable.pairs import count_positives
from ..ops.portable.structure_preserving import StructurePreserving, pair_weights
from ..ops.portable.triplet_margin import TripletMargin
from ..ops.triplet_margin import TRIPLETS
from ..ops.types import LabelledSets, PairSums, PairWeights
from . import collective


class _DistributedRows:
    """A set of rows that is distributed over the processes, in blocks of `sizes` rows."""

    def __init__(self, sizes: Sequence[int], group: dist.ProcessGroup | None) -> None:
        self.sizes, self.group = sizes, group
        self.rank, self.world = dist.get_rank(group), len(sizes)
        self.start = sum(sizes[: self.rank])

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def blocks(self, own: Tensor) -> Iterator[Tensor]:
        """The rows of rank 0, 1, …; while a block is in use, the next one is being sent."""

        def send(rank: int) -> tuple[Tensor, Any]:
            rows = own.detach().contiguous() if rank == self.rank else own.new_empty(self.sizes[rank], *own.shape[1:])
            return rows, dist.broadcast(rows, self._global(rank), group=self.group, async_op=True)

        with collective.answering():
            following = send(0)
            for rank in range(self.world):
                rows, arrival = following
                if rank + 1 < self.world:
                    following = send(rank + 1)
                arrival.wait()
                yield rows

    def gather(self, own: Tensor) -> Tensor:
        """The rows of all ranks."""
        return torch.cat(list(self.blocks(own)))

    def reduce_to(self, rank: int, rows: Tensor) -> Tensor | None:
        """The sum of the rows of all ranks on the given rank, None on the others."""
        rows = rows.contiguous()
        with collective.answering():
            dist.reduce(rows, self._global(rank), group=self.group)
        return rows if rank == self.rank else None

    def total(self, *numbers: Tensor) -> Tensor:
        """Sums of scalars over all ranks, in the widest dtype of the device."""
        sums = torch.stack([n.to(widest_dtype(n.device)) for n in numbers])
        with collective.answering():
            dist.all_reduce(sums, group=self.group)
        return sums


class _Batch(NamedTuple):
    """This process's rows, and how those of all processes are distributed."""

    sets: LabelledSets
    anchors: _DistributedRows
    refs: _DistributedRows
    need_gradients: bool


def _agree(
    function: str,
    sets: tuple[Tensor, Tensor, Tensor | None, Tensor | None],  # anchor, labels, ref, ref_labels
    names: tuple[str, str, str, str],
    options: dict[str, Any],
    choices: dict[str, tuple[str, ...]],
    group: dist.ProcessGroup | None,
) -> _Batch:
    """Checks the arguments, and that those which must be equal are so on all processes."""
    checked = []

    def describe() -> dict[str, Any]:
        own = labelled_sets(*sets, names)
        checked.append(own)
        for name, value in options.items():
            if name in choices:
                _checks.choice(name, value, choices[name])
            elif name in ("margin", "gamma"):
                _checks.non_negative(name, value)
        labels = own.anchor_labels
        return {
            "function": function,
            "columns": own.anchor.shape[1],
            "dtype": dtype_name(own.anchor.dtype),
            "kind of labels": f"{dtype_name(labels.dtype)} {list(labels.shape[1:])}",
            "requires_grad": torch.is_grad_enabled() and (own.anchor.requires_grad or own.ref.requires_grad),
            "rows": (len(own.anchor), len(own.ref)),
            **options,
        }

    headers = collective.agree(describe, group)
    anchors, refs = zip(*(header["rows"] for header in headers))
    rows = _DistributedRows(anchors, group), _DistributedRows(refs, group)
    return _Batch(checked[0], *rows, headers[0]["requires_grad"])


class _Loss(torch.autograd.Function):
    """A value whose gradients were computed with it."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,  # (m, d)
        ref: Tensor,  # (n, d)
        value: Tensor,  # scalar
        grad_anchor: Tensor,  # (m, d) in the accumulation dtype
        grad_ref: Tensor,  # (n, d)
    ) -> Tensor:
        ctx.save_for_backward(grad_anchor, grad_ref, anchor, ref)
        ctx.dtype = anchor.dtype
        return value.clone()

    @staticmethod
    @differentiable_once("the loss of all processes")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        needs = ctx.needs_input_grad[:2]
        gradients = ((g * grad).to(ctx.dtype) if need else None for g, need in zip(ctx.saved_tensors, needs))
        return *gradients, None, None, None


def structure_preserving_loss(
    image: Tensor,
    text: Tensor,
    image_labels: Tensor,
    text_labels: Tensor | None = None,
    *,
    margin: float = 1.0,
    gamma: float = 0.05,
    reduction: str = "mean",
    group: dist.ProcessGroup | None = None,
    averaged: bool = True,
) -> Tensor:
    """`xmodal_ops.structure_preserving_loss` over the images and texts of all processes.

    Args:
        image, text, image_labels, text_labels: the rows of this process, at least one image and one text.
        margin, gamma, reduction: as in the op, the same on every rank.
        group: the processes that share the batch; all by default.
        averaged: whether gradients will be averaged over the group, as by DistributedDataParallel, or summed.

    Returns:
        The scalar loss of all rows, the same on every rank; differentiable once.

    Raises:
        ValueError, TypeError: an argument is invalid on one rank, or differs between ranks; raised on every rank.
        RuntimeError: a process died or did not answer within the group's timeout, or there is no group.

    For m images and texts in total: time O(m² d / world), memory O(m d / world + m labels), communication O(m d).
    """
    batch = _agree(
        "structure_preserving_loss",
        (image, image_labels, text, text_labels),
        ("image", "image_labels", "text", "text_labels"),
        {"margin": margin, "gamma": gamma, "reduction": reduction},
        {"reduction": ("mean", "sum")},
        group,
    )
    sets, images, texts, need = batch
    image, text = sets.anchor, sets.ref
    with torch.no_grad(), full_precision(image.device):
        # The labels of all rows give the numbers of positives, and these the weights of every row.
        all_text_labels = texts.gather(sets.ref_labels)
        of_images = images.gather(count_positives(sets.anchor_labels, all_text_labels)[0])
        of_texts = texts.gather(count_positives(images.gather(sets.anchor_labels), sets.ref_labels)[1])
        weights = pair_weights(of_images, of_texts, StructurePreserving(margin, gamma, reduction))
        own = slice(images.start, images.start + len(image))
        value = torch.zeros((), dtype=widest_dtype(image.device), device=image.device)
        wide = accumulation_dtype(image.dtype)
        grad_image, grad_text = torch.zeros_like(image, dtype=wide), torch.zeros_like(text, dtype=wide)
        start = 0
        for rank, block in enumerate(texts.blocks(text)):
            rows = slice(start, start + len(block))
            start += len(block)
            pairs = LabelledSets(image, block, sets.anchor_labels, all_text_labels[rows])
            of_pairs = PairWeights(weights.pull[own], weights.push[own], weights.pull_ref[rows], weights.push_ref[rows])
            part, _, grad, grad_block = torch.ops.xmodal.weighted_structure_preserving(
                *pairs, *of_pairs, margin, need, need
            )
            value += part
            if need:
                grad_image += grad
                reduced = texts.reduce_to(rank, grad_block)
                grad_text = grad_text if reduced is None else reduced
        value = images.total(value)[0].to(wide)
        factor = images.world if averaged else 1
    loss: Tensor = apply(_Loss, image, text, value, grad_image * factor, grad_text * factor)
    return loss


def triplet_margin_loss(
    anchor: Tensor,
    labels: Tensor,
    ref: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    margin: float = 0.2,
    triplets: str = "all",
    reduction: str = "mean_active",
    group: dist.ProcessGroup | None = None,
    averaged: bool = True,
) -> Tensor:
    """`xmodal_ops.triplet_margin_loss` over the anchors and references of all processes.

    Args:
        anchor, labels, ref, ref_labels: the rows of this process, at least one of either set.
        margin, triplets: as in the op, the same on every rank.
        reduction: "mean_active", "mean" or "sum", over the triplets of all processes.
        group: the processes that share the batch; all by default.
        averaged: whether gradients will be averaged over the group, as by DistributedDataParallel, or summed.

    Returns:
        The scalar loss of all rows, the same on every rank; differentiable once.

    Raises:
        ValueError, TypeError: an argument is invalid on one rank, or differs between ranks; raised on every rank.
        RuntimeError: a process died or did not answer within the group's timeout, or there is no group.

    For m anchors and references in total: time O(m² (d + log m) / world), communication O(m d). Memory O(m d / world)
    for "batch_hard", O(m d) for the others.
    """
    batch = _agree(
        "triplet_margin_loss",
        (anchor, labels, ref, ref_labels),
        ("anchor", "labels", "ref", "ref_labels"),
        {"margin": margin, "triplets": triplets, "reduction": reduction, "references": ref is not None},
        {"triplets": TRIPLETS, "reduction": ("mean_active", "mean", "sum")},
        group,
    )
    sets, anchors, _, _ = batch
    options = TripletMargin(margin, triplets, exclude_diagonal=ref is None)
    with torch.no_grad(), full_precision(anchor.device):
        own = (_batch_hard if triplets == "batch_hard" else _all_triplets)(batch, options)
        total, active, number = anchors.total(own.loss, own.active, own.triplets).unbind()
        count = {"mean_active": active, "mean": number, "sum": torch.ones_like(active)}[reduction].clamp(min=1)
        scale = (anchors.world if averaged else 1) / count
        value = (total / count).to(accumulation_dtype(sets.anchor.dtype))
        # If any process has a row that is not finite, every gradient is NaN.
        scale = (scale + 0 * total).to(value.dtype)
    loss: Tensor = apply(_Loss, sets.anchor, sets.ref, value, own.grad_anchor * scale, own.grad_ref * scale)
    return loss


class _OwnTriplets(NamedTuple):
    """The triplets of this process's anchors: scalar sums, the gradient of its anchors, and of its references."""

    loss: Tensor
    active: Tensor
    triplets: Tensor
    grad_anchor: Tensor  # (m, d)
    grad_ref: Tensor  # (n, d), from the triplets of all processes


def _all_triplets(batch: _Batch, options: TripletMargin) -> _OwnTriplets:
    """Gathers the references of all processes: the op ranks them per anchor."""
    sets, _, refs, need = batch
    # The process's own references first, so that its pairs (i, i) lie on the diagonal.
    order = [*range(refs.rank, refs.world), *range(refs.rank)]

    def gathered(rows: Tensor) -> Tensor:
        blocks = list(refs.blocks(rows))
        return torch.cat([blocks[rank] for rank in order])

    every = LabelledSets(sets.anchor, gathered(sets.ref), sets.anchor_labels, gathered(sets.ref_labels))
    sums, grad_anchor, grad_every = torch.ops.xmodal.triplet_margin(*every, None, *options, need, need)
    del every
    grad_ref = torch.zeros_like(sets.ref, dtype=accumulation_dtype(sets.ref.dtype))
    if need:
        blocks = dict(zip(order, grad_every.split([refs.sizes[rank] for rank in order])))
        for rank in range(refs.world):
            reduced = refs.reduce_to(rank, blocks[rank])
            grad_ref = grad_ref if reduced is None else reduced
    else:
        grad_anchor = torch.zeros_like(sets.anchor, dtype=accumulation_dtype(sets.anchor.dtype))
    of = PairSums(*sums)
    return _OwnTriplets(of.loss.sum(), of.active.sum(), of.triplets(), grad_anchor, grad_ref)


class _Hardest:
    """Each anchor's hardest reference so far: the farthest positive (sign 1) or the nearest negative (sign −1)."""

    def __init__(self, sets: LabelledSets, sign: int) -> None:
        m, dtype = len(sets.anchor), accumulation_dtype(sets.anchor.dtype)
        self.sign = sign
        self.score = sets.anchor.new_full((m,), -torch.inf, dtype=dtype)  # sign × distance: the largest wins
        self.rank = sets.anchor_labels.new_full((m,), -1)  # of the process that owns the reference
        self.index = sets.anchor_labels.new_full((m,), -1)  # of its row there

    def update(
        self,
        rank: int,
        index: Tensor,  # (m,), −1 if there is none
        distance: Tensor,  # (m,)
    ) -> None:
        score = self.sign * distance
        better = (index >= 0) & (score > self.score)
        self.score = score.where(better, self.score)
        self.rank = torch.where(better, rank, self.rank)
        self.index = index.where(better, self.index)


def _batch_hard(batch: _Batch, options: TripletMargin) -> _OwnTriplets:
    """Updates each anchor's farthest positive and nearest negative block by block; a second round gives gradients."""
    sets, _, refs, need = batch
    anchor, ref = sets.anchor, sets.ref
    wide = accumulation_dtype(anchor.dtype)
    positive, negative = _Hardest(sets, 1), _Hardest(sets, -1)
    blocks_of_labels = refs.gather(sets.ref_labels).split(list(refs.sizes))
    for rank, (block, labels) in enumerate(zip(refs.blocks(ref), blocks_of_labels)):
        pairs = LabelledSets(anchor, block, sets.anchor_labels, labels)
        rule = TripletMining(
            "hard", "hard", "chosen_positive", torch.inf, options.exclude_diagonal and rank == refs.rank
        )
        positive_idx, negative_idx, d_ap, d_an, _, _ = torch.ops.xmodal.mine_triplets(*pairs, *rule, None)
        positive.update(rank, positive_idx, d_ap)
        negative.update(rank, negative_idx, d_an)
    valid = positive.score.isfinite() & negative.score.isfinite()
    terms = (options.margin + positive.score + negative.score).relu().where(valid, 0.0)
    total = terms.to(widest_dtype(anchor.device)).sum() * nan_unless_finite(anchor, ref)
    grad_anchor, grad_ref = torch.zeros_like(anchor, dtype=wide), torch.zeros_like(ref, dtype=wide)
    if need:
        for rank, block in enumerate(refs.blocks(ref)):
            grad_block = torch.zeros_like(block, dtype=wide)
            for hardest in (positive, negative):
                active = (hardest.rank == rank) & (terms > 0) & (hardest.score != 0)
                (rows,) = active.nonzero(as_tuple=True)
                index, score = hardest.index[rows], hardest.score[rows]
                # sign × ∂d/∂a = sign × (a − r) / d = (a − r) / score, as sign is ±1
                slope = (anchor[rows].to(wide) - block[index].to(wide)) * (1 / score)[:, None]
                grad_anchor.index_add_(0, rows, slope)
                grad_block.index_put_((index,), -slope, accumulate=True)
            reduced = refs.reduce_to(rank, grad_block)
            grad_ref = grad_ref if reduced is None else reduced
    return _OwnTriplets(total, (terms > 0).sum(), valid.sum(), grad_anchor, grad_ref)
