"""Losses over the batch of a whole job: every process holds some of its rows, and all processes get the same loss.

Each function takes this process's rows and returns the loss of the rows of all processes, equal on every rank. The
gradient is that of this process's rows, times the number of processes, because DistributedDataParallel averages: the
parameters thus get the gradient that one process with the concatenated batch would compute. Processes may hold
different numbers of rows, at least one each.

All processes of the group must call the same function at the same time. They first exchange a small header, so that
unsuitable arguments on any rank raise ValueError or TypeError on every rank. If a process dies, gloo raises
RuntimeError on the others at once; if one hangs, after the timeout of the group. NCCL's watchdog ends them after the
timeout.
"""

from .scale.collective import answering
from .scale.trace_norm import TraceNormLoss, trace_norm_loss
from .scale.triplets import structure_preserving_loss, triplet_margin_loss

__all__ = ["TraceNormLoss", "answering", "structure_preserving_loss", "trace_norm_loss", "triplet_margin_loss"]
