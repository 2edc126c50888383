"""The trace norm of rows that come in chunks and are not kept."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .. import _checks
from .._dtypes import accumulation_dtype, full_precision
from ..ops.portable.trace_norm import FP32_TOLERANCE, adjoints
from . import collective
from .moments import MomentAccumulator


class StreamedTraceNorm:
    """`trace_norm_loss` in two passes: `update` with every chunk, `finish`, then `gradients` of every chunk.

    The loss sees rows through their moments alone, so its gradient by any row needs, besides that row, the d×d
    adjoints of the moments:

        ∂/∂X = (2 Xc Gxx + Yc Gxyᵀ) / (m − 1)      ∂/∂Y = (2 Yc Gyy + Xc Gxy) / (m − 1)

    O(d²) memory and, across processes, O(d²) communication, whatever the number of rows m.
    """

    def __init__(self, ridge: float | Sequence[float], top_k: int | None) -> None:
        self.ridge, self.top_k = _checks.ridges(ridge), top_k
        self.moments = MomentAccumulator(torch.float64)  # no second look at the rows could mend rounding in fp32

    def update(self, x: Tensor, y: Tensor) -> None:
        """First pass: adds the rows of x (m, dx) and y (m, dy)."""
        self.moments.update(x, y)

    @torch.no_grad()
    def finish(self) -> Tensor:
        """The loss of all rows, fp32 for half inputs."""
        moments = self.moments
        s = moments.covariance(self.ridge)
        assert s.xy is not None and s.yy is not None and s.mean_y is not None and moments.input_dtype is not None
        dx, dy = s.xy.shape
        k = _checks.leading(self.top_k, dx, dy)
        with full_precision(s.xy.device):
            a = adjoints(s, s.xy.new_ones(k))
            # Where the covariances are ill conditioned, the two terms of a gradient all but cancel, as they do for
            # m <= d: the products are then done in fp64 too, by the rule that trace_norm_loss has.
            condition = max(_condition(s.xx), _condition(s.yy)) if moments.count > max(dx, dy) else float("inf")
        precise = not torch.finfo(torch.float32).eps * condition < FP32_TOLERANCE
        self.input_dtype = moments.input_dtype
        self.wide = torch.float64 if precise else accumulation_dtype(self.input_dtype)
        scale = -1 / (moments.count - 1)
        self.xx, self.xy, self.yy = (
            (g * f).to(self.wide) for g, f in ((a.xx, 2 * scale), (a.xy, scale), (a.yy, 2 * scale))
        )
        self.means = s.mean_x, s.mean_y
        return -a.sigma[:k].sum().to(accumulation_dtype(self.input_dtype))

    @torch.no_grad()
    def gradients(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Second pass: the derivatives of the loss by the rows of a chunk, fp32 for half inputs."""
        with full_precision(x.device):
            xc, yc = (self._centred(v, mean) for v, mean in zip((x, y), self.means))
            gx = torch.addmm(xc @ self.xx, yc, self.xy.mT)
            gy = torch.addmm(yc @ self.yy, xc, self.xy)
        narrow = accumulation_dtype(x.dtype)
        return gx.to(narrow), gy.to(narrow)

    def _centred(self, x: Tensor, mean: Tensor) -> Tensor:
        coarse = mean.to(self.wide)
        return (x.to(self.wide) - coarse).sub_((mean - coarse).to(self.wide))


def _condition(s: Tensor) -> float:
    """A lower bound of the condition number, infinite where s is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(s)
    pivots = factor.diagonal()
    return float("inf") if failed else float(pivots.max() / pivots.min()) ** 2


class GlobalTraceNorm(StreamedTraceNorm):
    """The same over the rows of all processes of a group; gradients are those of this process's rows.

    With `averaged` they are multiplied by the number of processes, which DistributedDataParallel divides them by.
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
        """`finish` where the headers are known to fit."""
        self.moments.reduce(self.group)
        value = super().finish()
        self.xx, self.xy, self.yy = (g * self.factor for g in (self.xx, self.xy, self.yy))
        return value
