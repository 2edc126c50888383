"""Arrays of Python objects in npz files, read without running what a pickle says.

NumPy stores such an array, for example of strings in a data frame, as a pickle, and a pickle may call any function.
Here only the names of NumPy's own reconstruction are accepted, and each stands for a record of its arguments. What
remains are strings, numbers and None.
"""

from __future__ import annotations

import pickle
import re
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class _Record:
    """What the pickle says of a dtype, an array or a scalar: the arguments and the state, nothing else."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments
        self.state: Any = ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _DType(_Record):
    pass


class _Array(_Record):
    pass


def _encode(text: str, encoding: str = "latin1") -> bytes:
    return text.encode("latin1")


def _scalar(dtype: _DType, data: bytes) -> Any:
    kind, order = str(dtype.arguments[0]), str(dtype.state[1])
    if not re.fullmatch(r"[biufSU]\d{1,9}", kind) or order not in "<>|=" or not isinstance(data, bytes):
        raise pickle.UnpicklingError("a scalar of another kind")
    return np.frombuffer(data, np.dtype(order + kind)).item()


def _array(kind: type, shape: tuple[int, ...], code: bytes) -> _Array:
    return _Array()


_NAMES = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
} | {
    (f"numpy.{core}.multiarray", name): function
    for core in ("core", "_core")
    for name, function in (("_reconstruct", _array), ("scalar", _scalar))
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name}") from None

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("a reference to something outside the file")


def read(file: IO[bytes]) -> Array:
    """The array of objects in an npy file.

    Raises:
        pickle.UnpicklingError: the array holds objects of other types; the message names one.
    """
    version = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype != np.dtype(object):
        raise pickle.UnpicklingError(f"records of type {dtype}")
    record = _Unpickler(file).load()
    if not isinstance(record, _Array) or len(record.state) != 5 or not isinstance(record.state[4], list):
        raise pickle.UnpicklingError("no array")
    values = record.state[4]
    for value in values:
        if value is not None and not isinstance(value, (str, bytes, bool, int, float)):
            raise pickle.UnpicklingError(type(value).__name__.strip("_"))
    out = np.empty(len(values), object)
    out[:] = values
    return out.reshape(shape, order="F" if fortran else "C")
