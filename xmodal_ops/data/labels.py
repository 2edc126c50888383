"""What labels may be, stated once for pair files, published data sets and `retrieval.evaluate`.

Labels are (n,) classes, any integers or strings, or (n, C) of 0 and 1, any number of classes per item. The class -1, an
empty string and a row of zeros mark an item without a label.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .pairs import DataError

Array = npt.NDArray[Any]

STRINGS = "UST"  # kinds of dtypes


class Classes(NamedTuple):
    """Labels by class number."""

    numbers: list[Tensor]  # int64 (n,), -1 without a label, or bool (n, C), one for each array given
    names: list[str] | None  # None if the labels are the numbers themselves


def class_numbers(labels: Sequence[Any], names: Sequence[str] | None = None) -> Classes:
    """The class numbers 0..C-1 of the labels of all splits.

    Integers that are not 0..C-1 already, and strings, are numbered in ascending order.

    Args:
        labels: one array for each split, of anything that `np.asarray` reads.
        names: the class names, if they are given. Integers then are their positions, strings are among them.

    Raises:
        DataError: the labels are neither classes nor 0 and 1, or are not among the names.
    """
    arrays = [_array(a) for a in labels]
    if len({(a.ndim, a.dtype.kind in STRINGS) for a in arrays}) > 1:
        raise DataError("labels must be of one kind in all splits: strings, numbers, or columns of 0 and 1")
    if not arrays or arrays[0].ndim == 2:
        return Classes([torch.from_numpy(a.astype(np.bool_)) for a in arrays], list(names) if names else None)
    textual = arrays[0].dtype.kind in STRINGS
    missing = [a == ("" if textual else -1) for a in arrays]
    present = np.concatenate([a[~none] for a, none in zip(arrays, missing)])
    classes, number = np.unique(present, return_inverse=True)
    found: list[Any] = classes.tolist()
    if found == [1] and any(none.any() for none in missing):
        raise DataError("labels must not be -1 and 1 only: -1 marks items without a label; number the classes 0 and 1")
    if names is not None and found:
        index = {name: i for i, name in enumerate(names)} if textual else {i: i for i in range(len(names))}
        for a, none in zip(arrays, missing):
            for row in np.flatnonzero(~none):
                if (value := a[row].item()) not in index:
                    needed = "be among the classes" if textual else f"lie in 0..{len(names) - 1}"
                    raise DataError(f"labels must {needed}, got {value!r} in row {row}")
        number = np.array([index[value] for value in found], np.int64)[number]
    elif found != list(range(len(found))):
        names = [str(value) for value in found]
    ends = np.cumsum([int((~none).sum()) for none in missing])[:-1]
    out = []
    for none, part in zip(missing, np.split(number, ends)):
        numbers = np.full(len(none), -1, np.int64)
        numbers[~none] = part
        out.append(torch.from_numpy(numbers))
    return Classes(out, None if names is None else list(names))


def _array(labels: Any) -> Array:
    """(n,) strings or integers, or (n, C) of 0 and 1."""
    array = plain("labels", as_array("labels", labels))
    if array.ndim == 2 and array.shape[1] == 1 and array.dtype != np.bool_:
        array = array[:, 0]
    kinds = STRINGS * (array.ndim == 1) + "fiub"
    if array.dtype.kind not in kinds or array.ndim not in (1, 2) or 0 in array.shape[1:]:
        raise DataError(f"labels must be numbers (n,) or (n, C), or strings, got {array.dtype} {array.shape}")
    if array.dtype.kind in STRINGS:
        return np.char.strip(array.astype(np.str_))
    if array.ndim == 2:
        good = ((array == 0) | (array == 1)).all(1)
    else:
        good = np.isfinite(array) & (array == np.floor(array)) if array.dtype.kind == "f" else np.ones(len(array), bool)
    if not good.all():
        needed = "whole numbers" if array.ndim == 1 else "0 or 1 in every column"
        raise DataError(f"labels must be {needed}, got others in row {int(np.flatnonzero(~good)[0])}")
    if array.ndim == 2:
        return array
    if array.dtype.kind in "fu" and len(array) and (array.max() >= 2**63 or array.min() < -(2**63)):
        return np.array([int(value) for value in array.tolist()], object)
    return array.astype(np.int64)


def as_array(name: str, value: Any) -> Array:
    """What `np.asarray` reads, or a tensor of any device, as an array."""
    if isinstance(value, Tensor):
        if value.is_meta:
            raise DataError(f"{name} must hold values, got a meta tensor")
        value = value.detach().cpu()
    if np.ma.is_masked(value):
        raise DataError(f"{name} must not hold masked items")
    try:
        array = np.asarray(value)
    except Exception:  # a ragged list, an object whose __array__ fails
        raise DataError(f"{name} must be an array, got {type(value).__name__}") from None
    return array


def plain(name: str, array: Array) -> Array:
    """Strings or numbers from an array of objects, such as MATLAB's cells; other arrays as they are.

    Bytes are decoded and strings stripped. Cells of one value stand for that value; None, NaN beside strings, and empty
    cells for the empty string.

    Raises:
        DataError: an item is something else, or strings and numbers are mixed.
    """
    if array.dtype.kind == "S":
        array = array.astype(object)
    if array.dtype.kind != "O":
        return array
    values = [_item(name, row, value) for row, value in enumerate(array.ravel().tolist())]
    textual = [isinstance(value, str) for value in values]
    if any(textual) or not values:
        values = ["" if isinstance(value, float) and value != value else value for value in values]
        for value in values:
            if not isinstance(value, str):
                other = textual.index(True)
                raise DataError(f"{name} must not mix strings and numbers, got {values[other]!r} and {value!r}")
    try:
        return np.array(values, np.str_ if any(textual) or not values else None).reshape(array.shape)
    except (OverflowError, ValueError):
        raise DataError(f"{name} holds numbers that are too large") from None


def _item(name: str, row: int, value: Any) -> str | int | float | bool | complex:
    while isinstance(value, (np.ndarray, np.generic)) and not isinstance(value, (np.str_, np.bytes_)):
        if isinstance(value, np.ndarray) and value.size != 1:
            if value.size:
                raise DataError(f"{name} must hold one value per item, got {value.size} in row {row}")
            return ""
        if value.dtype.kind not in "OUSTbiufc":
            break
        value = value.item()
    if isinstance(value, (list, tuple)) and len(value) == 1:
        return _item(name, row, value[0])
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace").strip()
    if isinstance(value, str):
        return str(value).strip()
    if value is None or type(value).__name__ in ("NAType", "NaTType"):  # pandas
        return ""
    if isinstance(value, (bool, int, float, complex)):
        return value
    raise DataError(f"{name} must hold strings or numbers, got {type(value).__name__} in row {row}")
