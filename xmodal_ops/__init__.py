"""Fused, exact operations for cross-modal learning in PyTorch, and the models DCCA and ACMR on top of them."""

from ._build import build_info
from ._version import __version__
from .ops import (
    Covariance,
    MinedTriplets,
    StructureStats,
    TripletStats,
    canonical_correlations,
    covariance,
    max_violation_loss,
    mine_triplets,
    pack_labels,
    structure_preserving_loss,
    trace_norm_loss,
    triplet_margin_loss,
    whiten,
)

__all__ = [
    "Covariance",
    "MinedTriplets",
    "StructureStats",
    "TripletStats",
    "__version__",
    "build_info",
    "canonical_correlations",
    "covariance",
    "max_violation_loss",
    "mine_triplets",
    "pack_labels",
    "structure_preserving_loss",
    "trace_norm_loss",
    "triplet_margin_loss",
    "whiten",
]
