"""Deep CCA losses of this package and of others, and what benchmarks of them share: data, a step, and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests import oracles
from xmodal_ops import trace_norm_loss
from xmodal_ops.ops.portable import trace_norm as portable

Loss = Callable[[Tensor, Tensor], Tensor]
RIDGE = 1e-3
OURS = "xmodal_ops"


def textbook_loss(x: Tensor, y: Tensor) -> Tensor:
    """Autograd through eigh and svdvals, in the dtype of the inputs: a paper's formula, written in torch."""
    return -oracles.trace_norm(x, y, RIDGE, RIDGE, min(x.shape[1], y.shape[1]))


def losses() -> dict[str, Loss]:
    """The candidates by name, ours first; cca_zoo if it is installed.

    cca_zoo's CCALoss minimises −‖T‖_F², another objective of the same cost.
    """
    found: dict[str, Loss] = {OURS: trace_norm_loss, "textbook": textbook_loss}
    try:
        from cca_zoo.deep.objectives import CCALoss
    except ImportError:
        return found
    loss = CCALoss()
    return {**found, "cca_zoo": lambda x, y: loss([x, y])}


def views(m: int, dx: int, dy: int, device: str = "cpu", seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two fp32 views with canonical correlations well inside (0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(m, max(dx, dy), generator=generator)
    x, y = (shared[:, :d] + torch.randn(m, d, generator=generator) for d in (dx, dy))
    return x.to(device), y.to(device)


def step(loss: Loss, x: Tensor, y: Tensor) -> Callable[[], None]:
    """Forward and backward, as in a training step."""
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()

    def run() -> None:
        x.grad = y.grad = None
        loss(x, y).backward()

    return run


def errors(loss: Loss, x: Tensor, y: Tensor, exact: Callable[..., Any] = portable.trace_norm) -> dict[str, float]:
    """The relative errors of a loss and of its gradient by x against the trace norm in fp64."""
    k = min(x.shape[1], y.shape[1])
    value, gradient, _ = exact(x.double(), y.double(), RIDGE, RIDGE, k, True, False)
    x = x.detach().requires_grad_()
    result = loss(x, y)
    (found,) = torch.autograd.grad(result, x)
    return {
        "value": float((-result.detach().double() - value).abs() / value.clamp_min(1e-6)),
        "gradient": float((found.double() + gradient).norm() / gradient.norm().clamp_min(1e-6)),
    }
