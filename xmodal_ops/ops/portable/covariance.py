"""Covariance in plain torch: S = XcᵀXc / (m − 1) + r I with Xc = X − mean, and its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from ..types import Covariance

# Width of the column blocks in which `gram` skips the upper triangle; narrower products are too slow to gain from it.
_BLOCK = 256


def center(
    x: Tensor,  # (m, d)
) -> tuple[Tensor, Tensor]:
    """The centred columns of x and their means, exact to rounding even if |mean| >> deviation."""
    coarse = x.mean(0)
    xc = x - coarse  # exact for nearby numbers, so the rounding error of the mean is the mean that remains
    rest = xc.mean(0)
    return xc.sub_(rest), coarse + rest


def gram(
    x: Tensor,  # (m, d)
) -> Tensor:
    """xᵀx (d, d); only the blocks on and below the diagonal are computed, the others mirrored."""
    d = x.shape[1]
    if d < 2 * _BLOCK:
        return x.mT @ x
    s = x.new_empty(d, d)
    for i in range(0, d, _BLOCK):
        stop = min(i + _BLOCK, d)
        rows = x[:, i:stop].mT @ x[:, :stop]
        s[i:stop, :stop] = rows
        s[:i, i:stop] = rows[:, :i].mT
    return s


def ridged(
    s: Tensor,  # (d, d)
    ridge: float,
) -> Tensor:
    """Adds the ridge to the diagonal of s, in place."""
    s.diagonal().add_(ridge)
    return s


def covariance(
    x: Tensor,  # (m, dx)
    y: Tensor | None,  # (m, dy)
    rx: float,
    ry: float,
) -> Covariance:
    """Moments of x and y with the ridges rx and ry on the diagonals."""
    wide = accumulation_dtype(x.dtype)
    xc, mean_x = center(x.to(wide))
    scale = 1.0 / (x.shape[0] - 1)
    xx = ridged(gram(xc).mul_(scale), rx)
    if y is None:
        return Covariance(xx, None, None, mean_x, None)
    yc, mean_y = center(y.to(wide))
    yy = ridged(gram(yc).mul_(scale), ry)
    return Covariance(xx, (xc.mT @ yc).mul_(scale), yy, mean_x, mean_y)


def covariance_backward(
    x: Tensor,  # (m, dx)
    y: Tensor | None,  # (m, dy)
    grad: Covariance,
) -> tuple[Tensor, Tensor | None]:
    """∂/∂X = (Xc (Gxx + Gxxᵀ) + Yc Gxyᵀ) / (m − 1) + Gmean_x / m, and the same with the views exchanged."""
    wide = accumulation_dtype(x.dtype)
    m = x.shape[0]
    scale = 1.0 / (m - 1)
    xc, _ = center(x.to(wide))
    gx = torch.addmm(grad.mean_x / m, xc, grad.xx + grad.xx.mT, alpha=scale)
    if y is None:
        return gx.to(x.dtype), None
    assert grad.xy is not None and grad.yy is not None and grad.mean_y is not None
    yc, _ = center(y.to(wide))
    gx.addmm_(yc, grad.xy.mT, alpha=scale)
    gy = torch.addmm(grad.mean_y / m, yc, grad.yy + grad.yy.mT, alpha=scale).addmm_(xc, grad.xy, alpha=scale)
    return gx.to(x.dtype), gy.to(y.dtype)
