"""The base class of branches."""

from __future__ import annotations

from typing import Any, TypedDict

from torch import nn


class BranchSpec(TypedDict):
    """Class name and constructor arguments of a branch, in types that JSON can hold."""

    name: str
    arguments: dict[str, Any]


class Branch(nn.Module):
    """A module that maps a batch of m items to (m, out_features); `branches.build(spec)` builds it again."""

    spec: BranchSpec

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.spec = {"name": type(self).__name__, "arguments": arguments}
