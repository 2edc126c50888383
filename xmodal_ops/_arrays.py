"""One reader of array-like arguments, for every public function that takes more than tensors."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._dtypes import dtype_name, widest_dtype

Array = Any  # a tensor, or what `as_tensor` reads


def as_tensor(name: str, x: Array) -> Tensor:
    """The numbers of `x` as a dense tensor without gradient, sharing memory if it can; the result is for reading only.

    Reads tensors and whatever `np.asarray` reads: arrays of any strides and byte order, read-only memory maps, data
    frames, lists (of tensors too), SciPy sparse matrices, arrays on a CUDA device. Tensors stay on their device. The
    types float16, float32, float64, bfloat16, bool, uint8 and signed integers are kept; wider floats and Python objects
    that are numbers become float64, wider unsigned integers int64.

    Args:
        name: of the argument, for messages.
        x: the array.

    Raises:
        TypeError: strings, dates, records, objects that are no numbers, quantised or nested tensors.
        ValueError: complex numbers, masked entries, or nested lists of unequal lengths.
    """
    if not isinstance(x, Tensor):
        if isinstance(x, (list, tuple)) and x and all(isinstance(row, Tensor) for row in x):
            x = _stack(name, x)
        elif hasattr(x, "__cuda_array_interface__"):
            x = torch.as_tensor(x)
        else:
            return _from_numpy(name, x)
    if x.is_nested or x.is_quantized:
        raise TypeError(f"{name} must be a plain tensor, got a {'nested' if x.is_nested else 'quantised'} one")
    if x.is_complex():
        raise _complex(name, dtype_name(x.dtype))
    x = x.detach()
    return x if x.layout == torch.strided else x.to_dense()


def as_floating(name: str, x: Array) -> Tensor:
    """`as_tensor`, with integers and booleans as float64 (float32 on devices without it)."""
    x = as_tensor(name, x)
    return x if x.is_floating_point() else x.to(widest_dtype(x.device))


def concatenate(chunks: Iterable[Tensor], rows: int) -> Tensor:
    """The rows of all chunks, in a tensor that is allocated with the first.

    `torch.cat` of a list would keep small results between the large blocks that every chunk frees, and so fragment the
    heap: memory would grow with the number of chunks.
    """
    whole: Tensor | None = None
    start = 0
    for chunk in chunks:
        whole = chunk.new_empty(rows, *chunk.shape[1:]) if whole is None else whole
        whole[start : start + len(chunk)] = chunk
        start += len(chunk)
    assert whole is not None
    return whole


def is_array(x: object) -> bool:
    """Whether `x` is an array by itself, unlike a list or an iterator: a tensor, array, data frame or sparse matrix."""
    return isinstance(x, Tensor) or any(hasattr(x, a) for a in ("__array__", "toarray", "__cuda_array_interface__"))


def columns(x: object) -> list[str] | None:
    """The column names of a data frame, if all of them are strings."""
    names = getattr(x, "columns", None)
    if names is None or isinstance(x, (Tensor, np.ndarray)) or hasattr(x, "toarray"):
        return None
    names = list(names)
    return names if names and all(isinstance(n, str) for n in names) else None


def _stack(name: str, rows: Any) -> Tensor:
    other = next((row for row in rows if row.shape != rows[0].shape), None)
    if other is not None:
        raise ValueError(f"{name} must have rows of one shape, got {tuple(rows[0].shape)} and {tuple(other.shape)}")
    return torch.stack([row.detach().to(rows[0].device) for row in rows])


def _from_numpy(name: str, x: Any) -> Tensor:
    needed = f"{name} must be an array of numbers"
    if isinstance(x, (str, bytes, dict, set, type(None))) and not hasattr(x, "toarray"):
        raise TypeError(f"{needed}, got {type(x).__name__}")
    try:
        array = np.asanyarray(x.toarray() if hasattr(x, "toarray") else x)
    except Exception as error:  # whatever `__array__` raises
        ragged = isinstance(x, (list, tuple))
        what = "a nested list of unequal lengths" if ragged else f"{type(x).__name__}, which NumPy cannot read"
        raise ValueError(f"{needed}, got {what}") from error
    if isinstance(array, np.ma.MaskedArray):
        if np.ma.is_masked(array):
            raise ValueError(f"{name} must have no masked entries, got {np.ma.count_masked(array)}: fill or drop them")
        array = array.data
    array = np.asarray(array)
    if array.dtype == np.object_:
        array = _numbers(name, array)
    if array.dtype.name == "bfloat16":  # of the package ml_dtypes, which JAX uses
        array = array.astype(np.float32)
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "c":
        raise _complex(name, str(array.dtype))
    if kind not in "fiub":
        raise TypeError(f"{needed}, got {'strings' if kind in 'SUT' else f'dtype {array.dtype}'}")
    if kind == "f" and size > 8:
        array = array.astype(np.float64)
    elif kind == "u" and size > 1:
        if size == 8 and array.size and array.max() > np.iinfo(np.int64).max:
            raise ValueError(f"{name} must hold integers below 2**63, got {array.max()}")
        array = array.astype(np.int64)
    elif not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.dtype.itemsize for stride in array.strides):  # torch takes no such strides
        array = array.copy()
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():  # nothing writes to the result
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)


def _numbers(name: str, array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Objects as float64, if all of them are real numbers; None becomes NaN."""
    for value in array.flat:
        if isinstance(value, (complex, np.complexfloating)):
            raise _complex(name, type(value).__name__)
        if isinstance(value, (str, bytes)):
            raise TypeError(f"{name} must be an array of numbers, got strings")
    try:
        return array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers, got an object array ({error})") from None


def _complex(name: str, dtype: str) -> ValueError:
    return ValueError(f"{name} must be real, got {dtype}: Complex data not supported")
