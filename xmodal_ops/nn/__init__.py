"""The losses and gradient reversal as modules. `nn.metric_learning` has those for pytorch-metric-learning."""

from .gradient_reversal import GradientReversal, gradient_reversal, reversal_schedule
from .trace_norm import TraceNormLoss
from .triplets import MaxViolationLoss, StructurePreservingLoss, TripletMarginLoss

__all__ = [
    "GradientReversal",
    "MaxViolationLoss",
    "StructurePreservingLoss",
    "TraceNormLoss",
    "TripletMarginLoss",
    "gradient_reversal",
    "reversal_schedule",
]
