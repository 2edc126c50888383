"""Regularised whitening: schema, autograd and the public function."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .. import _checks
from ._library import define, full_precision
from .portable import whiten as reference


def _backward_fake(grad: Tensor, x: Tensor, ridge: float, zca: bool) -> Tensor:
    return torch.empty_like(x)


def _forward_fake(x: Tensor, ridge: float, zca: bool) -> Tensor:
    return torch.empty_like(x)


define("whiten(Tensor x, float ridge, bool zca) -> Tensor", reference.whiten, _forward_fake)
define(
    "whiten_backward(Tensor grad, Tensor x, float ridge, bool zca) -> Tensor", reference.whiten_backward, _backward_fake
)


class _Whiten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ridge: float, zca: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = ridge, zca
        w: Tensor = torch.ops.xmodal.whiten(x, ridge, zca)
        return w

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return torch.ops.xmodal.whiten_backward(grad.contiguous(), x, *ctx.options), None, None


def whiten(x: Tensor, *, ridge: float = 1e-3, method: Literal["cholesky", "zca"] = "cholesky") -> Tensor:
    """Centres x and gives its columns unit covariance: W = (x − mean) A, A (S + ridge·I) Aᵀ = I.

    Args:
        x: (m, d); fp64, fp32, bf16 or fp16 (then accumulated in fp32).
        ridge: added to the diagonal of the covariance S, which divides by m − 1; in squared units of x.
        method: "cholesky" takes A = L⁻ᵀ with S + ridge·I = L Lᵀ (fastest); "zca" takes the symmetric inverse root, the
            whitening that moves x the least.

    Returns:
        (m, d) of x's dtype. WᵀW / (m − 1) = I − ridge·A Aᵀ up to rounding; exactly so, unlike IterNorm's few Newton
        steps. Differentiable once; repeated eigenvalues and dead columns have finite gradients.

    Raises:
        ValueError, TypeError: as `covariance`; ValueError for another method.

    O(m d² + d³) time, O(m d + d²) memory. fp32 moves to fp64 by itself where it is too ill conditioned: on
    the CPU where needed, on CUDA always for "zca" and never for "cholesky".
    """
    _checks.matrix("x", x)
    if method not in ("cholesky", "zca"):
        raise ValueError(f'method must be "cholesky" or "zca", got {method!r}')
    if isinstance(ridge, (tuple, list)):
        raise TypeError("ridge must be a number, got a sequence")
    r, _ = _checks.ridges(ridge)
    with full_precision(x.device):
        w: Tensor = _Whiten.apply(x, r, method == "zca")
        return w
