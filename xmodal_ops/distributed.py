"""Losses over the batch of the whole job: every process holds some of its rows, all get the same loss.

Each function takes this process's rows and returns the loss of the rows of all processes, equal on every rank. The
gradient is that of this process's rows, times the number of processes, because DistributedDataParallel averages: so
the parameters get what one process with the concatenated batch would give them. Processes may hold different numbers
of rows, at least one each.

All processes of the group must call the same function at the same time. They first exchange a small header, so that
arguments that do not fit, on whichever rank, are a ValueError or TypeError on every rank. Where a process dies, gloo
gives the others a RuntimeError at once, and where one hangs, after the timeout of the group; NCCL's watchdog ends them
after the timeout.
"""

from .scale.collective import answering
from .scale.trace_norm import TraceNormLoss, trace_norm_loss
from .scale.triplets import structure_preserving_loss, triplet_margin_loss

__all__ = ["TraceNormLoss", "answering", "structure_preserving_loss", "trace_norm_loss", "triplet_margin_loss"]
