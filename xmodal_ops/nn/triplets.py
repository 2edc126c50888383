"""Modules over the triplet losses."""

from __future__ import annotations

from torch import Tensor, nn

from ..ops.max_violation import max_violation_loss
from ..ops.structure_preserving import structure_preserving_loss
from ..ops.triplet_margin import triplet_margin_loss


class StructurePreservingLoss(nn.Module):
    """Module form of `xmodal_ops.structure_preserving_loss`."""

    def __init__(self, margin: float = 1.0, gamma: float = 0.05, reduction: str = "mean") -> None:
        super().__init__()
        self.margin, self.gamma, self.reduction = margin, gamma, reduction

    def extra_repr(self) -> str:
        return f"margin={self.margin}, gamma={self.gamma}, reduction={self.reduction!r}"

    def forward(self, image: Tensor, text: Tensor, image_labels: Tensor, text_labels: Tensor | None = None) -> Tensor:
        return structure_preserving_loss(
            image, text, image_labels, text_labels, margin=self.margin, gamma=self.gamma, reduction=self.reduction
        )


class TripletMarginLoss(nn.Module):
    """Module form of `xmodal_ops.triplet_margin_loss`."""

    def __init__(
        self,
        margin: float = 0.2,
        triplets: str = "all",
        reduction: str = "mean_active",
        exclude_diagonal: bool | None = None,
    ) -> None:
        super().__init__()
        self.margin, self.triplets, self.reduction = margin, triplets, reduction
        self.exclude_diagonal = exclude_diagonal

    def extra_repr(self) -> str:
        return f"margin={self.margin}, triplets={self.triplets!r}, reduction={self.reduction!r}"

    def forward(
        self, anchor: Tensor, labels: Tensor, ref: Tensor | None = None, ref_labels: Tensor | None = None
    ) -> Tensor:
        return triplet_margin_loss(
            anchor,
            labels,
            ref,
            ref_labels,
            margin=self.margin,
            triplets=self.triplets,
            reduction=self.reduction,
            exclude_diagonal=self.exclude_diagonal,
        )


class MaxViolationLoss(nn.Module):
    """Module form of `xmodal_ops.max_violation_loss`."""

    def __init__(self, margin: float = 0.2, reduction: str = "mean") -> None:
        super().__init__()
        self.margin, self.reduction = margin, reduction

    def extra_repr(self) -> str:
        return f"margin={self.margin}, reduction={self.reduction!r}"

    def forward(self, image: Tensor, text: Tensor) -> Tensor:
        return max_violation_loss(image, text, margin=self.margin, reduction=self.reduction)
