"""Deep CCA of images and text (Yan & Mikolajczyk, "Deep Correlation for Matching Images and Text", CVPR 2015)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .. import _checks
from .._arrays import Array, concatenate
from .._dtypes import HALVES, full_precision
from ..nn import TraceNormLoss
from ..options import DCCAOptions
from .branches import evaluation_mode
from .linear_cca import LinearCCA
from .two_view import TwoViewModel, as_items


class CCAHead(nn.Module):
    """A fitted linear CCA that `state_dict`, `.to(device)` and checkpoints include.

    Its tensors are no buffers, since a fit determines their shapes: averaged copies of a model, and whatever else
    copies buffers into buffers, would fail. A copy made before the fit stays unfitted. They have at least float32.
    """

    NAMES = ("x_mean", "y_mean", "x_weights", "y_weights", "correlations")
    x_mean: Tensor
    y_mean: Tensor
    x_weights: Tensor
    y_weights: Tensor
    correlations: Tensor

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        self._set(lambda _: torch.empty(0, dtype=torch.float32))

    def _set(self, value: Callable[[str], Tensor]) -> None:
        for name in self.NAMES:
            setattr(self, name, value(name))

    @property
    def fitted(self) -> bool:
        return self.correlations.numel() > 0

    def adopt(self, cca: LinearCCA) -> None:
        """Copies the solution of a fitted LinearCCA."""
        like = self.correlations
        self._set(lambda name: getattr(cca.solution, name).to(like.dtype).to(like.device).contiguous())

    def forward(self, side: int, features: Tensor) -> Tensor:
        """Canonical variates (m, k) of the features (m, d) of side 0 or 1, weighted by `correlations ** power`."""
        if not self.fitted:
            raise RuntimeError("the CCA head must be fitted before embedding: train, or call fit_cca(image, text)")
        mean, weights = (self.x_mean, self.x_weights) if side == 0 else (self.y_mean, self.y_weights)
        with full_precision(mean.device):
            return (features.to(mean) - mean) @ (weights * self.correlations**self.power)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> CCAHead:
        super()._apply(fn, recurse)

        def moved(name: str) -> Tensor:
            old = getattr(self, name)
            new = fn(old)
            return old.to(new.device) if new.dtype in HALVES else new

        self._set(moved)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.fitted:
            destination |= {prefix + name: getattr(self, name) for name in self.NAMES}

    def _load_from_state_dict(
        self,
        state: Mapping[str, Any],
        prefix: str,
        metadata: Any,
        strict: bool,
        missing: list[str],
        unexpected: list[str],
        errors: list[str],
    ) -> None:
        """Loads the tensors, of whatever shapes. A whole state (it has metadata) without any is that of no fit."""
        there = [name for name in self.NAMES if prefix + name in state]
        if not there and metadata:
            self._set(lambda name: getattr(self, name).new_empty(0))
        elif len(there) < len(self.NAMES):
            missing += [prefix + name for name in self.NAMES if name not in there and (there or self.fitted)]
        else:
            like = self.correlations
            self._set(lambda name: state[prefix + name].detach().to(like.dtype).to(like.device, copy=True))
        known = {prefix + name for name in self.NAMES}
        unexpected += [key for key in state if key.startswith(prefix) and key not in known]


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

    def fit_cca(self, image: Array, text: Array, *, batch_size: int = 1024) -> DCCA:
        """Fits the linear CCA to the outputs for the given pairs, in chunks: memory does not grow with their number.

        Args:
            image, text: m pairs, in any form that `embed_image` takes.
            batch_size: the number of pairs at a time.

        Raises:
            ValueError, TypeError: unequal numbers of pairs, or outputs that are not finite.
        """
        image, text = as_items("image", image), as_items("text", text)
        batch_size = _checks.positive("batch_size", batch_size)
        if len(image) != len(text):
            raise ValueError(f"text must have as many rows as image, {len(image)}, got {len(text)}")
        chunks: Iterable[tuple[Tensor, Tensor]] = zip(
            self._outputs(0, image, batch_size), self._outputs(1, text, batch_size)
        )
        self.head.adopt(LinearCCA(self.settings.top_k, ridge=self.settings.ridge).fit(chunks))
        return self

    @torch.no_grad()
    def _embed(self, side: int, items: Tensor, batch_size: int) -> Tensor:
        return concatenate((self.head(side, out) for out in self._outputs(side, items, batch_size)), len(items))

    @torch.no_grad()
    def _outputs(self, side: int, items: Tensor, batch_size: int) -> Iterator[Tensor]:
        branch = self.network(side)
        for chunk in items.split(batch_size):
            with evaluation_mode(branch):
                out: Tensor = branch(self.input(side, chunk))
            yield out
