"""Fused, exact operations for cross-modal learning in PyTorch, and the models DCCA and ACMR on top of them."""

from . import _C
from ._version import __version__
from .ops.trace_norm import trace_norm_loss

__all__ = ["__version__", "trace_norm_loss"]
