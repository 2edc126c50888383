"""The torch library `xmodal`: schemas of all ops, and the helpers that their implementations share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# The registrations live as long as this object.
LIBRARY = torch.library.Library("xmodal", "DEF")

WITHOUT_FP64 = {"mps"}

# Op → device → the path that serves it, for build_info().
OPS: dict[str, dict[str, str]] = {}


def _contiguous(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with contiguous results: compiled graphs rely on the strides that the fake announced."""

    def wrapped(*args: Any) -> Any:
        result = function(*args)
        return result.contiguous() if isinstance(result, torch.Tensor) else tuple(t.contiguous() for t in result)

    return wrapped


def _anywhere(portable: Callable[..., Any]) -> Callable[..., Any]:
    """The portable path on the CPU for devices that lack fp64 or LAPACK's decompositions."""

    def wrapped(*args: Any) -> Any:
        device = next(a.device for a in args if isinstance(a, torch.Tensor))
        if device.type not in WITHOUT_FP64:
            return portable(*args)
        result = portable(*(a.cpu() if isinstance(a, torch.Tensor) else a for a in args))
        return result.to(device) if isinstance(result, torch.Tensor) else tuple(t.to(device) for t in result)

    return wrapped


def define(schema: str, portable: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declares an op with its portable torch implementation (every device) and its shape function."""
    name = LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, _contiguous(_anywhere(portable)), "CompositeExplicitAutograd")
    torch.library.register_fake(f"xmodal::{name}", _contiguous(fake), lib=LIBRARY)
    OPS[name] = {"cpu": "torch", "cuda": "torch"}


def implement(name: str, function: Callable[..., Any], key: str, path: str) -> None:
    """Registers a faster implementation of an op for a dispatch key, "CPU" or "CUDA", described by `path`."""
    LIBRARY.impl(name, _contiguous(function), key)
    OPS[name][key.lower()] = path


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off where it is on: the ops choose their own accumulation type."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
