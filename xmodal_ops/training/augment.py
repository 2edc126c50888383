"""Random changes of small pictures that leave their meaning alone."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def augment(x: Tensor, *, shift: float = 2, turn: float = 8, scale: float = 0.1) -> Tensor:
    """Pictures (m, c, h, w), each moved by up to ``shift`` pixels, turned and sheared by ``turn`` degrees, scaled.

    What comes in from outside the picture is 0. Bilinear; draws from torch's global generator.
    """
    m, _, h, w = x.shape
    x = x.float() / 255 if x.dtype == torch.uint8 else x

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
