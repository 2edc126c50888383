"""Fused, exact operations for cross-modal learning in PyTorch, and the models DCCA and ACMR on top of them."""

from ._build import build_info
from ._version import __version__
from .ops import Covariance, canonical_correlations, covariance, trace_norm_loss, whiten

__all__ = [
    "Covariance",
    "__version__",
    "build_info",
    "canonical_correlations",
    "covariance",
    "trace_norm_loss",
    "whiten",
]
