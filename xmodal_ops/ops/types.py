"""Types that the ops share with their implementations on every device."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Covariance(NamedTuple):
    """Second moments and column means of one view or two; the fields of y are None without y."""

    xx: Tensor  #: (dx, dx)
    xy: Tensor | None  #: (dx, dy)
    yy: Tensor | None  #: (dy, dy)
    mean_x: Tensor  #: (dx,)
    mean_y: Tensor | None  #: (dy,)


class LabelledSets(NamedTuple):
    """Anchors and references with their labels, which are integers or bit sets. Every pair (i, j) of them counts."""

    anchor: Tensor  # (m, d)
    ref: Tensor  # (n, d)
    anchor_labels: Tensor  # (m,) or (m, words) int64
    ref_labels: Tensor  # (n,) or (n, words) int64


class PairWeights(NamedTuple):
    """Weights of pairs, each the sum of one from its anchor and one from its reference: w_ij = pull_i + pull_ref_j."""

    pull: Tensor  # (m,) of positive pairs
    push: Tensor  # (m,) of negative pairs
    pull_ref: Tensor  # (n,)
    push_ref: Tensor  # (n,)


class Needs(NamedTuple):
    """Which gradients an op computes; it returns an empty tensor for the others."""

    anchor: bool
    ref: bool


class PairSums(NamedTuple):
    """The sums that a sweep over all pairs returns in float64: one per anchor, or one in all."""

    loss: Tensor
    active: Tensor  # triplets, or pairs, with a loss above 0
    positives: Tensor
    negatives: Tensor
    positive_distance: Tensor
    negative_distance: Tensor

    def triplets(self) -> Tensor:
        """The number of triplets of all anchors, in float64 (exact below 2⁵³)."""
        return (self.positives * self.negatives).sum()

    def total(self) -> PairSums:
        """The sums of all anchors."""
        return PairSums(*(row.sum() for row in self))

    def mean_distances(self) -> tuple[Tensor, Tensor]:
        """Mean distance of positive and of negative pairs, given the sums of all anchors."""
        return (
            self.positive_distance / self.positives.clamp(min=1),
            self.negative_distance / self.negatives.clamp(min=1),
        )
