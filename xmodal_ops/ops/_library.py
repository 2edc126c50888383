"""The torch library `xmodal`: schemas of all ops, and the helpers that their implementations share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

# The registrations live as long as this object.
LIBRARY = torch.library.Library("xmodal", "DEF")


def define(schema: str, portable: Callable[..., Any], fake: Callable[..., Any]) -> None:
    """Declares an op with its portable torch implementation (every device) and its shape function."""
    name = LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, portable, "CompositeExplicitAutograd")
    torch.library.register_fake(f"xmodal::{name}", fake, lib=LIBRARY)


def implement(name: str, function: Callable[..., Any], key: str) -> None:
    """Registers a faster implementation of an op for a dispatch key, "CPU" or "CUDA"."""
    LIBRARY.impl(name, function, key)


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Autocast switched off where it is on: the ops choose their own accumulation type."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
