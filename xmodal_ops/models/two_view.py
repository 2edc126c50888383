"""What the trained two-view models share: embedding and files."""

from __future__ import annotations

from abc import abstractmethod
from itertools import chain
from os import PathLike
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from .. import _checks
from .._arrays import Array, as_tensor
from .._images import unit_range
from ..options import Options
from .branch import Branch
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
        """The outputs (m, d) of both networks, in the wider of their floating types: autocast may make them differ."""
        u, v = (self.network(side)(self.input(side, x)) for side, x in enumerate((image, text)))
        dtype = torch.promote_types(u.dtype, v.dtype)
        return u.to(dtype), v.to(dtype)

    def network(self, side: int) -> nn.Module:
        """The network of images (side 0) or texts (side 1)."""
        network: nn.Module = getattr(self, self.NETWORKS[side])
        return network

    def input(self, side: int, x: Tensor) -> Tensor:
        """A batch as the network of a side takes it: on its device, in its floating type.

        Bytes in images (more than two axes) become floats in [0, 1]. Integers stay integers if the network has an
        embedding. The branches of this package convert types themselves.
        """
        network = self.network(side)
        own = list(chain(network.parameters(), network.buffers()))
        x = x.to(next((t.device for t in chain(own, self.parameters())), x.device))
        if isinstance(network, Branch):
            return x
        if x.dtype == torch.uint8 and x.ndim > 2:
            x = unit_range(x)
        if not x.is_floating_point() and any(isinstance(m, (nn.Embedding, nn.EmbeddingBag)) for m in network.modules()):
            return x
        default = x.dtype if x.is_floating_point() else torch.get_default_dtype()
        return x.to(next((t.dtype for t in own if t.is_floating_point()), default))

    def embed_image(self, image: Array, *, batch_size: int = 1024) -> Tensor:
        """Images in the retrieval space, without gradients, in evaluation mode.

        Args:
            image: m items, a tensor or whatever `np.asarray` reads, of any real type; bytes in images count as their
                255th part.
            batch_size: the number of items at a time.

        Returns:
            (m, k), on the device of the model; float32, or float64 from a float64 model.

        Raises:
            TypeError, ValueError: no array of real numbers.
        """
        return self._embed(0, as_items("image", image), _checks.positive("batch_size", batch_size))

    def embed_text(self, text: Array, *, batch_size: int = 1024) -> Tensor:
        """Texts in the retrieval space, as `embed_image` gives images."""
        return self._embed(1, as_items("text", text), _checks.positive("batch_size", batch_size))

    def embed(self, image: Array, text: Array, *, batch_size: int = 1024) -> tuple[Tensor, Tensor]:
        """Both views in the retrieval space."""
        return self.embed_image(image, batch_size=batch_size), self.embed_text(text, batch_size=batch_size)

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


def as_items(name: str, x: Array) -> Tensor:
    """A tensor of m items."""
    items = as_tensor(name, x)
    if items.ndim < 1:
        raise ValueError(f"{name} must have one row per item, got a single number")
    return items
