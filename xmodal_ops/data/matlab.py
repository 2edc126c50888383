"""MATLAB's files: versions 4 to 7 by SciPy, and 7.3, which is HDF5 with MATLAB's types as attributes.

Both give the same arrays: numbers, bool, strings from char arrays (one for each row), arrays of objects from cells, and
dense arrays from sparse ones. The fields of a struct are read as `struct/field`.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from .pairs import DataError

Array = npt.NDArray[Any]
Contents = dict[str, "Array | None"]

_NUMBERS = {"double", "single", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))}


def read(path: Path | IO[bytes], wanted: Callable[[str], bool]) -> Contents:
    """All arrays of a file by name; None for those that are not wanted."""
    import scipy.io

    try:
        variables = scipy.io.whosmat(path)
    except NotImplementedError:
        return _version_7_3(path, wanted)
    except TypeError:  # SciPy cannot list files with objects of newer classes, such as string and table
        return _one_by_one(path, wanted)
    load = [name for name, _, kind in variables if kind == "struct" or wanted(name)]
    values = scipy.io.loadmat(path, variable_names=load) if load else {}
    out: Contents = {}
    for name, _, kind in variables:
        if name.startswith("__"):  # the store of function handles and objects
            continue
        for key, value in _fields(name, values.get(name)):
            out[key] = _version_5(key, kind, value) if wanted(key) else None
    return out


def _unreadable(name: str, kind: str) -> DataError:
    what = {"function_handle": "function handle", "struct": "struct array"}.get(kind, f"{kind} object")
    advice = f"save cellstr({name})" if kind in ("string", "categorical") else "save numbers or a cell array of strings"
    return DataError(f"{name} is a MATLAB {what}, which cannot be read: {advice} instead")


def _fields(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """A variable, or the fields of a single struct."""
    if isinstance(value, np.ndarray) and value.dtype.names and value.size == 1 and type(value) is np.ndarray:
        for field in value.dtype.names:
            yield from _fields(f"{name}/{field}", value.item()[value.dtype.names.index(field)])
    else:
        yield name, value


def _version_5(name: str, kind: str, value: Any) -> Array:
    if hasattr(value, "toarray"):
        return np.asarray(value.toarray())
    if kind == "function" or type(value).__name__ == "MatlabFunction":
        raise _unreadable(name, "function_handle")
    if not isinstance(value, np.ndarray) or value.dtype.names or type(value) is not np.ndarray:
        raise _unreadable(name, str(getattr(value, "classname", "struct")))
    return value.astype(np.bool_) if kind == "logical" else value


def _one_by_one(path: Path | IO[bytes], wanted: Callable[[str], bool]) -> Contents:
    """The variables of a file as files of their own. SciPy calls objects None, and reads their names as fields."""
    import scipy.io
    from scipy.io.matlab import varmats_from_mat

    out: Contents = {}
    with open(path, "rb") if isinstance(path, Path) else nullcontext(path) as file:
        for name, part in varmats_from_mat(file):
            if name != "None":
                out |= read(io.BytesIO(part.getvalue()), wanted)
                continue
            value = scipy.io.loadmat(io.BytesIO(part.getvalue()))["None"]
            if not value.dtype.names:  # the store of all objects, which has no name
                continue
            name, _, kind, *_ = (v.decode("latin1") if isinstance(v, bytes) else v for v in value.ravel()[0].tolist())
            if wanted(name):
                raise _unreadable(name, kind)
            out[name] = None
    return out


def _version_7_3(path: Path | IO[bytes], wanted: Callable[[str], bool]) -> Contents:
    import h5py

    out: Contents = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Group) and "MATLAB_sparse" not in item.attrs:
            for key in item:
                visit(f"{name}/{key}", item[key])
        else:
            out[name] = _value(file, name, item) if wanted(name) else None

    with h5py.File(path, "r") as file:
        for name in file:
            if not name.startswith("#"):  # #refs# holds the contents of cells, #subsystem# those of objects
                visit(name, file[name])
    return out


def _class(item: Any) -> str:
    value = item.attrs.get("MATLAB_class", b"")
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


def _value(file: Any, name: str, item: Any) -> Array:
    """A variable or the content of a cell. Axes are stored in the opposite order."""
    import h5py

    kind = _class(item)
    if "MATLAB_sparse" in item.attrs:
        return _sparse(name, item, kind)
    if isinstance(item, h5py.Group) or "MATLAB_object_decode" in item.attrs:
        raise _unreadable(name, kind or "struct")
    if item.attrs.get("MATLAB_empty", 0):  # holds the shape
        dtype = {"char": np.dtype("U1"), "cell": np.dtype(object)}.get(kind, np.dtype(float))
        return np.empty([int(n) for n in np.ravel(item[()])], dtype)
    if item.dtype.kind == "O" and h5py.check_ref_dtype(item.dtype) is not None:
        references = np.asarray(item[()], object)
        cells = np.empty(references.shape, object)
        for place in np.ndindex(references.shape):
            if not references[place]:
                raise DataError(f"{name} holds a reference to nothing")
            cells[place] = _value(file, name, file[references[place]])
        return cells.T
    array = np.asarray(item[()]).T
    if kind == "char":
        return _char(name, array)
    if kind == "logical":
        return array.astype(np.bool_)
    if kind not in _NUMBERS | {""}:
        raise _unreadable(name, kind)
    return _complex(array)


def _complex(array: Array) -> Array:
    return array["real"] + 1j * array["imag"] if array.dtype.names == ("real", "imag") else array


def _sparse(name: str, item: Any, kind: str) -> Array:
    """A group of compressed sparse columns: data, ir (rows) and jc (where columns begin)."""
    import scipy.sparse

    columns = np.asarray(item["jc"][()], np.int64).ravel()
    data, rows = (np.asarray(item[key][()]).ravel() if key in item else np.zeros(0) for key in ("data", "ir"))
    data = _complex(data)
    shape = int(item.attrs["MATLAB_sparse"]), len(columns) - 1
    if not (len(rows) == len(data) == columns[-1] and (np.diff(columns) >= 0).all() and (rows < shape[0]).all()):
        raise DataError(f"{name} is a damaged sparse array")
    dense = scipy.sparse.csc_matrix((data, rows.astype(np.int64), columns), shape).toarray()
    return dense.astype(np.bool_) if kind == "logical" else dense


def _char(name: str, codes: Array) -> Array:
    """(rows,) strings of a char array (rows, characters) of UTF-16 code units."""
    if codes.ndim > 2 or codes.dtype.kind not in "ui":
        raise DataError(f"{name} must be a char array of one or two dimensions, got {codes.shape}")
    if codes.dtype.itemsize == 2:
        return np.array(
            [np.ascontiguousarray(row, "<u2").tobytes().decode("utf-16-le", "replace") for row in np.atleast_2d(codes)]
        )
    return np.array(["".join(map(chr, row)) for row in np.atleast_2d(codes).tolist()])
