"""Covariance in plain torch: S = XcᵀXc / (m − 1) + r I, with Xc = X − mean."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Covariance(NamedTuple):
    """Second moments of one or two views: xx (dx, dx), xy (dx, dy), yy (dy, dy), and the column means."""

    xx: Tensor
    xy: Tensor | None
    yy: Tensor | None
    mean_x: Tensor
    mean_y: Tensor | None


def center(x: Tensor) -> tuple[Tensor, Tensor]:
    """The centred columns of x and their means, exact to rounding even where |mean| >> deviation."""
    mean = x.mean(0, dtype=torch.float64) if x.dtype == torch.float32 else x.mean(0)
    coarse = mean.to(x.dtype)
    # x − coarse is exact for nearby numbers; what rounding took from the mean is subtracted after it.
    return (x - coarse) - (mean - coarse).to(x.dtype), coarse


def covariance(x: Tensor, y: Tensor | None, rx: float, ry: float) -> Covariance:
    """Moments of x (m, dx) and y (m, dy) with the ridges rx and ry on the diagonals."""
    xc, mean_x = center(x)
    scale = 1.0 / (x.shape[0] - 1)
    xx = _ridged(xc.mT @ xc * scale, rx)
    if y is None:
        return Covariance(xx, None, None, mean_x, None)
    yc, mean_y = center(y)
    return Covariance(xx, xc.mT @ yc * scale, _ridged(yc.mT @ yc * scale, ry), mean_x, mean_y)


def _ridged(s: Tensor, ridge: float) -> Tensor:
    s.diagonal().add_(ridge)
    return s
