"""The feature projectors of ACMR, and the explicit feature maps that may precede them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from .. import _checks
from .._arrays import Array, as_floating
from .._dtypes import full_precision, widest
from ..options import FEATURES
from .branch import Branch, WideBuffers, check_features

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def additive_chi2(x: Tensor, *, steps: int = 3, interval: float = 0.5) -> Tensor:
    """Features whose inner products approximate the additive χ² kernel Σ 2xy / (x + y) of histograms.

    The map samples the kernel's spectrum sech(πλ) at λ = j * interval (Vedaldi & Zisserman, "Efficient Additive
    Kernels via Explicit Feature Maps", PAMI 2012, eq. 26).

    Args:
        x: histograms (m, d); negative values count as 0.
        steps: number of samples, j = 0, ..., steps - 1.
        interval: distance between samples.

    Returns:
        (m, (2 * steps - 1) * d).
    """
    x = x.clamp(min=0)
    log = x.clamp(min=torch.finfo(x.dtype).tiny).log()
    maps = [(x * interval).sqrt()]
    for j in range(1, steps):
        root = (2 * interval * x / math.cosh(math.pi * j * interval)).sqrt()
        maps += [root * (j * interval * log).cos(), root * (j * interval * log).sin()]
    return torch.cat(maps, 1)


class Projector(WideBuffers, Branch):
    """Fully connected layers with an activation after each, including the last.

    Maps (m, in_features) to (m, out_features), within -1..1 with tanh. The paper uses widths V -> 2000 -> 200 and tanh.

    Args:
        in_features, out_features: number of inputs and outputs.
        hidden: width of each hidden layer.
        activation: "tanh" or "relu".
        features: an explicit feature map before the layers, with the statistics of the rows given to `fit`:

            * "none": the inputs themselves.
            * "standard": zero mean and unit variance.
            * "sqrt", "chi2": the square roots (Hellinger kernel) or the additive χ² map of histograms, standardised.
            * "kernel": 10 K^(-1/2) (k(x, z₁), k(x, z₂), ...) with the exponential χ² kernel of histograms,
              k(x, z) = exp(-2 Σ (x - z)² / (x + z)), and its matrix K over the landmarks z (Nyström, computed through
              the additive map). Inner products approximate 100 k.
        dropout: probability of dropout after each hidden layer.
        input_dropout: probability of dropout after the feature map.
        members: number of parallel networks, an ensemble. They share `out_features` equally, and each has its own
            hidden layers.
        landmarks: number of landmarks of the "kernel" features.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: Sequence[int] = (2000,),
        activation: str = "tanh",
        features: str = "none",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        members: int = 1,
        landmarks: int = 0,
    ) -> None:
        super().__init__(
            in_features=in_features, out_features=out_features, hidden=list(hidden), activation=activation,
            features=features, dropout=dropout, input_dropout=input_dropout, members=members, landmarks=landmarks,
        )  # fmt: skip
        _checks.choice("features", features, FEATURES)
        _checks.choice("activation", activation, tuple(ACTIVATIONS))
        self.in_features, self.features = in_features, features
        width = 5 * in_features if features == "chi2" else in_features
        if features == "kernel":
            if landmarks < 1:
                raise ValueError(f"landmarks must be at least 1 with kernel features, got {landmarks}")
            width = landmarks
            self.register_buffer("landmarks", torch.zeros(landmarks, 5 * in_features))
            self.register_buffer("root", torch.zeros(landmarks, landmarks))
        else:
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("scale", torch.ones(width))
        if members < 1 or out_features % members:
            raise ValueError(f"members must divide out_features, {out_features}, got {members}")

        def network() -> nn.Sequential:
            layers: list[nn.Module] = [nn.Dropout(input_dropout)]
            for a, b in pairwise([width, *hidden, out_features // members]):
                layers += [nn.Linear(a, b), ACTIVATIONS[activation](), nn.Dropout(dropout)]
            return nn.Sequential(*layers[:-1])

        self.networks = nn.ModuleList(network() for _ in range(members))

    def _kernel(self, x: Tensor) -> Tensor:
        """Kernel values (m, landmarks) of the rows x, given as additive χ² features."""
        square = x.square().sum(1, keepdim=True) + self.landmarks.square().sum(1) - 2 * x @ self.landmarks.T
        return torch.exp(-2 * square.clamp(min=0))

    def _map(self, x: Tensor) -> Tensor:
        if self.features == "sqrt":
            return x.clamp(min=0).sqrt()
        return additive_chi2(x) if self.features == "chi2" else x

    @torch.no_grad()
    def fit(self, x: Array) -> None:
        """Sets the means and deviations, or the landmarks, from the rows of x (m, in_features), m >= 2.

        Raises:
            ValueError: x has fewer rows than there are landmarks.
        """
        x = as_floating("x", x)
        check_features(x, self.in_features)
        if self.features == "kernel":
            if len(x) < len(self.landmarks):
                raise ValueError(f"x must have at least as many rows as landmarks, {len(self.landmarks)}, got {len(x)}")
            chosen = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[: len(self.landmarks)]
            self.landmarks.copy_(additive_chi2(x[chosen].to(self.landmarks)))
            values, vectors = torch.linalg.eigh(widest(self._kernel(self.landmarks)))
            inverse = torch.where(values > 1e-5 * values[-1], values.clamp(min=1e-30).rsqrt(), 0.0)
            self.root.copy_(10 * vectors * inverse @ vectors.T)
        elif self.features != "none":
            deviation, mean = torch.std_mean(widest(self._map(x.to(self.mean))), 0)
            self.mean.copy_(mean)
            # A constant feature is not scaled; centring makes it 0.
            self.scale.copy_(torch.where(deviation > 1e-6 * (1 + mean.abs()), 1 / deviation, 1.0))

    mean: Tensor
    scale: Tensor
    landmarks: Tensor
    root: Tensor

    def forward(self, x: Tensor) -> Tensor:
        check_features(x, self.in_features)
        with full_precision(x.device):  # of the statistics; the layers have their own
            if self.features == "kernel":
                x = self._kernel(additive_chi2(x.to(self.root.dtype))) @ self.root
            else:
                x = (self._map(x.to(self.mean.dtype)) - self.mean) * self.scale
        x = x.to(next(self.networks.parameters()).dtype)
        return torch.cat([network(x) for network in self.networks], 1)
