"""Batches larger than memory, than a device or than a process.

`moments` accumulates the moments of rows that arrive in chunks, `streamed_trace_norm` builds the trace norm loss on
them, and `large_batch` applies any loss to a batch whose activations do not fit, in two passes over chunks.
`trace_norm` and `triplets` are the losses over the rows of all processes, public as `xmodal_ops.distributed`. Every
exchange between processes goes through `collective`: agreement on arguments first, plain errors when a process is gone.
"""

from .collective import answering
from .large_batch import large_batch_loss
from .moments import MomentAccumulator
from .trace_norm import TraceNormLoss, trace_norm_loss
from .triplets import structure_preserving_loss, triplet_margin_loss

__all__ = [
    "MomentAccumulator",
    "TraceNormLoss",
    "answering",
    "large_batch_loss",
    "structure_preserving_loss",
    "trace_norm_loss",
    "triplet_margin_loss",
]
