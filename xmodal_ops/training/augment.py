"""Random transformations of small images that preserve their content."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from .._images import unit_range


def augment(x: Tensor, *, shift: float = 2, turn: float = 8, scale: float = 0.1) -> Tensor:
    """Applies a random affine map to each image, drawn from torch's global generator.

    Args:
        x: images (m, c, h, w), uint8 or floats in [0, 1].
        shift: largest translation in pixels, along either axis.
        turn: largest rotation, and largest shear, in degrees.
        scale: largest logarithm of the scale factor along either axis.

    Returns:
        Floats (m, c, h, w), interpolated bilinearly; pixels from outside the image are 0.
    """
    m, _, h, w = x.shape
    x = unit_range(x)

    def uniform(limit: float) -> Tensor:
        return (torch.rand(m, device=x.device) * 2 - 1) * limit

    angle, shear = uniform(math.radians(turn)), uniform(math.radians(turn))
    sx, sy = uniform(scale).exp(), uniform(scale).exp()
    rows = (
        (sx * angle.cos(), sx * (shear - angle.sin()), uniform(2 * shift / w)),
        (sy * angle.sin(), sy * angle.cos(), uniform(2 * shift / h)),
    )
    affine = torch.stack([torch.stack(row, 1) for row in rows], 1)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid.to(x.dtype), align_corners=False)
