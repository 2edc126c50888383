"""Batches for the triplet ops: every kind of labels, odd shapes, ties and duplicates."""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_ops import pack_labels

Batch = tuple[Tensor, Tensor, Tensor, Tensor]  # anchor, ref, anchor_labels, ref_labels

# m, n, d, classes: multiples of no tile, one class, all different, m ≠ n, one row, a depth beyond one panel.
SHAPES = [
    (37, 53, 7, 4),
    (101, 67, 33, 3),
    (64, 64, 200, 1),
    (50, 41, 5, 10**6),
    (70, 150, 17, 10),
    (1, 9, 3, 2),
    (9, 1, 1, 2),
    (33, 40, 600, 5),
]


def batch(m: int, n: int, d: int, classes: int, kind: str = "single", dtype: torch.dtype = torch.float64) -> Batch:
    """Random rows, of which some are repeated within and across the two sets."""
    anchor, ref = torch.randn(m, d, dtype=torch.float64), torch.randn(n, d, dtype=torch.float64)
    ref[: min(m, n) : 7] = anchor[: min(m, n) : 7]
    if n > 4:
        ref[n // 2] = ref[1]
    return anchor.to(dtype), ref.to(dtype), *labels(m, n, classes, kind)


def labels(m: int, n: int, classes: int, kind: str) -> tuple[Tensor, Tensor]:
    if kind == "single":
        return torch.randint(classes, (m,)), torch.randint(classes, (n,))
    # Some rows without any label; more classes than one word holds.
    return pack_labels(torch.rand(m, 70) < 0.02), pack_labels(torch.rand(n, 70) < 0.02)
