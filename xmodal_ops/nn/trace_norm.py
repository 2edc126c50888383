"""The trace norm objective as a layer."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .._checks import ridges
from ..ops.trace_norm import trace_norm_loss
from .loss_module import LossModule


class TraceNormLoss(LossModule):
    """Module form of `xmodal_ops.trace_norm_loss`; the attribute `ridge` is a pair."""

    function = staticmethod(trace_norm_loss)
    ridge: tuple[float, float]

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.ridge = ridges(self.ridge)

    def forward(
        self,
        x: Tensor,  # (m, dx) or (B, m, dx)
        y: Tensor,  # (m, dy) or (B, m, dy)
    ) -> Tensor:
        loss: Tensor = self.function(x, y, **self.options())
        return loss
