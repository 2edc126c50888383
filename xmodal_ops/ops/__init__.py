"""One file per op: schema, fake, CPU implementation, autograd and public function.

`portable/` has the same ops in plain torch, `cuda/` those of the kernels.
"""

from .. import _C
from .canonical_correlations import canonical_correlations
from .covariance import covariance
from .max_violation import max_violation_loss
from .mining import MinedTriplets, mine_triplets
from .pairs import pack_labels
from .structure_preserving import StructureStats, structure_preserving_loss
from .trace_norm import trace_norm_loss
from .triplet_margin import TripletStats, triplet_margin_loss
from .types import Covariance
from .whiten import whiten

__all__ = [
    "Covariance",
    "MinedTriplets",
    "StructureStats",
    "TripletStats",
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

if _C.with_cuda:
    from . import cuda  # noqa: F401  registers the kernels
