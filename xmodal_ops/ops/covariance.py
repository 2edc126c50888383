"""Joint covariance of two views: schema, autograd and the public function."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _C, _checks
from .._dtypes import accumulation_dtype, full_precision
from ._library import define, implement
from .autograd import apply, differentiable_once
from .portable import covariance as portable
from .types import Covariance

__all__ = ["Covariance", "covariance"]

Moments = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # the fields of Covariance; without y, those of y are empty


def _portable(x: Tensor, y: Tensor | None, rx: float, ry: float) -> Moments:
    s = portable.covariance(x, y, rx, ry)
    xy, yy, mean_y = (s.xx.new_empty(0) if t is None else t for t in (s.xy, s.yy, s.mean_y))
    return s.xx, xy, yy, s.mean_x, mean_y


def _portable_backward(
    x: Tensor, y: Tensor | None, gxx: Tensor, gxy: Tensor, gyy: Tensor, gmx: Tensor, gmy: Tensor
) -> tuple[Tensor, Tensor]:
    gx, gy = portable.covariance_backward(x, y, Covariance(gxx, gxy, gyy, gmx, gmy))
    return gx, x.new_empty(0) if gy is None else gy


def _empty(x: Tensor, y: Tensor | None, rx: float, ry: float) -> tuple[Tensor, ...]:
    """Uninitialised results."""
    dx, dtype = x.shape[1], accumulation_dtype(x.dtype)
    shapes: tuple[tuple[int, ...], ...] = (dx, dx), (0,), (0,), (dx,), (0,)
    if y is not None:
        dy = y.shape[1]
        shapes = (dx, dx), (dx, dy), (dy, dy), (dx,), (dy,)
    return tuple(x.new_empty(shape, dtype=dtype) for shape in shapes)


def _backward_fake(x: Tensor, y: Tensor | None, *grads: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(0) if y is None else torch.empty_like(y)


define("covariance", _portable, _empty)
define("covariance_backward", _portable_backward, _backward_fake)


class _NativeViews:
    """Arguments of the native CPU kernels; holds the tensors that they point to."""

    def __init__(self, x: Tensor, y: Tensor | None, backward: bool) -> None:
        self.dtype = accumulation_dtype(x.dtype)
        kept = [v.detach().to(self.dtype) for v in (x, y) if v is not None]
        kept = [v if v.stride(1) == 1 else v.contiguous() for v in kept]
        first, second = kept[0], kept[1] if len(kept) > 1 else None
        self.views = _C.Views(
            x=first.data_ptr(),
            y=0 if second is None else second.data_ptr(),
            m=first.shape[0],
            dx=first.shape[1],
            dy=0 if second is None else second.shape[1],
            x_stride=first.stride(0),
            y_stride=0 if second is None else second.stride(0),
            wide=self.dtype == torch.float64,
            threads=torch.get_num_threads(),
        )
        workspace = torch.empty(self.views.workspace_size(backward), dtype=torch.uint8)
        self.views.workspace = workspace.data_ptr()
        self.held = kept, workspace


@implement("covariance", "CPU", "C++")
def _cpu(x: Tensor, y: Tensor | None, rx: float, ry: float) -> tuple[Tensor, ...]:
    native = _NativeViews(x, y, backward=False)
    results = _empty(x, y, rx, ry)
    xx, xy, yy, mean_x, mean_y = (r.data_ptr() for r in results)
    _C.covariance(native.views, _C.CovarianceForward(rx=rx, ry=ry, xx=xx, xy=xy, yy=yy, mean_x=mean_x, mean_y=mean_y))
    return results


@implement("covariance_backward", "CPU", "C++")
def _cpu_backward(
    x: Tensor, y: Tensor | None, gxx: Tensor, gxy: Tensor, gyy: Tensor, gmx: Tensor, gmy: Tensor
) -> tuple[Tensor, Tensor]:
    native, m = _NativeViews(x, y, backward=True), x.shape[0]
    weights, offset = gxx + gxx.mT, gmx
    if y is not None:
        weights = torch.cat([torch.cat([weights, gxy], 1), torch.cat([gxy.mT, gyy + gyy.mT], 1)])
        offset = torch.cat([gmx, gmy])
    weights, offset = weights.div_(m - 1), offset / m
    gx, gy = torch.empty(x.shape, dtype=native.dtype), torch.empty((0,) if y is None else y.shape, dtype=native.dtype)
    gradient = _C.CovarianceBackward(
        weights=weights.data_ptr(), offset=offset.data_ptr(), grad_x=gx.data_ptr(), grad_y=gy.data_ptr()
    )
    _C.covariance_backward(native.views, gradient)
    return gx.to(x.dtype), gy.to(x.dtype)


def native(x: Tensor, y: Tensor, rx: float, ry: float) -> Covariance:
    """`portable.covariance` by the native kernels, for `Products`."""
    return Covariance(*_cpu(x, y, rx, ry))


def native_backward(x: Tensor, y: Tensor, grad: Covariance) -> tuple[Tensor, Tensor]:
    assert grad.xy is not None and grad.yy is not None and grad.mean_y is not None
    return _cpu_backward(x, y, grad.xx, grad.xy, grad.yy, grad.mean_x, grad.mean_y)


class _Covariance(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor | None, rx: float, ry: float) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, y)
        return tuple(torch.ops.xmodal.covariance(x, y, rx, ry))

    @staticmethod
    @differentiable_once("covariance")
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.saved_tensors
        gx, gy = torch.ops.xmodal.covariance_backward(x, y, *(g.contiguous() for g in grads))
        return gx, None if y is None else gy, None, None


def covariance(x: Tensor, y: Tensor | None = None, *, ridge: float | Sequence[float] = 0.0) -> Covariance:
    """Covariance matrices and means of one view or two, in one pass.

    Args:
        x: (m, dx), rows are samples; fp64, fp32, bf16 or fp16.
        y: (m, dy), on the same device, or None.
        ridge: added to the diagonals of `xx` and `yy`; a number or a pair (rx, ry), in squared units of the data.

    Returns:
        Covariance(xx (dx, dx), xy (dx, dy), yy (dy, dy), mean_x (dx,), mean_y (dy,)), divided by m − 1, in the dtype
        of the inputs, fp32 for half inputs; the fields of y are None without y. Differentiable once in x and y.

    Raises:
        ValueError: a shape, a device or the ridge is invalid, or m < 2.
        TypeError: a dtype is invalid.

    Time O(m (dx + dy)²), memory O(m (dx + dy)). The means are subtracted before the products, so a common offset of 1e3
    costs no digits.
    """
    _checks.matrix("x", x)
    if y is not None:
        x, y = _checks.pair(x, y)
    rx, ry = _checks.ridges(ridge)
    with full_precision(x.device):
        parts = apply(_Covariance, x, y, rx, ry)
    if y is None:
        return Covariance(parts[0], None, None, parts[3], None)
    return Covariance(*parts)
