"""The miner and the losses as classes of pytorch-metric-learning, which this module needs.

    from xmodal_ops.nn.metric_learning import TripletMiner, TripletMarginLoss

As in that package, embeddings are normalised by default, and pairs (i, i) are left out if the references are the
anchors or have the same tensor of labels.
"""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from torch import Tensor
from torch.nn.functional import normalize

from ..ops.mining import mine_triplets
from ..ops.structure_preserving import structure_preserving_loss
from ..ops.triplet_margin import triplet_margin_loss


class TripletMiner(BaseMiner):  # type: ignore[misc]
    """Replaces BatchHardMiner and BatchEasyHardMiner; options are those of `xmodal_ops.mine_triplets`."""

    def __init__(
        self,
        positive: str = "hard",
        negative: str = "hard",
        semihard: str = "hardest_positive",
        margin: float | None = None,
        normalize_embeddings: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.options = {"positive": positive, "negative": negative, "semihard": semihard, "margin": margin}
        self.normalize_embeddings = normalize_embeddings

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.normalize_embeddings:
            embeddings, ref_emb = normalize(embeddings), normalize(ref_emb)
        same = ref_labels is labels
        mined = mine_triplets(embeddings, labels, ref_emb, ref_labels, exclude_diagonal=same, **self.options)  # type: ignore[arg-type]
        return mined.indices_tuple()


class _Loss(BaseMetricLossFunction):  # type: ignore[misc]
    """A loss that chooses its triplets and reduces over them itself."""

    def __init__(self, normalize_embeddings: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.normalize_embeddings = normalize_embeddings

    def value(self, anchor: Tensor, labels: Tensor, ref: Tensor, ref_labels: Tensor) -> Tensor:
        raise NotImplementedError

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        if indices_tuple is not None:
            raise ValueError("indices_tuple must be None: this loss chooses its triplets itself, got a tuple")
        if self.normalize_embeddings:
            embeddings, ref_emb = normalize(embeddings), normalize(ref_emb)
        loss = self.value(embeddings, labels, ref_emb, ref_labels)
        return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


class TripletMarginLoss(_Loss):
    """Replaces a miner with TripletMarginLoss; options are those of `xmodal_ops.triplet_margin_loss`."""

    def __init__(
        self, margin: float = 0.05, triplets: str = "all", reduction: str = "mean_active", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.margin, self.triplets, self.reduction = margin, triplets, reduction

    def value(self, anchor: Tensor, labels: Tensor, ref: Tensor, ref_labels: Tensor) -> Tensor:
        return triplet_margin_loss(
            anchor,
            labels,
            ref,
            ref_labels,
            margin=self.margin,
            triplets=self.triplets,
            reduction=self.reduction,
            exclude_diagonal=ref_labels is labels,
        )


class StructurePreservingLoss(_Loss):
    """`xmodal_ops.structure_preserving_loss`, ACMR's, between embeddings (images) and ref_emb (texts)."""

    def __init__(self, margin: float = 1.0, gamma: float = 0.05, reduction: str = "mean", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.margin, self.gamma, self.reduction = margin, gamma, reduction

    def value(self, anchor: Tensor, labels: Tensor, ref: Tensor, ref_labels: Tensor) -> Tensor:
        return structure_preserving_loss(
            anchor, ref, labels, ref_labels, margin=self.margin, gamma=self.gamma, reduction=self.reduction
        )
