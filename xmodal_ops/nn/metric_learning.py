"""The miner and the losses as classes of pytorch-metric-learning, which this module needs.

    from xmodal_ops.nn.metric_learning import TripletMiner, TripletMarginLoss

As in that package, embeddings are normalised by default, and pairs (i, i) are left out if the references are the
anchors or have the same tensor of labels. The arguments that the classes inherit from it act as they do there; one that
a class cannot honour is refused.
"""

from __future__ import annotations

from typing import Any

from pytorch_metric_learning import losses
from pytorch_metric_learning.distances import BaseDistance, CosineSimilarity, LpDistance
from pytorch_metric_learning.losses import BaseMetricLossFunction
from pytorch_metric_learning.miners import BaseMiner
from pytorch_metric_learning.reducers import AvgNonZeroReducer, BaseReducer, MeanReducer, MultipleReducers, SumReducer
from torch import Tensor

from .. import _checks
from ..ops.mining import mine_triplets
from ..ops.structure_preserving import structure_preserving_loss
from ..ops.triplet_margin import TRIPLETS, triplet_margin_loss

_REDUCTIONS = {AvgNonZeroReducer: "mean_active", MeanReducer: "mean", SumReducer: "sum"}


def _arguments(
    normalize_embeddings: bool | None, reduction: str | None = None, *choices: str, **kwargs: Any
) -> dict[str, Any]:
    """Inherited arguments, with the distance and the reducer that our own names for them stand for."""
    if normalize_embeddings is not None:
        if kwargs.get("distance") is not None:
            raise ValueError("normalize_embeddings must be None if distance is given, which states it")
        kwargs["distance"] = LpDistance(normalize_embeddings=normalize_embeddings)
    if reduction is not None:
        if kwargs.get("reducer") is not None:
            raise ValueError("reduction must be None if reducer is given, which states it")
        _checks.choice("reduction", reduction, choices)
        kwargs["reducer"] = {name: kind for kind, name in _REDUCTIONS.items()}[reduction]()
    return kwargs


def _described(distance: BaseDistance) -> str:
    return f"{type(distance).__name__}(p={distance.p}, power={distance.power})"


def _euclidean(distance: BaseDistance) -> bool:
    return type(distance) is LpDistance and distance.p == 2 and distance.power == 1


def _reducer(loss: BaseMetricLossFunction) -> BaseReducer:
    return loss.reducer.reducers["loss"] if isinstance(loss.reducer, MultipleReducers) else loss.reducer


def _prepared(distance: BaseDistance, embeddings: Tensor, ref_emb: Tensor) -> tuple[Tensor, Tensor]:
    """What the distance does before it compares rows: normalisation and statistics."""
    distance.reset_stats()
    prepared = distance.maybe_normalize(embeddings), distance.maybe_normalize(ref_emb)
    distance.set_default_stats(embeddings, ref_emb, *prepared)
    return prepared


def _reduced(loss: Tensor) -> dict[str, Any]:
    return {"loss": {"losses": loss, "indices": None, "reduction_type": "already_reduced"}}


def _no_indices(indices_tuple: Any) -> None:
    if indices_tuple is not None:
        raise ValueError("indices_tuple must be None: this loss chooses its triplets itself, got a tuple")


class TripletMiner(BaseMiner):  # type: ignore[misc]
    """Replaces BatchHardMiner and BatchEasyHardMiner; options are those of `xmodal_ops.mine_triplets`.

    `distance` may be LpDistance(p=2) or CosineSimilarity.
    """

    def __init__(
        self,
        positive: str = "hard",
        negative: str = "hard",
        semihard: str = "chosen_positive",
        margin: float | None = None,
        normalize_embeddings: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**_arguments(normalize_embeddings, **kwargs))
        self.options = {"positive": positive, "negative": negative, "semihard": semihard, "margin": margin}
        d = self.distance
        # Other powers, and cosines of unit vectors, give the same order but another scale.
        power = type(d) is LpDistance and d.p == 2 and d.power > 0
        cosine = type(d) is CosineSimilarity and d.power == 1
        if not (_euclidean(d) or (margin is None and (power or cosine))):
            need = "LpDistance(p=2)" + (" or CosineSimilarity()" if margin is None else " if margin is given")
            raise ValueError(f"distance must be {need}, got {_described(d)}")

    def mine(
        self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        same = ref_labels is labels
        rows, refs = _prepared(self.distance, embeddings, ref_emb)
        mined = mine_triplets(rows, labels, refs, ref_labels, exclude_diagonal=same, **self.options)  # type: ignore[arg-type]
        return mined.indices_tuple()


class TripletMarginLoss(losses.TripletMarginLoss):  # type: ignore[misc]
    """Replaces a miner with TripletMarginLoss; options are those of `xmodal_ops.triplet_margin_loss`.

    Distances other than the Euclidean one, reducers other than AvgNonZeroReducer ("mean_active"), MeanReducer ("mean")
    and SumReducer ("sum"), `swap`, `smooth_loss` and `triplets_per_anchor` run the code of pytorch-metric-learning,
    which lists all triplets; they need triplets="all".
    """

    def __init__(
        self,
        margin: float = 0.05,
        triplets: str = "all",
        reduction: str | None = None,
        normalize_embeddings: bool | None = None,
        **kwargs: Any,
    ) -> None:
        arguments = _arguments(normalize_embeddings, reduction, *_REDUCTIONS.values(), **kwargs)
        super().__init__(margin=margin, **arguments)
        _checks.choice("triplets", triplets, TRIPLETS)
        self.triplets = triplets
        if triplets != "all" and not self._served():
            raise ValueError(f'triplets must be "all" with this distance, reducer or option, got {triplets!r}')

    def _served(self) -> bool:
        plain = not (self.swap or self.smooth_loss) and self.triplets_per_anchor == "all"
        return plain and _euclidean(self.distance) and type(_reducer(self)) in _REDUCTIONS

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        _no_indices(indices_tuple)
        if not self._served():
            result: dict[str, Any] = super().compute_loss(embeddings, labels, None, ref_emb, ref_labels)
            return result
        anchor, ref = _prepared(self.distance, embeddings, ref_emb)
        loss = triplet_margin_loss(
            anchor,
            labels,
            ref,
            ref_labels,
            margin=self.margin,
            triplets=self.triplets,
            reduction=_REDUCTIONS[type(_reducer(self))],
            exclude_diagonal=ref_labels is labels,
        )
        return _reduced(loss)


class StructurePreservingLoss(BaseMetricLossFunction):  # type: ignore[misc]
    """`xmodal_ops.structure_preserving_loss`, ACMR's, between embeddings (images) and ref_emb (texts).

    `distance` may be LpDistance(p=2), `reducer` MeanReducer ("mean") or SumReducer ("sum").
    """

    def __init__(
        self,
        margin: float = 1.0,
        gamma: float = 0.05,
        reduction: str | None = None,
        normalize_embeddings: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**_arguments(normalize_embeddings, reduction, "mean", "sum", **kwargs))
        self.margin, self.gamma = margin, gamma
        if not _euclidean(self.distance):
            raise ValueError(f"distance must be LpDistance(p=2), got {_described(self.distance)}")
        if type(_reducer(self)) not in (MeanReducer, SumReducer):
            raise ValueError(f"reducer must be MeanReducer() or SumReducer(), got {type(_reducer(self)).__name__}()")

    def compute_loss(
        self, embeddings: Tensor, labels: Tensor, indices_tuple: Any, ref_emb: Tensor, ref_labels: Tensor
    ) -> dict[str, Any]:
        _no_indices(indices_tuple)
        image, text = _prepared(self.distance, embeddings, ref_emb)
        reduction = _REDUCTIONS[type(_reducer(self))]
        loss = structure_preserving_loss(
            image, text, labels, ref_labels, margin=self.margin, gamma=self.gamma, reduction=reduction
        )
        return _reduced(loss)
