"""Fused, exact operations for cross-modal learning in PyTorch, and the models DCCA and ACMR on top of them."""

from importlib.util import find_spec

if find_spec("xmodal_ops._C") is None:
    raise ImportError(
        f"xmodal_ops was found in {__path__[0]}, where its native module has not been built: "
        "run `pip install -e .` there, or leave that directory to use the installed package"
    )

from . import _C
from ._build import build_info
from ._version import __version__
from .nn import gradient_reversal
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
from .scale.large_batch import large_batch_loss
from .scale.moments import MomentAccumulator

__all__ = [
    "_C",
    "Covariance",
    "MinedTriplets",
    "MomentAccumulator",
    "StructureStats",
    "TripletStats",
    "__version__",
    "build_info",
    "canonical_correlations",
    "covariance",
    "gradient_reversal",
    "large_batch_loss",
    "max_violation_loss",
    "mine_triplets",
    "pack_labels",
    "structure_preserving_loss",
    "trace_norm_loss",
    "triplet_margin_loss",
    "whiten",
]
