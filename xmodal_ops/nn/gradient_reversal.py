"""Gradient reversal (Ganin & Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * -ctx.scale, None


def gradient_reversal(x: Tensor, scale: float = 1.0) -> Tensor:
    """The identity, whose gradient is multiplied by −scale: what minimises a loss behind it maximises it before it.

    Args:
        x: floating, any shape.
        scale: λ >= 0. A negative one would let the gradient pass as it is; 0 stops it.

    Returns x, unchanged. No copy; O(size of x) in the backward pass.
    Raises TypeError where x is not a floating tensor, ValueError where scale is negative or not finite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, got {str(x.dtype)[6:]}")
    if not 0 <= scale < math.inf:
        raise ValueError(f"scale must be finite and >= 0, got {scale!r}")
    return _GradientReversal.apply(x, float(scale))


def reversal_schedule(progress: float, steepness: float = 10.0) -> float:
    """λ(p) = 2 / (1 + exp(−steepness·p)) − 1: from 0 at the start of a training, p = 0, to almost 1 at its end."""
    return 2 / (1 + math.exp(-steepness * progress)) - 1


class GradientReversal(nn.Module):
    """Module form of :func:`gradient_reversal`; ``scale`` may be set between steps."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return gradient_reversal(x, self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
