"""Losses over the triplets of all processes: references go round in blocks, their gradients come back by a reduction.

Anchors stay where they are; the rows of one process after the other are broadcast as references. So a process holds
its own rows and one block of others, O(m d / world), where the loss is a sum over pairs (`structure_preserving_loss`)
or over the farthest and nearest (`triplets="batch_hard"`). The margin loss over all triplets ranks every reference of
an anchor, and gathers the references, O(m d).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _checks
from ..ops._library import full_precision
from ..ops._pairs import poison, two_sets
from ..ops.portable.triplets import accumulation_dtype, count_pairs, structure_weights
from . import collective


class _Job:
    """The rows of all processes: how many there are of each, and how to pass them round."""

    def __init__(self, sizes: Sequence[int], group: dist.ProcessGroup | None) -> None:
        self.sizes, self.group = sizes, group
        self.rank, self.world = dist.get_rank(group), len(sizes)
        self.start = sum(sizes[: self.rank])

    def _global(self, rank: int) -> int:
        return rank if self.group is None else dist.get_global_rank(self.group, rank)

    def blocks(self, own: Tensor) -> Iterator[Tensor]:
        """The rows of rank 0, 1, …; the next ones are on their way while these are in use."""

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
        """On the given rank the sum of what all ranks hold, None on the others."""
        rows = rows.contiguous()
        with collective.answering():
            dist.reduce(rows, self._global(rank), group=self.group)
        return rows if rank == self.rank else None

    def total(self, *numbers: Tensor) -> Tensor:
        """Sums of scalars over all ranks, in double precision."""
        sums = torch.stack([n.double() for n in numbers])
        with collective.answering():
            dist.all_reduce(sums, group=self.group)
        return sums


def _agree(
    sets: tuple[Any, Any, Any, Any],
    names: tuple[str, str, str, str],
    options: dict[str, Any],
    choices: Mapping[str, tuple[str, ...]],
    group: dist.ProcessGroup | None,
) -> tuple[tuple[Tensor, Tensor, Tensor, Tensor], _Job, _Job, bool]:
    """Checked rows and labels of either set, the jobs of anchors and references, and whether gradients are wanted."""
    checked = []

    def describe() -> dict[str, Any]:
        anchor, ref, labels, ref_labels = two_sets(*sets, names)
        checked.append((anchor, ref, labels, ref_labels))
        for name, value in options.items():
            if name in choices:
                _checks.choice(name, value, choices[name])
            elif name in ("margin", "gamma"):
                _checks.non_negative(name, value)
        return {
            "function": "structure_preserving_loss" if "gamma" in options else "triplet_margin_loss",
            "columns": anchor.shape[1],
            "dtype": str(anchor.dtype)[6:],
            "kind of labels": f"{str(labels.dtype)[6:]} {list(labels.shape[1:])}",
            "requires_grad": torch.is_grad_enabled() and (anchor.requires_grad or ref.requires_grad),
            "rows": (len(anchor), len(ref)),
            **options,
        }

    headers = collective.agree(describe, group)
    anchors, refs = zip(*(header["rows"] for header in headers))
    return checked[0], _Job(anchors, group), _Job(refs, group), headers[0]["requires_grad"]


class _Loss(torch.autograd.Function):
    """A value whose gradients were formed with it."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, ref: Tensor, value: Tensor, grad_anchor: Tensor, grad_ref: Tensor) -> Tensor:
        ctx.save_for_backward(grad_anchor, grad_ref)
        ctx.dtype = anchor.dtype
        return value.clone()

    @staticmethod
    @once_differentiable
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
    """`xmodal_ops.structure_preserving_loss` of the images and texts of all processes.

    Args:
        image, text, image_labels, text_labels: this process's rows, at least one of either.
        margin, gamma, reduction: as there, the same on every rank.
        group: the processes that share the batch; all by default.
        averaged: gradients will be averaged over the group, as DistributedDataParallel does. False: summed.

    Returns:
        The scalar loss of all rows, the same on every rank; differentiable once.

    Raises:
        ValueError, TypeError: on every rank, where arguments do not fit on one or differ between ranks.
        RuntimeError: another process died or did not answer within the group's timeout; or there is no group.

    For m images and texts in all: time O(m² d / world), memory O(m d / world + m labels), communication O(m d).
    """
    options = {"margin": margin, "gamma": gamma, "reduction": reduction}
    names = ("image", "image_labels", "text", "text_labels")
    choices = {"reduction": ("mean", "sum")}
    sets = image, image_labels, text, text_labels
    (image, text, il, tl), images, texts, need = _agree(sets, names, options, choices, group)
    with torch.no_grad(), full_precision(image.device):
        # Counts of partners among all rows, and with them the weights of every row, from labels alone.
        all_tl = texts.gather(tl)
        of_images = images.gather(count_pairs(il, all_tl)[0])
        of_texts = texts.gather(count_pairs(images.gather(il), tl)[1])
        weights = structure_weights(of_images, of_texts, gamma, reduction == "mean")
        mine = slice(images.start, images.start + len(image))
        value = torch.zeros((), dtype=torch.float64, device=image.device)
        wide = accumulation_dtype(image)
        grad_image, grad_text = torch.zeros_like(image, dtype=wide), torch.zeros_like(text, dtype=wide)
        start = 0
        for rank, block in enumerate(texts.blocks(text)):
            rows = slice(start, start + len(block))
            start += len(block)
            part, _, grad, grad_block = torch.ops.xmodal.weighted_structure_preserving(
                *(image, block, il, all_tl[rows]),
                *(w[mine] for w in weights[:2]),
                *(w[rows] for w in weights[2:]),
                *(margin, need, need),
            )
            value += part
            if need:
                grad_image += grad
                reduced = texts.reduce_to(rank, grad_block)
                grad_text = grad_text if reduced is None else reduced
        value = images.total(value)[0].to(wide)
        factor = images.world if averaged else 1
    loss: Tensor = _Loss.apply(image, text, value, grad_image * factor, grad_text * factor)
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
    """`xmodal_ops.triplet_margin_loss` of the anchors and references of all processes.

    Args:
        anchor, labels, ref, ref_labels: this process's rows, at least one of either set.
        margin, triplets: as there, the same on every rank.
        reduction: "mean_active", "mean" or "sum", over the triplets of all processes.
        group: the processes that share the batch; all by default.
        averaged: gradients will be averaged over the group, as DistributedDataParallel does. False: summed.

    Returns:
        The scalar loss of all rows, the same on every rank; differentiable once.

    Raises:
        ValueError, TypeError: on every rank, where arguments do not fit on one or differ between ranks.
        RuntimeError: another process died or did not answer within the group's timeout; or there is no group.

    For m anchors and references in all: time O(m² (d + log m) / world), communication O(m d), and memory O(m d / world)
    for "batch_hard", O(m d) for the others.
    """
    options = {"margin": margin, "triplets": triplets, "reduction": reduction, "references": ref is not None}
    names = ("anchor", "labels", "ref", "ref_labels")
    choices = {
        "triplets": ("all", "hard", "semihard", "batch_hard"),
        "reduction": ("mean_active", "mean", "sum"),
    }
    own = ref is None
    sets = anchor, labels, ref, ref_labels
    (anchor, others, al, rl), anchors, refs, need = _agree(sets, names, options, choices, group)
    with torch.no_grad(), full_precision(anchor.device):
        if triplets == "batch_hard":
            total, active, number, grad_anchor, grad_ref = _batch_hard(anchor, others, al, rl, margin, own, need, refs)
        else:
            total, active, number, grad_anchor, grad_ref = _margin(
                anchor, others, al, rl, margin, triplets, own, need, refs
            )
        total, active, number = anchors.total(total, active, number).unbind()
        count = {"mean_active": active, "mean": number, "sum": torch.ones_like(active)}[reduction].clamp(min=1)
        scale = (anchors.world if averaged else 1) / count
        value = (total / count).to(accumulation_dtype(anchor))
        # NaN in any process's rows: no gradient means anything.
        scale = (scale + 0 * total).to(value.dtype)
    loss: Tensor = _Loss.apply(anchor, others, value, grad_anchor * scale, grad_ref * scale)
    return loss


def _margin(
    anchor: Tensor, ref: Tensor, al: Tensor, rl: Tensor, margin: float, kind: str, own: bool, need: bool, refs: _Job
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Of this process's anchors: loss, active triplets, triplets; gradients of the anchors and of its references."""
    # The process's own references first, so that the diagonal is where the op looks for it.
    order = [*range(refs.rank, refs.world), *range(refs.rank)]

    def gathered(rows: Tensor) -> Tensor:
        blocks = list(refs.blocks(rows))
        return torch.cat([blocks[rank] for rank in order])

    every, labels = gathered(ref), gathered(rl)
    sums, grad_anchor, grad_every = torch.ops.xmodal.triplet_margin(
        anchor, every, al, labels, None, margin, kind, own, need, need
    )
    del every
    grad_ref = torch.zeros_like(ref, dtype=accumulation_dtype(ref))
    if need:
        blocks = dict(zip(order, grad_every.split([refs.sizes[rank] for rank in order])))
        for rank in range(refs.world):
            reduced = refs.reduce_to(rank, blocks[rank])
            grad_ref = grad_ref if reduced is None else reduced
    else:
        grad_anchor = torch.zeros_like(anchor, dtype=accumulation_dtype(anchor))
    return sums[0].sum(), sums[1].sum(), (sums[2] * sums[3]).sum(), grad_anchor, grad_ref


def _batch_hard(
    anchor: Tensor, ref: Tensor, al: Tensor, rl: Tensor, margin: float, own: bool, need: bool, refs: _Job
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same with each anchor's farthest positive and nearest negative, sought block by block."""
    wide, m = accumulation_dtype(anchor), len(anchor)
    best = {
        sign: (anchor.new_full((m,), -torch.inf, dtype=wide), al.new_full((m,), -1), al.new_full((m,), -1))
        for sign in (1, -1)  # of positives the distance, of negatives minus the distance is to be large
    }
    for rank, (block, labels) in enumerate(zip(refs.blocks(ref), refs.gather(rl).split(list(refs.sizes)))):
        found = torch.ops.xmodal.mine_triplets(
            anchor, block, al, labels, "hard", "hard", False, torch.inf, None, own and rank == refs.rank
        )
        for sign, index, distance in ((1, found[0], found[2]), (-1, found[1], found[3])):
            score, ranks, places = best[sign]
            better = (index >= 0) & (sign * distance > score)
            best[sign] = (
                (sign * distance).where(better, score),
                torch.where(better, rank, ranks),
                index.where(better, places),
            )
    (d_ap, *_), (minus_d_an, *_) = best[1], best[-1]
    valid = d_ap.isfinite() & minus_d_an.isfinite()
    terms = (margin + d_ap + minus_d_an).relu().where(valid, 0.0)
    total = terms.double().sum() * poison(anchor, ref)
    grad_anchor, grad_ref = torch.zeros_like(anchor, dtype=wide), torch.zeros_like(ref, dtype=wide)
    if need:
        for rank, block in enumerate(refs.blocks(ref)):
            grad_block = torch.zeros_like(block, dtype=wide)
            for score, ranks, places in best.values():
                (rows,) = ((ranks == rank) & (terms > 0) & (score != 0)).nonzero(as_tuple=True)
                # ± ∂d/∂a = ± (a − r) / d, and ± d is the score
                slope = (anchor[rows].to(wide) - block[places[rows]].to(wide)) * (1 / score[rows])[:, None]
                grad_anchor.index_add_(0, rows, slope)
                grad_block.index_put_((places[rows],), -slope, accumulate=True)
            reduced = refs.reduce_to(rank, grad_block)
            grad_ref = grad_ref if reduced is None else reduced
    return total, (terms > 0).sum(), valid.sum(), grad_anchor, grad_ref
