"""What the trained two-view models share: embedding and files."""

from __future__ import annotations

from abc import abstractmethod
from os import PathLike
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from ..options import Options
from .branches import build

M = TypeVar("M", bound="TwoViewModel")


class TwoViewModel(nn.Module):
    """A model with a network for each view. Subclasses take both networks first, then `options` by keyword."""

    OPTIONS: ClassVar[type[Options]]
    NETWORKS: ClassVar[tuple[str, str]]  # attributes of the image and the text network

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the constructor, as plain data."""

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """The outputs (m, d) of both networks."""
        image_network, text_network = (getattr(self, name) for name in self.NETWORKS)
        return image_network(image), text_network(text)

    def embed_image(self, image: Tensor, *, batch_size: int = 1024) -> Tensor:
        """Images in the retrieval space, (m, k) float32, without gradients, in evaluation mode."""
        return self._embed(0, image, batch_size)

    def embed_text(self, text: Tensor, *, batch_size: int = 1024) -> Tensor:
        """Texts in the retrieval space, (m, k) float32, without gradients, in evaluation mode."""
        return self._embed(1, text, batch_size)

    @abstractmethod
    def _embed(self, side: int, items: Tensor, batch_size: int) -> Tensor: ...

    def save(self, path: str | PathLike[str]) -> None:
        """Writes the model to a file, with the specs of networks from this package."""
        specs = {name: getattr(getattr(self, name), "spec", None) for name in self.NETWORKS}
        torch.save({**specs, "options": self.options, "state": self.state_dict()}, path)

    @classmethod
    def load(
        cls: type[M],
        path: str | PathLike[str],
        *,
        map_location: str | torch.device = "cpu",
        **networks: nn.Module | None,
    ) -> M:
        """Reads a file that `save` wrote.

        Args:
            path: the file.
            map_location: the device of the model.
            networks: by name, the networks that are not from this package. Their weights are overwritten.

        Raises:
            ValueError: a network of your own is missing.
        """
        saved = torch.load(path, map_location=map_location, weights_only=True)
        if unknown := networks.keys() - set(cls.NETWORKS):
            raise TypeError(f"load takes {' and '.join(cls.NETWORKS)}, got {unknown.pop()}")
        parts: list[nn.Module] = []
        for name in cls.NETWORKS:
            network = networks.get(name)
            if network is None and saved[name] is None:
                kind = name.partition("_")[2]
                raise ValueError(f"{name} must be given: the file holds a model with a {kind} of your own")
            parts.append(build(saved[name]) if network is None else network)
        model = cls(*parts, **saved["options"])
        model.load_state_dict(saved["state"])
        return model.to(map_location)
