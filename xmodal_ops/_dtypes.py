"""Precision policy in one place: accepted dtypes, accumulation dtypes, devices without fp64, autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

HALVES = (torch.float16, torch.bfloat16)
FLOATS = (torch.float64, torch.float32, *HALVES)
WITHOUT_FP64 = ("mps",)  # device types


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums, distances and losses: float32 for half inputs, the input's own otherwise."""
    return torch.float32 if dtype in HALVES else dtype


def widest_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without it."""
    return torch.float32 if device.type in WITHOUT_FP64 else torch.float64


def dtype_name(dtype: torch.dtype) -> str:
    """ "float32" for torch.float32."""
    return str(dtype).removeprefix("torch.")


def full_precision(device: torch.device) -> AbstractContextManager[Any]:
    """Disables autocast: the ops choose their own accumulation dtype."""
    if torch.is_autocast_enabled(device.type):
        return torch.autocast(device.type, enabled=False)
    return nullcontext()
