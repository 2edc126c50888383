"""Gradient reversal (Ganin & Lempitsky, "Unsupervised Domain Adaptation by Backpropagation", ICML 2015)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from .._dtypes import dtype_name
from ..ops.autograd import apply


class _GradientReversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * -ctx.scale, None


def gradient_reversal(x: Tensor, scale: float = 1.0) -> Tensor:
    """The identity with a reversed gradient: layers after it minimise a loss that the layers before it maximise.

    Args:
        x: a floating-point tensor of any shape.
        scale: λ >= 0; the gradient is multiplied by −λ, and 0 stops it.

    Returns:
        x unchanged, not a copy. The backward pass takes O(size of x) time. Differentiable any number of times: the
        gradient of a penalty on gradients is reversed as well.

    Raises:
        TypeError: x is not a floating-point tensor.
        ValueError: scale is negative or not finite.
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a torch.Tensor, got {type(x).__name__}")
    _checks.without_tangent("x", x)
    if not x.is_floating_point():
        raise TypeError(f"x must be floating, got {dtype_name(x.dtype)}")
    return apply(_GradientReversal, x, _checks.non_negative("scale", scale))


def reversal_schedule(progress: float, steepness: float = 10.0) -> float:
    """λ(p) = 2 / (1 + exp(−steepness·p)) − 1: from 0 at the start of training (p = 0) to almost 1 at its end."""
    return 2 / (1 + math.exp(-steepness * progress)) - 1


class GradientReversal(nn.Module):
    """Module form of `gradient_reversal`; `scale` may be changed between steps."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return gradient_reversal(x, self.scale)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"
