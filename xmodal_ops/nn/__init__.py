"""Modules over the ops."""

from .gradient_reversal import GradientReversal, gradient_reversal, reversal_schedule
from .trace_norm import TraceNormLoss

__all__ = ["GradientReversal", "TraceNormLoss", "gradient_reversal", "reversal_schedule"]
