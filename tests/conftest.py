"""Fixtures and data that all tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

import xmodal_ops.ops  # noqa: F401  registers torch.ops.xmodal
from tests.helpers import relative, threads  # noqa: F401  relative: for the tests

SMALL = {"host", "models", "training"}  # folders of tests whose tensors are too small to gain from threads


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


@pytest.fixture(autouse=True)
def _one_thread(request: pytest.FixtureRequest) -> Iterator[None]:
    with threads(1 if request.path.parent.name in SMALL else torch.get_num_threads()):
        yield


def views(m: int, dx: int, dy: int, dtype: torch.dtype = torch.float64, noise: float = 1.0) -> tuple[Tensor, Tensor]:
    """Two views (m, dx), (m, dy) that share a latent signal."""
    z = torch.randn(m, max(dx, dy), dtype=torch.float64)
    x, y = (z[:, :d] + noise * torch.randn(m, d, dtype=torch.float64) for d in (dx, dy))
    return x.to(dtype), y.to(dtype)
