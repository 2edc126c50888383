"""Modules over the triplet losses."""

from __future__ import annotations

from torch import Tensor

from ..ops.max_violation import max_violation_loss
from ..ops.structure_preserving import structure_preserving_loss
from ..ops.triplet_margin import triplet_margin_loss
from .loss_module import LossModule


class StructurePreservingLoss(LossModule):
    """Module form of `xmodal_ops.structure_preserving_loss`."""

    function = staticmethod(structure_preserving_loss)

    def forward(
        self,
        image: Tensor,  # (m, d)
        text: Tensor,  # (n, d)
        image_labels: Tensor,  # (m,), (m, C) or (m, words)
        text_labels: Tensor | None = None,
    ) -> Tensor:
        return structure_preserving_loss(image, text, image_labels, text_labels, **self.options())


class TripletMarginLoss(LossModule):
    """Module form of `xmodal_ops.triplet_margin_loss`."""

    function = staticmethod(triplet_margin_loss)

    def forward(
        self,
        anchor: Tensor,  # (m, d)
        labels: Tensor,  # (m,), (m, C) or (m, words)
        ref: Tensor | None = None,  # (n, d)
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        return triplet_margin_loss(anchor, labels, ref, ref_labels, **self.options())


class MaxViolationLoss(LossModule):
    """Module form of `xmodal_ops.max_violation_loss`."""

    function = staticmethod(max_violation_loss)

    def forward(
        self,
        image: Tensor,  # (m, d)
        text: Tensor,  # (m, d)
        ids: Tensor | None = None,  # (m,)
    ) -> Tensor:
        return max_violation_loss(image, text, ids, **self.options())
