"""The losses by their definitions, differentiable by autograd: oracles of the tests and baselines of the benchmarks.

The triplet losses visit every triplet, O(m³) in memory; the trace norm takes eigh and svdvals.
"""

from __future__ import annotations

import torch
from torch import Tensor

from xmodal_ops.ops.portable.pairs import positives, relations


def trace_norm(
    x: Tensor,  # (m, dx)
    y: Tensor,  # (m, dy)
    rx: float,
    ry: float,
    top_k: int,
) -> Tensor:
    """The sum of the leading canonical correlations."""

    def inverse_root(s: Tensor) -> Tensor:
        w, q = torch.linalg.eigh(s)
        return (q * w.rsqrt()) @ q.mT

    m = x.shape[0]
    xc, yc = x - x.mean(0), y - y.mean(0)
    eye_x, eye_y = (torch.eye(v.shape[1], dtype=v.dtype, device=v.device) for v in (x, y))
    t = (
        inverse_root(xc.mT @ xc / (m - 1) + rx * eye_x)
        @ (xc.mT @ yc / (m - 1))
        @ inverse_root(yc.mT @ yc / (m - 1) + ry * eye_y)
    )
    return torch.linalg.svdvals(t)[:top_k].sum()


def distances(
    anchor: Tensor,  # (m, d)
    ref: Tensor,  # (n, d)
) -> Tensor:
    """(m, n) distances, with the subgradient 0 at d = 0."""
    square = (anchor[:, None] - ref).square().sum(-1)
    apart = square > 0
    return torch.where(apart, square, 1.0).sqrt().where(apart, 0.0)


def structure_preserving(
    anchor: Tensor, ref: Tensor, anchor_labels: Tensor, ref_labels: Tensor, margin: float, gamma: float, reduction: str
) -> Tensor:
    """ACMR's L_imi, equations 4–6, over the triplets (i, j, k) of both directions."""

    def one_way(d: Tensor, same: Tensor) -> Tensor:
        triplet = same[:, :, None] & ~same[:, None, :]
        terms = d[:, :, None] + gamma * (margin - d[:, None, :]).relu()
        total = terms.where(triplet, 0.0).sum()
        return total / triplet.sum().clamp(min=1) if reduction == "mean" else total

    d, same = distances(anchor, ref), positives(anchor_labels, ref_labels)
    return one_way(d, same) + one_way(d.mT, same.mT)


def triplet_margin(
    anchor: Tensor,
    ref: Tensor,
    anchor_labels: Tensor,
    ref_labels: Tensor,
    margin: float,
    triplets: str,
    exclude_diagonal: bool,
) -> tuple[Tensor, Tensor]:
    """Per anchor (m,): the sum of max(0, margin + d_ap − d_an) over its triplets of a kind, and the number active."""
    same, other = relations(anchor_labels, ref_labels, exclude_diagonal)
    d = distances(anchor, ref)
    gap = d[:, None, :] - d[:, :, None]
    counts = same[:, :, None] & other[:, None, :] & (gap < margin)
    if triplets == "hard":
        counts &= gap < 0
    elif triplets == "semihard":
        counts &= gap >= 0
    return (margin - gap).where(counts, 0.0).sum((1, 2)), counts.sum((1, 2))
