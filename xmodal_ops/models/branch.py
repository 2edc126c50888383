"""The base class of branches, and what their layers share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypedDict

from torch import Tensor, nn

from .._dtypes import HALVES


class BranchSpec(TypedDict):
    """Class name and constructor arguments of a branch, in types that JSON can hold."""

    name: str
    arguments: dict[str, Any]


class Branch(nn.Module):
    """A module that maps a batch of m items to (m, out_features); `branches.build(spec)` builds it again.

    Inputs may have any real type: a branch converts them to that of its weights.
    """

    spec: BranchSpec

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.spec = {"name": type(self).__name__, "arguments": arguments}


def check_features(x: Tensor, width: int) -> None:
    """Requires features (m, width)."""
    if x.ndim != 2 or x.shape[1] != width:
        raise ValueError(f"features must have shape (m, {width}), got {tuple(x.shape)}")


class WideBuffers(nn.Module):
    """A module whose own buffers keep their precision in `.half()` and `.bfloat16()`: statistics would overflow there.

    They follow every other move, `.double()` included.
    """

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Any:
        before = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, wide in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype in HALVES and wide.dtype not in HALVES:
                self._buffers[name] = wide.to(moved.device)
        return self


class Standardisation(WideBuffers, nn.BatchNorm1d):
    """Zero mean and unit variance of features of any real type, without parameters."""

    def __init__(self, features: int) -> None:
        super().__init__(features, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.running_mean
        return super().forward(x if mean is None else x.to(mean.dtype))
