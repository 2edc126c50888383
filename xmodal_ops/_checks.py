"""Argument checks of the public functions. Messages are one line: the argument, what it must be, and what it is."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad

from ._dtypes import FLOATS, INTEGERS, dtype_name


def plain(name: str, x: Tensor) -> None:
    """Requires a dense local tensor: not sparse, nested, masked or distributed, and without a forward-mode tangent."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
    if type(x).__name__ in ("DTensor", "MaskedTensor"):
        raise TypeError(f"{name} must be a plain tensor, got a {type(x).__name__}")
    if x.is_nested or x.layout is not torch.strided:
        layout = "nested" if x.is_nested else str(x.layout).removeprefix("torch.")
        raise TypeError(f"{name} must be a dense tensor, got a {layout} one")
    if x.is_quantized:
        raise TypeError(f"{name} must not be quantized, got {dtype_name(x.dtype)}: dequantize it first")
    without_tangent(name, x)


def without_tangent(name: str, x: Tensor) -> None:
    """Refuses forward-mode differentiation, which no function of the package implements."""
    if not torch.compiler.is_compiling() and forward_ad.unpack_dual(x).tangent is not None:
        raise TypeError(f"{name} must have no tangent, got one: forward-mode derivatives are not implemented")


def matrix(name: str, x: Tensor, min_rows: int = 2, batched: bool = False) -> None:
    """Requires a floating-point (m, d) matrix with m >= min_rows and d >= 1 or, if allowed, a batch (B, m, d)."""
    plain(name, x)
    if x.ndim != 2 and not (batched and x.ndim == 3):
        raise ValueError(f"{name} must have shape (m, d){' or (B, m, d)' * batched}, got {tuple(x.shape)}")
    if x.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {dtype_name(x.dtype)}")
    if x.ndim == 3 and x.shape[0] < 1:
        raise ValueError(f"{name} must hold at least one problem, got shape {tuple(x.shape)}")
    if x.shape[-2] < min_rows:
        raise ValueError(f"{name} must have at least {min_rows} rows, got {x.shape[-2]}")
    if x.shape[-1] < 1:
        raise ValueError(f"{name} must have at least one column, got shape {tuple(x.shape)}")


def same_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Requires the device of the other tensor."""
    if x.device != other.device:
        raise ValueError(f"{name} must be on the device of {other_name}, {other.device}, got {x.device}")


def promoted(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the wider dtype, as autocast leaves views in unequal ones; gradients have the dtypes that came."""
    if x.dtype == y.dtype:
        return x, y
    dtype = torch.promote_types(x.dtype, y.dtype)
    return x.to(dtype), y.to(dtype)


def pair(
    x: Tensor, y: Tensor, min_rows: int = 2, names: tuple[str, str] = ("x", "y"), batched: bool = False
) -> tuple[Tensor, Tensor]:
    """Requires two matrices (or, if allowed, batches) on one device with equal numbers of rows; returns `promoted`."""
    matrix(names[0], x, min_rows, batched)
    matrix(names[1], y, min_rows, batched)
    same_device(names[1], y, names[0], x)
    if x.shape[:-2] != y.shape[:-2]:
        raise ValueError(f"{names[1]} must have the batch of {names[0]}, {tuple(x.shape)}, got shape {tuple(y.shape)}")
    if x.shape[-2] != y.shape[-2]:
        raise ValueError(f"{names[1]} must have as many rows as {names[0]}, {x.shape[-2]}, got {y.shape[-2]}")
    return promoted(x, y)


def ridges(ridge: float | Sequence[float]) -> tuple[float, float]:
    """The ridges of both views, from a scalar or a pair."""
    values = tuple(ridge) if isinstance(ridge, Sequence) and not isinstance(ridge, str) else (ridge, ridge)
    if len(values) != 2:
        raise ValueError(f"ridge must be a number or a pair (rx, ry), got {len(values)} numbers")
    rx, ry = (number("ridge", r) for r in values)
    if not (rx >= 0 and ry >= 0):
        raise ValueError(f"ridge must be >= 0, got {ridge!r}")
    return rx, ry


def leading(top_k: int | None, dx: int, dy: int) -> int:
    """The number of canonical pairs that count; by default min(dx, dy)."""
    if top_k is None:
        return min(dx, dy)
    if isinstance(top_k, bool) or not isinstance(top_k, int):
        raise TypeError(f"top_k must be an int or None, got {type(top_k).__name__}")
    if not 1 <= top_k <= min(dx, dy):
        raise ValueError(f"top_k must lie in 1..{min(dx, dy)} (the smaller view's dimension), got {top_k}")
    return top_k


def labels(name: str, values: Tensor, rows_name: str, rows: Tensor) -> Tensor:
    """Requires labels of the m rows, and returns them in a form that the ops take. The one rule for labels:

    - (m,) integers of any width, or bool: a class per row, any numbers; returned as int64. -1 is a class like any other
      here, though pair files and `retrieval.evaluate` read it as "no label".
    - (m, C) bool, or 0 and 1 in any integer type but int64: multi-hot, several classes per row; returned as bool. The
      values are checked on the CPU only, as other devices would have to wait for it.
    - (m, words) int64: bit sets of `pack_labels`; returned as they are.
    """
    plain(name, values)
    kinds = "integers or bool of shape (m,), bool or 0/1 integers of shape (m, C), or int64 words of `pack_labels`"
    if values.dtype not in (torch.bool, *INTEGERS):
        raise TypeError(f"{name} must be {kinds}, got {dtype_name(values.dtype)}")
    if values.ndim not in (1, 2) or 0 in values.shape[1:]:
        raise ValueError(f"{name} must be {kinds}, got {dtype_name(values.dtype)} of shape {tuple(values.shape)}")
    if values.shape[0] != rows.shape[0]:
        raise ValueError(f"{name} must have one entry per row of {rows_name}, {rows.shape[0]}, got {values.shape[0]}")
    same_device(name, values, rows_name, rows)
    if values.ndim == 1 or values.dtype == torch.int64:
        return values.long()
    if values.dtype == torch.bool:
        return values
    wide = values.long()
    if _readable(wide) and bool((wide & ~1).any()):
        raise ValueError(f"{name} must be 0 or 1 in multi-hot labels, got {int(wide[(wide & ~1) != 0][0])}")
    return wide != 0


def _readable(x: Tensor) -> bool:
    """Whether Python may look at the values: of tensors on the CPU, while no graph is traced."""
    return x.device.type == "cpu" and not (torch.compiler.is_compiling() or isinstance(x, FakeTensor))


def same_labels(name: str, values: Tensor, other_name: str, other: Tensor) -> None:
    """Requires labels of the same form and number of classes as the other ones."""
    if values.dtype != other.dtype or values.shape[1:] != other.shape[1:]:
        raise ValueError(
            f"{name} must be of the kind of {other_name}, {dtype_name(other.dtype)} {tuple(other.shape)}, "
            f"got {dtype_name(values.dtype)} {tuple(values.shape)}"
        )


def same_width(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Requires the same number of columns."""
    if x.shape[1] != other.shape[1]:
        raise ValueError(f"{name} must have as many columns as {other_name}, {other.shape[1]}, got {x.shape[1]}")


def number(name: str, value: float) -> float:
    """Requires a real number, of Python or NumPy, and returns it as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def integer(name: str, value: int) -> int:
    """Requires an integer of Python or NumPy, and returns it as an int."""
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    return int(value)


def non_negative(name: str, value: float) -> float:
    """Requires a finite number >= 0, and returns it as a float."""
    number(name, value)
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and >= 0, got {value!r}")
    return float(value)


def positive(name: str, value: int) -> int:
    """Requires an int >= 1, and returns it."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
    return value


def choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Requires one of the choices."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def nonfinite_row(x: Tensor) -> int | None:
    """The index of the first row with NaN or infinity, if any. Waits for the device."""
    if x.sum().isfinite():  # NaN and infinity propagate through a sum: one pass, no temporaries
        return None
    rows = x.flatten(1).isfinite().all(1).logical_not().nonzero()
    return int(rows[0]) if len(rows) else None
