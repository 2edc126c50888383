"""The value range of images, stated once for data, branches and augmentation."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_range(x: Tensor) -> Tensor:
    """Images in [0, 1]: bytes become floats divided by 255, floats are returned as they are."""
    return x.float() / 255 if x.dtype == torch.uint8 else x
