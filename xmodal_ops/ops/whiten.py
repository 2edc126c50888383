"""Regularised whitening: schema, autograd and the public function."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from .. import _checks
from .._dtypes import full_precision
from ._library import define
from .autograd import apply, differentiable_once
from .portable import whiten as portable

define("whiten", portable.whiten, lambda x, *_: torch.empty_like(x))
define("whiten_backward", portable.whiten_backward, lambda grad, x, *_: torch.empty_like(x))


class _Whiten(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, ridge: float, zca: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.options = ridge, zca
        w: Tensor = torch.ops.xmodal.whiten(x, ridge, zca)
        return w

    @staticmethod
    @differentiable_once("whiten")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return torch.ops.xmodal.whiten_backward(grad.contiguous(), x, *ctx.options), None, None


def whiten(x: Tensor, *, ridge: float = 1e-3, method: Literal["cholesky", "zca"] = "cholesky") -> Tensor:
    """Centres x and gives its columns unit covariance: W = (x − mean) A, A (S + ridge·I) Aᵀ = I.

    Args:
        x: (m, d); fp64, fp32, bf16 or fp16 (then accumulated in fp32).
        ridge: added to the diagonal of the covariance S, which divides by m − 1; in squared units of x.
        method: "cholesky" takes A = L⁻ᵀ with S + ridge·I = L Lᵀ (fastest); "zca" takes the symmetric inverse root, the
            whitening that changes x the least.

    Returns:
        (m, d) of x's dtype. WᵀW / (m − 1) = I − ridge·A Aᵀ to rounding, unlike the few Newton steps of IterNorm.
        Differentiable once; gradients are finite for repeated eigenvalues and dead columns.

    Raises:
        ValueError, TypeError: as `covariance`; ValueError for an unknown method.

    Time O(m d² + d³), memory O(m d + d²). fp32 inputs are computed in fp64 if S is too ill conditioned for fp32 on the
    CPU; on CUDA, always for "zca" and never for "cholesky".
    """
    _checks.matrix("x", x)
    if method not in ("cholesky", "zca"):
        raise ValueError(f'method must be "cholesky" or "zca", got {method!r}')
    if isinstance(ridge, (tuple, list)):
        raise TypeError("ridge must be a number, got a sequence")
    r, _ = _checks.ridges(ridge)
    with full_precision(x.device):
        w: Tensor = apply(_Whiten, x, r, method == "zca")
        return w
