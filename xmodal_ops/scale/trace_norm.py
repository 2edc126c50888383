"""The trace norm loss of the rows of all processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from .. import nn
from ..ops.autograd import apply, differentiable_once
from . import collective
from .streamed_trace_norm import GlobalTraceNorm


class _GlobalTraceNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, norm: GlobalTraceNorm) -> Tensor:
        ctx.norm = norm
        ctx.save_for_backward(x, y)
        return norm.finish_agreed()

    @staticmethod
    @differentiable_once("trace_norm_loss")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        gx, gy = ctx.norm.gradients(x, y)
        return (gx * grad).to(x.dtype), (gy * grad).to(y.dtype), None


def trace_norm_loss(
    x: Tensor,
    y: Tensor,
    *,
    ridge: float | Sequence[float] = 1e-3,
    top_k: int | None = None,
    group: dist.ProcessGroup | None = None,
    averaged: bool = True,
) -> Tensor:
    """`xmodal_ops.trace_norm_loss` of the rows of all processes.

    Args:
        x, y: (m, dx), (m, dy) this process's rows, m >= 1; m may differ from rank to rank.
        ridge, top_k: as in `xmodal_ops.trace_norm_loss`, the same on every rank.
        group: the processes that share the batch; all by default.
        averaged: True if gradients will be averaged over the group, as DistributedDataParallel does; False if summed.

    Returns:
        The scalar loss of the concatenated batch, the same on every rank; differentiable once.

    Raises:
        ValueError, TypeError: on every rank, if arguments are unsuitable on one or differ between ranks.
        RuntimeError: another process died or did not answer within the timeout of the group, or there is no group.

    Moments and adjoints are fp64. Gradients of rows are computed in the input's precision, or in fp64 if the
    covariances are too ill conditioned for it, as they are for m <= d. O(m d² / world + d³) time; O(dx² + dy²)
    communication for any m, none of it in `backward`.
    """
    norms = []

    def header() -> dict[str, object]:
        norms.append(GlobalTraceNorm(ridge, top_k, group, averaged))
        norms[0].update(x, y)
        return norms[0].header()

    collective.agree(header, group)
    loss: Tensor = apply(_GlobalTraceNorm, x, y, norms[0])
    return loss


class TraceNormLoss(nn.TraceNormLoss):
    """`trace_norm_loss` as a module. With `large_batch_loss`, every process may process its rows in chunks."""

    function = staticmethod(trace_norm_loss)

    def stream(self) -> GlobalTraceNorm:
        """The loss in two passes over chunks."""
        return GlobalTraceNorm(self.ridge, self.top_k, self.group, self.averaged)
