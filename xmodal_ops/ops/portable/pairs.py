"""Pairs of labelled rows in plain torch: who is positive to whom, and distances, a chunk of anchors at a time.

A reference is positive to an anchor that it shares a label with, otherwise negative. Rows that are not finite, and the
diagonal if asked, are neither. Labels are (m,) integers, equal or not, or (m, words) bit sets.

    |a − r|² = |a|² + |r|² − 2 a·r                        in fp64, of rows shifted to their common mean
    ∂/∂a_i Σ_ij f(d_ij) = Σ_j w_ij (a_i − r_j)            w = f'(d) / d, and 0 if d = 0
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype, widest_dtype
from ..types import LabelledSets, Needs

_CHUNK = 1 << 22  # pairs in memory at a time


def positives(
    anchor_labels: Tensor,  # (m,) or (m, words)
    ref_labels: Tensor,  # (n,) or (n, words)
) -> Tensor:
    """Whether anchor i and reference j share a label: (m, n) bool."""
    if anchor_labels.ndim == 1:
        return anchor_labels[:, None] == ref_labels
    shared = torch.zeros(anchor_labels.shape[0], ref_labels.shape[0], dtype=torch.bool, device=ref_labels.device)
    for left, right in zip(anchor_labels.unbind(1), ref_labels.unbind(1)):
        shared |= (left[:, None] & right) != 0
    return shared


def relations(anchor_labels: Tensor, ref_labels: Tensor, exclude_diagonal: bool) -> tuple[Tensor, Tensor]:
    """The (m, n) masks of positives and negatives."""
    same = positives(anchor_labels, ref_labels)
    other = ~same
    if exclude_diagonal:
        same.fill_diagonal_(False)
        other.fill_diagonal_(False)
    return same, other


def count_positives(anchor_labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """The number of positives of each anchor (m,), and of each reference (n,)."""
    if anchor_labels.ndim == 1:

        def matches(these: Tensor, those: Tensor) -> Tensor:
            order, these = those.sort().values, these.contiguous()
            return torch.searchsorted(order, these, right=True) - torch.searchsorted(order, these)

        return matches(anchor_labels, ref_labels), matches(ref_labels, anchor_labels)
    of_anchors, of_refs = [], torch.zeros(ref_labels.shape[0], dtype=torch.int64, device=ref_labels.device)
    for part in anchor_labels.split(max(1, _CHUNK // ref_labels.shape[0])):
        same = positives(part, ref_labels)
        of_anchors.append(same.sum(1))
        of_refs += same.sum(0)
    return torch.cat(of_anchors), of_refs


class PairSweep:
    """Two sets of rows in fp64, shifted to their common mean, and their pairs in chunks of anchors."""

    def __init__(self, sets: LabelledSets, exclude_diagonal: bool) -> None:
        self.labels, self.exclude_diagonal = (sets.anchor_labels, sets.ref_labels), exclude_diagonal
        wide = widest_dtype(sets.anchor.device)
        anchor, ref = sets.anchor.to(wide), sets.ref.to(wide)
        self.anchor_finite = anchor.square().sum(1).isfinite()
        self.ref_finite = ref.square().sum(1).isfinite()
        anchor = anchor.where(self.anchor_finite[:, None], 0.0)
        ref = ref.where(self.ref_finite[:, None], 0.0)
        # A shift by whole numbers keeps integers exact.
        shift = ((anchor.sum(0) + ref.sum(0)) / (anchor.shape[0] + ref.shape[0])).round()
        self.anchor, self.ref = anchor - shift, ref - shift
        self.ref_norms = self.ref.square().sum(1)

    def finite(self) -> Tensor:
        """Whether all rows are: a bool scalar."""
        return self.anchor_finite.all() & self.ref_finite.all()

    def chunks(self) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
        """Slices of anchors, their squared distances to all references, and the masks of positives and negatives."""
        anchor_labels, ref_labels = self.labels
        m, n = self.anchor.shape[0], self.ref.shape[0]
        step = max(1, _CHUNK // n)
        for start in range(0, m, step):
            rows = slice(start, min(start + step, m))
            a = self.anchor[rows]
            norms = a.square().sum(1, keepdim=True) + self.ref_norms
            square = norms - 2 * (a @ self.ref.mT)
            # Rounding leaves equal rows at about this distance instead of 0.
            square = square.where(square > 64 * torch.finfo(a.dtype).eps * norms, 0.0)
            same = positives(anchor_labels[rows], ref_labels)
            counts = self.anchor_finite[rows, None] & self.ref_finite
            if self.exclude_diagonal:
                counts.diagonal(start)[: rows.stop - start] = False
            yield rows, square, same & counts, ~same & counts


class PairGradients:
    """Accumulates the gradients Σ w (x − y) of weighted pairs, for the sets that need one."""

    def __init__(self, sweep: PairSweep, needs: Needs) -> None:
        self.sweep = sweep
        self.anchor = torch.zeros_like(sweep.anchor) if needs.anchor else None
        self.ref = torch.zeros_like(sweep.ref) if needs.ref else None

    def add(
        self,
        rows: slice,  # k anchors
        d: Tensor,  # (k, n) distances
        slope: Tensor,  # (k, n) derivatives of the loss by them
    ) -> None:
        weight = (slope / d).where(d > 0, 0.0)
        a, r = self.sweep.anchor[rows], self.sweep.ref
        if self.anchor is not None:
            self.anchor[rows] = weight.sum(1, keepdim=True) * a - weight @ r
        if self.ref is not None:
            self.ref += weight.sum(0)[:, None] * r - weight.mT @ a

    def results(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """In the accumulation dtype; empty if not needed, all NaN if a row is not finite."""
        dtype, finite = accumulation_dtype(like.dtype), self.sweep.finite()

        def result(gradient: Tensor | None) -> Tensor:
            empty = like.new_empty(0, dtype=dtype)
            return empty if gradient is None else gradient.where(finite, torch.nan).to(dtype)

        return result(self.anchor), result(self.ref)
