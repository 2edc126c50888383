"""Canonical correlations: schema, autograd and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks
from .._dtypes import accumulation_dtype, full_precision
from ._library import define
from .autograd import apply, differentiable_once
from .portable import canonical_correlations as portable


def _fake(x: Tensor, y: Tensor, rx: float, ry: float, top_k: int) -> Tensor:
    return x.new_empty(top_k, dtype=accumulation_dtype(x.dtype))


def _backward_fake(grad: Tensor, x: Tensor, y: Tensor, rx: float, ry: float) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), torch.empty_like(y)


define("canonical_correlations", portable.canonical_correlations, _fake)
define("canonical_correlations_backward", portable.canonical_correlations_backward, _backward_fake)


class _CanonicalCorrelations(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # (m, dx)
        y: Tensor,  # (m, dy)
        rx: float,
        ry: float,
        top_k: int,
    ) -> Tensor:
        ctx.save_for_backward(x, y)
        ctx.ridges = rx, ry
        sigma: Tensor = torch.ops.xmodal.canonical_correlations(x, y, rx, ry, top_k)
        return sigma

    @staticmethod
    @differentiable_once("canonical_correlations")
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        gx, gy = torch.ops.xmodal.canonical_correlations_backward(grad.contiguous(), x, y, *ctx.ridges)
        return gx, gy, None, None, None


def canonical_correlations(
    x: Tensor, y: Tensor, *, ridge: float | Sequence[float] = 1e-3, top_k: int | None = None
) -> Tensor:
    """The canonical correlations of two views, descending.

    Args:
        x: (m, dx), rows are samples; fp64, fp32, bf16 or fp16.
        y: (m, dy), the paired rows.
        ridge: added to the diagonals of the covariances (which divide by m − 1); a number or a pair (rx, ry).
        top_k: the number of correlations to return; by default all min(dx, dy).

    Returns:
        (top_k,) correlations in [0, 1), fp32 for half inputs. At most m − 1 of them are nonzero. Differentiable once;
        if two correlations coincide, the gradient of each alone is one of its subgradients, and finite.

    Raises:
        ValueError, TypeError: an argument is invalid, as in `trace_norm_loss`; the message names it.

    Time O(m d² + d³), or O(m² d + m³) if a view has m <= d (dual side). Hotelling, Biometrika 1936.
    """
    x, y = _checks.pair(x, y)
    rx, ry = _checks.ridges(ridge)
    k = _checks.leading(top_k, x.shape[1], y.shape[1])
    with full_precision(x.device):
        sigma: Tensor = apply(_CanonicalCorrelations, x, y, rx, ry, k)
        return sigma
