"""What tests and benchmarks share: errors, threads, live memory and graph capture."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

T = TypeVar("T")


def relative(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖ in fp64; NaN if any element is NaN."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-300))


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Sets the number of threads of torch and of the native ops."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages that ops have created and that are still alive; `peak` is the maximum.

    Unlike the resident set size, it does not depend on the allocator, which keeps pages, or on what ran before.
    """

    def __init__(self, *given: Tensor) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self.known = {t.untyped_storage()._cdata for t in given}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, Tensor) and (key := (storage := t.untyped_storage())._cdata) not in self.known:
                self.known.add(key)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _freed(self, key: int, size: int) -> None:
        self.known.discard(key)
        self.live -= size


def captured(step: Callable[[], T]) -> tuple[T, torch.cuda.CUDAGraph]:
    """Warms a step up on a stream of its own and captures it; returns its static result and the graph."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    return result, graph
