"""Canonical correlations one by one in plain torch, over `trace_norm.correlations`."""

from __future__ import annotations

import torch
from torch import Tensor

from ..._dtypes import accumulation_dtype
from .trace_norm import correlations


def canonical_correlations(
    x: Tensor,  # (m, dx)
    y: Tensor,  # (m, dy)
    rx: float,
    ry: float,
    top_k: int,
) -> Tensor:
    """The leading correlations, descending: (top_k,)."""
    weights = torch.ones(min(x.shape[1], y.shape[1]), dtype=accumulation_dtype(x.dtype), device=x.device)
    return correlations(x, y, rx, ry, weights, False, False)[0][:top_k].clone()


def canonical_correlations_backward(
    grad: Tensor,  # (top_k,)
    x: Tensor,
    y: Tensor,
    rx: float,
    ry: float,
) -> tuple[Tensor, Tensor]:
    """Always in fp64: a single singular pair is as sensitive as the gaps to its neighbours."""
    _, gx, gy = correlations(x.double(), y.double(), rx, ry, grad.double(), True, True)
    assert gx is not None and gy is not None
    return gx.to(x.dtype), gy.to(y.dtype)
