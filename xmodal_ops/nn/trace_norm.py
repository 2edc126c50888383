"""The trace norm objective as a layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .._checks import ridges
from ..ops.trace_norm import trace_norm_loss


class TraceNormLoss(nn.Module):
    """Module form of :func:`xmodal_ops.trace_norm_loss`: minus the total correlation of two batches.

    Parameters
        ridge: added to the diagonals of both covariances, absolute; a number or a pair (rx, ry).
        top_k: how many of the leading canonical correlations count; ``None`` counts all.

    Shapes: x (m, dx) and y (m, dy), rows being samples -> scalar in [−min(dx, dy), 0];
    x (B, m, dx) and y (B, m, dy) -> (B,).
    """

    def __init__(self, ridge: float | Sequence[float] = 1e-3, top_k: int | None = None) -> None:
        super().__init__()
        self.ridge = ridges(ridge)
        self.top_k = top_k

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return trace_norm_loss(x, y, ridge=self.ridge, top_k=self.top_k)

    def extra_repr(self) -> str:
        return f"ridge={self.ridge}, top_k={self.top_k}"
