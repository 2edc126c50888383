"""The emulated native module and its schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import ModuleType

import pytest
import torch
from torch import Tensor

from xmodal_ops.ops.cuda import driver

from . import emulation


@pytest.fixture(scope="session")
def host() -> ModuleType:
    return emulation.module()


@pytest.fixture(params=[0, 1], ids=["in order", "random"])
def schedule(host: ModuleType, request: pytest.FixtureRequest) -> Iterator[int]:
    host.seed(request.param)
    yield request.param
    host.seed(0)


@pytest.fixture
def emulated(host: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The drivers in xmodal_ops.ops.cuda call the emulated kernels, with CPU tensors."""
    monkeypatch.setattr(driver, "native", host.cuda)
    return host


@pytest.fixture(scope="session")
def fenced(host: ModuleType) -> Callable[[Tensor], Tensor]:
    """Copies a tensor to fenced memory: an access past its last element kills the process."""

    def copy(x: Tensor) -> Tensor:
        memory = host.fenced(x.numel() * x.element_size())
        return torch.frombuffer(memory, dtype=x.dtype).view(x.shape).copy_(x)

    return copy
