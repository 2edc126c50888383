"""Fixtures and data makers that all tests share."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import xmodal_ops.ops  # noqa: F401  registers torch.ops.xmodal


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def views(m: int, dx: int, dy: int, dtype: torch.dtype = torch.float64, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two views (m, dx), (m, dy) that share a latent signal."""
    z = torch.randn(m, max(dx, dy), dtype=torch.float64)
    x, y = (z[:, :d] + noise * torch.randn(m, d, dtype=torch.float64) for d in (dx, dy))
    return x.to(dtype), y.to(dtype)


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in fp64; NaN where anything is NaN."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-300))
