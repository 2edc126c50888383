"""The branches of a two-view network: pictures, feature vectors, text. Each remembers what it was built from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, TypedDict

import torch
from torch import Tensor, nn


class BranchSpec(TypedDict):
    """All that is needed to build a branch anew; plain enough for JSON."""

    name: str
    arguments: dict[str, Any]


class Branch(nn.Module):
    """A module that maps a batch to (m, out_features)."""

    spec: BranchSpec

    def __init__(self, **arguments: Any) -> None:
        super().__init__()
        self.spec = {"name": type(self).__name__, "arguments": arguments}


def _unit(x: Tensor) -> Tensor:
    """Pictures in [0, 1]: bytes are scaled, floats taken as they are."""
    if x.ndim != 4:
        raise ValueError(f"image must have shape (m, channels, height, width), got {tuple(x.shape)}")
    return x.float() / 255 if x.dtype == torch.uint8 else x


class SmallCNN(Branch):
    """Convolution, batch norm, ReLU and 2×2 maximum, four times, then a fully connected layer.

    Input: pictures (m, in_channels, side, side), uint8 or floats in [0, 1], ``side`` a multiple of 16.
    ``width`` is the number of channels of the first stage; every stage doubles it.
    """

    def __init__(self, out_features: int, *, side: int = 32, in_channels: int = 1, width: int = 16) -> None:
        super().__init__(out_features=out_features, side=side, in_channels=in_channels, width=width)
        if side < 16 or side % 16:
            raise ValueError(f"side must be a positive multiple of 16, got {side}")
        widths = [in_channels, width, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for a, b in pairwise(widths):
            layers += [nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True)]
            layers += [nn.MaxPool2d(2)]
        self.features = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.output = nn.Linear(8 * width * (side // 16) ** 2, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = _unit(x).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.output(self.features(x).flatten(1))
        return out


class AlexNet(Branch):
    """The five convolutions and FC6, FC7, FC8 of AlexNet as in Caffe (Krizhevsky et al. 2012), for 227×227 RGB.

    The image branch of Yan & Mikolajczyk (CVPR 2015): the trace norm layer takes the place of the classifier on
    FC8. Input: pictures (m, 3, 227, 227), uint8 or floats in [0, 1].
    """

    def __init__(self, out_features: int = 1000, *, dropout: float = 0.5) -> None:
        super().__init__(out_features=out_features, dropout=dropout)

        def relu() -> nn.Module:
            return nn.ReLU(inplace=True)

        def norm() -> nn.Module:
            return nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)

        self.features = nn.Sequential(
            *(nn.Conv2d(3, 96, 11, stride=4), relu(), nn.MaxPool2d(3, 2), norm()),
            *(nn.Conv2d(96, 256, 5, padding=2, groups=2), relu(), nn.MaxPool2d(3, 2), norm()),
            *(nn.Conv2d(256, 384, 3, padding=1), relu()),
            *(nn.Conv2d(384, 384, 3, padding=1, groups=2), relu()),
            *(nn.Conv2d(384, 256, 3, padding=1, groups=2), relu(), nn.MaxPool2d(3, 2)),
        )
        self.fc6 = nn.Sequential(nn.Linear(256 * 6 * 6, 4096), relu(), nn.Dropout(dropout))
        self.fc7 = nn.Sequential(nn.Linear(4096, 4096), relu(), nn.Dropout(dropout))
        self.fc8 = nn.Linear(4096, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = _unit(x)
        if x.shape[1:] != (3, 227, 227):
            raise ValueError(f"image must have shape (m, 3, 227, 227), got {tuple(x.shape)}")
        x = (x - 0.45) / 0.25  # roughly the mean and deviation of natural pictures
        out: Tensor = self.fc8(self.fc7(self.fc6(self.features(x).flatten(1))))
        return out


class TextBranch(Branch):
    """Fully connected, ReLU, dropout, once for each entry of ``hidden``, and a fully connected output layer.

    Input: features (m, in_features), such as TF-IDF. With ``hidden=()`` it is a linear map.
    """

    def __init__(
        self, in_features: int, out_features: int, *, hidden: Sequence[int] = (512,), dropout: float = 0.5
    ) -> None:
        super().__init__(in_features=in_features, out_features=out_features, hidden=list(hidden), dropout=dropout)
        widths = [in_features, *hidden]
        triples = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*(layer for t in triples for layer in t), nn.Linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out


class MLP(TextBranch):
    """A :class:`TextBranch` on features that are first brought to zero mean and unit variance, for image features."""

    def __init__(
        self, in_features: int, out_features: int, *, hidden: Sequence[int] = (512,), dropout: float = 0.5
    ) -> None:
        super().__init__(in_features, out_features, hidden=hidden, dropout=dropout)
        self.norm = nn.BatchNorm1d(in_features, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.norm(x))


BRANCHES: dict[str, type[Branch]] = {kind.__name__: kind for kind in (SmallCNN, AlexNet, TextBranch, MLP)}


def build(spec: BranchSpec) -> Branch:
    """The branch that a spec describes, with fresh weights."""
    if spec["name"] not in BRANCHES:
        raise ValueError(f"branch name must be one of {', '.join(BRANCHES)}, got {spec['name']!r}")
    return BRANCHES[spec["name"]](**spec["arguments"])


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Puts a module into evaluation mode; afterwards every part has its own mode again."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
