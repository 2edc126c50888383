"""Deep CCA of images and text (Yan & Mikolajczyk, "Deep Correlation for Matching Images and Text", CVPR 2015)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import TraceNormLoss
from ..options import DCCAOptions
from .branches import evaluation_mode
from .linear_cca import LinearCCA
from .two_view import TwoViewModel


class CCAHead(nn.Module):
    """A fitted linear CCA as buffers, so that `state_dict`, `.to(device)` and checkpoints include it."""

    NAMES = ("x_mean", "y_mean", "x_weights", "y_weights", "correlations")
    x_mean: Tensor
    y_mean: Tensor
    x_weights: Tensor
    y_weights: Tensor
    correlations: Tensor

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        for name in self.NAMES:  # empty until fitted: the branches determine the widths
            self.register_buffer(name, torch.empty(0))

    @property
    def fitted(self) -> bool:
        return self.correlations.numel() > 0

    def adopt(self, cca: LinearCCA) -> None:
        """Copies the solution of a fitted LinearCCA."""
        for name in self.NAMES:
            setattr(self, name, getattr(cca.solution, name).to(self.correlations.device, torch.float32).contiguous())

    def forward(self, side: int, features: Tensor) -> Tensor:
        """Canonical variates (m, k) of the features (m, d) of side 0 or 1, weighted by `correlations ** power`."""
        if not self.fitted:
            raise RuntimeError("the CCA head must be fitted before embedding: train, or call fit_cca(image, text)")
        mean, weights = (self.x_mean, self.x_weights) if side == 0 else (self.y_mean, self.y_weights)
        return (features.float() - mean) @ (weights * self.correlations**self.power)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.NAMES:
            if prefix + name in state:
                setattr(self, name, getattr(self, name).new_empty(state[prefix + name].shape))
        super()._load_from_state_dict(state, prefix, *rest)


class DCCA(TwoViewModel):
    """Two branches trained end to end for the largest total correlation of their outputs, and a linear CCA of those.

    `loss(image, text)` is the trace norm objective of a batch. After training, `fit_cca` computes the linear CCA of
    the outputs for the training pairs; `embed_image` and `embed_text` then give the retrieval space: canonical
    variates, weighted by their correlations, for comparison by cosine.

    Args:
        image_branch: any module that maps a batch to (m, d), such as `SmallCNN`, `AlexNet` or `MLP`.
        text_branch: the same for text, such as `TextBranch`.
        options: the fields of `xmodal_ops.options.DCCAOptions`: `ridge`, `top_k`, `power`. `top_k` also limits the
            components of the retrieval space; `power=0` leaves its variates at unit variance.

    Raises:
        ValueError: an option is out of range.

    A batch should hold several times as many pairs as the branches have outputs. With fewer, spurious correlations are
    close to 1 whatever the branches do.
    """

    OPTIONS = DCCAOptions
    NETWORKS = ("image_branch", "text_branch")

    def __init__(self, image_branch: nn.Module, text_branch: nn.Module, **options: Any) -> None:
        super().__init__()
        self.settings = DCCAOptions(**options)
        self.image_branch = image_branch
        self.text_branch = text_branch
        self.objective = TraceNormLoss(self.settings.ridge, self.settings.top_k)
        self.head = CCAHead(self.settings.power)

    @property
    def options(self) -> dict[str, Any]:
        return self.settings.to_dict()

    def loss(self, image: Tensor, text: Tensor) -> Tensor:
        """Minus the total correlation of a batch of pairs."""
        loss: Tensor = self.objective(*self(image, text))
        return loss

    def fit_cca(self, image: Tensor, text: Tensor, *, batch_size: int = 1024) -> DCCA:
        """Fits the linear CCA to the outputs for the given pairs, in chunks: memory does not grow with their number."""
        if len(image) != len(text):
            raise ValueError(f"text must have as many rows as image, {len(image)}, got {len(text)}")
        chunks: Iterable[tuple[Tensor, Tensor]] = zip(
            self._outputs(0, image, batch_size), self._outputs(1, text, batch_size)
        )
        self.head.adopt(LinearCCA(self.settings.top_k, ridge=self.settings.ridge).fit(chunks))
        return self

    @torch.no_grad()
    def _embed(self, side: int, items: Tensor, batch_size: int) -> Tensor:
        return torch.cat([self.head(side, out) for out in self._outputs(side, items, batch_size)])

    @torch.no_grad()
    def _outputs(self, side: int, items: Tensor, batch_size: int) -> Iterator[Tensor]:
        branch = (self.image_branch, self.text_branch)[side]
        for chunk in items.split(batch_size):
            with evaluation_mode(branch):
                out: Tensor = branch(chunk.to(self.head.correlations.device))
            yield out
