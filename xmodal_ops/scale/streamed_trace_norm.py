"""The trace norm of rows that arrive in chunks and are not kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _checks
from .._dtypes import accumulation_dtype, full_precision, widest, widest_dtype
from ..ops.portable.trace_norm import FP32_TOLERANCE, adjoints, cholesky, condition
from . import collective
from .moments import MomentAccumulator


class StreamedTraceNorm:
    """`trace_norm_loss` in two passes: `update` with every chunk, `finish`, then `gradients` of every chunk.

    The loss depends on the rows through their moments alone, so its gradient with respect to a row needs, besides that
    row, only the d×d adjoints of the moments:

        ∂/∂X = (2 Xc Gxx + Yc Gxyᵀ) / (m − 1)      ∂/∂Y = (2 Yc Gyy + Xc Gxy) / (m − 1)

    O(d²) memory and, across processes, O(d²) communication, for any number of rows m.
    """

    def __init__(self, ridge: float | Sequence[float], top_k: int | None) -> None:
        self.ridge, self.top_k = _checks.ridges(ridge), top_k
        self.moments = MomentAccumulator(torch.float64)  # rounding in fp32 could not be undone without the rows

    def update(
        self,
        x: Tensor,  # (m, dx)
        y: Tensor,  # (m, dy)
    ) -> None:
        """First pass: adds the rows of a chunk."""
        self.moments.update(x, y)
        self.device = x.device

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The loss of all rows; fp32 for half inputs."""
        moments = self.moments
        s = moments.covariance(self.ridge)
        assert s.xy is not None and s.yy is not None and s.mean_y is not None and moments.input_dtype is not None
        dx, dy = s.xy.shape
        k = _checks.leading(self.top_k, dx, dy)
        with full_precision(s.xy.device):
            a = adjoints(s, s.xy.new_ones(k))
            # With ill-conditioned covariances, the two terms of a gradient all but cancel, as they do for m <= d: the
            # products are then done in fp64 too, by the same rule as in trace_norm_loss.
            primal = moments.count > max(dx, dy)
            worst = max(condition(cholesky(v)) for v in (s.xx, s.yy)) if primal else float("inf")
        single = torch.finfo(torch.float32).eps * worst < FP32_TOLERANCE
        self.means = s.mean_x, s.mean_y
        self.dtype = (
            accumulation_dtype(moments.input_dtype) if single else widest_dtype(s.xy.device)
        )  # of the gradients' products
        scale = -1 / (moments.count - 1)
        factors = 2 * scale, scale, 2 * scale
        self.xx, self.xy, self.yy = ((g * f).to(self.dtype) for g, f in zip((a.xx, a.xy, a.yy), factors))
        return -a.sigma[:k].sum().to(accumulation_dtype(moments.input_dtype)).to(self.device)

    @torch.no_grad()
    def gradients(
        self,
        x: Tensor,  # (m, dx)
        y: Tensor,  # (m, dy)
    ) -> tuple[Tensor, Tensor]:
        """Second pass: the gradients of the loss with respect to the rows of a chunk; fp32 for half inputs."""
        with full_precision(x.device):
            xc, yc = (self._centred(v, mean) for v, mean in zip((x, y), self.means))
            xx, xy, yy = (g.to(xc.device) for g in (self.xx, self.xy, self.yy))
            gx = torch.addmm(xc @ xx, yc, xy.mT)
            gy = torch.addmm(yc @ yy, xc, xy)
        gx, gy = (g.to(accumulation_dtype(v.dtype)).to(v.device) for g, v in ((gx, x), (gy, y)))
        return gx, gy

    def _centred(self, x: Tensor, mean: Tensor) -> Tensor:
        # Subtracted in two parts: an fp32 copy of the mean alone would round a large mean.
        x = widest(x) if self.dtype == torch.float64 else x.to(self.dtype)
        coarse = mean.to(self.dtype)
        rest = (mean - coarse).to(self.dtype)
        return (x - coarse.to(x.device)).sub_(rest.to(x.device))


class GlobalTraceNorm(StreamedTraceNorm):
    """The same over the rows of all processes of a group; gradients are those of this process's rows.

    With `averaged`, gradients are multiplied by the number of processes, because DistributedDataParallel divides by it.
    """

    def __init__(
        self, ridge: float | Sequence[float], top_k: int | None, group: dist.ProcessGroup | None, averaged: bool
    ) -> None:
        super().__init__(ridge, top_k)
        self.group = group
        self.factor = float(collective.size(group)) if averaged else 1.0

    def header(self) -> dict[str, object]:
        """What all processes must agree on."""
        header = self.moments.header()
        _checks.leading(self.top_k, *self.moments.xy.shape)
        return {**header, "function": "trace_norm_loss", "ridge": self.ridge, "top_k": self.top_k}

    def finish(self) -> Tensor:
        collective.agree(self.header, self.group)
        return self.finish_agreed()

    def finish_agreed(self) -> Tensor:
        """`finish` without the exchange of headers, for callers that have done it."""
        self.moments.reduce(self.group)
        value = super().finish()
        self.xx, self.xy, self.yy = (g * self.factor for g in (self.xx, self.xy, self.yy))
        return value
