"""What deep CCA is computed with elsewhere: each a loss of two views, to be minimised."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

sys.path.append(str(Path(__file__).parents[1]))  # scripts run with bench/ as their path, not the root

from tests import oracles

Loss = Callable[[Tensor, Tensor], Tensor]
RIDGE = 1e-3


def textbook_loss(x: Tensor, y: Tensor) -> Tensor:
    """Autograd through eigh and svdvals, in the dtype of the inputs: what a paper's formula becomes in torch."""
    return -oracles.trace_norm(x, y, RIDGE, RIDGE, min(x.shape[1], y.shape[1]))


def cca_zoo_loss() -> Loss | None:
    """cca_zoo's CCALoss (it minimises −‖T‖_F², another objective of the same cost), if it is installed."""
    try:
        from cca_zoo.deep.objectives import CCALoss
    except ImportError:
        return None
    loss = CCALoss()
    return lambda x, y: loss([x, y])


def views(m: int, dx: int, dy: int, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two fp32 views with canonical correlations well inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(m, max(dx, dy), generator=generator)
    x, y = (shared[:, :d] + torch.randn(m, d, generator=generator) for d in (dx, dy))
    return x.to(device), y.to(device)
