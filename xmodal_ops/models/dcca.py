"""Deep CCA of pictures and text (Yan & Mikolajczyk, "Deep Correlation for Matching Images and Text", CVPR 2015)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import TraceNormLoss
from .branches import build
from .linear_cca import LinearCCA


class CCAHead(nn.Module):
    """A fitted linear CCA as buffers: it travels with ``state_dict``, ``.to(device)`` and checkpoints."""

    NAMES = ("x_mean", "y_mean", "x_weights", "y_weights", "correlations")
    x_mean: Tensor
    y_mean: Tensor
    x_weights: Tensor
    y_weights: Tensor
    correlations: Tensor

    def __init__(self, power: float = 1.0) -> None:
        super().__init__()
        self.power = power
        for name in self.NAMES:  # empty until fitted: the widths are the branches' own
            self.register_buffer(name, torch.empty(0))

    @property
    def fitted(self) -> bool:
        return self.correlations.numel() > 0

    def adopt(self, cca: LinearCCA) -> None:
        """Takes over the fit of a LinearCCA."""
        for name in self.NAMES:
            setattr(self, name, getattr(cca.solution, name).to(self.correlations.device, torch.float32).contiguous())

    def forward(self, view: str, features: Tensor) -> Tensor:
        """Canonical variates of one view's features, each weighted by its correlation to the given power."""
        if not self.fitted:
            raise RuntimeError("the CCA head must be fitted before embedding: train, or call fit_cca(image, text)")
        mean, weights = (self.x_mean, self.x_weights) if view == "image" else (self.y_mean, self.y_weights)
        return (features.float() - mean) @ (weights * self.correlations**self.power)

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *rest: Any) -> None:
        for name in self.NAMES:
            if prefix + name in state:
                setattr(self, name, getattr(self, name).new_empty(state[prefix + name].shape))
        super()._load_from_state_dict(state, prefix, *rest)


class DCCA(nn.Module):
    """Two branches trained end to end for the largest total correlation of their outputs, and a linear CCA of them.

    ``loss(image, text)`` is the trace norm objective of a batch. After training, :meth:`fit_cca` computes the linear
    CCA of the outputs of the training pairs; :meth:`embed_image` and :meth:`embed_text` then give the retrieval space:
    canonical variates, weighted by their correlations, to be compared by cosine.

    Parameters
        image_branch, text_branch: any modules that map a batch to (m, d); :class:`~xmodal_ops.models.SmallCNN`,
            :class:`~xmodal_ops.models.AlexNet`, :class:`~xmodal_ops.models.MLP` and
            :class:`~xmodal_ops.models.TextBranch` are supplied.
        ridge: of the covariances, in the objective and in the final CCA; a number, or a pair (image, text).
        top_k: how many leading correlations the objective counts, and the retrieval space keeps; ``None``: all.
        power: the exponent of the correlations as weights of the retrieval space; 0 leaves unit variances.

    A batch should hold several times as many pairs as the branches have outputs: the objective of a smaller one is
    near its maximum whatever the branches do.
    """

    def __init__(
        self,
        image_branch: nn.Module,
        text_branch: nn.Module,
        *,
        ridge: float | Sequence[float] = 1e-3,
        top_k: int | None = None,
        power: float = 1.0,
    ) -> None:
        super().__init__()
        self.image_branch = image_branch
        self.text_branch = text_branch
        self.objective = TraceNormLoss(ridge, top_k)
        self.head = CCAHead(power)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs of both branches."""
        return self.image_branch(image), self.text_branch(text)

    def loss(self, image: Tensor, text: Tensor) -> Tensor:
        """Minus the total correlation of a batch of pairs."""
        loss: Tensor = self.objective(*self(image, text))
        return loss

    def fit_cca(self, image: Tensor, text: Tensor, *, batch_size: int = 1024) -> DCCA:
        """Fits the linear CCA to the outputs for the given pairs, in chunks: memory does not grow with their number."""
        if len(image) != len(text):
            raise ValueError(f"text must have as many rows as image, {len(image)}, got {len(text)}")
        chunks: Iterable[tuple[Tensor, Tensor]] = zip(
            self._outputs(self.image_branch, image, batch_size), self._outputs(self.text_branch, text, batch_size)
        )
        self.head.adopt(LinearCCA(self.objective.top_k, ridge=self.objective.ridge).fit(chunks))
        return self

    def embed_image(self, image: Tensor, *, batch_size: int = 1024) -> Tensor:
        """Images in the retrieval space, (m, k) float32, without gradients, in evaluation mode."""
        return self._embed("image", self.image_branch, image, batch_size)

    def embed_text(self, text: Tensor, *, batch_size: int = 1024) -> Tensor:
        """Texts in the retrieval space, (m, k) float32, without gradients, in evaluation mode."""
        return self._embed("text", self.text_branch, text, batch_size)

    @torch.no_grad()
    def _embed(self, view: str, branch: nn.Module, items: Tensor, batch_size: int) -> Tensor:
        return torch.cat([self.head(view, out) for out in self._outputs(branch, items, batch_size)])

    @torch.no_grad()
    def _outputs(self, branch: nn.Module, items: Tensor, batch_size: int) -> Iterator[Tensor]:
        for chunk in items.split(batch_size):
            with _evaluation(branch):
                out: Tensor = branch(chunk.to(self.head.correlations.device))
            yield out

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the model to a file, with the specs of supplied branches."""
        saved = {
            "image_branch": getattr(self.image_branch, "spec", None),
            "text_branch": getattr(self.text_branch, "spec", None),
            "options": {"ridge": self.objective.ridge, "top_k": self.objective.top_k, "power": self.head.power},
            "state": self.state_dict(),
        }
        torch.save(saved, path)

    @classmethod
    def load(
        cls,
        path: str | PathLike[str],
        *,
        image_branch: nn.Module | None = None,
        text_branch: nn.Module | None = None,
        map_location: str | torch.device = "cpu",
    ) -> DCCA:
        """Reads what :meth:`save` wrote. A branch that is not one of this package's must be handed in."""
        saved = torch.load(path, map_location=map_location, weights_only=True)
        branches: list[nn.Module] = []
        for name, branch in (("image_branch", image_branch), ("text_branch", text_branch)):
            if branch is None and saved[name] is None:
                raise ValueError(f"{name} must be given: the file holds a model with a branch of your own")
            branches.append(branch if branch is not None else build(saved[name]))
        model = cls(*branches, **saved["options"])
        model.load_state_dict(saved["state"])
        return model.to(map_location)


@contextmanager
def _evaluation(module: nn.Module) -> Iterator[None]:
    """A module in evaluation mode for a while."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
