"""The emulated native module, and a schedule for it."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType

import pytest

from . import emulation


@pytest.fixture(scope="session")
def host() -> ModuleType:
    return emulation.module()


@pytest.fixture(params=[0, 1, 2], ids=["in order", "random 1", "random 2"])
def schedule(host: ModuleType, request: pytest.FixtureRequest) -> Iterator[int]:
    host.seed(request.param)
    yield request.param
    host.seed(0)
