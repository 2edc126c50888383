"""The branches of a two-view network, for images, feature vectors and text. Each records how it was built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from .._images import unit_range
from .branch import Branch, BranchSpec, Standardisation, check_features
from .projector import Projector

__all__ = ["BRANCHES", "MLP", "AlexNet", "Branch", "BranchSpec", "SmallCNN", "TextBranch", "build"]


def _images(x: Tensor, like: Tensor, *shape: int) -> Tensor:
    """Checked images (m, *shape) in [0, 1], in the floating type of `like`."""
    if x.ndim != 4:
        raise ValueError(f"image must have shape (m, channels, height, width), got {tuple(x.shape)}")
    if x.shape[1:] != shape:
        raise ValueError(f"image must have shape (m, {', '.join(map(str, shape))}), got {tuple(x.shape)}")
    return unit_range(x).to(like.dtype)


class SmallCNN(Branch):
    """Four stages of convolution, batch norm, ReLU and 2x2 max pooling, then a fully connected layer.

    Input: images (m, in_channels, side, side), uint8 or floats in [0, 1].

    Args:
        out_features: number of outputs.
        side: height and width of the images, a multiple of 16.
        in_channels: channels of the images.
        width: channels of the first stage; every further stage doubles them.
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
        self.shape = in_channels, side, side
        self.features = nn.Sequential(*layers).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.output = nn.Linear(8 * width * (side // 16) ** 2, out_features)

    def forward(self, x: Tensor) -> Tensor:
        x = _images(x, self.output.weight, *self.shape).contiguous(memory_format=torch.channels_last)
        out: Tensor = self.output(self.features(x).flatten(1))
        return out


class AlexNet(Branch):
    """AlexNet as in Caffe (Krizhevsky et al. 2012): five convolutions and the layers FC6, FC7 and FC8.

    This is the image branch of Yan & Mikolajczyk (CVPR 2015), in which the trace norm layer replaces the classifier on
    FC8. Input: images (m, 3, 227, 227), uint8 or floats in [0, 1].

    Args:
        out_features: number of outputs of FC8.
        dropout: probability of dropout after FC6 and FC7.
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
        x = _images(x, self.fc8.weight, 3, 227, 227)
        x = (x - 0.45) / 0.25  # roughly the mean and standard deviation of natural images
        out: Tensor = self.fc8(self.fc7(self.fc6(self.features(x).flatten(1))))
        return out


class TextBranch(Branch):
    """Hidden layers (fully connected, ReLU, dropout) and a fully connected output layer.

    Input: features (m, in_features), such as TF-IDF.

    Args:
        in_features, out_features: number of inputs and outputs.
        hidden: width of each hidden layer; with `()` the branch is a linear map.
        dropout: probability of dropout after each hidden layer.
    """

    def __init__(
        self, in_features: int, out_features: int, *, hidden: Sequence[int] = (512,), dropout: float = 0.5
    ) -> None:
        super().__init__(in_features=in_features, out_features=out_features, hidden=list(hidden), dropout=dropout)
        self.in_features = in_features
        widths = [in_features, *hidden]
        triples = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(dropout)) for a, b in pairwise(widths)]
        self.layers = nn.Sequential(*(layer for t in triples for layer in t), nn.Linear(widths[-1], out_features))

    def forward(self, x: Tensor) -> Tensor:
        check_features(x, self.in_features)
        out: Tensor = self.layers(self._prepared(x).to(self.layers[-1].weight.dtype))  # type: ignore[arg-type]
        return out

    def _prepared(self, x: Tensor) -> Tensor:
        return x


class MLP(TextBranch):
    """A `TextBranch` for image features, preceded by standardisation to zero mean and unit variance."""

    def __init__(
        self, in_features: int, out_features: int, *, hidden: Sequence[int] = (512,), dropout: float = 0.5
    ) -> None:
        super().__init__(in_features, out_features, hidden=hidden, dropout=dropout)
        self.norm = Standardisation(in_features)

    def _prepared(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


BRANCHES: dict[str, type[Branch]] = {kind.__name__: kind for kind in (SmallCNN, AlexNet, TextBranch, MLP, Projector)}


def build(spec: BranchSpec) -> Branch:
    """The branch that `spec` describes, with new weights."""
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
